"""Image + mask -> sketch: white lines (255) on black (0), `uint8 (H, W)`.

Styles: `contour` (outline of the mask, as the sketch course has it), `structure` (outline and inner edges), `hand` (any
sketch as a person would draw it). Lengths are shares of the picture's side, so a sketch means the same at every size.
"""

from functools import cache

import cv2
import numpy as np

STYLES = ("contour", "structure", "hand")
MAX_INK = 0.35  # share of a picture: a photograph or unevenly lit paper exceeds it, a line drawing does not


def sketch(
    image: np.ndarray, mask: np.ndarray | None, style: str, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Sketch of `image (H, W, 3) uint8` with `mask (H, W)` in {0, 1} in one of `STYLES`.

    `structure` works without a mask, `hand` draws the contour and needs `rng`. An empty mask gives an empty contour.
    Raises `ValueError` for an unknown style or a contour without a mask.
    """
    if style == "structure":
        return structure(image, mask)
    if style not in STYLES:
        raise ValueError(f"sketch style {style!r} is not one of {', '.join(STYLES)}")
    if mask is None:
        raise ValueError(f"a sketch of style {style!r} is drawn from the mask, and this picture has none")
    return contour(mask) if style == "contour" else hand_drawn(contour(mask), rng or np.random.default_rng(0))


# -------------------------------------------------------------------------------------------------------- contour


def stroke_width(shape: tuple[int, ...]) -> int:
    """Stroke width in pixels: 2 at 128 px, in proportion elsewhere."""
    return max(1, round(min(shape[:2]) / 64))


def fill(mask: np.ndarray) -> np.ndarray:
    """What the outline of a mask `(H, W)` in {0, 1} encloses, in {0, 1}: without its holes and crumbs."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    smallest = 1e-3 * mask.size  # crumbs of a hand-made mask are not a second lesion
    outlines = [o for o in outlines if cv2.contourArea(o) >= smallest] or outlines
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED)


def contour(mask: np.ndarray) -> np.ndarray:
    """Outline of a mask `(H, W)` in {0, 1}; closed along the frame where the lesion leaves the picture."""
    solid = 255 * fill(mask)
    width = stroke_width(mask.shape)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    # Beyond the frame counts as skin, so the outline runs along the frame instead of ending at it.
    return solid - cv2.erode(solid, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0)


# ----------------------------------------------------------------------------------------------------------- hair


def hair_mask(image: np.ndarray) -> np.ndarray:
    """Dark hairs in `image (H, W, 3) uint8` as `uint8 (H, W)` in {0, 1}.

    After DullRazor (Lee et al. 1997): a closing removes what is dark and thin; what it removed is hair if it also runs
    straight for a good stretch in some direction, which spares dots, lacunae, ridges and the meshes of a network.
    """
    side = min(image.shape[:2])
    grey = image.min(axis=2)  # brown hair on red skin is darkest in one of the channels
    thin = max(3, round(side / 20)) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thin, thin))
    dark = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, disc)
    lines = _straight(dark, side / 10)
    least = max(10.0, 2.5 * float(lines.mean()))
    hairs = (lines > least).astype(np.uint8)
    # A dark blob whose inside is streaky passes so far: thick in places, or dense all over.
    thick = cv2.morphologyEx(hairs, cv2.MORPH_OPEN, disc)
    hairs = _keep_long(hairs & ~cv2.dilate(thick, disc), side / 6, densest=0.18)
    # A net passes too, of many short pieces. Hairs bend, so only most of each has to be straight for longer.
    return _keep_marked(hairs, (_straight(dark, side / 5) > least) & (hairs > 0), share=0.4)


def _straight(dark: np.ndarray, length: float) -> np.ndarray:
    """What is left of dark lines `(H, W)` by openings with lines of `length` pixels, the best direction everywhere."""
    return np.max([cv2.morphologyEx(dark, cv2.MORPH_OPEN, line) for line in _lines(max(7, round(length)) | 1)], axis=0)


def _keep_marked(binary: np.ndarray, marks: np.ndarray, share: float) -> np.ndarray:
    """The connected pieces of `binary (H, W)` of which at least `share` is marked."""
    pieces = cv2.connectedComponents(binary, connectivity=8)[1].ravel()
    keep = np.bincount(pieces, marks.ravel()) >= share * np.bincount(pieces)
    return (keep[pieces].reshape(binary.shape) & (binary > 0)).astype(np.uint8)


@cache
def _lines(length: int, directions: int = 12) -> list[np.ndarray]:
    """Line elements `(length, length)` in evenly spread directions."""
    reach, lines = length // 2, []
    for angle in np.arange(directions) * np.pi / directions:
        line = np.zeros((length, length), np.uint8)
        dx, dy = round(reach * np.cos(angle)), round(reach * np.sin(angle))
        lines.append(cv2.line(line, (reach - dx, reach - dy), (reach + dx, reach + dy), 1))
    return lines


def _keep_long(binary: np.ndarray, shortest: float, densest: float = 1.0) -> np.ndarray:
    """The connected pieces of `binary (H, W)` at least `shortest` pixels from end to end that fill no more than
    `densest` of the square over that length: a line across a picture fills little of it, a blob much."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    length = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    keep = (length >= shortest) & (stats[:, cv2.CC_STAT_AREA] <= densest * length**2)
    keep[0] = False  # the background
    return np.where(keep[pieces], binary, 0).astype(np.uint8)


def remove_hair(image: np.ndarray) -> np.ndarray:
    """`image (H, W, 3) uint8` with dark hairs painted over from their surroundings."""
    hairs = hair_mask(image)
    if not hairs.any():
        return image
    radius = stroke_width(image.shape)
    wider = cv2.dilate(hairs, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))  # with the hair's soft edge
    return cv2.inpaint(image, wider, 2 * radius, cv2.INPAINT_TELEA)


# ------------------------------------------------------------------------------------------------------ structure


def structure(image: np.ndarray, mask: np.ndarray | None = None, method: str = "xdog") -> np.ndarray:
    """Contour and inner edges (`method` "xdog" or "canny") of `image (H, W, 3) uint8`, hair removed first.

    Edges are kept where the lesion is; without a mask they are taken from the whole picture.
    """
    grey = cv2.cvtColor(remove_hair(image), cv2.COLOR_RGB2GRAY)
    edges = {"xdog": xdog, "canny": canny}[method](grey)
    shortest = min(grey.shape) / 16
    if mask is None:
        # Nothing says where the lesion is: find its soft border too, and be stricter with small things.
        return _keep_long(cv2.max(edges, canny(grey, sigma=1 / 40)), 2.5 * shortest)
    # Just inside the outline the border itself would be drawn a second time.
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2 * stroke_width(mask.shape))
    return cv2.max(_keep_long(edges * inside, shortest), contour(mask))


def xdog(grey: np.ndarray, sigma: float = 1 / 128, floor: float = 0.007) -> np.ndarray:
    """Dark lines, dots and rims of `grey (H, W) uint8` by difference of Gaussians, `uint8 (H, W)` in {0, 255}.

    XDoG (Winnemöller et al. 2012) in its limit of strong sharpening, where only the difference counts. Its threshold is
    not one number: a line must stand out of the texture around it, and by at least `floor` of full scale, which keeps
    sensor noise on flat skin out. `sigma` is a share of the side.
    """
    scale = sigma * min(grey.shape)
    light = grey.astype(np.float32) / 255
    difference = cv2.GaussianBlur(light, (0, 0), scale) - cv2.GaussianBlur(light, (0, 0), 1.6 * scale)
    texture = np.sqrt(cv2.GaussianBlur(difference**2, (0, 0), 8 * scale))
    return 255 * ((difference < -0.8 * texture) & (difference < -floor)).astype(np.uint8)


def canny(grey: np.ndarray, sigma: float = 1 / 80) -> np.ndarray:
    """Edges by Canny (1986) with thresholds from the picture's own gradients, `uint8 (H, W)` in {0, 255}."""
    smooth = cv2.GaussianBlur(grey, (0, 0), sigma * min(grey.shape))
    across, down = (cv2.Sobel(smooth, cv2.CV_16S, dx, dy) for dx, dy in ((1, 0), (0, 1)))
    gradient = np.abs(across.astype(np.float32)) + np.abs(down)
    high = max(float(np.quantile(gradient, 0.93)), 24.0)
    return cv2.Canny(across, down, 0.5 * high, high)


# ------------------------------------------------------------------------------------------- hand, and new sketches


def hand_drawn(drawing: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """A sketch as a person draws it: lines that wander, swell, thin out and break; `strength` 0 changes nothing."""
    if strength <= 0:
        return drawing.copy()
    size = min(drawing.shape)
    wander = sum(smooth_noise(drawing.shape, n, rng, 2) * a for n, a in ((4, 0.012), (10, 0.006)))
    moved = _warp(drawing, _identity(drawing.shape) + strength * size * wander.astype(np.float32))
    thick = cv2.dilate(moved, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    thin = cv2.erode(moved, np.ones((2, 2), np.uint8)) if stroke_width(drawing.shape) > 1 else moved
    pressure, lift = smooth_noise(drawing.shape, 6, rng, 2).transpose(2, 0, 1)
    stroke = np.where(pressure > 0.7, thick, np.where(pressure < -0.7, thin, moved))
    # The pen leaves the paper where the second field peaks: a few gaps along a closed outline.
    return stroke * (lift < 2.2 - 0.5 * min(strength, 1.0)).astype(np.uint8)


def deform(mask: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """A new lesion's shape: the mask `(H, W)` in {0, 1} turned, zoomed, mirrored and bent smoothly at random.

    Its `contour` is a new sketch. A lesion that leaves the frame goes on beyond it, as far as one can know.
    """
    return _warp(mask, deformation(mask, rng, strength), cv2.BORDER_REPLICATE)


def deformation(mask: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Where each pixel of a deformed picture comes from: columns and rows, `float32 (H, W, 2)`, for `cv2.remap`."""
    size = min(mask.shape)
    rows, columns = np.nonzero(mask if mask.any() else np.ones_like(mask))
    centre = np.array([columns.mean(), rows.mean()])
    turn, zoom = strength * rng.uniform(-np.pi, np.pi), np.exp(strength * rng.uniform(-0.2, 0.2))
    mirror = np.diag([rng.choice([-1.0, 1.0]) if strength > 0 else 1.0, 1.0])
    matrix = mirror @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / zoom
    wander = sum(smooth_noise(mask.shape, n, rng, 2) * a for n, a in ((3, 0.022), (6, 0.006)))
    grid = (_identity(mask.shape) - centre) @ matrix.T + centre + strength * size * wander
    return grid.astype(np.float32)


def smooth_noise(shape: tuple[int, ...], cells: int, rng: np.random.Generator, channels: int) -> np.ndarray:
    """Gaussian noise `(H, W, channels)` of unit variance that changes about `cells` times along a side."""
    coarse = rng.standard_normal((cells + 3, cells + 3, channels)).astype(np.float32)
    fine = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return fine / max(float(fine.std()), 1e-6)


def _identity(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), axis=-1).astype(np.float32)


def _warp(picture: np.ndarray, grid: np.ndarray, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    """Binary pictures keep their two values: interpolated, then cut below half, so that thin lines survive."""
    brightest = int(picture.max())
    warped = cv2.remap(picture, grid, None, cv2.INTER_LINEAR, borderMode=border)
    return np.where(warped > 0.4 * brightest, brightest, 0).astype(np.uint8)

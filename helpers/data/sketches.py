"""Image and mask, or a user's drawing -> sketch: white lines (255) on black (0), `uint8 (H, W)`.

Styles: `contour` is the outline of the mask, as in the course's data set; `structure` adds edges inside the lesion.
`parse_drawing` reads what a user drew; `deform.py` makes new sketches. Lengths are fractions of the shorter side, so a
sketch looks the same at every resolution.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from helpers.data.files import DataError, read_image, strips, to_rgb

STYLES = ("contour", "structure")
INK_THRESHOLD = 25  # of 255; downscaling dims thin lines, so 10 % of white still counts as a line
MAX_INK = 0.35  # fraction of pixels that lines cover at most
MIN_CONTRAST = 8  # of 255, between ink and paper when the sheet is reduced to `VIEW` pixels; noise stays below it
EMPTY = "The drawing is empty: draw the outline of a lesion first."
VIEW = 256  # pixels of the longer side at which paper and ink are separated; noise of a scan averages out
XDOG_SIGMA = 1 / 128  # fraction of the shorter side
XDOG_MIN_CONTRAST = 0.007  # of full scale; suppresses sensor noise on flat skin


def sketch(image: np.ndarray, mask: np.ndarray | None, style: str) -> np.ndarray:
    """Sketch of `image (H, W, 3) uint8` with `mask (H, W)` in {0, 1}, in one of `STYLES`.

    `structure` works without a mask. The contour of an empty mask is empty.
    Raises `ValueError` for an unknown style, or style `contour` without a mask.
    """
    if style not in STYLES:
        raise ValueError(f"sketch style must be one of {', '.join(STYLES)}, got {style!r}")
    if style == "structure":
        return structure(image, mask)
    if mask is None:
        raise ValueError(f"sketch style {style!r} needs a mask, got None: use style 'structure'")
    return contour(mask)


# -------------------------------------------------------------------------------------------------------- contour


def stroke_width(shape: tuple[int, ...]) -> int:
    """Stroke width in pixels for an image of `shape` (H, W, ...): 1/64 of the shorter side, at least 1."""
    return max(1, round(min(shape[:2]) / 64))


def fill(mask: np.ndarray) -> np.ndarray:
    """Area enclosed by the outer outlines of a mask `(H, W)` in {0, 1}, in {0, 1}: without holes and specks."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    min_area = 1e-3 * mask.size  # specks of a manual mask are not a second lesion
    outlines = [outline for outline in outlines if cv2.contourArea(outline) >= min_area] or outlines
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED)


def contour(mask: np.ndarray) -> np.ndarray:
    """Outline of a mask `(H, W)` in {0, 1}, `uint8 (H, W)` in {0, 255}; closed along the image border where the lesion
    leaves the image."""
    filled = 255 * fill(mask)
    width = stroke_width(mask.shape)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    # Pixels outside the image count as skin, so the outline follows the image border instead of ending there.
    return filled - cv2.erode(filled, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0)


# ----------------------------------------------------------------------------------------------------------- hair


def hair_mask(image: np.ndarray) -> np.ndarray:
    """Dark hairs in `image (H, W, 3) uint8`, as `uint8 (H, W)` in {0, 1}.

    After DullRazor (Lee et al., *DullRazor: a software approach to hair removal from images*, 1997): a morphological
    closing finds dark, thin structures. Only those that are also long and straight are hair, unlike dots, lacunae,
    ridges and the mesh of a pigment network.
    """
    side = min(image.shape[:2])
    gray = image.min(axis=2)  # brown hair on red skin is darkest in one of the channels
    max_width = max(3, round(side / 20)) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max_width, max_width))
    thin_dark = cv2.morphologyEx(gray, cv2.MORPH_BLACKHAT, disc)
    straight = _line_opening(thin_dark, side / 10)
    threshold = max(10.0, 2.5 * float(straight.mean()))
    hairs = (straight > threshold).astype(np.uint8)
    # Dark blobs with a streaky interior pass so far: they are thick in places, or dense everywhere.
    thick = cv2.morphologyEx(hairs, cv2.MORPH_OPEN, disc)
    hairs = _keep_long(hairs & ~cv2.dilate(thick, disc), side / 6, max_density=0.18)
    # A mesh of many short pieces passes too. Hairs bend, so only 40 % of each must be straight over twice the length.
    return _keep_overlapping(hairs, (_line_opening(thin_dark, side / 5) > threshold) & (hairs > 0), min_fraction=0.4)


def _line_opening(image: np.ndarray, length: float) -> np.ndarray:
    """Maximum over all directions of the opening of `image (H, W)` with a line of `length` pixels."""
    elements = _line_elements(max(7, round(length)) | 1)
    return np.max([cv2.morphologyEx(image, cv2.MORPH_OPEN, element) for element in elements], axis=0)


@cache
def _line_elements(length: int) -> list[np.ndarray]:
    """Structuring elements `(length, length)`: lines in 12 evenly spaced directions."""
    radius, elements = length // 2, []
    for angle in np.arange(12) * np.pi / 12:
        element = np.zeros((length, length), np.uint8)
        dx, dy = round(radius * np.cos(angle)), round(radius * np.sin(angle))
        elements.append(cv2.line(element, (radius - dx, radius - dy), (radius + dx, radius + dy), 1))
    return elements


def _keep_overlapping(binary: np.ndarray, marker: np.ndarray, min_fraction: float) -> np.ndarray:
    """Connected components of `binary (H, W)` with at least `min_fraction` of their pixels in `marker (H, W)`."""
    components = cv2.connectedComponents(binary, connectivity=8)[1].ravel()
    keep = np.bincount(components, marker.ravel()) >= min_fraction * np.bincount(components)
    return (keep[components].reshape(binary.shape) & (binary > 0)).astype(np.uint8)


def _keep_long(binary: np.ndarray, min_length: float, max_density: float = 1.0) -> np.ndarray:
    """Connected components of `binary (H, W)` whose bounding box has a diagonal of at least `min_length` pixels and
    that fill at most `max_density` of the square over that diagonal: a line fills little of it, a blob much."""
    _, components, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    length = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    keep = (length >= min_length) & (stats[:, cv2.CC_STAT_AREA] <= max_density * length**2)
    keep[0] = False  # the background
    return np.where(keep[components], binary, 0).astype(np.uint8)


def remove_hair(image: np.ndarray) -> np.ndarray:
    """`image (H, W, 3) uint8` with dark hairs inpainted from their surroundings; itself if it has none."""
    hairs = hair_mask(image)
    if not hairs.any():
        return image
    radius = stroke_width(image.shape)
    dilated = cv2.dilate(hairs, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))  # includes the hair's soft edge
    return cv2.inpaint(image, dilated, 2 * radius, cv2.INPAINT_TELEA)


# ------------------------------------------------------------------------------------------------------ structure


def structure(image: np.ndarray, mask: np.ndarray | None = None, method: str = "xdog") -> np.ndarray:
    """Contour and inner edges of `image (H, W, 3) uint8`, `uint8 (H, W)` in {0, 255}; hair is removed first.

    `method` is the edge detector, "xdog" or "canny". With `mask (H, W)` in {0, 1} only edges inside the lesion are kept
    and its contour is added; without it edges of the whole image are returned.
    """
    gray = cv2.cvtColor(remove_hair(image), cv2.COLOR_RGB2GRAY)
    edges = {"xdog": xdog, "canny": canny}[method](gray)
    min_length = min(gray.shape) / 16
    if mask is None:
        # The lesion's position is unknown: add coarse Canny edges for its soft border, and drop more small pieces.
        return _keep_long(cv2.max(edges, canny(gray, sigma=1 / 40)), 2.5 * min_length)
    # Eroded, because edges just inside the outline would draw the border a second time.
    interior = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2 * stroke_width(mask.shape))
    return cv2.max(_keep_long(edges * interior, min_length), contour(mask))


def xdog(gray: np.ndarray) -> np.ndarray:
    """Dark lines, dots and rims of `gray (H, W) uint8` by difference of Gaussians, `uint8 (H, W)` in {0, 255}.

    XDoG (Winnemöller et al., *XDoG: an extended difference-of-Gaussians compendium*, 2012) in the limit of strong
    sharpening, where only the difference counts. The threshold is local: a line must exceed 0.8 standard deviations of
    the texture around it, and `XDOG_MIN_CONTRAST`.
    """
    sigma = XDOG_SIGMA * min(gray.shape)
    intensity = gray.astype(np.float32) / 255
    difference = cv2.GaussianBlur(intensity, (0, 0), sigma) - cv2.GaussianBlur(intensity, (0, 0), 1.6 * sigma)
    texture = np.sqrt(cv2.GaussianBlur(difference**2, (0, 0), 8 * sigma))
    return 255 * ((difference < -0.8 * texture) & (difference < -XDOG_MIN_CONTRAST)).astype(np.uint8)


def canny(gray: np.ndarray, sigma: float = 1 / 80) -> np.ndarray:
    """Canny edges of `gray (H, W) uint8`, `uint8 (H, W)` in {0, 255} (Canny, *A computational approach to edge
    detection*, 1986).

    `sigma` of the blur is a fraction of the shorter side. The upper threshold is the 93 % quantile of the image's
    gradient magnitudes, the lower one half of it.
    """
    blurred = cv2.GaussianBlur(gray, (0, 0), sigma * min(gray.shape))
    grad_x, grad_y = (cv2.Sobel(blurred, cv2.CV_16S, dx, dy) for dx, dy in ((1, 0), (0, 1)))
    magnitude = np.abs(grad_x.astype(np.float32)) + np.abs(grad_y)
    high = max(float(np.quantile(magnitude, 0.93)), 24.0)
    return cv2.Canny(grad_x, grad_y, 0.5 * high, high)


# ------------------------------------------------------------------------------------------------- drawings of a user


def parse_drawing(
    drawing: np.ndarray | Image.Image | str | Path, size: int, problems: list[str] | None = None
) -> np.ndarray:
    """A line drawing or a filled area as a sketch `uint8 (size, size)` in {0, 255}.

    `drawing`: a file, an image of any mode, or an array `uint8 (H, W)` or `(H, W, 3)`. Lines have any color on light
    paper, or are light on dark; transparent areas are white, EXIF rotation is applied, a sheet that is not square is
    padded. A filled area or a mask becomes its outline, which is noted in `problems`. Raises `DataError` if a file
    cannot be read, or if the drawing is empty, mostly ink, or a real image.
    """
    image = _upright_rgb(drawing)
    lines = _lines_on_paper(image)
    mask = _filled_area(_fit(lines, size), is_light(image))
    if mask is not None:
        if problems is not None:
            problems.append("A filled area was drawn: its outline is used.")
        return contour(_pad_to_square(mask))
    sketch = _pad_to_square(_reduce_lines(lines, size))
    if not _keep_long(sketch, size / 16).any():
        raise DataError(EMPTY)
    if (sketch > 0).mean() > MAX_INK:
        raise DataError("Expected an outline, got a drawing that is mostly ink: draw only the outline of a lesion.")
    return sketch


def read_drawings(files: dict[str, Path], size: int, problems: list[str]) -> dict[str, np.ndarray]:
    """Sketches `uint8 (size, size)` in {0, 255} of files by id. Files that `parse_drawing` refuses are left out and
    named in `problems`, as are filled areas."""
    sketches = {}
    for image_id, path in files.items():
        notes = []
        try:
            sketches[image_id] = parse_drawing(path, size, notes)
        except DataError as error:
            notes.append(str(error))
        problems += [note if str(path) in note else f"{path}: {note}" for note in notes]
    return sketches


def extract_lines(drawing: np.ndarray, paper: np.ndarray | None = None) -> np.ndarray:
    """Contrast of a drawing `uint8 (H, W, 3)` to its paper, `uint8 (H, W)`: white lines on black.

    Lines may have any color on light paper, or be light on dark. `paper`: its color `uint8 (H, W, 3)`, by default the
    median color everywhere.
    """
    lines, light = np.empty(drawing.shape[:2], np.uint8), is_light(drawing)
    color = median_color(drawing) if paper is None else None
    for rows in strips(*lines.shape):
        ink = drawing[rows]
        ground = np.full_like(ink, color) if paper is None else paper[rows]
        lines[rows] = (cv2.subtract(ground, ink) if light else cv2.subtract(ink, ground)).max(axis=2)
    return lines


def median_color(image: np.ndarray) -> np.ndarray:
    """Median of each channel of `image uint8 (H, W, C)`, `float64 (C,)`, as `np.median` but without copies."""
    height, width, channels = image.shape
    counts = np.zeros((channels, 256), np.int64)
    for rows in strips(height, width):
        counts += [np.bincount(image[rows, :, k].ravel(), minlength=256) for k in range(channels)]
    middle = [(counts.cumsum(axis=1) > k).argmax(axis=1) for k in ((height * width - 1) // 2, height * width // 2)]
    return np.mean(middle, axis=0)


def is_light(image: np.ndarray) -> bool:
    """Whether the median tone of `image (H, W, 3) uint8`, which in a drawing is the paper's, is light."""
    return bool(median_color(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]) > 127)


def mask_from_sketch(sketch: np.ndarray) -> np.ndarray | None:
    """The area that the lines of a sketch `uint8 (S, S)` enclose, as a mask `uint8 (S, S)` in {0, 1}; gaps of up to
    about S / 12 pixels are closed. None if the lines enclose nothing."""
    gap = max(3, len(sketch) // 12) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap))
    closed = cv2.morphologyEx(np.pad(sketch, gap), cv2.MORPH_CLOSE, disc)[gap:-gap, gap:-gap]
    mask = fill(closed > 0)
    return mask if mask.sum() > 1.5 * (closed > 0).sum() else None


def _upright_rgb(drawing: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """The drawing as RGB `uint8 (H, W, 3)`, transparency on white, EXIF rotation applied."""
    if isinstance(drawing, str | Path):
        return read_image(drawing)
    image = Image.fromarray(drawing) if isinstance(drawing, np.ndarray) else drawing
    return to_rgb(image)


def _lines_on_paper(image: np.ndarray) -> np.ndarray:
    """`extract_lines` of `image (H, W, 3)` against paper of one color, or else against unevenly lit paper. Raises
    `DataError` if there is nothing on the paper, or if it is a real image, which has tones between paper and ink."""
    view = shrink(image, VIEW)
    lines = extract_lines(view)
    if _middle_tones(lines, 0.1) < 0.01 and _is_plain(view, 0.05 * lines.max()):
        return extract_lines(image)
    paper = _local_paper(view)
    if _middle_tones(extract_lines(view, paper), 0.15) < 0.005 and _has_one_hue(paper):
        return extract_lines(image, cv2.resize(paper, image.shape[1::-1], interpolation=cv2.INTER_LINEAR))
    raise DataError("Expected a line drawing or a mask, got a photo or another image with many shades.")


def _middle_tones(lines: np.ndarray, level: float) -> float:
    """Fraction of the pixels of `lines (H, W)` above `level` times the contrast of the ink that are not at ink or its
    edges: in drawings at most 0.3 %. Raises `DataError` if there is no ink."""
    lines = cv2.GaussianBlur(lines.astype(np.float32), (0, 0), 1)
    contrast = np.quantile(lines, 0.9995)  # not the maximum, which a speck of dust decides
    if contrast < MIN_CONTRAST:
        raise DataError(EMPTY)
    ink = cv2.dilate((lines > 0.35 * contrast).astype(np.uint8), np.ones((7, 7), np.uint8))
    return float(((lines > level * contrast) & (ink == 0)).mean())


def _is_plain(image: np.ndarray, tolerance: float) -> bool:
    """Whether half of `image (H, W, 3) uint8` differs from its median color by at most `tolerance`, or 2: paper or the
    ground of a mask does, skin does not."""
    difference = np.abs(image - np.median(image, axis=(0, 1))).max(axis=2)
    return bool(np.median(difference) <= max(tolerance, 2))


def _local_paper(image: np.ndarray) -> np.ndarray:
    """Color of the paper around every pixel of a drawing `uint8 (H, W, 3)`: the median over an eighth of the side."""
    small = shrink(image, 96)
    window = max(small.shape) // 8 | 1
    padded = cv2.copyMakeBorder(small, window, window, window, window, cv2.BORDER_REPLICATE)
    median = cv2.medianBlur(padded, window)[window:-window, window:-window]
    return cv2.resize(cv2.GaussianBlur(median, (0, 0), 2), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _has_one_hue(paper: np.ndarray) -> bool:
    """Whether light and shade are all that varies in `paper (H, W, 3)`; skin and lesion differ in hue."""
    colors = shrink(paper, 32).reshape(-1, 3).astype(np.float32)
    hues = colors / np.maximum(colors.sum(axis=1, keepdims=True), 30)
    return bool(np.quantile(np.abs(hues - np.median(hues, axis=0)).max(axis=1), 0.95) < 0.007)


def _filled_area(lines: np.ndarray, light_paper: bool) -> np.ndarray | None:
    """Mask `uint8 (H, W)` in {0, 1} if the ink of `lines (H, W)` is a filled area, else None.

    Light is lesion, as in published masks, unless it is a background: that covers much of the frame, and more of the
    frame than of the whole.
    """
    ink = lines > lines.max() / 2 + light_paper  # at a tie the lighter tone wins, as where a mask is resized
    width = 4 * stroke_width(ink.shape) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    if cv2.morphologyEx(ink.astype(np.uint8), cv2.MORPH_OPEN, disc).sum() <= 0.7 * ink.sum():
        return None
    light = ink != light_paper
    frame, whole = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]]).mean(), light.mean()
    is_background = frame > max(0.9, whole) or frame > max(0.5, whole + 0.1)
    return (light != is_background).astype(np.uint8)


def _reduce_lines(lines: np.ndarray, size: int) -> np.ndarray:
    """Lines `uint8 (H, W)` of any contrast, above the noise, as `uint8` in {0, 255} with `size` as the longer side."""
    reduction = max(lines.shape) // size
    if reduction > 2:
        lines = cv2.GaussianBlur(lines, (0, 0), reduction / 12)
    noise = 0.2 * lines.max()
    levels = np.minimum(np.arange(256), lines.max())
    lines = cv2.LUT(lines, np.uint8(np.clip(levels - noise, 0, None) * (255 / max(lines.max() - noise, 1))))
    if reduction > 2:  # widened, or fine lines of a large sheet are lost
        lines = cv2.dilate(lines, np.ones((reduction // 2 + 1,) * 2, np.uint8))
    return np.where(_fit(lines, size) > INK_THRESHOLD, 255, 0).astype(np.uint8)


def _fit(image: np.ndarray, size: int) -> np.ndarray:
    """`image (H, W)` resized so that its longer side has `size` pixels."""
    scale = size / max(image.shape)
    shape = [max(1, round(scale * side)) for side in image.shape[::-1]]
    return cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale <= 1 else cv2.INTER_CUBIC)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """`image (H, W, 3)` with at most `side` pixels on its longer side."""
    scale = side / max(image.shape)
    shape = [max(1, round(scale * length)) for length in image.shape[1::-1]]
    return image if scale >= 1 else cv2.resize(image, shape, interpolation=cv2.INTER_AREA)


def _pad_to_square(image: np.ndarray) -> np.ndarray:
    """`image (H, W)` centered in a square `(S, S)` of zeros, S = max(H, W)."""
    side = max(image.shape)
    margins = [((side - length) // 2, side - length - (side - length) // 2) for length in image.shape]
    return np.pad(image, margins)

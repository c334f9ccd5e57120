"""Phantoms: procedural dermoscopic images of seven diagnoses with exact masks. Never present them as real images.

Color follows the absorption of light in skin: every pigment (melanin, blood, melanin deep in the dermis) adds optical
density, and the camera records exp(-density). Browns, reds and the blue-gray of deep melanin then mix as in skin. A
lesion is rendered upright on a canvas just large enough for it; a view rotates, scales and shifts the canvas onto skin.

The structures of each diagnosis follow the ABCD rule (Nachbar et al., *The ABCD rule of dermatoscopy*, 1994), the
consensus on pattern analysis (Argenziano et al., *Dermoscopy of pigmented skin lesions: results of a consensus meeting
via the Internet*, 2003) and the strawberry pattern of actinic keratosis (Zalaudek et al., *Dermoscopy of facial
nonpigmented actinic keratosis*, 2006).
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import cv2
import numpy as np
from scipy.spatial import cKDTree


def channels(*rgb: float) -> np.ndarray:
    """A number for each of R, G, B: float32 (3, 1, 1)."""
    return np.array(rgb, np.float32)[:, None, None]


def optical_density(*rgb: int) -> np.ndarray:
    """Optical density (3, 1, 1) of a color given as 0 to 255."""
    return -np.log(channels(*rgb) / 255)


# Density per unit of pigment in R, G, B; ratios measured between lesion and skin in dermoscopic images.
PIGMENTS = {
    "melanin": channels(0.50, 0.95, 1.25),
    "blood": channels(0.20, 1.00, 0.66),
    "blue": channels(1.05, 0.85, 0.55),  # deep melanin: short wavelengths are scattered back (Tyndall effect)
    "crust": channels(0.22, 0.85, 1.20),  # dried blood and serum, orange-red
    "violet ink": channels(0.90, 1.05, 0.25),  # of surgical markers
    "blue ink": channels(1.30, 0.75, 0.18),
}
# Layers that hide the skin below instead of absorbing light.
COVERS = {
    "scar": optical_density(240, 208, 210),
    "keratin": optical_density(242, 224, 196),
    "veil": optical_density(118, 118, 142),
    "plug": optical_density(60, 34, 22),
    "septum": optical_density(214, 172, 198),
}


def cos_sin(angle: float) -> tuple[float, float]:
    """Cosine and sine as Python floats: NumPy's float64 scalars would promote float32 arrays to float64."""
    return math.cos(angle), math.sin(angle)


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth in between; falling if low > high."""
    t = (x - low) * (1 / (high - low))
    np.maximum(np.minimum(t, 1, out=t), 0, out=t)  # in place, without np.clip: the most frequent call of a rendering
    return t * t * (3 - 2 * t)


def gaussian(x: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """exp(-(x / width)²): 1 where x is 0."""
    return cv2.exp(-np.square(x / width))


def fractal_noise(rng: np.random.Generator, side: int, cells: int, octaves: int = 2) -> np.ndarray:
    """Fractal noise of mean 0 and standard deviation about 1, `cells` blobs across: float32 (side, side)."""
    total = rng.random((cells, cells), np.float32) - 0.5
    for octave in range(1, octaves):
        n = cells * 2**octave
        total = cv2.pyrUp(total) + 0.5**octave * (rng.random((n, n), np.float32) - 0.5)
    total = cv2.pyrUp(total)  # a spline: several times faster than cubic interpolation, and it hides the grid
    while 2 * len(total) < side:
        total = cv2.pyrUp(total)
    # 6.5 gives standard deviation 1: it compensates that of `random` and the smoothing by the spline.
    total *= 6.5 / math.sqrt(sum(0.25**k for k in range(octaves)))
    return cv2.resize(total, (side, side), interpolation=cv2.INTER_LINEAR if side > len(total) else cv2.INTER_AREA)


@lru_cache(maxsize=8)
def axis(side: int) -> np.ndarray:
    """Centers of `side` pixels between -1 and 1: float32 (side,)."""
    return (2 * np.arange(side, dtype=np.float32) + 1) / side - 1


_TILE_CELLS, _CELL_TEXELS = 24, 12  # cells along the tile, texels along a cell


@lru_cache(maxsize=1)
def _lattice_tile() -> np.ndarray:
    """Voronoi cells of a strongly jittered hexagonal lattice, periodic: float32 (rows, columns, 3).

    Channels: distance to the nearest cell center, how much farther the second nearest is (0 on the border between
    cells), both in cell sizes, and a random number per cell in [0, 1].
    """
    rng = np.random.default_rng(16)
    rows, columns = round(_TILE_CELLS * 0.866) * _CELL_TEXELS, _TILE_CELLS * _CELL_TEXELS
    row, column = np.indices((_TILE_CELLS, _TILE_CELLS)) + rng.normal(0, 0.28, (2, _TILE_CELLS, _TILE_CELLS))
    column += np.arange(_TILE_CELLS)[:, None] % 2 / 2
    centers = np.stack([row.ravel() * rows / _TILE_CELLS, column.ravel() * _CELL_TEXELS], 1) % (rows, columns)
    texels = np.stack(np.indices((rows, columns)), 2)
    distance, nearest = cKDTree(centers, boxsize=(rows, columns)).query(texels, 2)
    value = rng.random(len(centers))[nearest[..., 0]]
    gap = distance[..., 1] - distance[..., 0]
    return np.dstack([distance[..., 0] / _CELL_TEXELS, gap / _CELL_TEXELS, value]).astype(np.float32)


@dataclass
class Scene:
    """Canvas of one lesion, (side, side) pixels.

    `height` is 1 in the middle of the lesion and 0 on its outline; `alpha` in [0, 1] is the lesion's opacity, which
    fades over the border. The structures of the lesion add to `density` and `visibility`.
    """

    rng: np.random.Generator
    corner: np.ndarray  # (x, y) of the upper left corner, lesion coordinates
    width: float  # of the canvas, lesion coordinates
    radius: float  # of the lesion, lesion coordinates
    height: np.ndarray  # (side, side)
    alpha: np.ndarray  # (side, side)
    pigment: float  # factor on the melanin of the lesion, so that every class has light and dark lesions

    def __post_init__(self) -> None:
        self.side = len(self.height)
        self.density = np.zeros((3, self.side, self.side), np.float32)  # added by the lesion
        self.visibility = np.ones_like(self.height)  # fraction of the skin below that is still visible
        self.x = (self.corner[0] + self.width / 2 * (axis(self.side) + 1))[None].astype(np.float32)
        self.y = (self.corner[1] + self.width / 2 * (axis(self.side) + 1))[:, None].astype(np.float32)
        # `cells` blobs across the canvas, which is about 2.6 radii wide, so that noise scales with the lesion.
        self.noise = partial(fractal_noise, self.rng, self.side)
        # Clumps of pigment smaller than any structure keep areas from looking flat.
        self.texture = np.clip(1 + self.noise(round(13 * self.width)) * self.rng.uniform(0.05, 0.24), 0.3, 1.7)

    def add_pigment(self, name: str, amount: np.ndarray) -> None:
        """Add the density of `amount (side, side)` of one of `PIGMENTS`."""
        for channel, absorption in zip(self.density, PIGMENTS[name].ravel(), strict=True):
            cv2.scaleAdd(amount, float(absorption), channel, channel)  # in place, without a temporary array

    def cover(self, name: str, amount: np.ndarray) -> None:
        """Cover the lesion with one of `COVERS`, of opacity `amount (side, side)` in [0, 1]."""
        self.density += (COVERS[name] - self.density) * amount
        self.visibility *= 1 - amount

    @cached_property
    def displacement(self) -> tuple[np.ndarray, np.ndarray]:
        """Displacement of lattices in x and y, two times (side, side), so that no two meshes look alike."""
        wave = self.noise(round(5 * self.width))
        return wave, np.ascontiguousarray(wave[::-1].T)

    def lattice(self, cell: float, warp: float = 0.013) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distance to the cell's center, gap to the next cell, and the cell's random number, each (side, side).

        cell: cell size in lesion coordinates; warp: factor on `displacement`.
        """
        offset, angle = self.rng.uniform(0, _TILE_CELLS * _CELL_TEXELS, 2).tolist(), self.rng.uniform(0, 2 * np.pi)
        stretch = self.rng.uniform(1.0, 1.3)  # another aspect ratio per lesion, so that the tile is not recognizable
        x, y = self.x + warp * self.displacement[0], self.y + warp * self.displacement[1]
        c, s = (_CELL_TEXELS / cell * value for value in cos_sin(angle))
        u, v = (c * x - s * y) / stretch + offset[0], (s * x + c * y) + offset[1]
        return cv2.split(cv2.remap(_lattice_tile(), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))

    def patch(self, fraction: float, softness: float = 0.5, cells: int = 3) -> np.ndarray:
        """An irregular off-center area that covers about `fraction` of the lesion: (side, side) in [0, 1]."""
        c, s = cos_sin(self.rng.uniform(0, 2 * np.pi))
        field = self.noise(cells, 3) + (c * self.x + s * self.y) * (0.9 / self.radius)
        # Approximate quantile of the field, whose standard deviation within the lesion is about 1.1.
        edge = 2.6 * (0.5 - fraction)
        return smoothstep(field, edge, edge + softness) * self.alpha

    def rays(self, count: int) -> np.ndarray:
        """`count` uneven rays from the center outwards, noise of mean 0 and standard deviation 1: (side, side)."""
        values = self.rng.standard_normal(count)
        position = np.arctan2(self.y, self.x) * (count / (2 * np.pi)) + 0.4 * self.displacement[0]  # slightly bent
        rays = np.interp(position.ravel(), np.arange(count), values, period=count)
        return rays.reshape(position.shape).astype(np.float32)


def strokes(side: int, lines: list[np.ndarray], widths: list[float]) -> np.ndarray:
    """Polylines (n, 2) in pixels that taper from their width to half of it, as coverage (side, side) in [0, 1]."""
    scale = 2 if side <= 300 else 1  # thin lines are rendered at twice the size and averaged
    canvas = np.zeros((side * scale, side * scale), np.uint8)
    for line, width in zip(lines, widths, strict=True):
        points = np.round((line + 0.5) * scale * 16).astype(np.int32)
        third = len(points) // 3 or 1
        for k in range(min(3, len(points) - 1)):
            segment = points[k * third : (k + 1) * third + 1 if k < 2 else None]
            w = width * scale * (1 - 0.25 * k)
            # OpenCV's thinnest line is one pixel wide: thinner ones are fainter instead.
            cv2.polylines(canvas, [segment], False, int(255 * min(1, w)), max(1, round(w)), cv2.LINE_AA, 4)
    return cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def body(scene: Scene, melanin: float, blood: float, variety: float, center: float = 0.0) -> None:
    """Pigment of the whole lesion; `center` darkens (or, negative, lightens) its middle."""
    uneven = 1 + variety * scene.noise(5, 3) + center * (scene.height - 0.4)
    scene.add_pigment("melanin", melanin * scene.pigment * np.maximum(uneven, 0.15) * scene.texture * scene.alpha)
    scene.add_pigment("blood", blood * (0.5 + 0.5 * scene.texture) * scene.alpha)


def network(scene: Scene, cell: float, amount: float, atypia: float, rim: float = 0.0) -> None:
    """Pigment network, a mesh of dark lines; `atypia` makes it irregular, `rim` 1 limits it to the periphery."""
    _, gap, _ = scene.lattice(cell, 0.012 + 0.015 * atypia)
    uneven = 0.8 + (0.45 + atypia) * scene.noise(6)  # even a regular network is not equally visible everywhere
    line = gaussian(gap, 0.2 * np.clip(uneven, 0.8, 1.6))
    fade = smoothstep(scene.height, 0.0, 0.4) * (1 - (0.4 + 0.6 * rim) * smoothstep(scene.height, 0.4, 0.9))
    scene.add_pigment("melanin", amount * scene.pigment * (line - 0.1) * fade * np.clip(uneven, 0, 1.6) * scene.texture)


def dots(
    scene: Scene, cell: float, radius: float, fraction: float, region: np.ndarray, softness: float = 0.45
) -> np.ndarray:
    """Round spots in a `fraction` of the lattice cells: (side, side) in [0, 1], times `region (side, side)`.

    radius: in cell sizes; softness: fraction of the radius over which a spot fades.
    """
    distance, gap, number = scene.lattice(cell)
    scaled_radius = radius * (0.6 + 0.7 * number / fraction)  # the cell's number sets the size and darkness of its spot
    spot = smoothstep(distance / scaled_radius, 0.9 + softness, 0.9 - softness) * smoothstep(gap, 0.02, 0.25)
    return np.where(number < fraction, spot * (0.5 + 0.5 * number / fraction), 0) * region


def globules(scene: Scene, cell: float, amount: float, fraction: float, irregular: bool = False) -> None:
    """Nests of pigmented cells: brown dots, evenly spread in a nevus, `irregular` (off-center) in melanoma."""
    if irregular:
        region = scene.patch(0.45)
    else:
        region = smoothstep(scene.height, -0.02, 0.1) * smoothstep(scene.noise(7), -2.0, 0.5)
    scene.add_pigment("melanin", amount * scene.pigment * dots(scene, cell, 0.34, fraction, region * scene.texture))


def blotches(scene: Scene, amount: float, fraction: float, blue: float = 0.0) -> None:
    """Structureless dark areas off-center: black where melanin is dense, slate where it is also deep (`blue`)."""
    area = scene.patch(fraction, 1.1, 5) * scene.texture
    scene.add_pigment("melanin", amount * scene.pigment * area)
    scene.add_pigment("blue", blue * area)


def streaks(scene: Scene, amount: float) -> None:
    """Radial streaks and pseudopods on a part of the rim."""
    rim = smoothstep(scene.height, -0.04, 0.06) * smoothstep(scene.height, 0.45, 0.1)
    rim *= smoothstep(scene.noise(3), -0.2, 0.8)
    scene.add_pigment("melanin", amount * scene.pigment * np.clip(scene.rays(90), 0, 1.2) * rim * scene.texture)


def veil(scene: Scene, amount: float, fraction: float) -> None:
    """Blue-white veil: a confluent slate-blue, ground-glass haze that hides the structures below."""
    scene.cover("veil", amount * scene.patch(fraction, 1.8) * np.minimum(scene.texture, 1))


def regression(scene: Scene, amount: float, fraction: float) -> None:
    """White scar-like areas with peppering: blue-gray granules of melanophages."""
    area = scene.patch(fraction, 1.4, 5)
    scene.cover("scar", amount * area * np.minimum(scene.texture, 1))
    scene.add_pigment("blue", 0.45 * dots(scene, 0.05, 0.35, 0.35, area))


def vessels(scene: Scene, stems: float, amount: float) -> None:
    """Arborizing vessels: bright red stems that enter from the rim and branch into ever finer twigs."""
    rng, lines, widths, queue = scene.rng, [], [], []
    for angle in rng.uniform(0, 2 * np.pi, round(stems)):
        start = scene.radius * rng.uniform(0.6, 1.0) * np.array(cos_sin(angle))
        queue.append((start, angle + np.pi + rng.normal(0, 0.5), rng.uniform(0.007, 0.014), rng.uniform(0.5, 1.0), 0))
    while queue:
        start, angle, width, length, depth = queue.pop()
        angles = angle + np.cumsum(rng.normal(0, 0.38, 9))
        steps = np.column_stack([np.cos(angles), np.sin(angles)]) * (length * scene.radius / 9)
        line = np.vstack([start, start + np.cumsum(steps, 0)])
        lines.append((line - scene.corner) * (scene.side / scene.width))
        widths.append(width * scene.side / scene.width)
        for k in rng.integers(2, 9, 2 if depth < 2 else 0):
            branch_angle = angles[k - 1] + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
            queue.append((line[k], branch_angle, width * 0.65, length * rng.uniform(0.4, 0.7), depth + 1))
    coverage = strokes(scene.side, lines, widths) * smoothstep(scene.noise(7), -1.6, 0.6)  # partly below the surface
    scene.add_pigment("blood", amount * coverage * smoothstep(scene.height, -0.25, 0.15))


def nests(scene: Scene, cell: float, amount: float, fraction: float) -> None:
    """Blue-gray ovoid nests, larger than globules, blurred by the skin above them."""
    region = scene.alpha * scene.texture * smoothstep(scene.noise(7), -0.8, 1.2)
    nest = dots(scene, cell, 0.4, fraction, region, 0.9) * (1 + 0.3 * scene.noise(12))
    scene.add_pigment("blue", amount * nest)
    scene.add_pigment("melanin", 0.35 * amount * scene.pigment * nest)


def leaves(scene: Scene, amount: float) -> None:
    """Leaf-like areas: brown-gray lobes side by side along a part of the rim, joined at their base."""
    lobes = scene.height - 0.2 + 0.22 * scene.rays(26)
    rim = smoothstep(lobes, -0.2, 0.2) * smoothstep(scene.height, 0.6, 0.25) * smoothstep(scene.noise(3), -0.2, 0.5)
    scene.add_pigment("melanin", amount * scene.pigment * rim * scene.texture)
    scene.add_pigment("blue", 0.6 * amount * rim * scene.texture)


def ulcer(scene: Scene, size: float) -> None:
    """An erosion of irregular outline: orange-red crust, darker in places, with a red margin."""
    cx, cy = (scene.rng.normal(0, 0.35, 2) * scene.radius).tolist()
    distance = cv2.sqrt(np.square(scene.x - cx) + np.square(scene.y - cy))
    depth = 1 - distance / (size * scene.radius) + 0.55 * scene.noise(9, 3)
    erosion = smoothstep(depth, -0.1, 0.6) * scene.alpha
    scene.add_pigment("blood", 0.3 * smoothstep(depth, -1.0, 0.2) * scene.alpha + 0.1 * erosion)
    scene.add_pigment("crust", (0.45 + 0.8 * smoothstep(scene.noise(16), 0.0, 1.2)) * erosion)


def scale(scene: Scene, amount: float, fraction: float) -> None:
    """Surface scale: dry yellow-white flakes on top of the other structures."""
    scene.cover("keratin", amount * smoothstep(scene.noise(34), -0.1, 1.3) * scene.patch(fraction, 1.2))


def follicles(scene: Scene, cell: float, blood: float, melanin: float) -> None:
    """Red ("strawberry") or brown pseudonetwork around pale follicle openings with keratin plugs."""
    distance, _, number = scene.lattice(cell)
    region = scene.alpha * smoothstep(scene.noise(7, 3), -0.8, 1.0) * scene.texture
    mesh = smoothstep(distance, 0.2, 0.55) - 0.3
    scene.add_pigment("blood", blood * mesh * region)
    scene.add_pigment("melanin", melanin * scene.pigment * mesh * region)
    opening = smoothstep(distance, 0.3, 0.12) * region * number
    scene.cover("keratin", 0.28 * opening)
    scene.add_pigment("crust", 0.6 * opening * smoothstep(distance, 0.16, 0.04))


def plugs(scene: Scene, cover: str, cell: float, amount: float, fraction: float) -> None:
    """Milia-like cysts (cover "keratin": white) or comedo-like openings ("plug": dark) of seborrheic keratosis."""
    scene.cover(cover, amount * dots(scene, cell, 0.28, fraction, smoothstep(scene.height, 0.05, 0.2)))


def fissures(scene: Scene, cells: float, amount: float) -> None:
    """Ridges and fissures (cerebriform): dark winding furrows between wide, lighter ridges."""
    furrow = gaussian(scene.noise(round(cells)), 0.5)
    scene.add_pigment("melanin", amount * scene.pigment * (furrow - 0.5) * scene.texture * scene.alpha)


def lacunae(scene: Scene, cell: float, red: float, purple: float, septa: float, fraction: float = 1.0) -> None:
    """Blood-filled lagoons, red to blue-black, separated by pale septa; scattered dots if `fraction` is below 1."""
    distance, gap, number = scene.lattice(cell, 0.02)
    noise = 0.22 * scene.noise(9)  # merges some neighbors
    lagoon = smoothstep(np.minimum(1.2 * gap + 0.05, 0.45 + 0.9 * fraction - 2 * distance) + noise, -0.25, 0.6)
    lagoon = np.where(number < fraction, lagoon, 0) * scene.alpha
    clouds = scene.noise(4)
    septum = septa * smoothstep(clouds, 1.2, -0.8) * (scene.alpha - lagoon)  # visible in places only
    scene.cover("septum", septum)
    haze = 0.7 if fraction == 1 else 0.0
    filling = (0.75 + 0.5 * number) * (0.4 + 0.6 * scene.texture)
    scene.add_pigment("blood", red * filling * (lagoon + haze * (scene.alpha - lagoon - septum)))
    clotted = smoothstep(number + 0.3 * clouds, 1.1 - purple, 1.6 - purple)  # single lagoons, then all of them
    scene.add_pigment("blue", (1.3 * clotted * lagoon + 0.3 * scene.alpha) * purple * filling)


def scar(scene: Scene, amount: float, reach: float) -> None:
    """Central white scar-like patch with a frayed edge."""
    core = scene.height + 0.12 * scene.noise(9, 4)
    scene.cover("scar", amount * smoothstep(core, 1 - reach - 0.35, 1.15 - 0.4 * reach))


def halo(scene: Scene, blood: float) -> None:
    """Reddening that extends beyond the lesion, at most to the edge of the canvas."""
    scene.add_pigment("blood", blood * smoothstep(scene.height - 0.15 * smoothstep(scene.noise(4), -1, 1), -0.3, 0.2))

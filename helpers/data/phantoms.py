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
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
from scipy.spatial import cKDTree

CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
# What an image may show besides skin and lesion; artifact flags have this order everywhere.
ARTIFACTS = ("dark_corner", "hair", "gel_border", "gel_bubble", "ruler", "ink", "patches")

# Lesion coordinates: an unshifted image shows [-1, 1]. The skin extends further, so that the corners of a rotated and
# shifted view show skin too.
EXTENT = 1.75
Range = tuple[float, float]


def _density(*rgb: int) -> np.ndarray:
    """Optical density (3, 1, 1) of a color given as 0 to 255."""
    return -np.log(np.array(rgb, np.float32) / 255)[:, None, None]


# Density per unit of pigment in R, G, B; ratios measured between lesion and skin in dermoscopic images.
PIGMENTS = {
    name: np.array(rgb, np.float32)[:, None, None]
    for name, rgb in {
        "melanin": (0.50, 0.95, 1.25),
        "blood": (0.20, 1.00, 0.66),
        "blue": (1.05, 0.85, 0.55),  # deep melanin: short wavelengths are scattered back (Tyndall effect)
        "crust": (0.22, 0.85, 1.20),  # dried blood and serum, orange-red
    }.items()
}
# Layers that hide the skin below instead of absorbing light.
COVERS = {
    "scar": _density(240, 208, 210),
    "keratin": _density(242, 224, 196),
    "veil": _density(118, 118, 142),
    "plug": _density(60, 34, 22),
    "septum": _density(214, 172, 198),
}
# Fitzpatrick types I to VI, mostly I to III as in the clinics of HAM10000.
SKIN_TONE_PROBS = (0.22, 0.36, 0.22, 0.10, 0.06, 0.04)
SKIN_TONE_DENSITIES = [
    _density(*rgb)
    for rgb in ((226, 180, 190), (220, 164, 174), (212, 160, 158), (186, 138, 124), (142, 100, 88), (96, 68, 62))
]


def _sample(rng: np.random.Generator, value: float | Range) -> float:
    """A uniform random number from a range; a plain number is returned as it is."""
    return float(rng.uniform(*value)) if isinstance(value, tuple) else value


def _cos_sin(angle: float) -> tuple[float, float]:
    """Cosine and sine as Python floats: NumPy's float64 scalars would promote float32 arrays to float64."""
    return math.cos(angle), math.sin(angle)


def _smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth in between; falling if low > high."""
    t = (x - low) * (1 / (high - low))
    np.maximum(np.minimum(t, 1, out=t), 0, out=t)  # in place, without np.clip: the most frequent call of a rendering
    return t * t * (3 - 2 * t)


def _gauss_ridge(x: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """exp(-(x / width)²): 1 where x is 0."""
    x = x / width
    return cv2.exp(-x * x)


def _noise(rng: np.random.Generator, side: int, cells: int, octaves: int = 2) -> np.ndarray:
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
def _axis(side: int) -> np.ndarray:
    """Centers of `side` pixels between -1 and 1: float32 (side,)."""
    return (2 * np.arange(side, dtype=np.float32) + 1) / side - 1


# ---------------------------------------------------------------- the lattice: one cell pattern for many structures

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


# ---------------------------------------------------------------- the scene: canvas of one lesion


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
        self.x = (self.corner[0] + self.width / 2 * (_axis(self.side) + 1))[None].astype(np.float32)
        self.y = (self.corner[1] + self.width / 2 * (_axis(self.side) + 1))[:, None].astype(np.float32)
        noise = _noise(self.rng, self.side, round(13 * self.width))
        # Clumps of pigment smaller than any structure keep areas from looking flat.
        self.texture = np.clip(1 + self.rng.uniform(0.05, 0.24) * noise, 0.3, 1.7)

    def add_pigment(self, name: str, amount: np.ndarray) -> None:
        """Add the density of `amount (side, side)` of one of `PIGMENTS`."""
        for channel, absorption in zip(self.density, PIGMENTS[name].ravel(), strict=True):
            cv2.scaleAdd(amount, float(absorption), channel, channel)  # in place, without a temporary array

    def cover(self, name: str, amount: np.ndarray) -> None:
        """Cover the lesion with one of `COVERS`, of opacity `amount (side, side)` in [0, 1]."""
        self.density += (COVERS[name] - self.density) * amount
        self.visibility *= 1 - amount

    def noise(self, cells: int, octaves: int = 2) -> np.ndarray:
        """Noise that scales with the lesion: `cells` blobs across the canvas, which is about 2.6 radii wide."""
        return _noise(self.rng, self.side, cells, octaves)

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
        c, s = (_CELL_TEXELS / cell * value for value in _cos_sin(angle))
        u, v = (c * x - s * y) / stretch + offset[0], (s * x + c * y) + offset[1]
        return cv2.split(cv2.remap(_lattice_tile(), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))

    def patch(self, fraction: float, softness: float = 0.5, cells: int = 3) -> np.ndarray:
        """An irregular off-center area that covers about `fraction` of the lesion: (side, side) in [0, 1]."""
        c, s = _cos_sin(self.rng.uniform(0, 2 * np.pi))
        field = self.noise(cells, 3) + (c * self.x + s * self.y) * (0.9 / self.radius)
        # Approximate quantile of the field, whose standard deviation within the lesion is about 1.1.
        edge = 2.6 * (0.5 - fraction)
        return _smoothstep(field, edge, edge + softness) * self.alpha

    def rays(self, count: int) -> np.ndarray:
        """`count` uneven rays from the center outwards, noise of mean 0 and standard deviation 1: (side, side)."""
        values = self.rng.standard_normal(count)
        position = np.arctan2(self.y, self.x) * (count / (2 * np.pi)) + 0.4 * self.displacement[0]  # slightly bent
        rays = np.interp(position.ravel(), np.arange(count), values, period=count)
        return rays.reshape(position.shape).astype(np.float32)


def _strokes(side: int, lines: list[np.ndarray], widths: list[float]) -> np.ndarray:
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


# ---------------------------------------------------------------- dermoscopic structures, one function each


def body(scene: Scene, melanin: float, blood: float = 0.1, variety: float = 0.2, center: float = 0.0) -> None:
    """Pigment of the whole lesion; `center` darkens (or, negative, lightens) its middle."""
    uneven = 1 + variety * scene.noise(5, 3) + center * (scene.height - 0.4)
    scene.add_pigment("melanin", melanin * scene.pigment * np.maximum(uneven, 0.15) * scene.texture * scene.alpha)
    scene.add_pigment("blood", blood * (0.5 + 0.5 * scene.texture) * scene.alpha)


def network(scene: Scene, cell: float, amount: float, atypia: float = 0.2, rim: float = 0.0) -> None:
    """Pigment network, a mesh of dark lines; `atypia` makes it irregular, `rim` 1 limits it to the periphery."""
    _, gap, _ = scene.lattice(cell, 0.012 + 0.015 * atypia)
    uneven = 0.8 + (0.45 + atypia) * scene.noise(6)  # even a regular network is not equally visible everywhere
    line = _gauss_ridge(gap, 0.2 * np.clip(uneven, 0.8, 1.6))
    fade = _smoothstep(scene.height, 0.0, 0.4) * (1 - (0.4 + 0.6 * rim) * _smoothstep(scene.height, 0.4, 0.9))
    scene.add_pigment("melanin", amount * scene.pigment * (line - 0.1) * fade * np.clip(uneven, 0, 1.6) * scene.texture)


def dots(
    scene: Scene, cell: float, radius: float, fraction: float, region: np.ndarray, softness: float = 0.45
) -> np.ndarray:
    """Round spots in a `fraction` of the lattice cells: (side, side) in [0, 1], times `region (side, side)`.

    radius: in cell sizes; softness: fraction of the radius over which a spot fades.
    """
    distance, gap, number = scene.lattice(cell)
    scaled_radius = radius * (0.6 + 0.7 * number / fraction)  # the cell's number sets the size and darkness of its spot
    spot = _smoothstep(distance / scaled_radius, 0.9 + softness, 0.9 - softness) * _smoothstep(gap, 0.02, 0.25)
    return np.where(number < fraction, spot * (0.5 + 0.5 * number / fraction), 0) * region


def globules(scene: Scene, cell: float, amount: float, fraction: float = 0.7, irregular: bool = False) -> None:
    """Nests of pigmented cells: brown dots, evenly spread in a nevus, `irregular` (off-center) in melanoma."""
    if irregular:
        region = scene.patch(0.45)
    else:
        region = _smoothstep(scene.height, -0.02, 0.1) * _smoothstep(scene.noise(7), -2.0, 0.5)
    scene.add_pigment("melanin", amount * scene.pigment * dots(scene, cell, 0.34, fraction, region * scene.texture))


def blotches(scene: Scene, amount: float, fraction: float, blue: float = 0.0) -> None:
    """Structureless dark areas off-center: black where melanin is dense, slate where it is also deep (`blue`)."""
    area = scene.patch(fraction, 1.1, 5) * scene.texture
    scene.add_pigment("melanin", amount * scene.pigment * area)
    scene.add_pigment("blue", blue * area)


def streaks(scene: Scene, amount: float) -> None:
    """Radial streaks and pseudopods on a part of the rim."""
    rim = _smoothstep(scene.height, -0.04, 0.06) * _smoothstep(scene.height, 0.45, 0.1)
    rim *= _smoothstep(scene.noise(3), -0.2, 0.8)
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
        start = scene.radius * rng.uniform(0.6, 1.0) * np.array(_cos_sin(angle))
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
    coverage = _strokes(scene.side, lines, widths) * _smoothstep(scene.noise(7), -1.6, 0.6)  # partly below the surface
    scene.add_pigment("blood", amount * coverage * _smoothstep(scene.height, -0.25, 0.15))


def nests(scene: Scene, cell: float, amount: float, fraction: float) -> None:
    """Blue-gray ovoid nests, larger than globules, blurred by the skin above them."""
    region = scene.alpha * scene.texture * _smoothstep(scene.noise(7), -0.8, 1.2)
    nest = dots(scene, cell, 0.4, fraction, region, 0.9) * (1 + 0.3 * scene.noise(12))
    scene.add_pigment("blue", amount * nest)
    scene.add_pigment("melanin", 0.35 * amount * scene.pigment * nest)


def leaves(scene: Scene, amount: float) -> None:
    """Leaf-like areas: brown-gray lobes side by side along a part of the rim, joined at their base."""
    lobes = scene.height - 0.2 + 0.22 * scene.rays(26)
    rim = _smoothstep(lobes, -0.2, 0.2) * _smoothstep(scene.height, 0.6, 0.25) * _smoothstep(scene.noise(3), -0.2, 0.5)
    scene.add_pigment("melanin", amount * scene.pigment * rim * scene.texture)
    scene.add_pigment("blue", 0.6 * amount * rim * scene.texture)


def ulcer(scene: Scene, size: float) -> None:
    """An erosion of irregular outline: orange-red crust, darker in places, with a red margin."""
    cx, cy = (scene.rng.normal(0, 0.35, 2) * scene.radius).tolist()
    distance = cv2.sqrt(np.square(scene.x - cx) + np.square(scene.y - cy))
    depth = 1 - distance / (size * scene.radius) + 0.55 * scene.noise(9, 3)
    erosion = _smoothstep(depth, -0.1, 0.6) * scene.alpha
    scene.add_pigment("blood", 0.3 * _smoothstep(depth, -1.0, 0.2) * scene.alpha + 0.1 * erosion)
    scene.add_pigment("crust", (0.45 + 0.8 * _smoothstep(scene.noise(16), 0.0, 1.2)) * erosion)


def scale(scene: Scene, amount: float, fraction: float) -> None:
    """Surface scale: dry yellow-white flakes on top of the other structures."""
    scene.cover("keratin", amount * _smoothstep(scene.noise(34), -0.1, 1.3) * scene.patch(fraction, 1.2))


def follicles(scene: Scene, cell: float, blood: float, melanin: float) -> None:
    """Red ("strawberry") or brown pseudonetwork around pale follicle openings with keratin plugs."""
    distance, _, number = scene.lattice(cell)
    region = scene.alpha * _smoothstep(scene.noise(7, 3), -0.8, 1.0) * scene.texture
    mesh = _smoothstep(distance, 0.2, 0.55) - 0.3
    scene.add_pigment("blood", blood * mesh * region)
    scene.add_pigment("melanin", melanin * scene.pigment * mesh * region)
    opening = _smoothstep(distance, 0.3, 0.12) * region * number
    scene.cover("keratin", 0.28 * opening)
    scene.add_pigment("crust", 0.6 * opening * _smoothstep(distance, 0.16, 0.04))


def plugs(scene: Scene, cover: str, cell: float, amount: float, fraction: float) -> None:
    """Milia-like cysts (cover "keratin": white) or comedo-like openings ("plug": dark) of seborrheic keratosis."""
    scene.cover(cover, amount * dots(scene, cell, 0.28, fraction, _smoothstep(scene.height, 0.05, 0.2)))


def fissures(scene: Scene, cells: float, amount: float) -> None:
    """Ridges and fissures (cerebriform): dark winding furrows between wide, lighter ridges."""
    furrow = _gauss_ridge(scene.noise(round(cells)), 0.5)
    scene.add_pigment("melanin", amount * scene.pigment * (furrow - 0.5) * scene.texture * scene.alpha)


def lacunae(scene: Scene, cell: float, red: float, purple: float, septa: float, fraction: float = 1.0) -> None:
    """Blood-filled lagoons, red to blue-black, separated by pale septa; scattered dots if `fraction` is below 1."""
    distance, gap, number = scene.lattice(cell, 0.02)
    noise = 0.22 * scene.noise(9)  # merges some neighbors
    lagoon = _smoothstep(np.minimum(1.2 * gap + 0.05, 0.45 + 0.9 * fraction - 2 * distance) + noise, -0.25, 0.6)
    lagoon = np.where(number < fraction, lagoon, 0) * scene.alpha
    clouds = scene.noise(4)
    septum = septa * _smoothstep(clouds, 1.2, -0.8) * (scene.alpha - lagoon)  # visible in places only
    scene.cover("septum", septum)
    haze = 0.7 if fraction == 1 else 0.0
    filling = (0.75 + 0.5 * number) * (0.4 + 0.6 * scene.texture)
    scene.add_pigment("blood", red * filling * (lagoon + haze * (scene.alpha - lagoon - septum)))
    clotted = _smoothstep(number + 0.3 * clouds, 1.1 - purple, 1.6 - purple)  # single lagoons, then all of them
    scene.add_pigment("blue", (1.3 * clotted * lagoon + 0.3 * scene.alpha) * purple * filling)


def scar(scene: Scene, amount: float, reach: float) -> None:
    """Central white scar-like patch with a frayed edge."""
    core = scene.height + 0.12 * scene.noise(9, 4)
    scene.cover("scar", amount * _smoothstep(core, 1 - reach - 0.35, 1.15 - 0.4 * reach))


def halo(scene: Scene, blood: float) -> None:
    """Reddening that extends beyond the lesion, at most to the edge of the canvas."""
    scene.add_pigment("blood", blood * _smoothstep(scene.height - 0.15 * _smoothstep(scene.noise(4), -1, 1), -0.3, 0.2))


# ---------------------------------------------------------------- structures of each diagnosis


@dataclass(frozen=True)
class Shape:
    """Ranges of the outline of a class, in lesion coordinates; roughness is relative to the radius."""

    radius: Range
    lobes: tuple[int, int] = (1, 1)
    coarse: Range = (0.06, 0.12)  # amplitude of bays
    fine: Range = (0.02, 0.05)  # amplitude of notches
    ragged: Range = (0.0, 0.0)  # depth of moth-eaten bites out of the rim
    fade: Range = (0.25, 0.6)  # width of the border
    pigment: Range = (0.6, 1.5)
    sun_damage_prob: float = 0.3  # probability of sun-damaged skin around the lesion


SHAPES = {
    "MEL": Shape(
        (0.5, 0.95), (2, 4), (0.12, 0.24), (0.05, 0.10), fade=(0.1, 0.45), pigment=(0.5, 1.5), sun_damage_prob=0.4
    ),
    "NV": Shape(
        (0.35, 0.8), (1, 2), (0.03, 0.10), (0.015, 0.04), fade=(0.3, 0.8), pigment=(0.5, 1.9), sun_damage_prob=0.12
    ),
    "BCC": Shape(
        (0.4, 0.8), (1, 3), (0.10, 0.20), (0.03, 0.08), fade=(0.3, 0.8), pigment=(0.5, 1.3), sun_damage_prob=0.6
    ),
    "AKIEC": Shape(
        (0.5, 0.95), (1, 3), (0.12, 0.22), (0.05, 0.1), fade=(0.4, 0.9), pigment=(0.5, 1.3), sun_damage_prob=0.8
    ),
    "BKL": Shape(
        (0.45, 0.85), (1, 2), (0.05, 0.14), (0.02, 0.06), (0.0, 0.3), (0.06, 0.25), (0.5, 1.5), sun_damage_prob=0.5
    ),
    "DF": Shape(
        (0.4, 0.75), (1, 1), (0.04, 0.10), (0.02, 0.06), fade=(0.5, 0.95), pigment=(0.5, 1.2), sun_damage_prob=0.2
    ),
    "VASC": Shape(
        (0.25, 0.6), (1, 2), (0.04, 0.11), (0.01, 0.04), fade=(0.1, 0.35), pigment=(0.7, 1.3), sun_damage_prob=0.2
    ),
}

# Patterns of each class: (probability, structures in rendering order). A structure is (function, probability, keyword
# arguments); a pair among the arguments is a range to sample from. The classes overlap as in real data: light melanoma,
# dark or uneven nevus, pigmented carcinoma and keratosis, dermatofibroma with hardly any scar.
PATTERNS = {
    "NV": [
        (0.42, [  # reticular
            (body, 1, dict(melanin=(0.3, 1.0), blood=(0.05, 0.3), variety=(0.1, 0.3), center=(-0.3, 0.8))),
            (network, 1, dict(cell=(0.055, 0.08), amount=(0.12, 0.38), atypia=(0.1, 0.4)))]),
        (0.18, [  # globular
            (body, 1, dict(melanin=(0.25, 0.7), blood=(0.1, 0.35), variety=(0.1, 0.25), center=(-0.3, 0.5))),
            (globules, 1, dict(cell=(0.06, 0.1), amount=(0.2, 0.5), fraction=(0.4, 0.95)))]),
        (0.28, [  # homogeneous, often pinkish
            (halo, 0.3, dict(blood=(0.05, 0.15))),
            (body, 1, dict(melanin=(0.25, 1.2), blood=(0.05, 0.5), variety=(0.15, 0.35), center=(-0.5, 0.9)))]),
        (0.12, [  # uneven, resembles melanoma
            (body, 1, dict(melanin=(0.3, 0.7), blood=(0.05, 0.3), variety=(0.3, 0.5))),
            (network, 1, dict(cell=(0.06, 0.085), amount=(0.15, 0.4), atypia=(0.4, 0.7))),
            (blotches, 1, dict(amount=(0.5, 1.1), fraction=(0.2, 0.35)))]),
    ],
    "MEL": [
        (0.75, [  # of many colors
            (halo, 0.4, dict(blood=(0.1, 0.3))),
            (body, 1, dict(melanin=(0.3, 0.8), blood=(0.0, 0.25), variety=(0.35, 0.6))),
            (network, 0.7, dict(cell=(0.06, 0.09), amount=(0.15, 0.35), atypia=(0.5, 0.9))),
            (blotches, 0.9, dict(amount=(0.5, 1.3), fraction=(0.2, 0.45), blue=(0.0, 0.5))),
            (blotches, 0.5, dict(amount=(0.4, 1.0), fraction=(0.1, 0.3), blue=(0.2, 0.7))),
            (globules, 0.6, dict(cell=(0.06, 0.11), amount=(0.4, 0.9), fraction=(0.2, 0.6), irregular=True)),
            (streaks, 0.4, dict(amount=(0.4, 1.0))),
            (veil, 0.45, dict(amount=(0.35, 0.75), fraction=(0.2, 0.45))),
            (regression, 0.4, dict(amount=(0.35, 0.7), fraction=(0.15, 0.35)))]),
        (0.25, [  # early, few colors
            (body, 1, dict(melanin=(0.25, 0.5), blood=(0.05, 0.3), variety=(0.35, 0.6))),
            (network, 1, dict(cell=(0.06, 0.09), amount=(0.15, 0.35), atypia=(0.5, 0.9))),
            (blotches, 0.5, dict(amount=(0.3, 0.8), fraction=(0.15, 0.3))),
            (regression, 0.4, dict(amount=(0.3, 0.6), fraction=(0.15, 0.35)))]),
    ],
    "BCC": [
        (0.60, [  # translucent
            (halo, 0.7, dict(blood=(0.08, 0.25))),
            (body, 1, dict(melanin=(0.04, 0.16), blood=(0.14, 0.34), variety=(0.3, 0.6))),
            (scar, 0.4, dict(amount=(0.2, 0.5), reach=(0.3, 0.7))),
            (nests, 0.6, dict(cell=(0.16, 0.28), amount=(0.25, 0.6), fraction=(0.15, 0.35))),
            (vessels, 0.8, dict(stems=(2, 5), amount=(0.5, 1.1))),
            (ulcer, 0.35, dict(size=(0.15, 0.32)))]),
        (0.40, [  # pigmented
            (halo, 0.5, dict(blood=(0.08, 0.2))),
            (body, 1, dict(melanin=(0.08, 0.4), blood=(0.03, 0.22), variety=(0.3, 0.6))),
            (nests, 0.9, dict(cell=(0.15, 0.32), amount=(0.35, 0.85), fraction=(0.2, 0.5))),
            (leaves, 0.5, dict(amount=(0.25, 0.55))),
            (vessels, 0.5, dict(stems=(1, 4), amount=(0.4, 0.9))),
            (ulcer, 0.25, dict(size=(0.15, 0.25)))]),
    ],
    "AKIEC": [
        (0.65, [  # pink and scaly
            (halo, 0.6, dict(blood=(0.05, 0.2))),
            (body, 1, dict(melanin=(0.06, 0.25), blood=(0.12, 0.38), variety=(0.3, 0.6))),
            (follicles, 0.65, dict(cell=(0.075, 0.12), blood=(0.15, 0.4), melanin=0.0)),
            (scale, 0.8, dict(amount=(0.5, 0.9), fraction=(0.25, 0.55)))]),
        (0.35, [  # pigmented
            (halo, 0.5, dict(blood=(0.08, 0.2))),
            (body, 1, dict(melanin=(0.1, 0.45), blood=(0.05, 0.25), variety=(0.4, 0.7))),
            (follicles, 0.8, dict(cell=(0.07, 0.11), blood=(0.0, 0.2), melanin=(0.15, 0.4))),
            (scale, 0.6, dict(amount=(0.4, 0.8), fraction=(0.15, 0.4)))]),
    ],
    "BKL": [
        (0.60, [  # seborrheic keratosis
            (body, 1, dict(melanin=(0.25, 1.0), blood=(0.0, 0.2), variety=(0.12, 0.3), center=(-0.3, 0.4))),
            (blotches, 0.35, dict(amount=(0.3, 0.7), fraction=(0.25, 0.5), blue=(0.1, 0.6))),
            (fissures, 0.4, dict(cells=(13, 24), amount=(0.12, 0.4))),
            (plugs, 0.6, dict(cover="plug", cell=(0.1, 0.18), amount=(0.4, 0.85), fraction=(0.08, 0.3))),
            (plugs, 0.75, dict(cover="keratin", cell=(0.1, 0.18), amount=(0.25, 0.65), fraction=(0.1, 0.4))),
            (scale, 0.2, dict(amount=(0.3, 0.6), fraction=(0.2, 0.5)))]),
        (0.40, [  # flat: lentigo, lichenoid
            (body, 1, dict(melanin=(0.15, 0.5), blood=(0.0, 0.2), variety=(0.25, 0.5))),
            (fissures, 0.5, dict(cells=(18, 28), amount=(0.1, 0.35))),
            (plugs, 0.35, dict(cover="keratin", cell=(0.1, 0.15), amount=(0.2, 0.45), fraction=(0.1, 0.25))),
            (regression, 0.2, dict(amount=(0.2, 0.45), fraction=(0.2, 0.4)))]),
    ],
    "DF": [
        (1.00, [
            (halo, 0.5, dict(blood=(0.08, 0.25))),
            (body, 1, dict(melanin=(0.15, 0.5), blood=(0.1, 0.45), variety=(0.15, 0.35), center=(-0.5, 0.3))),
            (network, 0.8, dict(cell=(0.045, 0.06), amount=(0.1, 0.24), atypia=(0.2, 0.4), rim=1.0)),
            (scar, 1, dict(amount=(0.35, 0.9), reach=(0.3, 0.65)))]),
    ],
    "VASC": [
        (0.45, [  # cherry angioma
            (halo, 0.4, dict(blood=(0.05, 0.2))),
            (lacunae, 1, dict(cell=(0.09, 0.17), red=(0.6, 1.4), purple=(0.0, 0.3), septa=(0.0, 0.4)))]),
        (0.25, [  # clotted, angiokeratoma
            (halo, 0.6, dict(blood=(0.05, 0.2))),
            (lacunae, 1, dict(cell=(0.12, 0.22), red=(0.4, 1.0), purple=(0.4, 1.1), septa=(0.3, 0.65)))]),
        (0.12, [  # scattered
            (body, 1, dict(melanin=0.0, blood=(0.05, 0.2), variety=(0.1, 0.3))),
            (lacunae, 1, dict(cell=(0.07, 0.1), red=(0.6, 1.2), purple=(0.0, 0.5), septa=0, fraction=(0.3, 0.6)))]),
        (0.18, [  # homogeneous
            (body, 1, dict(melanin=(0.0, 0.4), blood=(0.5, 1.1), variety=(0.1, 0.3))),
            (blotches, 0.5, dict(amount=0.0, fraction=(0.3, 0.6), blue=(0.2, 0.6)))]),
    ],
}  # fmt: skip

# ---------------------------------------------------------------- the lesion, and the skin around it

_MAP_SIZE = 144  # texels across 2 * EXTENT of outline and skin maps, the same at every image size


def _outline(rng: np.random.Generator, shape: Shape) -> tuple[np.ndarray, float]:
    """Height (_MAP_SIZE, _MAP_SIZE), positive inside the lesion, and radius: smoothly merged ellipses, roughened by
    noise at two scales."""
    radius = _sample(rng, shape.radius) if rng.random() > 0.08 else 1.25 * shape.radius[1]
    lobes = int(rng.integers(shape.lobes[0], shape.lobes[1] + 1))
    size, total = radius / (1 + 0.16 * (lobes - 1)), 0.0
    x = EXTENT * _axis(_MAP_SIZE)
    y = x[:, None]
    for lobe in range(lobes):
        cx, cy = (rng.normal(0, 0.42, 2) * size).tolist() if lobe else (0.0, 0.0)
        stretch, lobe_size = rng.uniform(1.0, 1.25), size * (rng.uniform(0.55, 0.9) if lobe else 1.0)
        c, s = _cos_sin(rng.uniform(0, np.pi))
        a = (c * (x - cx) + s * (y - cy)) / (lobe_size * stretch)
        b = (c * (y - cy) - s * (x - cx)) * (stretch / lobe_size)
        total = total + cv2.exp(6 - 6 * cv2.sqrt(a * a + b * b))
    height, frequency = cv2.log(total) / 6, 1 / radius
    height += _sample(rng, shape.coarse) * _noise(rng, _MAP_SIZE, round(6 * frequency))
    height += _sample(rng, shape.fine) * _noise(rng, _MAP_SIZE, round(20 * frequency), 3)
    if shape.ragged[1]:
        bites = _smoothstep(_noise(rng, _MAP_SIZE, round(16 * frequency)), 0.4, 1.6)
        height -= _sample(rng, shape.ragged) * bites * _smoothstep(height, 0.5, 0.0)
    # Pieces that the noise separates become skin, and holes become lesion.
    lesion = _largest_region(height) > 0
    return np.where(lesion, np.clip(height, 0.01, 1.2), np.minimum(height, -0.01)), radius


def _largest_region(height: np.ndarray) -> np.ndarray:
    """The largest connected area above 0, holes filled: uint8 in {0, 1}, shape of `height`."""
    outlines, _ = cv2.findContours((height > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    region = np.zeros(height.shape, np.uint8)
    return cv2.drawContours(region, [max(outlines, key=cv2.contourArea)], 0, 1, cv2.FILLED)


def _canvas(rng: np.random.Generator, shape: Shape, size: int, darkness: float) -> Scene:
    """An empty canvas around the outline of a lesion, slightly finer than an image of `size` pixels."""
    height_map, radius = _outline(rng, shape)
    # Everything that a lesion adds ends above height -0.3, so the canvas contains all of it.
    left, top, width, height = cv2.boundingRect((height_map > -0.3).astype(np.uint8))
    texels = max(width, height)
    left, top = min(left, _MAP_SIZE - texels), min(top, _MAP_SIZE - texels)
    texel = 2 * EXTENT / _MAP_SIZE
    side = round(texels * texel * 0.52 * size)
    crop = np.ascontiguousarray(height_map[top : top + texels, left : left + texels])
    crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC)
    fade = _sample(rng, shape.fade)
    alpha = _smoothstep(crop, -0.03 - 0.25 * fade, fade)  # about 10 % on the outline: just visible
    corner = np.array([left, top]) * texel - EXTENT
    return Scene(rng, corner, texels * texel, radius, crop, alpha, _sample(rng, shape.pigment) * (1 + 0.5 * darkness))


def _skin(rng: np.random.Generator, sun_damaged: bool) -> np.ndarray:
    """Melanin and blood of skin without a lesion, (_MAP_SIZE, _MAP_SIZE, 2): nearly flat, fine lines, freckles."""

    def noise(cells: int, octaves: int = 2) -> np.ndarray:
        return _noise(rng, _MAP_SIZE, cells, octaves)

    def lines(*cells: int) -> np.ndarray:
        return cv2.resize(rng.random(cells, np.float32) - 0.5, (_MAP_SIZE, _MAP_SIZE), interpolation=cv2.INTER_LINEAR)

    clouds, flush = noise(8), noise(14, 3)
    furrows = lines(90, 18) * (1 + 0.5 * clouds) + lines(_MAP_SIZE, _MAP_SIZE)
    melanin = 0.008 * clouds + rng.uniform(0.01, 0.03) * furrows
    melanin += rng.uniform(0, 0.1) * _smoothstep(noise(24), 1.4, 2.8)
    blood = 0.012 * flush + rng.uniform(0.01, 0.03) * furrows
    if sun_damaged:  # freckles and a web of dilated vessels
        melanin += rng.uniform(0.0, 0.2) * _smoothstep(noise(16, 3), 0.5, 2.4)
        blood += (
            rng.uniform(0.0, 0.14) * _gauss_ridge(flush, 0.15) * _smoothstep(clouds, -0.5, 1.5)
            + rng.uniform(0, 0.02) * flush
        )
    return cv2.merge([melanin, blood])


def _lesion(label: int, seed: int, size: int) -> tuple[Scene, np.ndarray, np.ndarray]:
    """The lesion `(label, seed)`, its skin map (see `_skin`) and the density (3, 1, 1) of skin without features."""
    rng = np.random.default_rng([seed, label, 0])
    shape = SHAPES[CLASSES[label]]
    tone, sun_damaged = rng.choice(6, p=SKIN_TONE_PROBS), rng.random() < shape.sun_damage_prob
    # Pressure of the contact plate makes skin pale, old skin more so, dark skin hardly.
    pressure = rng.uniform(0.55 if sun_damaged else 0.7, 0.9 if sun_damaged else 1.1) if tone < 3 else 1.0
    base = SKIN_TONE_DENSITIES[tone] * pressure
    skin = _skin(rng, sun_damaged)
    # On dark skin lesions are darker too and the camera's exposure is longer; without both they would be invisible.
    darkness = max(0.0, float(base.mean()) - 0.6)
    scene = _canvas(rng, shape, size, darkness)
    patterns = PATTERNS[CLASSES[label]]
    for structure, prob, ranges in patterns[rng.choice(len(patterns), p=[prob for prob, _ in patterns])][1]:
        kwargs = {name: _sample(rng, value) for name, value in ranges.items()}
        if rng.random() < prob:
            structure(scene, **kwargs)
    return scene, skin, base - np.float32(0.3 * darkness)


# ---------------------------------------------------------------- the view: position, lighting, artifacts


def _warp(texture: np.ndarray, corner: np.ndarray, width: float, affine: np.ndarray, size: int, border) -> np.ndarray:
    """A square texture as seen in the image, (size, size[, C]); `affine` (2, 3) maps lesion coordinates to pixels.

    corner, width: position of the texture in lesion coordinates; border: value outside the texture, None mirrors it.
    """
    texel = width / len(texture)
    origin = affine @ np.array([corner[0] + texel / 2, corner[1] + texel / 2, 1])
    matrix = np.column_stack([affine[:, :2] * texel, origin])
    mode = cv2.BORDER_REFLECT if border is None else cv2.BORDER_CONSTANT
    return cv2.warpAffine(texture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=mode, borderValue=border)


def _hairs(rng: np.random.Generator, image: np.ndarray) -> bool:
    """Tapered hairs with a soft shadow: few and long, or many and short with one direction; rarely light ones.

    Returns whether the hairs in the frame are longer than 20 % of the image side in total.
    """
    size, short = len(image), rng.random() < 0.3
    count, direction = rng.integers(15, 50) if short else rng.integers(2, 12), rng.uniform(0, 2 * np.pi)
    length = rng.uniform(0.08, 0.16, (count, 1)) if short else rng.uniform(0.4, 1.2, (count, 1))
    spread, curl = (0.25, 0.2) if short else (0.7, 0.8)
    angles = direction + rng.normal(0, spread, (count, 1)) + rng.normal(0, curl, (count, 1)) * np.linspace(0, 1, 12)
    angles += np.cumsum(rng.normal(0, 0.08, (count, 12)), 1)
    steps = np.stack([np.cos(angles), np.sin(angles)], 2) * (length / 12)[..., None]
    points = rng.uniform(-0.1, 1.1, (count, 1, 2)) + np.cumsum(steps, 1)
    lines = size * points
    coverage = _strokes(size, list(lines), (size * rng.uniform(0.0035, 0.008, count)).tolist())
    offset, blur = 1 + size // 100, 1 + size // 40
    shadow = cv2.blur(np.roll(coverage, (offset, offset), (0, 1)), (blur, blur))
    color = np.array([225, 205, 190] if rng.random() < 0.1 else [58, 40, 34], np.float32)
    opacity = (rng.uniform(0.55, 0.9) * coverage)[..., None]
    image *= (1 - 0.25 * shadow)[..., None] * (1 - opacity)
    image += color * opacity
    in_frame = ((points > 0) & (points < 1)).all(2)
    return bool((in_frame * length / 12).sum() > 0.2)


def _bubbles(rng: np.random.Generator, image: np.ndarray) -> bool:
    """Air bubbles in the gel: a bright rim and a highlight on the lamp's side, skin visible through the middle."""
    size = len(image)
    light = np.zeros((size, size), np.float32)
    lamp_angle = rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(1, 6)):
        center, radius = rng.uniform(0, size, 2), size * rng.uniform(0.012, 0.045)
        highlight = center + 0.5 * radius * np.array(_cos_sin(lamp_angle))
        for middle, r, value, thickness in ((center, radius, 0.35, 1), (highlight, 0.28 * radius, 0.9, cv2.FILLED)):
            position = tuple(int(16 * v) for v in middle)  # in 1/16 pixel, see `shift` of cv2.circle
            cv2.circle(light, position, int(16 * r), value, thickness, cv2.LINE_AA, 4)
    light = cv2.GaussianBlur(light, (0, 0), size / 220)[..., None]
    image += light * (250 - image)
    return True


def _ruler(rng: np.random.Generator, image: np.ndarray) -> bool:
    """Ruler marks along one edge, every fifth longer."""
    size = len(image)
    step, start, edge = size * rng.uniform(0.03, 0.06), rng.uniform(0, 0.3), rng.uniform(0.02, 0.06) * size
    marks = np.zeros((size, size), np.float32)
    for k, x in enumerate(np.arange(start * size, rng.uniform(0.6, 1.0) * size, step)):
        length = size * (0.05 if k % 5 == 0 else 0.03)
        ends = [(int(16 * x), int(16 * y)) for y in (edge, edge + length)]
        cv2.line(marks, *ends, 0.8, max(1, size // 160), cv2.LINE_AA, 4)
    marks = np.rot90(marks, rng.integers(4))[..., None]
    image *= 1 - marks
    image += 30 * marks
    return True


def _light(rng: np.random.Generator, size: int, dark_corners: bool = True) -> tuple[np.ndarray, bool]:
    """Density added by lamp and lens, (size, size): uneven light, rarely the dermoscope's round field of view.

    Also returns whether the corners are visibly dark: at least 0.2 % of the image. `dark_corners=False` leaves the
    field of view out.
    """
    x = _axis(size)
    y = x[:, None]
    squared_radius = x * x + y * y
    slope = rng.normal(0, 0.03, 2).tolist()
    light = rng.normal(0, 0.05) + slope[0] * x + slope[1] * y + rng.uniform(0.0, 0.08) * squared_radius
    visible = False
    if rng.random() < 0.05:  # low zoom
        edge = rng.uniform(1.15, 1.4)
        visible = dark_corners and edge < 1.385
        if dark_corners:
            light += 3.2 * _smoothstep(cv2.sqrt(squared_radius), edge - 0.05, edge + 0.05)
    return light, visible


@dataclass(frozen=True)
class _Frame:
    """Position of the lesion in the image, in coordinates from 0 to 1 that do not depend on its size, and lighting."""

    size: int  # image side, pixels
    center: np.ndarray  # (x, y) of the lesion
    radius: float  # of the lesion
    exposure: np.ndarray  # factor of the light at every pixel, (size, size, 1)

    def offsets(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x and y of every pixel relative to `point`: (1, size) and (size, 1)."""
        axis = (_axis(self.size) + 1) / 2
        return (axis - np.float32(point[0]))[None], (axis - np.float32(point[1]))[:, None]

    def distance(self, point: np.ndarray) -> np.ndarray:
        """Distance of every pixel from `point`: (size, size)."""
        x, y = self.offsets(point)
        return cv2.sqrt(x * x + y * y)


INKS = {"violet": (0.90, 1.05, 0.25), "blue": (1.30, 0.75, 0.18)}  # density of surgical markers in R, G, B


def _ink(rng: np.random.Generator, frame: _Frame) -> np.ndarray:
    """Density (3, size, size) of a surgical marker on the skin around the lesion: dots, dashes, an arc or a line."""
    shape = rng.choice(["dots", "dashes", "arc", "line"], p=[0.3, 0.35, 0.2, 0.15])
    count = {"dots": rng.integers(2, 7), "dashes": rng.integers(2, 5)}.get(shape, 1)
    width = rng.uniform(0.028, 0.05) if shape == "dots" else rng.uniform(0.016, 0.034)
    start, margin, turn = rng.uniform(0, 2 * np.pi), rng.uniform(1.15, 1.5), rng.choice([0, np.pi / 2])
    length = {"dots": 0.004, "dashes": rng.uniform(0.07, 0.16), "line": rng.uniform(0.3, 0.7)}.get(shape, 0)
    reach = max(margin * frame.radius, 0.14)
    lines = []
    for k in range(count):
        angle = start + 2 * np.pi * k / count + rng.normal(0, 0.35)
        anchor = frame.center + reach * np.array(_cos_sin(angle))
        if shape == "arc":
            angles = angle + np.linspace(-0.5, 0.5, 12) * rng.uniform(1.0, 3.5)
            line = reach * np.stack([np.cos(angles), np.sin(angles)], 1) - reach * np.array(_cos_sin(angle))
        else:
            direction = angle + rng.normal(0, 0.2) + (np.pi / 2 if shape == "line" else turn)
            line = np.linspace(-0.5, 0.5, 12)[:, None] * length * np.array(_cos_sin(direction))
        line += 0.003 * np.cumsum(rng.normal(0, 1, (12, 2)), 0) * (shape != "dots")
        # The middle of every stroke stays inside the frame, also if the lesion fills it.
        from_middle = anchor - 0.5
        lines.append(line + 0.5 + from_middle * min(1, 0.42 / np.hypot(*from_middle)))
    size = frame.size
    widths = size * width * rng.uniform(0.8, 1.2, count)
    coverage = _strokes(size, [size * line for line in lines], widths.tolist())
    coverage = cv2.GaussianBlur(coverage, (0, 0), 0.004 * size)
    # Ink gathers in the furrows of the skin and leaves its ridges pale.
    coverage *= np.clip(0.9 + 0.2 * _noise(rng, size, 40, 3), 0.4, 1.3) * rng.uniform(0.7, 1.4)
    color = np.array(INKS[rng.choice(list(INKS), p=[0.7, 0.3])], np.float32)
    return color[:, None, None] * coverage


PATCH_COLORS = ((238, 204, 70), (232, 142, 62), (196, 58, 66), (66, 116, 182), (78, 156, 104))


def _patches(rng: np.random.Generator, frame: _Frame, image: np.ndarray) -> np.ndarray:
    """One or two round colored stickers that reach into the frame, away from the lesion; returns their opacity."""
    to_middle, covered = 0.5 - frame.center, np.zeros((frame.size, frame.size), np.float32)
    angle = math.atan2(to_middle[1], to_middle[0]) + rng.normal(0, 0.6)
    colors = rng.permutation(PATCH_COLORS)
    for color in colors[: 1 + (rng.random() < 0.35)].astype(np.float32):
        direction = np.array(_cos_sin(angle))
        edge = 0.5 + 0.5 * direction / np.abs(direction).max()  # where this direction leaves the frame
        free = np.dot(edge - frame.center, direction) - 1.1 * frame.radius
        radius, depth = rng.uniform(0.16, 0.42), max(0.09, min(rng.uniform(0.12, 0.34), free))
        distance = frame.distance(edge + (radius - depth) * direction)
        opacity = _smoothstep(distance, radius + 0.006, radius - 0.006)
        image *= (1 - 0.35 * _smoothstep(distance, radius + 0.035, radius) * (1 - opacity))[..., None]  # shadow
        shade = rng.uniform(0.8, 1.05) + 0.02 * _noise(rng, frame.size, 40) - 0.04 * _noise(rng, frame.size, 3)
        shade += 0.12 * _gauss_ridge(distance - radius + 0.012, 0.006)  # the edge catches the light
        image += opacity[..., None] * (color * shade[..., None] * frame.exposure - image)
        covered = np.maximum(covered, opacity)
        angle += rng.uniform(1.6, 4.6)
    return covered


def _gel_border(rng: np.random.Generator, frame: _Frame, image: np.ndarray) -> None:
    """The edge of the immersion gel, a curved line that refracts light; beyond it the skin surface reflects light.

    The gel contains the middle of the image, because the dermoscope is placed on it.
    """
    direction = np.array(_cos_sin(rng.uniform(0, 2 * np.pi)))
    curvature_radius, sign = rng.uniform(0.45, 1.6), 1 if rng.random() < 0.7 else -1
    center = 0.5 + (rng.uniform(0.2, 0.42) - sign * curvature_radius) * direction
    distance = frame.distance(center)
    outside = sign * (distance - curvature_radius) + rng.uniform(0.004, 0.012) * _noise(rng, frame.size, 5, 3)
    width = rng.uniform(0.006, 0.011)
    strength = _smoothstep(_noise(rng, frame.size, 4), -1.6, 0.8)  # uneven along the line
    shift = rng.uniform(0.008, 0.016) * frame.size * _gauss_ridge(outside - width, 2.5 * width) / distance
    x, y = frame.offsets(center)
    pixel = np.arange(frame.size, dtype=np.float32)
    image[:] = cv2.remap(
        image, pixel - shift * x, pixel[:, None] - shift * y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    dry = _smoothstep(outside, -0.3 * width, 1.2 * width)
    haze = rng.uniform(0.18, 0.34) * dry * np.clip(1 + 0.22 * _noise(rng, frame.size, 50), 0.4, 1.6)
    tone = np.array([236, 218, 216], np.float32) * frame.exposure
    image += haze[..., None] * (tone - image)
    image *= (1 - rng.uniform(0.05, 0.15) * dry)[..., None]
    image *= (1 - rng.uniform(0.2, 0.45) * strength * _gauss_ridge(outside + 1.6 * width, 1.3 * width))[..., None]
    glint = rng.uniform(0.3, 0.65) * strength * _gauss_ridge(outside, width)
    image += glint[..., None] * (250 * frame.exposure - image)


def render(label: int, seed: int, size: int = 128, view: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Render the lesion `(label, seed)`, as view number `view`.

    label: index into `CLASSES`; size: image side in pixels, 64 to 512. Returns the RGB image, `uint8 (size, size, 3)`,
    and its exact mask, `uint8 (size, size)` in {0, 1}. The same arguments give the same image. Another `size` gives the
    same scene at another resolution; another `view` the same lesion with another rotation, shift, lighting and hair.
    Raises `ValueError` for an argument out of range.
    """
    image, mask, _ = render_with_flags(label, seed, size, view)
    return image, mask


def artifact_flags(label: int, seed: int, view: int = 0) -> np.ndarray:
    """Which of `ARTIFACTS` are visible in `render(label, seed, view=view)`, at every size: `uint8 (7,)` in {0, 1}."""
    return render_with_flags(label, seed, 64, view)[2]


def render_with_flags(
    label: int, seed: int, size: int = 128, view: int = 0, artifacts: Container[str] = ARTIFACTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and mask of `render` and the flags of `artifact_flags`, in one rendering.

    artifacts: those of `ARTIFACTS` that may occur; the others are left out, and everything else stays as it is.
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label must be 0 to {len(CLASSES) - 1} ({' '.join(CLASSES)}), got {label}")
    if not 64 <= size <= 512:
        raise ValueError(f"size must be 64 to 512 pixels, got {size}")
    if seed < 0 or view < 0:
        raise ValueError(f"seed and view must not be negative, got seed {seed}, view {view}")
    patient_rng = np.random.default_rng([seed, label, 1])  # properties of patient and camera, the same in every view
    cast, blur = patient_rng.normal(0, [0.03, 0.035, 0.08]), patient_rng.uniform(0.3, 1.0)
    hair_prob = 0.7 if patient_rng.random() < 0.3 else 0.05
    rng = np.random.default_rng([seed, label, 2, view])
    (c, s), zoom = _cos_sin(rng.uniform(0, 2 * np.pi)), rng.uniform(0.92, 1.12) * size / 2
    shift = size / 2 * (1 + np.clip(rng.normal(0, 0.1, 2), -0.25, 0.25)) - 0.5
    affine = np.column_stack([zoom * np.array([[c, -s], [s, c]]), shift])
    scene, skin, base = _lesion(label, seed, size)
    base = (base.ravel() - cast - rng.normal(0, 0.018, 3)).astype(np.float32)
    density, height = _compose(scene, skin, base, affine, size)
    light, dark_corner = _light(rng, size, "dark_corner" in artifacts)
    density += light
    frame = _Frame(size, (shift + 0.5) / size, scene.radius * zoom / size, cv2.exp(-light)[..., None])
    own_rngs = {name: own for name, own in _own_rngs(label, seed, view).items() if name in artifacts}
    if "ink" in own_rngs:
        density += _ink(own_rngs["ink"], frame)
    image = cv2.merge(list(cv2.exp(np.minimum(math.log(255) - density, math.log(255)))))
    visible = {"dark_corner"} if dark_corner else set()
    if rng.random() < hair_prob:
        visible |= _add("hair", _hairs, rng, image, artifacts)
    if "patches" in own_rngs:
        height[_patches(own_rngs["patches"], frame, image) > 0.5] = -1
    if "gel_border" in own_rngs:
        _gel_border(own_rngs["gel_border"], frame, image)
    for prob, name, artifact in ((0.08, "gel_bubble", _bubbles), (0.07, "ruler", _ruler)):
        if rng.random() < prob:
            visible |= _add(name, artifact, rng, image, artifacts)
    image = cv2.GaussianBlur(image, (0, 0), blur * rng.uniform(0.7, 1.3) * size * 0.006)
    noise = (rng.random((size, size), np.float32) - 0.5) * rng.uniform(3.0, 8.0)
    image += cv2.merge([noise, noise, noise])
    visible |= own_rngs.keys()
    flags = np.array([name in visible for name in ARTIFACTS], np.uint8)
    return cv2.convertScaleAbs(np.maximum(image, 0, out=image)), _largest_region(height), flags


def _own_rngs(label: int, seed: int, view: int) -> dict[str, np.random.Generator]:
    """The random generators of ink, patches and gel border, if these occur; each affects no other random number."""
    rngs = {}
    for stream, (name, prob) in enumerate({"ink": 0.08, "patches": 0.0435, "gel_border": 0.1}.items(), 3):
        rng = np.random.default_rng([seed, label, stream, view])
        if rng.random() < prob:
            rngs[name] = rng
    if "ink" in rngs:
        rngs.pop("patches", None)  # a patch could cover all ink
    return rngs


def _add(
    name: str, artifact: Callable, rng: np.random.Generator, image: np.ndarray, artifacts: Container[str]
) -> set[str]:
    """Add an artifact to `image` in place, if it is one of `artifacts`; returns {name} if it is visible."""
    # Its random numbers are used up in any case, so that the rest of the image does not change.
    visible = artifact(rng, image if name in artifacts else image.copy())
    return {name} if visible and name in artifacts else set()


def _compose(
    scene: Scene, skin: np.ndarray, base: np.ndarray, affine: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lesion on skin: density (3, size, size) and height (size, size); base: density (3,) of plain skin."""
    canvas = scene.corner, scene.width, affine, size
    *added, visibility = cv2.split(_warp(cv2.merge([*scene.density, scene.visibility]), *canvas, (0, 0, 0, 1)))
    melanin, blood = cv2.split(_warp(skin, (-EXTENT, -EXTENT), 2 * EXTENT, affine, size, None))
    density = PIGMENTS["melanin"] * melanin
    density += PIGMENTS["blood"] * blood
    density += base[:, None, None]
    density *= visibility
    for channel, lesion_density in zip(density, added, strict=True):
        channel += lesion_density
    return density, _warp(scene.height, *canvas, -1)

"""Procedural dermoscopy: seven diagnoses with exact masks, the sample everything runs on without real data.

A lesion is drawn as light loses it on its way through skin: every chromophore (melanin, blood, melanin
deep in the dermis) adds optical density, and the camera sees `exp(-density)`. Browns, reds and the
blue-grey of deep pigment then mix as they do in skin instead of as paint on paper. The lesion is drawn
upright on a canvas just large enough for it; a photograph turns, scales and shifts that canvas onto skin.

What each diagnosis shows follows the textbooks: the ABCD rule (Nachbar, Stolz et al., J Am Acad Dermatol
1994), the consensus on pattern analysis (Argenziano et al., J Am Acad Dermatol 2003) and the strawberry
pattern of actinic keratosis (Zalaudek et al., Br J Dermatol 2006). These are phantoms: never call them skin.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
from scipy.spatial import cKDTree

CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]

# Lesion coordinates: the frame of an unmoved photograph is [-1, 1]. Skin reaches this much further,
# so that a turned and shifted photograph still sees skin in its corners.
EXTENT = 1.75
Range = tuple[float, float]


def _density(*rgb: int) -> np.ndarray:
    """Optical density (3, 1, 1) of a colour given in 0..255."""
    return -np.log(np.array(rgb, np.float32) / 255)[:, None, None]


# Density per unit of pigment in R, G, B; the ratios were read off lesion-to-skin ratios of dermoscopy.
PIGMENTS = {
    name: np.array(rgb, np.float32)[:, None, None]
    for name, rgb in {
        "melanin": (0.50, 0.95, 1.25),
        "blood": (0.20, 1.00, 0.66),
        "blue": (1.05, 0.85, 0.55),  # deep melanin: short waves are scattered back (Tyndall)
        "crust": (0.22, 0.85, 1.20),  # dried blood and serum, orange-red
    }.items()
}
# What hides the skin below instead of staining it.
COVERS = {
    "scar": _density(240, 208, 210),
    "keratin": _density(242, 224, 196),
    "veil": _density(118, 118, 142),
    "plug": _density(60, 34, 22),
    "septum": _density(214, 172, 198),
}
# Fitzpatrick I to VI: share of the sample and colour. Mostly I-III, as in the clinics of HAM10000, but all there.
SKIN_SHARES = (0.22, 0.36, 0.22, 0.10, 0.06, 0.04)
SKIN_COLOURS = [
    _density(*rgb)
    for rgb in ((226, 180, 190), (220, 164, 174), (212, 160, 158), (186, 138, 124), (142, 100, 88), (96, 68, 62))
]


def _draw(rng: np.random.Generator, setting: float | Range) -> float:
    return float(rng.uniform(*setting)) if isinstance(setting, tuple) else setting


def _turn(angle: float) -> tuple[float, float]:
    """Cosine and sine as plain floats: NumPy's own would turn every float32 picture they meet into float64."""
    return math.cos(angle), math.sin(angle)


def _step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between; falling when low > high."""
    t = (x - low) * (1 / (high - low))
    np.maximum(np.minimum(t, 1, out=t), 0, out=t)  # in place and without np.clip: most calls of a drawing are this one
    return t * t * (3 - 2 * t)


def _ridge(x: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """1 where x is 0, falling to nothing within about two `width`s."""
    x = x / width
    return cv2.exp(-x * x)


def _noise(rng: np.random.Generator, side: int, cells: int, octaves: int = 2) -> np.ndarray:
    """Cloud-like noise of mean 0 and deviation about 1, `cells` blobs across: float32 (side, side)."""
    total = rng.random((cells, cells), np.float32) - 0.5
    for octave in range(1, octaves):
        n = cells * 2**octave
        total = cv2.pyrUp(total) + 0.5**octave * (rng.random((n, n), np.float32) - 0.5)
    total = cv2.pyrUp(total)  # a spline, several times cheaper than cubic interpolation, and it hides the grid
    while 2 * len(total) < side:
        total = cv2.pyrUp(total)
    # 6.5: the deviation of `random`, and what the spline smooths away
    total *= 6.5 / math.sqrt(sum(0.25**k for k in range(octaves)))
    return cv2.resize(total, (side, side), interpolation=cv2.INTER_LINEAR if side > len(total) else cv2.INTER_AREA)


@lru_cache(maxsize=8)
def _axis(side: int) -> np.ndarray:
    """-1 to 1 over the middles of `side` pixels."""
    return (2 * np.arange(side, dtype=np.float32) + 1) / side - 1


# ---------------------------------------------------------------- the lattice: one cell pattern, many structures

_TILE, _TEXELS = 24, 12  # cells along the tile, texels along a cell


@lru_cache(maxsize=1)
def _tile() -> np.ndarray:
    """Periodic cells around a strongly jittered hexagonal lattice, float32 (rows, columns, 3).

    Channels: distance to the nearest centre and gap to the second nearest (0 on the line between cells), both
    in cells, and a random number of the cell in 0..1.
    """
    rng = np.random.default_rng(16)
    rows, columns = round(_TILE * 0.866) * _TEXELS, _TILE * _TEXELS
    row, column = np.indices((_TILE, _TILE)) + rng.normal(0, 0.28, (2, _TILE, _TILE))
    column += np.arange(_TILE)[:, None] % 2 / 2
    centres = np.stack([row.ravel() * rows / _TILE, column.ravel() * _TEXELS], 1) % (rows, columns)
    texels = np.stack(np.indices((rows, columns)), 2)
    far, nearest = cKDTree(centres, boxsize=(rows, columns)).query(texels, 2)
    number = rng.random(len(centres))[nearest[..., 0]]
    return np.dstack([far[..., 0] / _TEXELS, (far[..., 1] - far[..., 0]) / _TEXELS, number]).astype(np.float32)


# ---------------------------------------------------------------- the scene: a lesion under drawing


@dataclass
class Scene:
    """Canvas of one lesion: `height` is 1 in its middle, 0 on its outline; `alpha` fades over the border."""

    rng: np.random.Generator
    corner: np.ndarray  # (x, y) of the upper left, lesion coordinates
    width: float  # of the canvas, lesion coordinates
    radius: float
    height: np.ndarray  # (side, side)
    alpha: np.ndarray
    strength: float  # pigment of the whole lesion: light and dark ones of every class

    def __post_init__(self) -> None:
        self.side = len(self.height)
        self.density = np.zeros((3, self.side, self.side), np.float32)  # what the lesion adds
        self.keep = np.ones_like(self.height)  # share of the skin below that still shows
        self.x = (self.corner[0] + self.width / 2 * (_axis(self.side) + 1))[None].astype(np.float32)
        self.y = (self.corner[1] + self.width / 2 * (_axis(self.side) + 1))[:, None].astype(np.float32)
        rough = _noise(self.rng, self.side, round(13 * self.width))
        # clumps of pigment, too small to be structures, keep areas from being flat
        self.grain = np.clip(1 + self.rng.uniform(0.05, 0.24) * rough, 0.3, 1.7)

    def stain(self, pigment: str, amount: np.ndarray) -> None:
        for channel, part in zip(self.density, PIGMENTS[pigment].ravel(), strict=True):
            # into the channel itself, without another picture in between
            cv2.scaleAdd(amount, float(part), channel, channel)

    def cover(self, colour: str, amount: np.ndarray) -> None:
        self.density += (COVERS[colour] - self.density) * amount
        self.keep *= 1 - amount

    def noise(self, cells: int, octaves: int = 2) -> np.ndarray:
        """Noise that scales with the lesion: `cells` blobs across the canvas, some 2.6 radii."""
        return _noise(self.rng, self.side, cells, octaves)

    @cached_property
    def bend(self) -> tuple[np.ndarray, np.ndarray]:
        """Bends lattices, so that no two meshes are alike."""
        wave = self.noise(round(5 * self.width))
        return wave, np.ascontiguousarray(wave[::-1].T)

    def lattice(self, cell: float, bend: float = 0.013) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distance to the cell's centre, gap to the next cell, and the cell's random number, each (side, side)."""
        start, turn = self.rng.uniform(0, _TILE * _TEXELS, 2).tolist(), self.rng.uniform(0, 2 * np.pi)
        stretch = self.rng.uniform(1.0, 1.3)  # another aspect for every lesion: no two share the tile
        a, b = self.x + bend * self.bend[0], self.y + bend * self.bend[1]
        c, s = (_TEXELS / cell * part for part in _turn(turn))
        u, v = (c * a - s * b) / stretch + start[0], (s * a + c * b) + start[1]
        return cv2.split(cv2.remap(_tile(), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))

    def patch(self, share: float, softness: float = 0.5, cells: int = 3) -> np.ndarray:
        """An organic part of the lesion, about `share` of it, off-centre: (side, side) in 0..1."""
        c, s = _turn(self.rng.uniform(0, 2 * np.pi))
        field = self.noise(cells, 3) + (c * self.x + s * self.y) * (0.9 / self.radius)
        # the field has deviation of about 1.1 within the lesion; this is its quantile, nearly enough
        edge = 2.6 * (0.5 - share)
        return _step(field, edge, edge + softness) * self.alpha

    def rays(self, count: int) -> np.ndarray:
        """`count` uneven rays from the middle outwards, noise of deviation 1 around 0: (side, side)."""
        ray = self.rng.standard_normal(count)
        turns = np.arctan2(self.y, self.x) * (count / (2 * np.pi)) + 0.4 * self.bend[0]  # none is quite straight
        return np.interp(turns.ravel(), np.arange(count), ray, period=count).reshape(turns.shape).astype(np.float32)


def _strokes(side: int, lines: list[np.ndarray], widths: list[float]) -> np.ndarray:
    """Polylines (n, 2) in pixels, tapering from `widths` to half of it, as coverage (side, side) in 0..1."""
    factor = 2 if side <= 300 else 1  # thin lines are drawn larger and averaged down
    canvas = np.zeros((side * factor, side * factor), np.uint8)
    for line, width in zip(lines, widths, strict=True):
        points = np.round((line + 0.5) * factor * 16).astype(np.int32)
        third = len(points) // 3 or 1
        for part in range(min(3, len(points) - 1)):
            piece = points[part * third : (part + 1) * third + 1 if part < 2 else None]
            w = width * factor * (1 - 0.25 * part)
            # OpenCV has no line below one pixel: a thinner one is drawn fainter
            cv2.polylines(canvas, [piece], False, int(255 * min(1, w)), max(1, round(w)), cv2.LINE_AA, 4)
    return cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


# ---------------------------------------------------------------- structures of dermoscopy, one function each


def body(scene: Scene, melanin: float, blood: float = 0.1, variety: float = 0.2, centre: float = 0.0) -> None:
    """The pigment of the whole lesion; `centre` darkens (or, negative, lightens) its middle."""
    uneven = 1 + variety * scene.noise(5, 3) + centre * (scene.height - 0.4)
    scene.stain("melanin", melanin * scene.strength * np.maximum(uneven, 0.15) * scene.grain * scene.alpha)
    scene.stain("blood", blood * (0.5 + 0.5 * scene.grain) * scene.alpha)


def network(scene: Scene, cell: float, amount: float, atypia: float = 0.2, rim: float = 0.0) -> None:
    """Rete ridges as a mesh of dark lines; `atypia` breaks it up, `rim` keeps it off the centre."""
    _, gap, _ = scene.lattice(cell, 0.012 + 0.015 * atypia)
    uneven = 0.8 + (0.45 + atypia) * scene.noise(6)  # even a regular network is seen better here than there
    line = _ridge(gap, 0.2 * np.clip(uneven, 0.8, 1.6))
    fading = _step(scene.height, 0.0, 0.4) * (1 - (0.4 + 0.6 * rim) * _step(scene.height, 0.4, 0.9))
    scene.stain("melanin", amount * scene.strength * (line - 0.1) * fading * np.clip(uneven, 0, 1.6) * scene.grain)


def dots(scene: Scene, cell: float, radius: float, share: float, where: np.ndarray, soft: float = 0.45) -> np.ndarray:
    """Round bodies in a `share` of lattice cells, `radius` in cells, `soft` of the radius fading: (side, side)."""
    centre, gap, number = scene.lattice(cell)
    grown = radius * (0.6 + 0.7 * number / share)  # a cell's number sets how large and how dark its body is
    round_body = _step(centre / grown, 0.9 + soft, 0.9 - soft) * _step(gap, 0.02, 0.25)
    return np.where(number < share, round_body * (0.5 + 0.5 * number / share), 0) * where


def globules(scene: Scene, cell: float, amount: float, share: float = 0.7, irregular: bool = False) -> None:
    """Nests of pigmented cells: brown dots, evenly strewn in a naevus, gathered off-centre in melanoma."""
    where = scene.patch(0.45) if irregular else _step(scene.height, -0.02, 0.1) * _step(scene.noise(7), -2.0, 0.5)
    scene.stain("melanin", amount * scene.strength * dots(scene, cell, 0.34, share, where * scene.grain))


def blotches(scene: Scene, amount: float, share: float, blue: float = 0.0) -> None:
    """Structureless dark areas off-centre; black where melanin is dense, slate where it also lies deep."""
    area = scene.patch(share, 1.1, 5) * scene.grain
    scene.stain("melanin", amount * scene.strength * area)
    scene.stain("blue", blue * area)


def streaks(scene: Scene, amount: float) -> None:
    """Radial streaks and pseudopods on a part of the rim."""
    rim = _step(scene.height, -0.04, 0.06) * _step(scene.height, 0.45, 0.1) * _step(scene.noise(3), -0.2, 0.8)
    scene.stain("melanin", amount * scene.strength * np.clip(scene.rays(90), 0, 1.2) * rim * scene.grain)


def veil(scene: Scene, amount: float, share: float) -> None:
    """Blue-white veil: a confluent slate-blue haze, ground-glass like, that hides what lies below."""
    scene.cover("veil", amount * scene.patch(share, 1.8) * np.minimum(scene.grain, 1))


def regression(scene: Scene, amount: float, share: float) -> None:
    """White scar-like areas with peppering, blue-grey dust of melanophages."""
    area = scene.patch(share, 1.4, 5)
    scene.cover("scar", amount * area * np.minimum(scene.grain, 1))
    scene.stain("blue", 0.45 * dots(scene, 0.05, 0.35, 0.35, area))


def vessels(scene: Scene, stems: float, amount: float) -> None:
    """Arborizing vessels: bright red stems entering from the rim, branching into ever finer twigs."""
    rng, lines, widths, queue = scene.rng, [], [], []
    for way in rng.uniform(0, 2 * np.pi, round(stems)):
        start = scene.radius * rng.uniform(0.6, 1.0) * np.array(_turn(way))
        queue.append((start, way + np.pi + rng.normal(0, 0.5), rng.uniform(0.007, 0.014), rng.uniform(0.5, 1.0), 0))
    while queue:
        start, way, width, length, depth = queue.pop()
        bends = way + np.cumsum(rng.normal(0, 0.38, 9))
        steps = np.column_stack([np.cos(bends), np.sin(bends)]) * (length * scene.radius / 9)
        line = np.vstack([start, start + np.cumsum(steps, 0)])
        lines.append((line - scene.corner) * (scene.side / scene.width))
        widths.append(width * scene.side / scene.width)
        for at in rng.integers(2, 9, 2 if depth < 2 else 0):
            fork = bends[at - 1] + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
            queue.append((line[at], fork, width * 0.65, length * rng.uniform(0.4, 0.7), depth + 1))
    ink = _strokes(scene.side, lines, widths) * _step(scene.noise(7), -1.6, 0.6)  # they dip in and out
    scene.stain("blood", amount * ink * _step(scene.height, -0.25, 0.15))


def nests(scene: Scene, cell: float, amount: float, share: float) -> None:
    """Blue-grey ovoid nests, larger than globules, blurred by the skin above them."""
    where = scene.alpha * scene.grain * _step(scene.noise(7), -0.8, 1.2)
    nest = dots(scene, cell, 0.4, share, where, 0.9) * (1 + 0.3 * scene.noise(12))
    scene.stain("blue", amount * nest)
    scene.stain("melanin", 0.35 * amount * scene.strength * nest)


def leaves(scene: Scene, amount: float) -> None:
    """Leaf-like areas: brown-grey lobes side by side along a part of the rim, joined at their base."""
    lobes = scene.height - 0.2 + 0.22 * scene.rays(26)
    rim = _step(lobes, -0.2, 0.2) * _step(scene.height, 0.6, 0.25) * _step(scene.noise(3), -0.2, 0.5)
    scene.stain("melanin", amount * scene.strength * rim * scene.grain)
    scene.stain("blue", 0.6 * amount * rim * scene.grain)


def ulcer(scene: Scene, size: float) -> None:
    """An erosion of uneven outline: orange-red crust, darker in places, in a red surround."""
    cx, cy = (scene.rng.normal(0, 0.35, 2) * scene.radius).tolist()
    far = cv2.sqrt(np.square(scene.x - cx) + np.square(scene.y - cy))
    near = 1 - far / (size * scene.radius) + 0.55 * scene.noise(9, 3)
    sore = _step(near, -0.1, 0.6) * scene.alpha
    scene.stain("blood", 0.3 * _step(near, -1.0, 0.2) * scene.alpha + 0.1 * sore)
    scene.stain("crust", (0.45 + 0.8 * _step(scene.noise(16), 0.0, 1.2)) * sore)


def scale(scene: Scene, amount: float, share: float) -> None:
    """Surface scale: dry yellow-white flakes on top of everything."""
    scene.cover("keratin", amount * _step(scene.noise(34), -0.1, 1.3) * scene.patch(share, 1.2))


def follicles(scene: Scene, cell: float, blood: float, melanin: float) -> None:
    """Red ("strawberry") or brown pseudonetwork around follicle openings, pale with a plug of keratin."""
    centre, _, number = scene.lattice(cell)
    where = scene.alpha * _step(scene.noise(7, 3), -0.8, 1.0) * scene.grain
    between = _step(centre, 0.2, 0.55) - 0.3
    scene.stain("blood", blood * between * where)
    scene.stain("melanin", melanin * scene.strength * between * where)
    opening = _step(centre, 0.3, 0.12) * where * number
    scene.cover("keratin", 0.28 * opening)
    scene.stain("crust", 0.6 * opening * _step(centre, 0.16, 0.04))


def plugs(scene: Scene, colour: str, cell: float, amount: float, share: float) -> None:
    """Milia-like cysts (keratin: white, glowing) and comedo-like openings (plug: dark) of seborrhoeic keratosis."""
    scene.cover(colour, amount * dots(scene, cell, 0.28, share, _step(scene.height, 0.05, 0.2)))


def fissures(scene: Scene, cells: float, amount: float) -> None:
    """Ridges and fissures (cerebriform): dark furrows winding between fat, lighter ridges."""
    furrow = _ridge(scene.noise(round(cells)), 0.5)
    scene.stain("melanin", amount * scene.strength * (furrow - 0.5) * scene.grain * scene.alpha)


def lacunae(scene: Scene, cell: float, red: float, purple: float, septa: float, share: float = 1.0) -> None:
    """Blood-filled lagoons, red to blue-black, parted by pale septa; with a `share` below 1 scattered dots."""
    centre, gap, number = scene.lattice(cell, 0.02)
    wobble = 0.22 * scene.noise(9)  # lets neighbours run together
    lagoon = _step(np.minimum(1.2 * gap + 0.05, 0.45 + 0.9 * share - 2 * centre) + wobble, -0.25, 0.6)
    lagoon = np.where(number < share, lagoon, 0) * scene.alpha
    clouds = scene.noise(4)
    wall = septa * _step(clouds, 1.2, -0.8) * (scene.alpha - lagoon)  # septa stand out in places only
    scene.cover("septum", wall)
    haze = 0.7 if share == 1 else 0.0
    full = (0.75 + 0.5 * number) * (0.4 + 0.6 * scene.grain)
    scene.stain("blood", red * full * (lagoon + haze * (scene.alpha - lagoon - wall)))
    clotted = _step(number + 0.3 * clouds, 1.1 - purple, 1.6 - purple)  # single lagoons, then all of them
    scene.stain("blue", (1.3 * clotted * lagoon + 0.3 * scene.alpha) * purple * full)


def scar(scene: Scene, amount: float, reach: float) -> None:
    """Central white scar-like patch that frays outwards."""
    core = scene.height + 0.12 * scene.noise(9, 4)
    scene.cover("scar", amount * _step(core, 1 - reach - 0.35, 1.15 - 0.4 * reach))


def halo(scene: Scene, blood: float) -> None:
    """Reddening that reaches beyond the lesion, to the edge of the canvas at most."""
    scene.stain("blood", blood * _step(scene.height - 0.15 * _step(scene.noise(4), -1, 1), -0.3, 0.2))


# ---------------------------------------------------------------- what each diagnosis uses


@dataclass(frozen=True)
class Shape:
    """Ranges of an outline: the frame is 2 wide; all roughness is relative to the radius."""

    radius: Range
    lobes: tuple[int, int] = (1, 1)
    coarse: Range = (0.06, 0.12)  # bays
    fine: Range = (0.02, 0.05)  # notches
    ragged: Range = (0.0, 0.0)  # bites out of the rim, moth-eaten
    fade: Range = (0.25, 0.6)  # width of the border
    strength: Range = (0.6, 1.5)
    sun: float = 0.3  # chance of sun-damaged skin around


SHAPES = {
    "MEL": Shape((0.5, 0.95), (2, 4), (0.12, 0.24), (0.05, 0.10), fade=(0.1, 0.45), strength=(0.5, 1.5), sun=0.4),
    "NV": Shape((0.35, 0.8), (1, 2), (0.03, 0.10), (0.015, 0.04), fade=(0.3, 0.8), strength=(0.5, 1.9), sun=0.12),
    "BCC": Shape((0.4, 0.8), (1, 3), (0.10, 0.20), (0.03, 0.08), fade=(0.3, 0.8), strength=(0.5, 1.3), sun=0.6),
    "AKIEC": Shape((0.5, 0.95), (1, 3), (0.12, 0.22), (0.05, 0.1), fade=(0.4, 0.9), strength=(0.5, 1.3), sun=0.8),
    "BKL": Shape((0.45, 0.85), (1, 2), (0.05, 0.14), (0.02, 0.06), (0.0, 0.3), (0.06, 0.25), (0.5, 1.5), sun=0.5),
    "DF": Shape((0.4, 0.75), (1, 1), (0.04, 0.10), (0.02, 0.06), fade=(0.5, 0.95), strength=(0.5, 1.2), sun=0.2),
    "VASC": Shape((0.25, 0.6), (1, 2), (0.04, 0.11), (0.01, 0.04), fade=(0.1, 0.35), strength=(0.7, 1.3), sun=0.2),
}

# Patterns of each diagnosis: (share, structures in drawing order); a structure is (function, chance, settings),
# a pair among the settings is a range to draw from. The classes overlap as in life: light melanoma, dark or
# uneven naevus, pigmented carcinoma and keratosis, dermatofibroma with hardly a scar.
PATTERNS = {
    "NV": [
        (0.42, [  # reticular
            (body, 1, dict(melanin=(0.3, 1.0), blood=(0.05, 0.3), variety=(0.1, 0.3), centre=(-0.3, 0.8))),
            (network, 1, dict(cell=(0.055, 0.08), amount=(0.12, 0.38), atypia=(0.1, 0.4)))]),
        (0.18, [  # globular
            (body, 1, dict(melanin=(0.25, 0.7), blood=(0.1, 0.35), variety=(0.1, 0.25), centre=(-0.3, 0.5))),
            (globules, 1, dict(cell=(0.06, 0.1), amount=(0.2, 0.5), share=(0.4, 0.95)))]),
        (0.28, [  # homogeneous, often pinkish
            (halo, 0.3, dict(blood=(0.05, 0.15))),
            (body, 1, dict(melanin=(0.25, 1.2), blood=(0.05, 0.5), variety=(0.15, 0.35), centre=(-0.5, 0.9)))]),
        (0.12, [  # uneven, looks like melanoma
            (body, 1, dict(melanin=(0.3, 0.7), blood=(0.05, 0.3), variety=(0.3, 0.5))),
            (network, 1, dict(cell=(0.06, 0.085), amount=(0.15, 0.4), atypia=(0.4, 0.7))),
            (blotches, 1, dict(amount=(0.5, 1.1), share=(0.2, 0.35)))]),
    ],
    "MEL": [
        (0.75, [  # of many colours
            (halo, 0.4, dict(blood=(0.1, 0.3))),
            (body, 1, dict(melanin=(0.3, 0.8), blood=(0.0, 0.25), variety=(0.35, 0.6))),
            (network, 0.7, dict(cell=(0.06, 0.09), amount=(0.15, 0.35), atypia=(0.5, 0.9))),
            (blotches, 0.9, dict(amount=(0.5, 1.3), share=(0.2, 0.45), blue=(0.0, 0.5))),
            (blotches, 0.5, dict(amount=(0.4, 1.0), share=(0.1, 0.3), blue=(0.2, 0.7))),
            (globules, 0.6, dict(cell=(0.06, 0.11), amount=(0.4, 0.9), share=(0.2, 0.6), irregular=True)),
            (streaks, 0.4, dict(amount=(0.4, 1.0))),
            (veil, 0.45, dict(amount=(0.35, 0.75), share=(0.2, 0.45))),
            (regression, 0.4, dict(amount=(0.35, 0.7), share=(0.15, 0.35)))]),
        (0.25, [  # early, little colour
            (body, 1, dict(melanin=(0.25, 0.5), blood=(0.05, 0.3), variety=(0.35, 0.6))),
            (network, 1, dict(cell=(0.06, 0.09), amount=(0.15, 0.35), atypia=(0.5, 0.9))),
            (blotches, 0.5, dict(amount=(0.3, 0.8), share=(0.15, 0.3))),
            (regression, 0.4, dict(amount=(0.3, 0.6), share=(0.15, 0.35)))]),
    ],
    "BCC": [
        (0.60, [  # translucent
            (halo, 0.7, dict(blood=(0.08, 0.25))),
            (body, 1, dict(melanin=(0.04, 0.16), blood=(0.14, 0.34), variety=(0.3, 0.6))),
            (scar, 0.4, dict(amount=(0.2, 0.5), reach=(0.3, 0.7))),
            (nests, 0.6, dict(cell=(0.16, 0.28), amount=(0.25, 0.6), share=(0.15, 0.35))),
            (vessels, 0.8, dict(stems=(2, 5), amount=(0.5, 1.1))),
            (ulcer, 0.35, dict(size=(0.15, 0.32)))]),
        (0.40, [  # pigmented
            (halo, 0.5, dict(blood=(0.08, 0.2))),
            (body, 1, dict(melanin=(0.08, 0.4), blood=(0.03, 0.22), variety=(0.3, 0.6))),
            (nests, 0.9, dict(cell=(0.15, 0.32), amount=(0.35, 0.85), share=(0.2, 0.5))),
            (leaves, 0.5, dict(amount=(0.25, 0.55))),
            (vessels, 0.5, dict(stems=(1, 4), amount=(0.4, 0.9))),
            (ulcer, 0.25, dict(size=(0.15, 0.25)))]),
    ],
    "AKIEC": [
        (0.65, [  # pink and scaly
            (halo, 0.6, dict(blood=(0.05, 0.2))),
            (body, 1, dict(melanin=(0.06, 0.25), blood=(0.12, 0.38), variety=(0.3, 0.6))),
            (follicles, 0.65, dict(cell=(0.075, 0.12), blood=(0.15, 0.4), melanin=0.0)),
            (scale, 0.8, dict(amount=(0.5, 0.9), share=(0.25, 0.55)))]),
        (0.35, [  # pigmented
            (halo, 0.5, dict(blood=(0.08, 0.2))),
            (body, 1, dict(melanin=(0.1, 0.45), blood=(0.05, 0.25), variety=(0.4, 0.7))),
            (follicles, 0.8, dict(cell=(0.07, 0.11), blood=(0.0, 0.2), melanin=(0.15, 0.4))),
            (scale, 0.6, dict(amount=(0.4, 0.8), share=(0.15, 0.4)))]),
    ],
    "BKL": [
        (0.60, [  # seborrhoeic keratosis
            (body, 1, dict(melanin=(0.25, 1.0), blood=(0.0, 0.2), variety=(0.12, 0.3), centre=(-0.3, 0.4))),
            (blotches, 0.35, dict(amount=(0.3, 0.7), share=(0.25, 0.5), blue=(0.1, 0.6))),
            (fissures, 0.4, dict(cells=(13, 24), amount=(0.12, 0.4))),
            (plugs, 0.6, dict(colour="plug", cell=(0.1, 0.18), amount=(0.4, 0.85), share=(0.08, 0.3))),
            (plugs, 0.75, dict(colour="keratin", cell=(0.1, 0.18), amount=(0.25, 0.65), share=(0.1, 0.4))),
            (scale, 0.2, dict(amount=(0.3, 0.6), share=(0.2, 0.5)))]),
        (0.40, [  # flat: lentigo, lichenoid
            (body, 1, dict(melanin=(0.15, 0.5), blood=(0.0, 0.2), variety=(0.25, 0.5))),
            (fissures, 0.5, dict(cells=(18, 28), amount=(0.1, 0.35))),
            (plugs, 0.35, dict(colour="keratin", cell=(0.1, 0.15), amount=(0.2, 0.45), share=(0.1, 0.25))),
            (regression, 0.2, dict(amount=(0.2, 0.45), share=(0.2, 0.4)))]),
    ],
    "DF": [
        (1.00, [
            (halo, 0.5, dict(blood=(0.08, 0.25))),
            (body, 1, dict(melanin=(0.15, 0.5), blood=(0.1, 0.45), variety=(0.15, 0.35), centre=(-0.5, 0.3))),
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
            (lacunae, 1, dict(cell=(0.07, 0.1), red=(0.6, 1.2), purple=(0.0, 0.5), septa=0, share=(0.3, 0.6)))]),
        (0.18, [  # homogeneous
            (body, 1, dict(melanin=(0.0, 0.4), blood=(0.5, 1.1), variety=(0.1, 0.3))),
            (blotches, 0.5, dict(amount=0.0, share=(0.3, 0.6), blue=(0.2, 0.6)))]),
    ],
}  # fmt: skip

# ---------------------------------------------------------------- the lesion, and the skin around it

_GROUND = 144  # texels across 2 * EXTENT, of outlines and of skin: the same at every size of picture


def _outline(rng: np.random.Generator, shape: Shape) -> tuple[np.ndarray, float]:
    """Height (_GROUND, _GROUND) and radius: ellipses melted together, roughened by noise at two scales."""
    radius = _draw(rng, shape.radius) if rng.random() > 0.08 else 1.25 * shape.radius[1]
    lobes = int(rng.integers(shape.lobes[0], shape.lobes[1] + 1))
    size, total = radius / (1 + 0.16 * (lobes - 1)), 0.0
    x = EXTENT * _axis(_GROUND)
    y = x[:, None]
    for lobe in range(lobes):
        cx, cy = (rng.normal(0, 0.42, 2) * size).tolist() if lobe else (0.0, 0.0)
        stretch, small = rng.uniform(1.0, 1.25), size * (rng.uniform(0.55, 0.9) if lobe else 1.0)
        c, s = _turn(rng.uniform(0, np.pi))
        a, b = (c * (x - cx) + s * (y - cy)) / (small * stretch), (c * (y - cy) - s * (x - cx)) * (stretch / small)
        total = total + cv2.exp(6 - 6 * cv2.sqrt(a * a + b * b))
    height, scale = cv2.log(total) / 6, 1 / radius
    height += _draw(rng, shape.coarse) * _noise(rng, _GROUND, round(6 * scale))
    height += _draw(rng, shape.fine) * _noise(rng, _GROUND, round(20 * scale), 3)
    if shape.ragged[1]:
        bites = _step(_noise(rng, _GROUND, round(16 * scale)), 0.4, 1.6)
        height -= _draw(rng, shape.ragged) * bites * _step(height, 0.5, 0.0)
    # what the noise cut off is skin again, and there are no holes
    return np.where(_one_piece(height) > 0, np.clip(height, 0.01, 1.2), np.minimum(height, -0.01)), radius


def _one_piece(height: np.ndarray) -> np.ndarray:
    """The largest area above 0, filled: uint8 in {0, 1}."""
    outlines, _ = cv2.findContours((height > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    piece = np.zeros(height.shape, np.uint8)
    return cv2.drawContours(piece, [max(outlines, key=cv2.contourArea)], 0, 1, cv2.FILLED)


def _canvas(rng: np.random.Generator, shape: Shape, size: int, darkness: float) -> Scene:
    """An empty canvas around the outline of a lesion, slightly finer than a photograph of `size` pixels."""
    ground, radius = _outline(rng, shape)
    left, top, width, height = cv2.boundingRect((ground > -0.3).astype(np.uint8))
    across = max(width, height)
    left, top = min(left, _GROUND - across), min(top, _GROUND - across)
    texel = 2 * EXTENT / _GROUND
    side = round(across * texel * 0.52 * size)
    # everything a lesion adds ends above height -0.3, so this square holds it all
    part = np.ascontiguousarray(ground[top : top + across, left : left + across])
    inside = cv2.resize(part, (side, side), interpolation=cv2.INTER_CUBIC)
    fade = _draw(rng, shape.fade)
    alpha = _step(inside, -0.03 - 0.25 * fade, fade)  # about a tenth on the outline: just visible
    corner = np.array([left, top]) * texel - EXTENT
    return Scene(rng, corner, across * texel, radius, inside, alpha, _draw(rng, shape.strength) * (1 + 0.5 * darkness))


def _skin(rng: np.random.Generator, damaged: bool) -> np.ndarray:
    """Melanin and blood of skin without a lesion, (_GROUND, _GROUND, 2): nearly flat, fine lines, freckles."""

    def noise(cells: int, octaves: int = 2) -> np.ndarray:
        return _noise(rng, _GROUND, cells, octaves)

    def lines(*cells: int) -> np.ndarray:
        return cv2.resize(rng.random(cells, np.float32) - 0.5, (_GROUND, _GROUND), interpolation=cv2.INTER_LINEAR)

    clouds, flush = noise(8), noise(14, 3)
    furrows = lines(90, 18) * (1 + 0.5 * clouds) + lines(_GROUND, _GROUND)
    melanin = 0.008 * clouds + rng.uniform(0.01, 0.03) * furrows + rng.uniform(0, 0.1) * _step(noise(24), 1.4, 2.8)
    blood = 0.012 * flush + rng.uniform(0.01, 0.03) * furrows
    if damaged:  # freckles and a web of dilated vessels
        melanin += rng.uniform(0.0, 0.2) * _step(noise(16, 3), 0.5, 2.4)
        blood += rng.uniform(0.0, 0.14) * _ridge(flush, 0.15) * _step(clouds, -0.5, 1.5) + rng.uniform(0, 0.02) * flush
    return cv2.merge([melanin, blood])


def _lesion(label: int, seed: int, size: int) -> tuple[Scene, np.ndarray, np.ndarray]:
    """The lesion `(label, seed)`, its skin as `_skin` makes it and the density of skin without features (3, 1, 1)."""
    rng = np.random.default_rng([seed, label, 0])
    shape = SHAPES[CLASSES[label]]
    tone, damaged = rng.choice(6, p=SKIN_SHARES), rng.random() < shape.sun
    # pressed by the contact plate skin goes pale, old skin more so; dark skin hardly
    base = SKIN_COLOURS[tone] * (rng.uniform(0.55 if damaged else 0.7, 0.9 if damaged else 1.1) if tone < 3 else 1.0)
    skin = _skin(rng, damaged)
    # lesions of dark skin are darker too, and the camera opens up: else nothing would be seen of them
    darkness = max(0.0, float(base.mean()) - 0.6)
    scene = _canvas(rng, shape, size, darkness)
    patterns = PATTERNS[CLASSES[label]]
    for structure, chance, settings in patterns[rng.choice(len(patterns), p=[share for share, _ in patterns])][1]:
        settings = {name: _draw(rng, value) for name, value in settings.items()}
        if rng.random() < chance:
            structure(scene, **settings)
    return scene, skin, base - np.float32(0.3 * darkness)


# ---------------------------------------------------------------- the photograph: view, light, things in the way


def _place(texture: np.ndarray, corner: np.ndarray, width: float, view: np.ndarray, size: int, around) -> np.ndarray:
    """A square texture as the photograph sees it; `view` (2, 3) takes lesion coordinates to pixels.

    `around` is what lies outside the texture; None mirrors it.
    """
    texel = width / len(texture)
    start = view @ np.array([corner[0] + texel / 2, corner[1] + texel / 2, 1])
    matrix = np.column_stack([view[:, :2] * texel, start])
    border = cv2.BORDER_REFLECT if around is None else cv2.BORDER_CONSTANT
    return cv2.warpAffine(texture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border, borderValue=around)


def _hairs(rng: np.random.Generator, image: np.ndarray) -> None:
    """Tapered hairs with a soft shadow, long and few or short and combed one way; seldom light ones."""
    size, short = len(image), rng.random() < 0.3
    count, way = rng.integers(15, 50) if short else rng.integers(2, 12), rng.uniform(0, 2 * np.pi)
    length = rng.uniform(0.08, 0.16, (count, 1)) if short else rng.uniform(0.4, 1.2, (count, 1))
    spread, curl = (0.25, 0.2) if short else (0.7, 0.8)
    turn = way + rng.normal(0, spread, (count, 1)) + rng.normal(0, curl, (count, 1)) * np.linspace(0, 1, 12)
    turn += np.cumsum(rng.normal(0, 0.08, (count, 12)), 1)
    steps = np.stack([np.cos(turn), np.sin(turn)], 2) * (length / 12)[..., None]
    lines = size * (rng.uniform(-0.1, 1.1, (count, 1, 2)) + np.cumsum(steps, 1))
    ink = _strokes(size, list(lines), (size * rng.uniform(0.0035, 0.008, count)).tolist())
    shadow = cv2.blur(np.roll(ink, (1 + size // 100, 1 + size // 100), (0, 1)), (1 + size // 40, 1 + size // 40))
    colour = np.array([225, 205, 190] if rng.random() < 0.1 else [58, 40, 34], np.float32)
    opaque = (rng.uniform(0.55, 0.9) * ink)[..., None]
    image *= (1 - 0.25 * shadow)[..., None] * (1 - opaque)
    image += colour * opaque


def _bubbles(rng: np.random.Generator, image: np.ndarray) -> None:
    """Air in the gel: a bright rim, a glint where the lamp is, skin seen through the middle."""
    size = len(image)
    glass = np.zeros((size, size), np.float32)
    lamp = rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(1, 6)):
        centre, radius = rng.uniform(0, size, 2), size * rng.uniform(0.012, 0.045)
        glint = centre + 0.5 * radius * np.array(_turn(lamp))
        for middle, reach, light, thick in ((centre, radius, 0.35, 1), (glint, 0.28 * radius, 0.9, cv2.FILLED)):
            where = tuple(int(16 * v) for v in middle)  # cv2 takes sixteenths of a pixel
            cv2.circle(glass, where, int(16 * reach), light, thick, cv2.LINE_AA, 4)
    glass = cv2.GaussianBlur(glass, (0, 0), size / 220)[..., None]
    image += glass * (250 - image)


def _ruler(rng: np.random.Generator, image: np.ndarray) -> None:
    """Millimetre marks along one edge, every fifth longer."""
    size = len(image)
    step, start, edge = size * rng.uniform(0.03, 0.06), rng.uniform(0, 0.3), rng.uniform(0.02, 0.06) * size
    marks = np.zeros((size, size), np.float32)
    for number, x in enumerate(np.arange(start * size, rng.uniform(0.6, 1.0) * size, step)):
        length = size * (0.05 if number % 5 == 0 else 0.03)
        ends = [(int(16 * x), int(16 * y)) for y in (edge, edge + length)]
        cv2.line(marks, *ends, 0.8, max(1, size // 160), cv2.LINE_AA, 4)
    marks = np.rot90(marks, rng.integers(4))[..., None]
    image *= 1 - marks
    image += 30 * marks


def _light(rng: np.random.Generator, size: int) -> np.ndarray:
    """What lamp and lens add to density, (size, size): uneven light, dark corners, seldom the dermoscope's rim."""
    a = _axis(size)
    b = a[:, None]
    far = a * a + b * b
    slope = rng.normal(0, 0.03, 2).tolist()
    light = rng.normal(0, 0.05) + slope[0] * a + slope[1] * b + rng.uniform(0.0, 0.08) * far
    if rng.random() < 0.05:  # the round field of the dermoscope, seen where the zoom was low
        edge = rng.uniform(1.15, 1.4)
        light += 3.2 * _step(cv2.sqrt(far), edge - 0.05, edge + 0.05)
    return light


def render(label: int, seed: int, size: int = 128, photograph: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Photograph number `photograph` of the lesion `(label, seed)`.

    Returns the image, `uint8 (size, size, 3)` RGB, and its exact mask, `uint8 (size, size)` in {0, 1}.
    The same arguments give the same picture; another `size` the same scene at another resolution; another
    `photograph` the same lesion turned, shifted and under other light, with other hairs.
    Raises `ValueError` for a label outside 0..6, a size outside 64..512 or a negative number.
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label {label} is none of 0 to {len(CLASSES) - 1} ({' '.join(CLASSES)})")
    if not 64 <= size <= 512:
        raise ValueError(f"size {size} is outside 64 to 512 pixels")
    if seed < 0 or photograph < 0:
        raise ValueError(f"seed {seed} and photograph {photograph} must not be negative")
    habits = np.random.default_rng([seed, label, 1])  # of the patient and the clinic: the same in every photograph
    cast, haze, hairy = habits.normal(0, [0.03, 0.035, 0.08]), habits.uniform(0.3, 1.0), habits.random() < 0.3
    rng = np.random.default_rng([seed, label, 2, photograph])
    (c, s), zoom = _turn(rng.uniform(0, 2 * np.pi)), rng.uniform(0.92, 1.12) * size / 2
    shift = size / 2 * (1 + np.clip(rng.normal(0, 0.1, 2), -0.25, 0.25)) - 0.5
    view = np.column_stack([zoom * np.array([[c, -s], [s, c]]), shift])
    scene, skin, base = _lesion(label, seed, size)
    cast = (base.ravel() - cast - rng.normal(0, 0.018, 3)).astype(np.float32)
    density, mask = _photograph(scene, skin, cast, view, size)
    density += _light(rng, size)
    image = cv2.merge(list(cv2.exp(np.minimum(math.log(255) - density, math.log(255)))))
    if rng.random() < (0.7 if hairy else 0.05):
        _hairs(rng, image)
    for share, clutter in ((0.08, _bubbles), (0.07, _ruler)):
        if rng.random() < share:
            clutter(rng, image)
    image = cv2.GaussianBlur(image, (0, 0), haze * rng.uniform(0.7, 1.3) * size * 0.006)
    grain = (rng.random((size, size), np.float32) - 0.5) * rng.uniform(3.0, 8.0)
    image += cv2.merge([grain, grain, grain])
    return cv2.convertScaleAbs(np.maximum(image, 0, out=image)), mask


def _photograph(
    scene: Scene, skin: np.ndarray, base: np.ndarray, view: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lesion on skin: density (3, size, size) and mask."""
    lesion = scene.corner, scene.width, view, size
    *added, keep = cv2.split(_place(cv2.merge([*scene.density, scene.keep]), *lesion, (0, 0, 0, 1)))
    melanin, blood = cv2.split(_place(skin, (-EXTENT, -EXTENT), 2 * EXTENT, view, size, None))
    density = PIGMENTS["melanin"] * melanin
    density += PIGMENTS["blood"] * blood
    density += base[:, None, None]
    density *= keep
    for channel, more in zip(density, added, strict=True):
        channel += more
    return density, _one_piece(_place(scene.height, *lesion, -1))

"""Outline, pattern of structures and surrounding skin of the seven diagnoses: `make_lesion(label, seed, size)`."""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from helpers.phantoms import structures as st
from helpers.phantoms.structures import Scene, axis, cos_sin, fractal_noise, gaussian, optical_density, smoothstep

CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
# Lesion coordinates: an unshifted image shows [-1, 1]. The skin extends further, so that the corners of a rotated and
# shifted view show skin too.
EXTENT = 1.75
Range = tuple[float, float]
# Fitzpatrick types I to VI, mostly I to III as in the clinics of HAM10000.
SKIN_TONE_PROBS = (0.22, 0.36, 0.22, 0.10, 0.06, 0.04)
SKIN_TONES = ((226, 180, 190), (220, 164, 174), (212, 160, 158), (186, 138, 124), (142, 100, 88), (96, 68, 62))


def _sample(rng: np.random.Generator, value: float | Range) -> float:
    """A uniform random number from a range; a plain number is returned as it is."""
    return float(rng.uniform(*value)) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Shape:
    """Ranges of the outline of a class, in lesion coordinates; roughness is relative to the radius."""

    radius: Range
    lobes: tuple[int, int]
    coarse: Range  # amplitude of bays
    fine: Range  # amplitude of notches
    fade: Range  # width of the border
    pigment: Range
    sun_damage_prob: float  # probability of sun-damaged skin around the lesion
    ragged: Range = (0.0, 0.0)  # depth of moth-eaten bites out of the rim


SHAPES = {
    "MEL": Shape((0.50, 0.95), (2, 4), (0.12, 0.24), (0.050, 0.10), (0.10, 0.45), (0.5, 1.5), 0.40),
    "NV": Shape((0.35, 0.80), (1, 2), (0.03, 0.10), (0.015, 0.04), (0.30, 0.80), (0.5, 1.9), 0.12),
    "BCC": Shape((0.40, 0.80), (1, 3), (0.10, 0.20), (0.030, 0.08), (0.30, 0.80), (0.5, 1.3), 0.60),
    "AKIEC": Shape((0.50, 0.95), (1, 3), (0.12, 0.22), (0.050, 0.10), (0.40, 0.90), (0.5, 1.3), 0.80),
    "BKL": Shape((0.45, 0.85), (1, 2), (0.05, 0.14), (0.020, 0.06), (0.06, 0.25), (0.5, 1.5), 0.50, ragged=(0.0, 0.3)),
    "DF": Shape((0.40, 0.75), (1, 1), (0.04, 0.10), (0.020, 0.06), (0.50, 0.95), (0.5, 1.2), 0.20),
    "VASC": Shape((0.25, 0.60), (1, 2), (0.04, 0.11), (0.010, 0.04), (0.10, 0.35), (0.7, 1.3), 0.20),
}

# Patterns of the classes: (class, probability, structures in rendering order). A structure is (function, probability,
# keyword arguments); a pair among the arguments is a range to sample from. The classes overlap as in real data: light
# melanoma, dark or uneven nevus, pigmented carcinoma and keratosis, dermatofibroma with hardly any scar.
PATTERNS = [
    ("NV", 0.42, [  # reticular
        (st.body, 1, dict(melanin=(0.3, 1.0), blood=(0.05, 0.3), variety=(0.1, 0.3), center=(-0.3, 0.8))),
        (st.network, 1, dict(cell=(0.055, 0.08), amount=(0.12, 0.38), atypia=(0.1, 0.4)))]),
    ("NV", 0.18, [  # globular
        (st.body, 1, dict(melanin=(0.25, 0.7), blood=(0.1, 0.35), variety=(0.1, 0.25), center=(-0.3, 0.5))),
        (st.globules, 1, dict(cell=(0.06, 0.1), amount=(0.2, 0.5), fraction=(0.4, 0.95)))]),
    ("NV", 0.28, [(st.halo, 0.3, dict(blood=(0.05, 0.15))),  # homogeneous, often pinkish
        (st.body, 1, dict(melanin=(0.25, 1.2), blood=(0.05, 0.5), variety=(0.15, 0.35), center=(-0.5, 0.9)))]),
    ("NV", 0.12, [  # uneven, resembles melanoma
        (st.body, 1, dict(melanin=(0.3, 0.7), blood=(0.05, 0.3), variety=(0.3, 0.5))),
        (st.network, 1, dict(cell=(0.06, 0.085), amount=(0.15, 0.4), atypia=(0.4, 0.7))),
        (st.blotches, 1, dict(amount=(0.5, 1.1), fraction=(0.2, 0.35)))]),
    ("MEL", 0.75, [(st.halo, 0.4, dict(blood=(0.1, 0.3))),  # of many colors
        (st.body, 1, dict(melanin=(0.3, 0.8), blood=(0.0, 0.25), variety=(0.35, 0.6))),
        (st.network, 0.7, dict(cell=(0.06, 0.09), amount=(0.15, 0.35), atypia=(0.5, 0.9))),
        (st.blotches, 0.9, dict(amount=(0.5, 1.3), fraction=(0.2, 0.45), blue=(0.0, 0.5))),
        (st.blotches, 0.5, dict(amount=(0.4, 1.0), fraction=(0.1, 0.3), blue=(0.2, 0.7))),
        (st.globules, 0.6, dict(cell=(0.06, 0.11), amount=(0.4, 0.9), fraction=(0.2, 0.6), irregular=True)),
        (st.streaks, 0.4, dict(amount=(0.4, 1.0))),
        (st.veil, 0.45, dict(amount=(0.35, 0.75), fraction=(0.2, 0.45))),
        (st.regression, 0.4, dict(amount=(0.35, 0.7), fraction=(0.15, 0.35)))]),
    ("MEL", 0.25, [  # early, few colors
        (st.body, 1, dict(melanin=(0.25, 0.5), blood=(0.05, 0.3), variety=(0.35, 0.6))),
        (st.network, 1, dict(cell=(0.06, 0.09), amount=(0.15, 0.35), atypia=(0.5, 0.9))),
        (st.blotches, 0.5, dict(amount=(0.3, 0.8), fraction=(0.15, 0.3))),
        (st.regression, 0.4, dict(amount=(0.3, 0.6), fraction=(0.15, 0.35)))]),
    ("BCC", 0.60, [(st.halo, 0.7, dict(blood=(0.08, 0.25))),  # translucent
        (st.body, 1, dict(melanin=(0.04, 0.16), blood=(0.14, 0.34), variety=(0.3, 0.6))),
        (st.scar, 0.4, dict(amount=(0.2, 0.5), reach=(0.3, 0.7))),
        (st.nests, 0.6, dict(cell=(0.16, 0.28), amount=(0.25, 0.6), fraction=(0.15, 0.35))),
        (st.vessels, 0.8, dict(stems=(2, 5), amount=(0.5, 1.1))),
        (st.ulcer, 0.35, dict(size=(0.15, 0.32)))]),
    ("BCC", 0.40, [(st.halo, 0.5, dict(blood=(0.08, 0.2))),  # pigmented
        (st.body, 1, dict(melanin=(0.08, 0.4), blood=(0.03, 0.22), variety=(0.3, 0.6))),
        (st.nests, 0.9, dict(cell=(0.15, 0.32), amount=(0.35, 0.85), fraction=(0.2, 0.5))),
        (st.leaves, 0.5, dict(amount=(0.25, 0.55))),
        (st.vessels, 0.5, dict(stems=(1, 4), amount=(0.4, 0.9))),
        (st.ulcer, 0.25, dict(size=(0.15, 0.25)))]),
    ("AKIEC", 0.65, [(st.halo, 0.6, dict(blood=(0.05, 0.2))),  # pink and scaly
        (st.body, 1, dict(melanin=(0.06, 0.25), blood=(0.12, 0.38), variety=(0.3, 0.6))),
        (st.follicles, 0.65, dict(cell=(0.075, 0.12), blood=(0.15, 0.4), melanin=0.0)),
        (st.scale, 0.8, dict(amount=(0.5, 0.9), fraction=(0.25, 0.55)))]),
    ("AKIEC", 0.35, [(st.halo, 0.5, dict(blood=(0.08, 0.2))),  # pigmented
        (st.body, 1, dict(melanin=(0.1, 0.45), blood=(0.05, 0.25), variety=(0.4, 0.7))),
        (st.follicles, 0.8, dict(cell=(0.07, 0.11), blood=(0.0, 0.2), melanin=(0.15, 0.4))),
        (st.scale, 0.6, dict(amount=(0.4, 0.8), fraction=(0.15, 0.4)))]),
    ("BKL", 0.60, [  # seborrheic keratosis
        (st.body, 1, dict(melanin=(0.25, 1.0), blood=(0.0, 0.2), variety=(0.12, 0.3), center=(-0.3, 0.4))),
        (st.blotches, 0.35, dict(amount=(0.3, 0.7), fraction=(0.25, 0.5), blue=(0.1, 0.6))),
        (st.fissures, 0.4, dict(cells=(13, 24), amount=(0.12, 0.4))),
        (st.plugs, 0.6, dict(cover="plug", cell=(0.1, 0.18), amount=(0.4, 0.85), fraction=(0.08, 0.3))),
        (st.plugs, 0.75, dict(cover="keratin", cell=(0.1, 0.18), amount=(0.25, 0.65), fraction=(0.1, 0.4))),
        (st.scale, 0.2, dict(amount=(0.3, 0.6), fraction=(0.2, 0.5)))]),
    ("BKL", 0.40, [  # flat: lentigo, lichenoid
        (st.body, 1, dict(melanin=(0.15, 0.5), blood=(0.0, 0.2), variety=(0.25, 0.5))),
        (st.fissures, 0.5, dict(cells=(18, 28), amount=(0.1, 0.35))),
        (st.plugs, 0.35, dict(cover="keratin", cell=(0.1, 0.15), amount=(0.2, 0.45), fraction=(0.1, 0.25))),
        (st.regression, 0.2, dict(amount=(0.2, 0.45), fraction=(0.2, 0.4)))]),
    ("DF", 1.00, [(st.halo, 0.5, dict(blood=(0.08, 0.25))),
        (st.body, 1, dict(melanin=(0.15, 0.5), blood=(0.1, 0.45), variety=(0.15, 0.35), center=(-0.5, 0.3))),
        (st.network, 0.8, dict(cell=(0.045, 0.06), amount=(0.1, 0.24), atypia=(0.2, 0.4), rim=1.0)),
        (st.scar, 1, dict(amount=(0.35, 0.9), reach=(0.3, 0.65)))]),
    ("VASC", 0.45, [(st.halo, 0.4, dict(blood=(0.05, 0.2))),  # cherry angioma
        (st.lacunae, 1, dict(cell=(0.09, 0.17), red=(0.6, 1.4), purple=(0.0, 0.3), septa=(0.0, 0.4)))]),
    ("VASC", 0.25, [(st.halo, 0.6, dict(blood=(0.05, 0.2))),  # clotted, angiokeratoma
        (st.lacunae, 1, dict(cell=(0.12, 0.22), red=(0.4, 1.0), purple=(0.4, 1.1), septa=(0.3, 0.65)))]),
    ("VASC", 0.12, [  # scattered
        (st.body, 1, dict(melanin=0.0, blood=(0.05, 0.2), variety=(0.1, 0.3))),
        (st.lacunae, 1, dict(cell=(0.07, 0.1), red=(0.6, 1.2), purple=(0.0, 0.5), septa=0, fraction=(0.3, 0.6)))]),
    ("VASC", 0.18, [  # homogeneous
        (st.body, 1, dict(melanin=(0.0, 0.4), blood=(0.5, 1.1), variety=(0.1, 0.3))),
        (st.blotches, 0.5, dict(amount=0.0, fraction=(0.3, 0.6), blue=(0.2, 0.6)))]),
]  # fmt: skip

MAP_SIZE = 144  # texels across 2 * EXTENT of outline and skin maps, the same at every image size


def _outline(rng: np.random.Generator, shape: Shape) -> tuple[np.ndarray, float]:
    """Height (MAP_SIZE, MAP_SIZE), positive inside the lesion, and radius: smoothly merged ellipses, roughened by
    noise at two scales."""
    radius = _sample(rng, shape.radius) if rng.random() > 0.08 else 1.25 * shape.radius[1]
    lobes = int(rng.integers(shape.lobes[0], shape.lobes[1] + 1))
    size, total = radius / (1 + 0.16 * (lobes - 1)), 0.0
    x = EXTENT * axis(MAP_SIZE)
    y = x[:, None]
    for lobe in range(lobes):
        cx, cy = (rng.normal(0, 0.42, 2) * size).tolist() if lobe else (0.0, 0.0)
        stretch, lobe_size = rng.uniform(1.0, 1.25), size * (rng.uniform(0.55, 0.9) if lobe else 1.0)
        c, s = cos_sin(rng.uniform(0, np.pi))
        a = (c * (x - cx) + s * (y - cy)) / (lobe_size * stretch)
        b = (c * (y - cy) - s * (x - cx)) * (stretch / lobe_size)
        total = total + cv2.exp(6 - 6 * cv2.sqrt(a * a + b * b))
    height, frequency = cv2.log(total) / 6, 1 / radius
    height += _sample(rng, shape.coarse) * fractal_noise(rng, MAP_SIZE, round(6 * frequency))
    height += _sample(rng, shape.fine) * fractal_noise(rng, MAP_SIZE, round(20 * frequency), 3)
    if shape.ragged[1]:
        bites = smoothstep(fractal_noise(rng, MAP_SIZE, round(16 * frequency)), 0.4, 1.6)
        height -= _sample(rng, shape.ragged) * bites * smoothstep(height, 0.5, 0.0)
    # Pieces that the noise separates become skin, and holes become lesion.
    lesion = largest_region(height) > 0
    return np.where(lesion, np.clip(height, 0.01, 1.2), np.minimum(height, -0.01)), radius


def largest_region(height: np.ndarray) -> np.ndarray:
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
    left, top, texel = min(left, MAP_SIZE - texels), min(top, MAP_SIZE - texels), 2 * EXTENT / MAP_SIZE
    side = round(texels * texel * 0.52 * size)
    crop = np.ascontiguousarray(height_map[top : top + texels, left : left + texels])
    crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC)
    fade = _sample(rng, shape.fade)
    alpha = smoothstep(crop, -0.03 - 0.25 * fade, fade)  # about 10 % on the outline: just visible
    corner, pigment = np.array([left, top]) * texel - EXTENT, _sample(rng, shape.pigment) * (1 + 0.5 * darkness)
    return Scene(rng, corner, texels * texel, radius, crop, alpha, pigment)


def _skin(rng: np.random.Generator, sun_damaged: bool) -> np.ndarray:
    """Melanin and blood of skin without a lesion, (MAP_SIZE, MAP_SIZE, 2): nearly flat, fine lines, freckles."""
    noise = partial(fractal_noise, rng, MAP_SIZE)

    def lines(*cells: int) -> np.ndarray:
        return cv2.resize(rng.random(cells, np.float32) - 0.5, (MAP_SIZE, MAP_SIZE), interpolation=cv2.INTER_LINEAR)

    clouds, flush = noise(8), noise(14, 3)
    furrows = lines(90, 18) * (1 + 0.5 * clouds) + lines(MAP_SIZE, MAP_SIZE)
    melanin = 0.008 * clouds + rng.uniform(0.01, 0.03) * furrows
    melanin += rng.uniform(0, 0.1) * smoothstep(noise(24), 1.4, 2.8)
    blood = 0.012 * flush + rng.uniform(0.01, 0.03) * furrows
    if sun_damaged:  # freckles and a web of dilated vessels
        melanin += rng.uniform(0.0, 0.2) * smoothstep(noise(16, 3), 0.5, 2.4)
        vessels = rng.uniform(0.0, 0.14) * gaussian(flush, 0.15) * smoothstep(clouds, -0.5, 1.5)
        blood += vessels + rng.uniform(0, 0.02) * flush
    return cv2.merge([melanin, blood])


def make_lesion(label: int, seed: int, size: int) -> tuple[Scene, np.ndarray, np.ndarray]:
    """The lesion `(label, seed)`, its skin map (see `_skin`) and the density (3, 1, 1) of skin without features."""
    rng = np.random.default_rng([seed, label, 0])
    shape = SHAPES[CLASSES[label]]
    tone, sun_damaged = rng.choice(6, p=SKIN_TONE_PROBS), rng.random() < shape.sun_damage_prob
    # Pressure of the contact plate makes skin pale, old skin more so, dark skin hardly.
    pressure = rng.uniform(0.55 if sun_damaged else 0.7, 0.9 if sun_damaged else 1.1) if tone < 3 else 1.0
    base = optical_density(*SKIN_TONES[tone]) * pressure
    skin = _skin(rng, sun_damaged)
    # On dark skin lesions are darker too and the camera's exposure is longer; without both they would be invisible.
    darkness = max(0.0, float(base.mean()) - 0.6)
    scene = _canvas(rng, shape, size, darkness)
    probs, patterns = zip(*[pattern[1:] for pattern in PATTERNS if pattern[0] == CLASSES[label]], strict=True)
    for structure, prob, ranges in patterns[rng.choice(len(patterns), p=probs)]:
        kwargs = {name: _sample(rng, value) for name, value in ranges.items()}
        if rng.random() < prob:
            structure(scene, **kwargs)
    return scene, skin, base - np.float32(0.3 * darkness)

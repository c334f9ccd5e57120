"""The image of a lesion: camera view, light, artifacts such as hair or ink, and the flags that name them."""

import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from helpers.phantoms.classes import CLASSES, EXTENT, largest_region, make_lesion
from helpers.phantoms.structures import PIGMENTS, Scene, axis, cos_sin, fractal_noise, gaussian, smoothstep, strokes

# What an image may show besides skin and lesion; artifact flags have this order everywhere.
ARTIFACTS = ("dark_corner", "hair", "gel_border", "gel_bubble", "ruler", "ink", "patches")


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
    coverage = strokes(size, list(size * points), (size * rng.uniform(0.0035, 0.008, count)).tolist())
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
        highlight = center + 0.5 * radius * np.array(cos_sin(lamp_angle))
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
    x, y = axis(size), axis(size)[:, None]
    squared_radius = x * x + y * y
    slope = rng.normal(0, 0.03, 2).tolist()
    light = rng.normal(0, 0.05) + slope[0] * x + slope[1] * y + rng.uniform(0.0, 0.08) * squared_radius
    edge = rng.uniform(1.15, 1.4) if rng.random() < 0.05 else math.inf  # low zoom
    if dark_corners and edge < math.inf:
        light += 3.2 * smoothstep(cv2.sqrt(squared_radius), edge - 0.05, edge + 0.05)
    return light, dark_corners and edge < 1.385


@dataclass(frozen=True)
class _Frame:
    """Position of the lesion in the image, in coordinates from 0 to 1 that do not depend on its size, and lighting."""

    size: int  # image side, pixels
    center: np.ndarray  # (x, y) of the lesion
    radius: float  # of the lesion
    exposure: np.ndarray  # factor of the light at every pixel, (size, size, 1)

    def relative(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and distance of every pixel from `point`: (1, size), (size, 1) and (size, size)."""
        pixel = (axis(self.size) + 1) / 2
        x, y = (pixel - np.float32(point[0]))[None], (pixel - np.float32(point[1]))[:, None]
        return x, y, cv2.sqrt(x * x + y * y)


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
        anchor = frame.center + reach * np.array(cos_sin(angle))
        if shape == "arc":
            angles = angle + np.linspace(-0.5, 0.5, 12) * rng.uniform(1.0, 3.5)
            line = reach * np.stack([np.cos(angles), np.sin(angles)], 1) - reach * np.array(cos_sin(angle))
        else:
            direction = angle + rng.normal(0, 0.2) + (np.pi / 2 if shape == "line" else turn)
            line = np.linspace(-0.5, 0.5, 12)[:, None] * length * np.array(cos_sin(direction))
        line += 0.003 * np.cumsum(rng.normal(0, 1, (12, 2)), 0) * (shape != "dots")
        # The middle of every stroke stays inside the frame, also if the lesion fills it.
        from_middle = anchor - 0.5
        lines.append(line + 0.5 + from_middle * min(1, 0.42 / np.hypot(*from_middle)))
    size = frame.size
    coverage = strokes(size, [size * line for line in lines], (size * width * rng.uniform(0.8, 1.2, count)).tolist())
    coverage = cv2.GaussianBlur(coverage, (0, 0), 0.004 * size)
    # Ink gathers in the furrows of the skin and leaves its ridges pale.
    coverage *= np.clip(0.9 + 0.2 * fractal_noise(rng, size, 40, 3), 0.4, 1.3) * rng.uniform(0.7, 1.4)
    return PIGMENTS[rng.choice(["violet ink", "blue ink"], p=[0.7, 0.3])] * coverage


PATCH_COLORS = ((238, 204, 70), (232, 142, 62), (196, 58, 66), (66, 116, 182), (78, 156, 104))


def _patches(rng: np.random.Generator, frame: _Frame, image: np.ndarray) -> np.ndarray:
    """One or two round colored stickers that reach into the frame, away from the lesion; returns their opacity."""
    to_middle, covered = 0.5 - frame.center, np.zeros((frame.size, frame.size), np.float32)
    angle = math.atan2(to_middle[1], to_middle[0]) + rng.normal(0, 0.6)
    for color in rng.permutation(PATCH_COLORS)[: 1 + (rng.random() < 0.35)].astype(np.float32):
        direction = np.array(cos_sin(angle))
        edge = 0.5 + 0.5 * direction / np.abs(direction).max()  # where this direction leaves the frame
        free = np.dot(edge - frame.center, direction) - 1.1 * frame.radius
        radius, depth = rng.uniform(0.16, 0.42), max(0.09, min(rng.uniform(0.12, 0.34), free))
        _, _, distance = frame.relative(edge + (radius - depth) * direction)
        opacity = smoothstep(distance, radius + 0.006, radius - 0.006)
        image *= (1 - 0.35 * smoothstep(distance, radius + 0.035, radius) * (1 - opacity))[..., None]  # shadow
        shade = rng.uniform(0.8, 1.05) + 0.02 * fractal_noise(rng, frame.size, 40)
        shade -= 0.04 * fractal_noise(rng, frame.size, 3)
        shade += 0.12 * gaussian(distance - radius + 0.012, 0.006)  # the edge catches the light
        image += opacity[..., None] * (color * shade[..., None] * frame.exposure - image)
        covered = np.maximum(covered, opacity)
        angle += rng.uniform(1.6, 4.6)
    return covered


def _gel_border(rng: np.random.Generator, frame: _Frame, image: np.ndarray) -> None:
    """The edge of the immersion gel, a curved line that refracts light; beyond it the skin surface reflects light.

    The gel contains the middle of the image, because the dermoscope is placed on it.
    """
    direction = np.array(cos_sin(rng.uniform(0, 2 * np.pi)))
    curvature_radius, sign = rng.uniform(0.45, 1.6), 1 if rng.random() < 0.7 else -1
    center = 0.5 + (rng.uniform(0.2, 0.42) - sign * curvature_radius) * direction
    x, y, distance = frame.relative(center)
    outside = sign * (distance - curvature_radius) + rng.uniform(0.004, 0.012) * fractal_noise(rng, frame.size, 5, 3)
    width = rng.uniform(0.006, 0.011)  # of the line
    strength = smoothstep(fractal_noise(rng, frame.size, 4), -1.6, 0.8)  # uneven along the line
    shift = rng.uniform(0.008, 0.016) * frame.size * gaussian(outside - width, 2.5 * width) / distance
    pixel = np.arange(frame.size, dtype=np.float32)
    maps = pixel - shift * x, pixel[:, None] - shift * y
    image[:] = cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    dry = smoothstep(outside, -0.3 * width, 1.2 * width)
    haze = rng.uniform(0.18, 0.34) * dry * np.clip(1 + 0.22 * fractal_noise(rng, frame.size, 50), 0.4, 1.6)
    tone = np.array([236, 218, 216], np.float32) * frame.exposure
    image += haze[..., None] * (tone - image)
    image *= (1 - rng.uniform(0.05, 0.15) * dry)[..., None]
    image *= (1 - rng.uniform(0.2, 0.45) * strength * gaussian(outside + 1.6 * width, 1.3 * width))[..., None]
    glint = rng.uniform(0.3, 0.65) * strength * gaussian(outside, width)
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


def render_with_flags(
    label: int, seed: int, size: int = 128, view: int = 0, artifacts: Container[str] = ARTIFACTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and mask of `render`, and which of `ARTIFACTS` are visible, at every size: `uint8 (7,)` in {0, 1}.

    artifacts: those of `ARTIFACTS` that may occur; the others are left out, and everything else stays as it is.
    """
    _check_arguments(label, seed, size, view)
    patient_rng = np.random.default_rng([seed, label, 1])  # properties of patient and camera, the same in every view
    cast, blur = patient_rng.normal(0, [0.03, 0.035, 0.08]), patient_rng.uniform(0.3, 1.0)
    hair_prob = 0.7 if patient_rng.random() < 0.3 else 0.05
    rng = np.random.default_rng([seed, label, 2, view])
    (c, s), zoom = cos_sin(rng.uniform(0, 2 * np.pi)), rng.uniform(0.92, 1.12) * size / 2
    shift = size / 2 * (1 + np.clip(rng.normal(0, 0.1, 2), -0.25, 0.25)) - 0.5
    affine = np.column_stack([zoom * np.array([[c, -s], [s, c]]), shift])
    scene, skin, base = make_lesion(label, seed, size)
    base = (base.ravel() - cast - rng.normal(0, 0.018, 3)).astype(np.float32)
    density, height = _compose(scene, skin, base, affine, size)
    light, dark_corner = _light(rng, size, "dark_corner" in artifacts)
    density += light
    frame = _Frame(size, (shift + 0.5) / size, scene.radius * zoom / size, cv2.exp(-light)[..., None])
    own_rngs = {name: own for name, own in _own_rngs(label, seed, view).items() if name in artifacts}
    if "ink" in own_rngs:
        density += _ink(own_rngs["ink"], frame)
    image = cv2.merge(list(cv2.exp(np.minimum(math.log(255) - density, math.log(255)))))
    add = partial(_add, rng, image, artifacts)
    visible = {*own_rngs, *(["dark_corner"] if dark_corner else []), *add("hair", hair_prob, _hairs)}
    if "patches" in own_rngs:
        height[_patches(own_rngs["patches"], frame, image) > 0.5] = -1
    if "gel_border" in own_rngs:
        _gel_border(own_rngs["gel_border"], frame, image)
    visible |= add("gel_bubble", 0.08, _bubbles) | add("ruler", 0.07, _ruler)
    image = cv2.GaussianBlur(image, (0, 0), blur * rng.uniform(0.7, 1.3) * size * 0.006)
    noise = (rng.random((size, size), np.float32) - 0.5) * rng.uniform(3.0, 8.0)
    image += cv2.merge([noise, noise, noise])
    flags = np.array([name in visible for name in ARTIFACTS], np.uint8)
    return cv2.convertScaleAbs(np.maximum(image, 0, out=image)), largest_region(height), flags


def _check_arguments(label: int, seed: int, size: int, view: int) -> None:
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label must be 0 to {len(CLASSES) - 1} ({' '.join(CLASSES)}), got {label}")
    if not 64 <= size <= 512:
        raise ValueError(f"size must be 64 to 512 pixels, got {size}")
    if seed < 0 or view < 0:
        raise ValueError(f"seed and view must not be negative, got seed {seed}, view {view}")


def _own_rngs(label: int, seed: int, view: int) -> dict[str, np.random.Generator]:
    """The random generators of ink, patches and gel border, if these occur; each affects no other random number."""
    probs = {"ink": 0.08, "patches": 0.0435, "gel_border": 0.1}
    rngs = {name: np.random.default_rng([seed, label, k, view]) for k, name in enumerate(probs, 3)}
    rngs = {name: rng for name, rng in rngs.items() if rng.random() < probs[name]}
    if "ink" in rngs:
        rngs.pop("patches", None)  # a patch could cover all ink
    return rngs


def _add(
    rng: np.random.Generator, image: np.ndarray, artifacts: Container[str], name: str, prob: float, artifact: Callable
) -> set[str]:
    """Add an artifact to `image` in place, with probability `prob`; returns {name} if it is visible, else an empty set.

    One that is not in `artifacts` uses up its random numbers too, so that the rest of the image does not change.
    """
    visible = rng.random() < prob and artifact(rng, image if name in artifacts else image.copy())
    return {name} if visible and name in artifacts else set()


def _compose(
    scene: Scene, skin: np.ndarray, base: np.ndarray, affine: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lesion on skin: density (3, size, size) and height (size, size); base: density (3,) of plain skin."""
    canvas = scene.corner, scene.width, affine, size
    *added, visibility = cv2.split(_warp(cv2.merge([*scene.density, scene.visibility]), *canvas, (0, 0, 0, 1)))
    melanin, blood = cv2.split(_warp(skin, (-EXTENT, -EXTENT), 2 * EXTENT, affine, size, None))
    density = PIGMENTS["melanin"] * melanin + PIGMENTS["blood"] * blood + base[:, None, None]
    return density * visibility + np.stack(added), _warp(scene.height, *canvas, -1)

"""New sketches from existing ones: lesions of another shape, and lines as if drawn by hand."""

from itertools import pairwise

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from helpers.data.sketches import fill, stroke_width

SMOOTHING = 1 / 28  # standard deviation along an outline, as a fraction of the shorter side
STROKES = 12  # pieces of an outline, each with its own width


def hand_drawn(lines: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """A sketch `uint8 (H, W)` in {0, 255} as if drawn by hand: smooth outlines of varying width, displaced, with gaps.

    People draw smoother than masks are. Lines that enclose nothing are displaced only. `strength` scales displacement
    and gaps; 0 returns an unchanged copy.
    """
    if strength <= 0:
        return lines.copy()
    field = strength * min(lines.shape) * 0.014 * _smooth_noise(lines.shape, 4, rng)
    outlines = [outline for outline in _outlines(lines) if _encloses(outline, stroke_width(lines.shape))]
    covered = cv2.drawContours(np.zeros_like(lines), outlines, -1, 255, 4 * stroke_width(lines.shape) + 1)
    drawn = _warp(np.where(covered > 0, 0, lines), _identity(lines.shape) + field)
    for outline in outlines:
        _draw_outline(drawn, outline[:, 0], field, min(strength, 1.0), rng)
    return drawn


def _outlines(lines: np.ndarray) -> list[np.ndarray]:
    """Outer outlines `int32 (P, 1, 2)` of everything that the lines enclose."""
    return list(cv2.findContours(fill(lines > 0), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])


def _encloses(outline: np.ndarray, width: int) -> bool:
    """Whether an outline encloses more than a line of this width and the same length would cover."""
    return cv2.contourArea(outline) > len(outline) * width


def _draw_outline(drawn: np.ndarray, points: np.ndarray, field: np.ndarray, gaps: float, rng: np.random.Generator):
    """Draw closed `points (P, 2)` (x, y) into `drawn`, smoothed along their length, moved by `field (H, W, 2)`, in
    `STROKES` pieces of different widths, and with up to two gaps of at most `gaps` times 6 % of the length."""
    sigma = min(SMOOTHING * min(drawn.shape), len(points) / 20)
    moved = gaussian_filter1d(points - field[points[:, 1], points[:, 0]], sigma, axis=0, mode="wrap")
    moved = np.roll(moved, rng.integers(len(moved)), axis=0)
    starts = np.linspace(0, len(moved), STROKES + 1).astype(int)
    closed = np.concatenate([moved, moved[:1]])
    widths = np.maximum(1, stroke_width(drawn.shape) - rng.integers(0, 2, STROKES))  # OpenCV's lines are wider
    strokes = [closed[start : end + 1] for start, end in pairwise(starts)]
    for k in rng.choice(STROKES, rng.integers(0, 3), replace=False):
        strokes[k] = strokes[k][round(gaps * rng.uniform(0.3, 0.7) * len(strokes[k])) :]
    for stroke, width in zip(strokes, widths, strict=True):
        cv2.polylines(drawn, [np.round(stroke * 16).astype(np.int32)], False, 255, int(width), cv2.LINE_8, shift=4)


def deform(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A new lesion shape: mask `(H, W)` in {0, 1} under a random `deformation`. Its `contour` is a new sketch.

    A lesion that is cut off by the image border is extended with the border's pixels.
    """
    return _warp(mask, deformation(mask, rng), cv2.BORDER_REPLICATE)


def deform_sketch(lines: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A sketch `uint8 (H, W)` in {0, 255} and the mask of its lesion under one random `deformation`: a new sketch for
    images without a mask (zeros), or with lines inside the lesion."""
    grid = deformation(mask, rng)
    return _warp(lines, grid), _warp(mask, grid, cv2.BORDER_REPLICATE)


def deformation(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random rotation, scaling, flip and smooth warp about the centroid of mask `(H, W)` in {0, 1}.

    Returns the source position (x, y) of every pixel, `float32 (H, W, 2)`, for `cv2.remap`.
    """
    side = min(mask.shape)
    rows, columns = np.nonzero(mask if mask.any() else np.ones_like(mask))
    center = np.array([columns.mean(), rows.mean()])
    angle, scale = rng.uniform(-np.pi, np.pi), np.exp(rng.uniform(-0.2, 0.2))
    flip = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    matrix = flip @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    displacement = sum(_smooth_noise(mask.shape, cells, rng) * size for cells, size in ((3, 0.022), (6, 0.006)))
    grid = (_identity(mask.shape) - center) @ matrix.T + center + side * displacement
    return grid.astype(np.float32)


def _smooth_noise(shape: tuple[int, ...], cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth Gaussian noise `float32 (H, W, 2)` of unit variance, with about `cells` random values along a side."""
    coarse = rng.standard_normal((cells + 3, cells + 3, 2)).astype(np.float32)
    fine = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return fine / max(float(fine.std()), 1e-6)


def _identity(shape: tuple[int, ...]) -> np.ndarray:
    """Position (x, y) of every pixel, `float32 (H, W, 2)`."""
    return np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), axis=-1).astype(np.float32)


def _warp(image: np.ndarray, grid: np.ndarray, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    """Warp a two-valued `image (H, W)`; thresholded at 40 %, not 50 %, of its maximum, so that thin lines survive."""
    peak = int(image.max())
    warped = cv2.remap(image, grid, None, cv2.INTER_LINEAR, borderMode=border)
    return np.where(warped > 0.4 * peak, peak, 0).astype(np.uint8)

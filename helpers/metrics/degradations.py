"""Damage of known strength to images: a distance that is to be trusted rises with it."""

from collections.abc import Callable

import cv2
import numpy as np

MAX_BLUR = 1 / 16  # standard deviation as a fraction of the side
MAX_NOISE = 100.0  # standard deviation, of 255
MIN_JPEG_QUALITY = 1  # from 100 at strength 0, geometrically
MAX_COLOR = np.array([60.0, 0.0, -60.0])  # added to R, G, B, of 255


def blur(images: np.ndarray, strength: float) -> np.ndarray:
    """Gaussian blur of up to 1/16 of the side."""
    sigma = max(strength * MAX_BLUR * images.shape[1], 1e-3)
    return np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in images])


def noise(images: np.ndarray, strength: float) -> np.ndarray:
    """Gaussian noise of up to `MAX_NOISE`, the same pattern at every strength."""
    pattern = np.random.default_rng(0).standard_normal(images.shape, np.float32)
    return (images + strength * MAX_NOISE * pattern).round().clip(0, 255).astype(np.uint8)


def jpeg(images: np.ndarray, strength: float) -> np.ndarray:
    """JPEG compression down to quality 1."""
    quality = round(100 * (MIN_JPEG_QUALITY / 100) ** strength)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    files = (cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1] for image in images)
    return np.stack([cv2.cvtColor(cv2.imdecode(file, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for file in files])


def color(images: np.ndarray, strength: float) -> np.ndarray:
    """Shift towards red."""
    return (images + strength * MAX_COLOR).round().clip(0, 255).astype(np.uint8)


# Name -> function of images `uint8 (N, H, W, 3)` and a strength in [0, 1], 0: unchanged (JPEG: quality 100).
DEGRADATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "blur": blur,
    "noise": noise,
    "JPEG": jpeg,
    "color": color,
}

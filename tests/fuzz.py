"""Read mutated images with every function that reads image files: `python tests/fuzz.py 5000 [SEED]`.

Each may only return an image or raise `DataError`, within `LIMIT` seconds, and write nothing.
"""

import os
import signal
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.data.duplicates import fingerprint
from helpers.data.files import DataError, image_shape, read_header, read_image, read_mask
from helpers.data.sketches import parse_drawing
from helpers.data.store import StoreConfig, load_sketch
from helpers.metrics.extractors import ImageSet
from helpers.views.predictor import check_image_header, read_drawing, read_photo

LIMIT = 10  # seconds for one call
FORMATS = {
    "JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGB", "RGBA", "P", "1", "LA", "I;16"], "BMP": ["RGB", "P"],
    "TIFF": ["RGB", "L", "1", "CMYK", "F", "I;16", "LAB"], "WEBP": ["RGB", "RGBA"], "GIF": ["P"],
    "MPO": ["RGB"], "PPM": ["RGB"], "ICO": ["RGBA"], "TGA": ["RGB"], "DDS": ["RGB"], "SGI": ["RGB"], "EPS": ["RGB"],
}  # fmt: skip
READERS: dict[str, Callable[[Path], object]] = {
    "read_image": read_image,
    "read_image, reduced": lambda path: read_image(path, size=8),
    "read_mask": read_mask,
    "image_shape": image_shape,
    "read_header": read_header,
    "check_image_header": lambda path: check_image_header(path.read_bytes(), path.name),
    "fingerprint": lambda path: fingerprint(str(path), str(path), str(path)),
    "load_sketch": lambda path: load_sketch(path, StoreConfig(16)),
    "parse_drawing": lambda path: parse_drawing(path, 16),
    "read_drawing": lambda path: read_drawing(path, 16),
    "read_photo": read_photo,
    "from_folder": lambda path: ImageSet.from_folder(path.parent),
}


class Hang(BaseException):
    """A call took too long. No `Exception`, which the readers turn into `DataError`."""


def originals(rng: np.random.Generator) -> list[bytes]:
    """A small image in every format and mode, with EXIF rotation where the format has it."""
    exif, contents = Image.Exif(), []
    exif[0x0112], exif[0x010F] = 6, "camera"
    photo = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((48, 36))
    for name, modes in FORMATS.items():
        for mode in modes:
            stream = BytesIO()
            image = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257) if mode == "I;16" else photo
            image = image if image.mode == mode else image.convert(mode)
            options = {"exif": exif} if name in ("JPEG", "PNG", "TIFF", "WEBP", "MPO") else {}
            image.save(stream, name, **options)
            contents.append(stream.getvalue())
    return contents


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes, cut, repeat or insert a part; the checksums of half of the PNGs are corrected."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        start, length = int(rng.integers(len(data))), int(rng.integers(1, 12))
        kind = rng.integers(8)
        if kind < 4:  # early bytes more often, because the headers are there
            data[int(start * rng.random())] = int(rng.choice([0, 1, 127, 255, rng.integers(256)]))
        elif kind == 4:
            data[start : start + length] = rng.bytes(length)
        elif kind == 5:
            data[start:start] = data[start : start + length]
        elif kind == 6:
            del data[start : start + length]
        elif start > 8:
            del data[start:]
    return with_checksums(bytes(data)) if rng.random() < 0.5 else bytes(data)


def with_checksums(content: bytes) -> bytes:
    """A PNG with correct checksums; other content is unchanged."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    data, start = bytearray(content), 8
    while start + 12 <= len(data):
        end = start + 8 + struct.unpack(">I", data[start : start + 4])[0]
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[start + 4 : end]))
        start = end + 4
    return bytes(data)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `Hang` after `seconds`."""

    def stop(*_) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def failure(reader: Callable[[Path], object], path: Path) -> str | None:
    """What went wrong when reading `path`, None if nothing did."""
    try:
        with time_limit(LIMIT):
            reader(path)
    except DataError:
        return None
    except Hang:
        return f"took over {LIMIT} s"
    except Exception as error:
        return repr(error)
    return None


def fuzz(count: int, folder: Path, seed: int = 0) -> list[str]:
    """Read `count` mutated images with all `READERS` in the empty `folder`, which becomes the current and the temporary
    folder; returns a message per failure. Files with a failure stay."""
    rng, failures, previous = np.random.default_rng(seed), [], (os.getcwd(), tempfile.tempdir)
    contents = originals(rng)
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    try:
        for number in range(count):
            original = contents[number % len(contents)]
            content = original if number < len(contents) else mutate(original, rng)
            path = folder / f"{number:06d}" / f"image.{rng.choice(['jpg', 'png', 'tif', 'bmp', 'gif', 'webp'])}"
            path.parent.mkdir()
            path.write_bytes(content)
            faults = [f"{path}: {name} {fault}" for name, read in READERS.items() if (fault := failure(read, path))]
            if set(path.parent.iterdir()) != {path} or path.read_bytes() != content:
                faults.append(f"{path}: it was changed, or a file was written beside it")
            if not faults:
                path.unlink()
                path.parent.rmdir()
                if left := list(folder.glob(f"{number:06d}*")) or [p for p in folder.iterdir() if not p.is_dir()]:
                    faults.append(f"{path}: {left[0]} was written")
            failures += faults
    finally:
        os.chdir(previous[0])
        tempfile.tempdir = previous[1]
    return failures


if __name__ == "__main__":
    found = fuzz(int(sys.argv[1]), Path(tempfile.mkdtemp()), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print("\n".join(found) or "no failure")
    sys.exit(bool(found))

import errno
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from factories import write_image, write_lines
from PIL import Image

from helpers.config import ROOT
from helpers.data import files, layouts
from helpers.data.files import (
    DataError,
    atomic_file,
    atomic_folder,
    center_crop,
    image_shape,
    is_mask,
    list_images,
    read_header,
    read_image,
    read_mask,
    remove_leftovers,
    report_skipped,
)
from helpers.phantoms.render import render

DISC = (np.hypot(*np.mgrid[-16:16, -20:20]) < 9).astype(np.uint8)


def test_read_image_truncated_file_raises(tmp_path):
    content = write_image(tmp_path / "complete.jpg", size=(300, 200)).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"truncated\.jpg is missing, damaged or not an image"):
        read_image(tmp_path / "truncated.jpg")


@pytest.mark.parametrize("content", [b"", b"<html>no such page</html>", b"\x89PNG\r\n\x1a\n"])
def test_read_image_other_content_raises(tmp_path, content):
    (tmp_path / "page.png").write_bytes(content)
    with pytest.raises(DataError, match=r"page\.png"):
        read_image(tmp_path / "page.png")


def test_read_image_missing_file_raises(tmp_path):
    with pytest.raises(DataError, match=r"absent\.png is missing"):
        read_image(tmp_path / "absent.png")


def test_read_image_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()


def test_read_image_gray_becomes_rgb(tmp_path):
    Image.new("L", (8, 6), 77).save(tmp_path / "gray.png")
    image = read_image(tmp_path / "gray.png")
    assert image.shape == (6, 8, 3) and (image == 77).all()


@pytest.mark.parametrize("peak", [1.0, 255, 4095, 65535])
def test_read_image_of_more_than_8_bits_is_scaled_not_clipped(tmp_path, peak):
    ramp = np.linspace(0, peak, 20 * 30).reshape(20, 30)
    Image.fromarray(ramp.astype(np.float32 if peak == 1 else np.uint16)).save(tmp_path / "deep.tif")
    image = read_image(tmp_path / "deep.tif")
    assert image.shape == (20, 30, 3) and np.abs(image[..., 0] - ramp * 255 / peak).max() <= 1


@pytest.mark.parametrize("value", [-1, 70_000, np.nan, np.inf])
def test_read_image_of_values_that_are_no_tones_raises(tmp_path, value):
    Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "heights.tif")
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"heights\.tif.*expected pixel values of 0 to 1, 255, 4095 or 65535"):
            read(tmp_path / "heights.tif")


@pytest.mark.parametrize("read", [read_image, read_mask, image_shape, read_header])
def test_formats_that_are_not_listed_are_never_opened(tmp_path, read, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    write_lines(tmp_path / "page.jpg", "%!PS-Adobe-3.0 EPSF-3.0", "%%BoundingBox: 0 0 9 9", "%%EndComments", "loop")
    Image.new("RGB", (8, 8)).save(tmp_path / "drawing.png", "PPM")
    for name in ("page.jpg", "drawing.png"):
        with pytest.raises(DataError, match=f"{name} is missing, damaged or not an image"):
            read(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert list_images(tmp_path) == []
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("error", [struct.error, TypeError, IndexError, KeyError, ZeroDivisionError, MemoryError])
def test_whatever_a_decoder_raises_is_a_data_error(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error("bad chunk")

    path = write_image(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    for read in (read_image, read_mask, image_shape):
        with pytest.raises(DataError, match=r"a\.png is .*damaged.*bad chunk"):
            read(path)


def test_too_many_pixels_are_not_decoded(tmp_path):
    Image.new("1", (10_000, 8_001)).save(tmp_path / "huge.png")
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="10000 x 8001 pixels, at most 80,000,000"):
            read(tmp_path / "huge.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F", "I;16"])
def test_reading_in_strips_equals_reading_at_once(tmp_path, mode, monkeypatch):
    rng = np.random.default_rng(0)
    if mode in ("F", "I;16"):
        image = Image.fromarray(rng.integers(0, 4000, (41, 30)).astype(np.float32 if mode == "F" else np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (41, 30, 4)).astype(np.uint8), "RGBA")
        image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    image.save(tmp_path / "a.tif")
    at_once = read_image(tmp_path / "a.tif"), read_mask(tmp_path / "a.tif")
    for pixels in (1, 100):
        monkeypatch.setattr(files, "STRIP", pixels)
        in_strips = read_image(tmp_path / "a.tif"), read_mask(tmp_path / "a.tif")
        assert all(np.array_equal(a, b) for a, b in zip(at_once, in_strips, strict=True))


def test_strips_cover_every_row_once():
    for height, width in ((1, 1), (7, 3), (5, 3 * files.STRIP), (3000, 4000)):
        rows = [k for part in files.strips(height, width) for k in range(height)[part]]
        assert rows == list(range(height))


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    running, most = [], []

    def count(image):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(files, "to_rgb", count)
    path = write_image(tmp_path / "a.png")
    for pixels, together in ((0, False), (10**9, True)):
        monkeypatch.setattr(files, "MAX_PARALLEL", pixels)
        most.clear()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read_image, [path] * 8))
        assert (max(most) > 1) == together


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not report memory")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_read_image_needs_seven_bytes_per_pixel_and_returns_them(tmp_path, mode):
    """Pillow's 4 (or 2) and 3 for the result; a fresh process, because memory of other tests could be used again."""
    image = Image.new("RGBA", (5000, 4000), (200, 100, 50, 128))
    image = Image.new("I;16", image.size, 3000) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "large.png", compress_level=1)
    code = (
        "import re, sys; from helpers.data import files; files.MAX_PARALLEL = 0\n"
        "def mib(field): return int(re.search(field + r':\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "before = mib('VmRSS'); image = files.read_image(sys.argv[1]); peak = mib('VmHWM'); del image\n"
        "print(peak - before, mib('VmRSS') - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    peak, after = map(float, output.split())
    assert 3 * 20e6 / 2**20 < peak < 7 * 20e6 / 2**20 + 40 and after < 20


def test_read_image_size_reduces_large_jpeg_to_twice_the_size_at_least(tmp_path):
    """Resized images differ from those of the full decoding by less than a gray level in the mean."""
    image, _ = render(0, seed=3, size=512)
    path = tmp_path / "large.jpg"
    Image.fromarray(cv2.resize(image, (4400, 3000), interpolation=cv2.INTER_CUBIC)).save(path, quality=95)
    full = read_image(path)
    assert full.shape == (3000, 4400, 3) and image_shape(path) == (3000, 4400)
    for size, shape in ((128, (1500, 2200, 3)), (512, (1500, 2200, 3)), (768, full.shape)):
        reduced = read_image(path, size=size)
        assert reduced.shape == shape
        resized = [cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA).astype(int) for x in (full, reduced)]
        assert np.abs(resized[0] - resized[1]).mean() < 0.5


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_every_reader_applies_exif_orientation(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise by 90 degrees for display
    pixels = np.zeros((2400, 3200), np.uint8)
    pixels[200:1400, 400:2800] = 255  # the upper half, which a viewer shows on the right
    path = tmp_path / f"rotated.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    expected = np.rot90(pixels, -1)
    assert image_shape(path) == expected.shape == (3200, 2400)
    assert np.abs(read_image(path)[..., 0].astype(int) - expected).mean() < 3
    assert (read_mask(path, (3200, 2400)) == expected // 255).mean() > 0.99
    reduced = read_image(path, size=150)
    assert reduced.shape == ((1600, 1200, 3) if suffix == "jpg" else (3200, 2400, 3))


@pytest.mark.parametrize("encoding", ["0/1", "0/100", "0/255", "RGB", "one bit", "palette", "16 bit", "jpeg"])
def test_read_mask_any_encoding_is_zero_and_one(tmp_path, encoding):
    image = {
        "0/1": Image.fromarray(DISC),
        "0/100": Image.fromarray(DISC * 100),
        "16 bit": Image.fromarray(DISC.astype(np.uint16) * 65535),
        "0/255": Image.fromarray(DISC * 255),
        "RGB": Image.fromarray(np.stack([DISC * 255] * 3, axis=2)),
        "one bit": Image.fromarray(DISC * 255).convert("1"),
        "palette": Image.fromarray(DISC * 255).convert("P"),
        "jpeg": Image.fromarray(DISC * 255),
    }[encoding]
    path = tmp_path / ("mask.jpg" if encoding == "jpeg" else "mask.png")
    image.save(path)
    mask = read_mask(path, (32, 40))
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    assert (mask != DISC).mean() < (0.02 if encoding == "jpeg" else 1e-9)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1, 1), (255, 1)])
def test_read_mask_uniform_is_empty_or_full(tmp_path, value, expected):
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == expected).all()


def test_read_mask_compression_noise_is_empty(tmp_path):
    noise = np.random.default_rng(0).integers(0, 6, (32, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").max() == 0


MASK = DISC * 255
CLEAR = np.full_like(DISC, 255)


@pytest.mark.parametrize(
    "pixels",
    [
        DISC * 2,
        255 - MASK,
        cv2.GaussianBlur(MASK, (0, 0), 1.5),
        DISC.astype(np.float32),
        DISC.astype(np.uint16) * 4095,
        np.dstack([CLEAR, CLEAR, CLEAR, MASK]),
        np.dstack([0 * DISC, 0 * DISC, 0 * DISC, MASK]),
        np.dstack([CLEAR, 0 * DISC, 0 * DISC, MASK]),
        np.dstack([MASK, MASK, MASK, (np.abs(np.mgrid[-16:16, -20:20][0]) < 12) * CLEAR]),
    ],
    ids=["0/2", "inverted", "soft", "float", "12 bits", "white, alpha", "black, alpha", "red, alpha", "opaque part"],
)
def test_read_mask_is_what_a_person_sees(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "mask.tif")
    assert (read_mask(tmp_path / "mask.tif") != DISC).mean() < 0.01


def test_read_mask_palette_is_read_by_its_colors(tmp_path):
    image = Image.fromarray(DISC)
    image.putpalette([68, 1, 84, 253, 231, 37])
    image.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == DISC).all()
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png.*equally bright: which of them is the lesion"):
        read_mask(tmp_path / "mask.png")


def test_read_mask_lesion_larger_than_the_image_is_not_inverted(tmp_path):
    mask = np.full((90, 120), 255, np.uint8)
    mask[:20, :20] = mask[-4:, 50:60] = 0  # a corner; and a notch
    mask[40:44, 40:44] = 0  # and a hole, of 0.1 %
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == mask // 255).all()


def test_is_mask_two_tones_of_gray_are_none_of_a_photo(tmp_path):
    for pixels in (DISC, DISC * 2, MASK, 255 - MASK):
        assert is_mask(np.dstack([pixels] * 3))
    Image.fromarray(cv2.resize(MASK, (400, 320))).save(tmp_path / "mask.jpg")
    assert is_mask(read_image(tmp_path / "mask.jpg"))
    photo = read_image(write_image(tmp_path / "photo.jpg", size=(400, 320)))
    gray = np.dstack([photo[..., 1]] * 3)
    noise = np.random.default_rng(0).integers(120, 122, (32, 40, 1), np.uint8).repeat(3, axis=2)
    assert not any(map(is_mask, (photo, gray, noise, np.full((8, 8, 3), 7, np.uint8))))


def test_read_mask_other_size_raises_with_both_sizes(tmp_path):
    Image.fromarray(DISC).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"40 x 32 pixels but its image is 80 x 64"):
        read_mask(tmp_path / "mask.png", (64, 80))


def test_center_crop_landscape_and_portrait_keep_the_center():
    image = np.arange(6 * 10).reshape(6, 10)
    assert (center_crop(image) == image[:, 2:8]).all()
    assert (center_crop(image.T) == image.T[2:8]).all()


def test_list_images_skips_hidden_and_other_files(tmp_path):
    for name in ("b.JPG", "a.png", "._a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG"]
    assert list_images(tmp_path / "absent") == []


def test_report_skipped_names_other_formats_and_folders(tmp_path):
    used = [write_image(tmp_path / "a.png")]
    write_image(tmp_path / "benign/patient1/b.png")
    for name in ("c.HEIX", "d.psd", "table.csv", ".hidden/e.psd", "@eaDir/a.png", ".DS_Store"):
        write_lines(tmp_path / name, "")
    problems = []
    report_skipped(tmp_path, used, problems)
    assert problems == [
        "2 files of formats that are not read (.heix .psd) are left out: c.HEIX, d.psd",
        "1 files in folders that are not read (benign/patient1) are left out: benign/patient1/b.png",
    ]


def write_version(folder: Path, text: str) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "file").write_text(text)


def test_report_skipped_says_how_heic_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "IMAGE_SUFFIXES", files.IMAGE_SUFFIXES - files.HEIF_SUFFIXES)
    for name in ("keratosis/IMG_1.HEIC", "nevus/a.jpg", "melanoma/b.jpg", "melanoma/c.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    hint = "; HEIC is read after `pip install pillow-heif`"
    text = "2 files of formats that are not read (.heic .psd) are left out: keratosis/IMG_1.HEIC, melanoma/c.psd" + hint
    assert text in layouts.read(tmp_path).problems
    (tmp_path / "nevus/a.jpg").unlink()
    with pytest.raises(DataError, match=f"matches none .*IMG_1.HEIC, melanoma/c.psd{hint}"):
        layouts.read(tmp_path)
    (tmp_path / "keratosis/IMG_1.HEIC").unlink()
    with pytest.raises(DataError) as error:
        layouts.read(tmp_path)
    assert "c.psd" in str(error.value) and "pillow-heif" not in str(error.value)


def rotated(format_name: str, path: Path, array: np.ndarray, orientation: int) -> Path:
    """Write an image that a viewer rotates; pillow-heif makes HEIF's own rotation from this EXIF entry."""
    image, exif = Image.fromarray(array), Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    image.save(path, format_name, quality=95, **({"exif": exif} if format_name != "HEIF" else {}))
    return path


@pytest.mark.parametrize("format_name", ["AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_and_avif_are_read_as_a_viewer_shows_them(tmp_path, format_name, orientation):
    if format_name not in files.FORMATS:
        pytest.skip("needs pillow-heif, or Pillow with AVIF")
    array = np.zeros((48, 80, 3), np.uint8)
    array[:24, :40], array[24:, 40:] = 255, 64
    expected = read_image(rotated("JPEG", tmp_path / "a.jpg", array, orientation))
    path = rotated(format_name, tmp_path / f"a{'.avif' if format_name == 'AVIF' else '.HEIC'}", array, orientation)
    image = read_image(path)
    assert image.shape == expected.shape and np.abs(image.astype(int) - expected).mean() < 3
    assert image_shape(path) == expected.shape[:2] and path in list_images(tmp_path)
    assert (read_mask(path) != (expected[..., 0] > 127)).mean() < 0.01


def test_heic_and_avif_masks_transparency_and_10_bits(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    mask = np.zeros((48, 80), np.uint8)
    mask[10:30, 20:50] = 255
    deep = np.repeat(np.linspace(0, 65535, 80).astype(np.uint16)[None], 48, axis=0)
    for suffix in (".heic", ".avif"):
        Image.fromarray(mask).save(tmp_path / f"mask{suffix}", quality=90)
        assert np.array_equal(read_mask(tmp_path / f"mask{suffix}", (48, 80)), mask // 255)
        alpha = Image.merge("RGBA", [Image.new("L", (80, 48))] * 3 + [Image.fromarray(mask)])
        alpha.save(tmp_path / f"alpha{suffix}", quality=90)
        image = read_image(tmp_path / f"alpha{suffix}")
        assert image[mask == 0].min() > 200 and image[mask > 0].max() < 55
    heif = pillow_heif.from_bytes("RGB;16", (80, 48), np.dstack([deep] * 3).tobytes())
    heif.save(tmp_path / "deep.heic", quality=90)
    assert pillow_heif.open_heif(tmp_path / "deep.heic").info["bit_depth"] == 10
    assert np.abs(read_image(tmp_path / "deep.heic")[..., 0].astype(int) - deep // 257).max() < 4
    (tmp_path / "cut.heic").write_bytes((tmp_path / "deep.heic").read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        read_image(tmp_path / "cut.heic")


def test_atomic_folder_success_replaces_the_old_one(tmp_path):
    write_version(tmp_path / "out", "first")
    write_version(tmp_path / "out", "second")
    assert (tmp_path / "out/file").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755, "readable by others"


def test_atomic_folder_failure_keeps_the_old_one(tmp_path):
    write_version(tmp_path / "out", "first")
    with pytest.raises(OSError, match="disk full"), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "file").write_text("half")
        raise OSError("disk full")
    assert (tmp_path / "out/file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_atomic_folder_failed_rename_restores_the_old_one(tmp_path, monkeypatch):
    write_version(tmp_path / "out", "first")
    rename = Path.rename

    def refuse(self, target):
        if "-new-" in self.name and Path(target).name == "out":
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="refused"):
        write_version(tmp_path / "out", "second")
    assert (tmp_path / "out/file").read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["out"]


# ------------------------------------------------------------------------------------------------------- atomic_file


def test_atomic_file_replaces_the_previous_one_only_when_complete(tmp_path):
    path = tmp_path / "folder" / f"{'x' * 240}.txt"  # nearly the longest name that a disk takes
    for text in ("first", "second"):
        with atomic_file(path, sync=True) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent and temporary.suffix == ".txt"
        assert path.read_text() == text
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def fill_text(path: Path) -> None:
    path.write_text("x" * 2**21)


def fill_array(path: Path) -> None:  # NumPy's error has no number
    np.save(path, np.ones(2**21, np.uint8))


def fill_checkpoint(path: Path) -> None:  # PyTorch raises RuntimeError
    torch.save({"weight": torch.ones(2**19)}, path)


def fill_table(path: Path) -> None:
    pd.DataFrame(np.ones((2**18, 4))).to_csv(path)


def fill_image(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)).save(path, "PNG")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs Linux and root")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("fill", [fill_text, fill_array, fill_checkpoint, fill_table, fill_image])
def test_atomic_file_on_a_full_disk_names_the_path_and_keeps_the_previous_file(small_disk, fill):
    path = small_disk / "out.npy"
    with pytest.raises(OSError, match=r"out\.npy cannot be written: the disk is full$"), atomic_file(path) as temporary:
        fill(temporary)
    assert not list(small_disk.iterdir())
    path.write_text("previous")
    with pytest.raises(OSError, match=r"the disk is full; the previous one is kept$"), atomic_file(path) as temporary:
        fill(temporary)
    assert path.read_text() == "previous" and list(small_disk.iterdir()) == [path]


def test_atomic_folder_on_a_full_disk_names_the_folder(small_disk):
    with pytest.raises(OSError, match=r"out cannot be written: the disk is full$"):
        write_version(small_disk / "out", "x" * 2**21)
    assert not list(small_disk.iterdir())


def test_atomic_file_without_space_left_says_so_for_every_kind_of_error(tmp_path, monkeypatch):
    for error in (
        OSError(errno.ENOSPC, "no space"),
        OSError(errno.EDQUOT, "quota"),
        OSError("half"),
        RuntimeError("x"),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match="the disk is full"), atomic_file(tmp_path / "out"):
            raise error
    for error in (DataError("unusable"), OSError(errno.EACCES, "refused")):
        with pytest.raises(type(error), match=r"unusable|refused"), atomic_file(tmp_path / "out"):
            raise error
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    with pytest.raises(RuntimeError, match="of another cause"), atomic_file(tmp_path / "out"):
        raise RuntimeError("of another cause")


def killed_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    dead = killed_process()
    with atomic_file(tmp_path / "example") as temporary:
        prefix, machine, own = re.fullmatch(r"(\.part-([0-9a-f]{8})-(\d+))-example", temporary.name).groups()
        temporary.write_text("")
    other = prefix.replace(machine, "0" * 8)
    names = {f"{prefix}-new-1": True, f"{other}-new-1": True, ".data-abcd_123": True}
    names |= {f".part-{machine}-{dead}-new-1": False, f".part-{machine}-{dead}-a.csv": False, f"{other}-new-2": False}
    folder = tmp_path / "stores"
    for name in names:
        (folder / name).mkdir(parents=True)
    (folder / f"{other}-new-2").touch()
    os.utime(folder / f"{other}-new-2", (0, 0))  # of another machine, and old
    (folder / f".part-{machine}-{dead}-old-1" / "moved").mkdir(parents=True)  # killed between two renames
    write_version(folder / "out", "text")
    kept = [name for name, stays in names.items() if stays]
    assert int(own) == os.getpid() and sorted(p.name for p in folder.iterdir()) == sorted([*kept, "moved", "out"])


KILLED = """
import sys
sys.path.insert(0, {root!r})
from helpers.data.files import atomic_folder
with atomic_folder({folder!r}) as temporary:
    (temporary / "half").write_text("x")
    print(temporary.name, flush=True)
    sys.stdin.read()
"""


def test_atomic_folder_of_a_killed_process_is_removed_by_the_next_one(tmp_path):
    code = KILLED.format(root=str(Path(__file__).parents[1]), folder=str(tmp_path / "stores/a"))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    leftover = process.stdout.readline().strip()
    write_version(tmp_path / "stores/b", "text")
    assert sorted(p.name for p in (tmp_path / "stores").iterdir()) == [leftover, "b"], "its process lives"
    process.kill()
    process.communicate()
    remove_leftovers.cache_clear()  # as in another process
    write_version(tmp_path / "stores/b", "text")
    assert [p.name for p in (tmp_path / "stores").iterdir()] == ["b"]

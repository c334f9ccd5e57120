from pathlib import Path

import numpy as np
import pytest
from factories import write_image
from PIL import Image

from helpers.data.files import (
    DataError,
    atomic_folder,
    center_crop,
    image_shape,
    list_images,
    read_image,
    read_mask,
)

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


def test_read_image_16_bit_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 60000, 20 * 30).reshape(20, 30).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert image.shape == (20, 30, 3) and abs(float(image.mean()) - 127) < 5


def test_read_image_min_size_reduces_large_jpeg(tmp_path):
    path = write_image(tmp_path / "large.jpg", size=(1600, 1200))
    reduced = read_image(path, min_size=150)
    assert reduced.shape == (150, 200, 3) and image_shape(path) == (1200, 1600)
    resized = np.asarray(Image.fromarray(read_image(path)).resize((200, 150), Image.Resampling.BOX), float)
    assert np.abs(reduced - resized).mean() < 3


def test_read_image_upright_applies_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    Image.new("RGB", (8, 6)).save(tmp_path / "rotated.jpg", exif=exif)
    assert read_image(tmp_path / "rotated.jpg").shape == (6, 8, 3)
    assert read_image(tmp_path / "rotated.jpg", upright=True).shape == (8, 6, 3)


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


def write_version(folder: Path, text: str) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "file").write_text(text)


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
        if self.name.startswith(".out-") and Path(target).name == "out":
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="refused"):
        write_version(tmp_path / "out", "second")
    assert (tmp_path / "out/file").read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["out"]

from pathlib import Path

import numpy as np
import pytest
from factories import paint
from PIL import Image

from helpers.data.files import (
    DataError,
    atomic_folder,
    center_crop,
    image_shape,
    list_images,
    read_image,
    read_mask,
    read_sketch,
)

DISC = (np.hypot(*np.mgrid[-16:16, -20:20]) < 9).astype(np.uint8)


def test_truncated_picture_is_named(tmp_path):
    whole = paint(tmp_path / "whole.jpg", size=(300, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jpg"):
        read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("content", [b"", b"<html>no such page</html>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "page.png").write_bytes(content)
    with pytest.raises(DataError, match=r"page\.png"):
        read_image(tmp_path / "page.png")
    with pytest.raises(DataError, match="absent"):
        read_image(tmp_path / "absent.png")


def test_transparent_is_white_and_grey_is_rgb(tmp_path):
    Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()
    Image.new("L", (8, 6), 77).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").shape == (6, 8, 3)
    assert (read_image(tmp_path / "grey.png") == 77).all()


def test_draft_is_smaller_but_not_too_small(tmp_path):
    path = paint(tmp_path / "large.jpg", size=(1600, 1200))
    small = read_image(path, min_size=150)
    assert small.shape == (150, 200, 3)
    assert image_shape(path) == (1200, 1600)
    whole = np.asarray(Image.fromarray(read_image(path)).resize((200, 150), Image.Resampling.BOX), float)
    assert np.abs(small - whole).mean() < 3


@pytest.mark.parametrize("kind", ["0/1", "0/100", "0/255", "RGB", "one bit", "palette", "16 bit", "jpeg"])
def test_masks_of_every_kind_are_zero_and_one(tmp_path, kind):
    picture = {
        "0/1": Image.fromarray(DISC),
        "0/100": Image.fromarray(DISC * 100),
        "16 bit": Image.fromarray(DISC.astype(np.uint16) * 65535),
        "0/255": Image.fromarray(DISC * 255),
        "RGB": Image.fromarray(np.stack([DISC * 255] * 3, axis=2)),
        "one bit": Image.fromarray(DISC * 255).convert("1"),
        "palette": Image.fromarray(DISC * 255).convert("P"),
        "jpeg": Image.fromarray(DISC * 255),
    }[kind]
    path = tmp_path / ("mask.jpg" if kind == "jpeg" else "mask.png")
    picture.save(path)
    mask = read_mask(path, (32, 40))
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    assert (mask != DISC).mean() < (0.02 if kind == "jpeg" else 1e-9)


def test_empty_and_full_masks(tmp_path):
    for value, expected in ((0, 0), (1, 1), (255, 1)):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / "m.png")
        assert (read_mask(tmp_path / "m.png") == expected).all()


def test_compressed_empty_mask_is_empty(tmp_path):
    noise = np.random.default_rng(0).integers(0, 6, (32, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").max() == 0


def test_deep_pictures_do_not_clip(tmp_path):
    ramp = np.linspace(0, 60000, 20 * 30).reshape(20, 30).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert image.shape == (20, 30, 3) and abs(float(image.mean()) - 127) < 5


def test_mask_of_another_size_names_both(tmp_path):
    Image.fromarray(DISC).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"40 x 32 pixels but its image is 80 x 64"):
        read_mask(tmp_path / "m.png", (64, 80))


def test_dark_on_light_drawing_is_inverted(tmp_path):
    line = np.full((20, 20), 255, np.uint8)
    line[10] = 0
    Image.fromarray(line).save(tmp_path / "paper.png")
    Image.fromarray(255 - line).save(tmp_path / "board.png")
    for name in ("paper.png", "board.png"):
        assert read_sketch(tmp_path / name)[10].min() == 255
        assert read_sketch(tmp_path / name)[:10].max() == 0


def test_central_square():
    picture = np.arange(6 * 10).reshape(6, 10)
    assert (center_crop(picture) == picture[:, 2:8]).all()
    assert (center_crop(picture.T) == picture.T[2:8]).all()


def test_listing_skips_what_is_hidden_or_no_picture(tmp_path):
    for name in ("b.JPG", "a.png", "._a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG"]
    assert list_images(tmp_path / "absent") == []


def test_whole_folder_keeps_the_old_one_on_failure(tmp_path):
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "out") as fresh:
            (fresh / "file").write_text(text)
    assert (tmp_path / "out/file").read_text() == "second"
    with pytest.raises(OSError, match="disk full"), atomic_folder(tmp_path / "out") as fresh:
        (fresh / "file").write_text("half")
        raise OSError("disk full")
    assert (tmp_path / "out/file").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755, "others of a course may read it"


def test_whole_folder_puts_the_old_one_back(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "out") as fresh:
        (fresh / "file").write_text("first")
    rename = Path.rename

    def refuse(self, target):
        if self.name.startswith(".out-") and Path(target).name == "out":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"), atomic_folder(tmp_path / "out") as fresh:
        (fresh / "file").write_text("second")
    assert (tmp_path / "out/file").read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["out"]

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from helpers.config import get_config
from helpers.data import phantoms
from helpers.data.files import DataError
from helpers.data.sketches import contour
from helpers.views.predictor import (
    Predictor,
    display_name,
    example_sketches,
    find_weights,
    heatmap_overlay,
    mask_from_sketch,
    parse_drawing,
    predict_folder,
    read_drawing,
    read_photo,
)

RING = (20, 24, 100, 96)


@pytest.fixture(scope="module")
def studio() -> Predictor:
    return Predictor(find_weights(get_config("cgan")))


def ring(mode: str = "RGB", paper="white", ink="black", side: int = 128, width: int = 2) -> Image.Image:
    picture, scale = Image.new(mode, (side, side), paper), side / 128
    ImageDraw.Draw(picture).ellipse([scale * x for x in RING], outline=ink, width=max(1, round(scale * width)))
    return picture


# ----------------------------------------------------------------------------------------------------------- drawings


@pytest.mark.parametrize(
    "picture",
    [
        ring(),
        ring(paper="black", ink="white"),
        ring("RGBA", paper=(0, 0, 0, 0), ink=(0, 0, 0, 255)),
        ring(ink="yellow"),
        ring(ink="red", paper=(240, 235, 220)),
        ring("L", paper=255, ink=0),
        ring("P", paper=0, ink=1),
        ring(side=2048),
    ],
    ids=["black", "board", "transparent", "yellow", "tinted", "grey", "palette", "large"],
)
def test_the_same_ring_on_any_paper(picture):
    if picture.mode == "P":
        picture.putpalette([255, 255, 255, 0, 0, 128] + [0] * 762)
    found, wanted = parse_drawing(picture, 128) > 0, np.array(ring())[..., 0] < 128
    assert found.shape == (128, 128) and set(np.unique(found)) == {False, True}
    near = cv2.dilate(wanted.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert not (found & ~near).any() and (found & wanted).sum() > 0.8 * wanted.sum()


@pytest.mark.parametrize("colour", ["white", "black", (0, 0, 0, 0), "beige"])
def test_an_empty_paper_gets_a_sentence(colour):
    mode = "RGBA" if isinstance(colour, tuple) else "RGB"
    with pytest.raises(DataError, match="paper is empty"):
        parse_drawing(Image.new(mode, (300, 300), colour), 128)


def test_of_a_mask_the_outline_is_drawn():
    for radius in (20, 50, 60):  # the last covers most of the picture
        mask = cv2.circle(np.zeros((128, 128), np.uint8), (64, 64), radius, 1, -1)
        for picture in (255 * mask, 255 * (1 - mask)):
            assert np.array_equal(parse_drawing(Image.fromarray(picture), 128), contour(mask)), radius
    beyond = cv2.circle(np.zeros((128, 128), np.uint8), (40, 64), 80, 1, -1)  # 76 % of the picture, and its frame
    assert np.array_equal(parse_drawing(Image.fromarray(255 * beyond), 128), contour(beyond))


def test_what_a_sketch_encloses_with_gaps_and_without():
    disc = cv2.circle(np.zeros((128, 128), np.uint8), (60, 70), 40, 1, -1)
    ring = cv2.circle(np.zeros((128, 128), np.uint8), (60, 70), 39, 255, 2)
    ring[67:73, 95:105] = 0  # a gap, as hands leave them
    found = mask_from_sketch(ring)
    assert found.shape == ring.shape and set(np.unique(found)) == {0, 1}
    assert (found & disc).sum() / (found | disc).sum() > 0.93
    ring[:70] = 0
    assert mask_from_sketch(ring) is None, "half a circle encloses nothing"


def test_tiny_drawings_and_drawings_that_are_no_squares():
    small = parse_drawing(ring(side=32), 64)
    assert small.shape == (64, 64) and 0.02 < (small > 0).mean() < 0.3
    wide = Image.new("RGB", (256, 128), "white")
    wide.paste(ring(), (64, 0))
    assert np.array_equal(parse_drawing(wide, 128), parse_drawing(ring(), 128))
    wide.paste(ring(), (0, 0))  # a second one, outside the central square: now all of it counts
    both = parse_drawing(wide, 128) > 0
    assert both[:, :64].sum() > 50 and both[:, 64:].sum() > 50 and not both[:30].any()


def test_fine_lines_of_large_drawings_are_not_lost():
    assert parse_drawing(ring(side=3000, width=0.09), 128).mean() > 2
    net = Image.new("L", (1500, 1500), 255)
    for k in range(300, 1200, 60):
        ImageDraw.Draw(net).line((300, k, 1200, k), width=5)
        ImageDraw.Draw(net).line((k, 300, k, 1200), width=5)
    assert 0.05 < (parse_drawing(net, 128) > 0).mean() < 0.35


def test_a_photograph_is_no_drawing():
    for label in range(7):
        with pytest.raises(DataError, match="other tab"):
            parse_drawing(Image.fromarray(phantoms.render(label, 0, size=256)[0]), 128)
    scribble = Image.new("L", (128, 128), 255)
    for k in range(0, 128, 4):
        ImageDraw.Draw(scribble).line((k, 0, k, 127), width=2)
    with pytest.raises(DataError, match="mostly ink"):
        parse_drawing(scribble, 128)


# -------------------------------------------------------------------------------------------------------------- files


def test_photographs_stand_upright_and_are_not_too_large(tmp_path):
    picture = np.zeros((600, 1200, 3), np.uint8)
    picture[:, :600] = 255
    lying = Image.fromarray(picture)
    exif = lying.getexif()
    exif[0x0112] = 6  # turn it clockwise
    lying.save(tmp_path / "a.jpg", exif=exif)
    image = read_photo(tmp_path / "a.jpg")
    assert image.shape == (512, 256, 3) and image[:240].min() > 240 and image[272:].max() < 15
    Image.fromarray(picture[:20, 590:611]).save(tmp_path / "b.png")
    assert read_photo(tmp_path / "b.png").shape == (20, 21, 3), "small ones stay as they are"


def test_files_that_cannot_be_used_get_a_sentence_without_their_place(tmp_path):
    (tmp_path / "note.png").write_text("no picture")
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:9_000])
    Image.new("1", (9_000, 9_000)).save(tmp_path / "huge.png")
    Image.new("RGB", (8, 400)).save(tmp_path / "thin.png")
    said = {"note": "not a picture", "cut": "damaged", "huge": "50,000,000", "thin": "8 x 400", "gone": "not a picture"}
    for name, words in said.items():
        for read in (read_photo, lambda path: read_drawing(path, 64)):
            with pytest.raises(DataError, match=words) as error:
                read(tmp_path / f"{name}.png")
            assert str(tmp_path) not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- networks


def test_given_weights_go_before_released_ones(tmp_path):
    cfg = get_config("cgan")
    assert find_weights(cfg)["cgan"] == cfg.released / "cgan.safetensors"
    mine = tmp_path / "mine.pt"
    mine.touch()
    assert find_weights(cfg, {"cgan": mine, "segmenter": None})["cgan"] == mine
    with pytest.raises(DataError, match="there is no"):
        find_weights(cfg, {"dcgan": Path("nowhere.pt")})


def test_the_released_weights_are_named(studio):
    assert "data/released/cgan.safetensors, 128 px, MEL SK NV" in str(studio)
    assert display_name("MEL") == "melanoma" and display_name("wart") == "wart"


def test_drawings_follow_seed_label_and_variation(studio):
    (sketch, *_) = example_sketches(studio.size)
    images = studio.draw(sketch, "MEL", count=3, seed=5)
    assert [image.shape for image in images] == [(128, 128, 3)] * 3 and images[0].dtype == np.uint8
    again = studio.draw(sketch, "MEL", count=2, seed=5)
    assert np.array_equal(again, images[:2]), "the first of a seed are the same however many are asked for"
    assert not np.array_equal(images[0], studio.draw(sketch, "MEL", count=1, seed=6)[0])
    assert not np.array_equal(images[0], studio.draw(sketch, "SK", count=1, seed=5)[0])
    one, other = studio.draw(sketch, "MEL", count=2, variation=0, seed=5)
    assert np.array_equal(one, other)
    assert np.abs(images[0].astype(float) - images[1]).mean() > 10, "noise changes what is drawn"
    with pytest.raises(DataError, match="MEL, SK, NV, and no DF"):
        studio.draw(sketch, "DF")


def test_what_has_no_weights_says_how_to_get_them(studio):
    poor = Predictor({"cgan": studio.weights["cgan"]})
    with pytest.raises(DataError, match="train dcgan"):
        poor.sample_without_sketch("MEL")
    found = poor.analyze(phantoms.render(0, 3)[0])
    assert (found.lesion_fraction, found.outside_fraction, found.probabilities, found.heatmap, found.sketch) == (
        0,
        0,
        {},
        None,
        None,
    )


def test_images_for_training_fit_their_masks_and_differ(studio):
    made = list(studio.training_images("NV", 4, seed=1))
    assert len(made) == 4
    for image, mask in made:
        assert image.shape == (128, 128, 3) and mask.shape == (128, 128) and set(np.unique(mask)) == {0, 1}
        assert image[mask == 1].mean() < image[mask == 0].mean(), (
            "the lesion is darker than the skin, and where it was asked for"
        )
    assert len({mask.tobytes() for _, mask in made}) == 4
    sketch = example_sketches(studio.size)[2]
    areas = [mask.mean() for _, mask in studio.training_images("NV", 4, seed=1, sketch=sketch)]
    assert 0.4 < np.mean(areas) / mask_from_sketch(sketch).mean() < 2.5
    gap = sketch.copy()
    gap[60:64] = 0
    cut = [mask.mean() for _, mask in studio.training_images("NV", 4, seed=1, sketch=gap)]
    assert np.allclose(cut, areas, rtol=0.1), "small gaps do not empty the masks"
    gap[:64] = 0
    with pytest.raises(DataError, match="not closed"):
        next(studio.training_images("NV", 1, sketch=gap))
    assert np.array_equal(next(iter(studio.training_images("NV", 1, seed=1)))[0], made[0][0])


def test_threads_do_not_take_each_others_chance(studio):
    sketch, other = example_sketches(studio.size)[0], Predictor(dict(studio.weights))
    wanted = [studio.draw(sketch, "MEL", 2, seed=k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        drawn = [pool.submit((studio, other)[k % 2].sample, sketch, "MEL", 2, 1.0, k) for k in range(4)]
        beside = pool.submit(lambda: list(studio.training_images("NV", 4, seed=1)))
        assert all(np.array_equal(d.result(), w) for d, w in zip(drawn, wanted, strict=True))
    assert np.array_equal(beside.result()[-1][0], list(studio.training_images("NV", 4, seed=1))[-1][0])


def test_a_photograph_is_outlined_named_and_sketched(studio):
    image, mask = phantoms.render(1, 4, size=200)
    found = studio.look(image)
    assert found.image.shape == image.shape and not np.array_equal(found.image, image)
    assert 0 < found.share < 1 and abs(found.share - mask.mean()) < 0.15
    assert list(found.probabilities) == ["MEL", "SK", "NV"] and abs(sum(found.probabilities.values()) - 1) < 1e-5
    assert found.heat.shape == (128, 128, 3)
    assert found.sketch.shape == (128, 128) and set(np.unique(found.sketch)) == {0, 255}
    assert found.outside == 0
    wide = np.concatenate([image, np.broadcast_to(image[:1, :1], (200, 300, 3))], axis=1)
    beside = studio.look(wide)
    assert beside.image.shape == wide.shape and beside.outside > 0.2, "the lesion is left of the central square"
    with pytest.raises(DataError, match="one colour"):
        studio.look(np.full((99, 99, 3), 180, np.uint8))


def test_heat_leaves_cold_places_as_they_were():
    image, heat = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.float32)
    heat[0, 0] = 1
    warm = heatmap_overlay(image, heat)
    assert np.array_equal(warm[1:], image[1:]) and warm[0, 0, 0] > 180 > warm[0, 0, 2]


def test_a_folder_becomes_a_table(studio, tmp_path):
    for seed in range(3):
        Image.fromarray(phantoms.render(1, seed)[0]).save(tmp_path / f"{seed}.png")
    Image.fromarray(phantoms.render(2, 1)[0]).save(tmp_path / "1.jpg")
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "plain.png")
    (tmp_path / "broken.jpg").write_text("no picture")
    table, findings, problems = predict_folder(studio, tmp_path)
    assert list(table.columns) == ["file", "diagnosis", "lesion_fraction", "MEL", "SK", "NV"]
    assert list(table["file"]) == ["0.png", "1.jpg", "1.png", "2.png"]
    assert (table["diagnosis"] == table[["MEL", "SK", "NV"]].idxmax(axis=1)).all()
    assert list(table["lesion_fraction"]) == [found.lesion_fraction for found in findings]
    assert problems[0] == "broken.jpg is damaged or not a picture."
    assert problems[1].startswith("plain.png: The picture is all one colour")
    with pytest.raises(DataError, match="no picture"):
        predict_folder(studio, tmp_path / "nothing")

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.sketches import contour
from helpers.phantoms.photo import render
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

RING = (20, 24, 100, 96)  # bounding box in an image of 128 pixels


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(find_weights(get_config()))


def ring(mode: str = "RGB", background="white", ink="black", side: int = 128, width: float = 2) -> Image.Image:
    image, scale = Image.new(mode, (side, side), background), side / 128
    ImageDraw.Draw(image).ellipse([scale * x for x in RING], outline=ink, width=max(1, round(scale * width)))
    return image


# ----------------------------------------------------------------------------------------------------------- drawings


@pytest.mark.parametrize(
    "drawing",
    [
        ring(),
        ring(background="black", ink="white"),
        ring("RGBA", background=(0, 0, 0, 0), ink=(0, 0, 0, 255)),
        ring(ink="yellow"),
        ring(ink="red", background=(240, 235, 220)),
        ring("L", background=255, ink=0),
        ring("P", background=0, ink=1),
        ring(side=2048),
    ],
    ids=["black", "board", "transparent", "yellow", "tinted", "gray", "palette", "large"],
)
def test_parse_drawing_in_any_colors_gives_the_same_ring(drawing):
    if drawing.mode == "P":
        drawing.putpalette([255, 255, 255, 0, 0, 128] + [0] * 762)
    sketch, expected = parse_drawing(drawing, 128), np.array(ring())[..., 0] < 128
    assert sketch.shape == (128, 128) and set(np.unique(sketch)) == {0, 255}
    near = cv2.dilate(expected.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert not sketch[~near].any() and (sketch[expected] > 0).mean() > 0.8


@pytest.mark.parametrize("color", ["white", "black", (0, 0, 0, 0), "beige"])
def test_parse_drawing_of_an_empty_image_raises(color):
    mode = "RGBA" if isinstance(color, tuple) else "RGB"
    with pytest.raises(DataError, match="drawing is empty"):
        parse_drawing(Image.new(mode, (300, 300), color), 128)


def test_parse_drawing_of_a_mask_gives_its_outline():
    for radius in (20, 50, 60):  # the last covers most of the image
        mask = cv2.circle(np.zeros((128, 128), np.uint8), (64, 64), radius, 1, -1)
        for image in (255 * mask, 255 * (1 - mask)):
            assert np.array_equal(parse_drawing(Image.fromarray(image), 128), contour(mask)), radius
    mask = cv2.circle(np.zeros((128, 128), np.uint8), (40, 64), 80, 1, -1)  # 76 % of the image, and beyond its frame
    assert np.array_equal(parse_drawing(Image.fromarray(255 * mask), 128), contour(mask))


def test_parse_drawing_smaller_than_the_sketch_keeps_the_lines():
    sketch = parse_drawing(ring(side=32), 64)
    assert sketch.shape == (64, 64) and 0.02 < (sketch > 0).mean() < 0.3


def test_parse_drawing_not_square_uses_the_center_unless_lines_extend_beyond():
    wide = Image.new("RGB", (256, 128), "white")
    wide.paste(ring(), (64, 0))
    assert np.array_equal(parse_drawing(wide, 128), parse_drawing(ring(), 128))
    wide.paste(ring(), (0, 0))  # a second ring, outside the central square
    both = parse_drawing(wide, 128) > 0
    assert both[:, :64].sum() > 50 and both[:, 64:].sum() > 50 and not both[:30].any()


def test_parse_drawing_of_large_images_keeps_fine_lines():
    assert parse_drawing(ring(side=3000, width=0.09), 128).mean() > 2
    net = Image.new("L", (1500, 1500), 255)
    for k in range(300, 1200, 60):
        ImageDraw.Draw(net).line((300, k, 1200, k), width=5)
        ImageDraw.Draw(net).line((k, 300, k, 1200), width=5)
    assert 0.05 < (parse_drawing(net, 128) > 0).mean() < 0.35


def test_parse_drawing_of_an_image_with_shades_raises():
    for label in range(7):
        with pytest.raises(DataError, match="Expected a line drawing or a mask"):
            parse_drawing(Image.fromarray(render(label, 0, size=128)[0]), 64)


def test_parse_drawing_mostly_ink_raises():
    hatching = Image.new("L", (128, 128), 255)
    for k in range(0, 128, 4):
        ImageDraw.Draw(hatching).line((k, 0, k, 127), width=2)
    with pytest.raises(DataError, match="mostly ink"):
        parse_drawing(hatching, 128)


def test_mask_from_sketch_closes_gaps_but_not_half_circles():
    disc = cv2.circle(np.zeros((128, 128), np.uint8), (60, 70), 40, 1, -1)
    sketch = cv2.circle(np.zeros((128, 128), np.uint8), (60, 70), 39, 255, 2)
    sketch[67:73, 95:105] = 0  # a gap as in hand drawings
    mask = mask_from_sketch(sketch)
    assert mask.shape == sketch.shape and set(np.unique(mask)) == {0, 1}
    assert (mask & disc).sum() / (mask | disc).sum() > 0.93
    sketch[:70] = 0
    assert mask_from_sketch(sketch) is None


# -------------------------------------------------------------------------------------------------------------- files


def test_read_photo_applies_exif_rotation_and_limits_the_size(tmp_path):
    array = np.zeros((600, 1200, 3), np.uint8)
    array[:, :600] = 255
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[0x0112] = 6  # rotate clockwise
    image.save(tmp_path / "a.jpg", exif=exif)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.shape == (512, 256, 3) and photo[:240].min() > 240 and photo[272:].max() < 15
    Image.fromarray(array[:20, 590:611]).save(tmp_path / "b.png")
    assert read_photo(tmp_path / "b.png").shape == (20, 21, 3), "small photos keep their size"


def test_read_of_unusable_files_raises_without_naming_the_folder(tmp_path):
    (tmp_path / "note.png").write_text("not an image")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:9_000])
    Image.new("1", (9_000, 9_000)).save(tmp_path / "huge.png")
    Image.new("RGB", (8, 400)).save(tmp_path / "thin.png")
    messages = {
        "note": "not an image",
        "cut": "damaged",
        "huge": "at most 50,000,000 in all, got 9000 x 9000",
        "thin": "at least 16 pixels per side .* got 8 x 400",
        "gone": "not an image",
    }
    for name, message in messages.items():
        for read in (read_photo, lambda path: read_drawing(path, 64)):
            with pytest.raises(DataError, match=message) as error:
                read(tmp_path / f"{name}.png")
            assert str(tmp_path) not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- networks


def test_find_weights_prefers_given_checkpoints_to_released_weights(tmp_path):
    cfg = get_config()
    assert find_weights(cfg)["cgan"] == cfg.released / "cgan.safetensors"
    checkpoint = tmp_path / "own.pt"
    checkpoint.touch()
    weights = find_weights(cfg, {"cgan": checkpoint, "segmenter": None})
    assert weights["cgan"] == checkpoint and weights["segmenter"] == cfg.released / "segmenter.safetensors"
    with pytest.raises(DataError, match=r"nowhere\.pt does not exist.*train dcgan"):
        find_weights(cfg, {"dcgan": Path("nowhere.pt")})


def test_predictor_as_text_lists_weights_sizes_and_classes(predictor):
    assert "data/released/cgan.safetensors, 128 px, MEL SK NV" in str(predictor)


def test_display_name_of_unknown_class_is_the_class():
    assert display_name("MEL") == "melanoma" and display_name("wart") == "wart"


def test_sample_depends_on_seed_class_and_variation(predictor):
    (sketch, *_) = example_sketches(predictor.size)
    images = predictor.sample(sketch, "MEL", count=3, seed=5)
    assert [image.shape for image in images] == [(128, 128, 3)] * 3 and images[0].dtype == np.uint8
    repeated = predictor.sample(sketch, "MEL", count=2, seed=5)
    assert np.array_equal(repeated, images[:2]), "the first images of a seed do not depend on the count"
    assert not np.array_equal(images[0], predictor.sample(sketch, "MEL", count=1, seed=6)[0])
    assert not np.array_equal(images[0], predictor.sample(sketch, "SK", count=1, seed=5)[0])
    first, second = predictor.sample(sketch, "MEL", count=2, variation=0, seed=5)
    assert np.array_equal(first, second)
    assert np.abs(images[0].astype(float) - images[1]).mean() > 10, "the latent changes the image"


def test_sample_of_unknown_class_raises_with_the_known_ones(predictor):
    with pytest.raises(DataError, match="must be one of MEL, SK, NV, got DF"):
        predictor.sample(example_sketches(predictor.size)[0], "DF")


def test_predictor_with_only_a_cgan_explains_how_to_get_a_dcgan_and_analyzes_nothing(predictor):
    cgan_only = Predictor({"cgan": predictor.weights["cgan"]})
    with pytest.raises(DataError, match="train dcgan"):
        cgan_only.sample_without_sketch("MEL")
    analysis = cgan_only.analyze(render(0, 3)[0])
    assert (analysis.lesion_fraction, analysis.outside_fraction, analysis.probabilities) == (0, 0, {})
    assert analysis.heatmap is None and analysis.sketch is None


def test_synthetic_pairs_of_phantoms_match_their_masks_and_differ(predictor):
    pairs = list(predictor.synthetic_pairs("NV", 4, seed=1))
    assert len(pairs) == 4
    for image, mask in pairs:
        assert image.shape == (128, 128, 3) and mask.shape == (128, 128) and set(np.unique(mask)) == {0, 1}
        assert image[mask == 1].mean() < image[mask == 0].mean(), "the lesion is darker than the skin around the mask"
    assert len({mask.tobytes() for _, mask in pairs}) == 4
    assert np.array_equal(next(predictor.synthetic_pairs("NV", 1, seed=1))[0], pairs[0][0])


def test_synthetic_pairs_of_a_sketch_keep_its_area_with_small_gaps(predictor):
    sketch = example_sketches(predictor.size)[2]
    areas = [mask.mean() for _, mask in predictor.synthetic_pairs("NV", 4, seed=1, sketch=sketch)]
    assert 0.4 < np.mean(areas) / mask_from_sketch(sketch).mean() < 2.5
    sketch[60:64] = 0
    assert np.allclose([m.mean() for _, m in predictor.synthetic_pairs("NV", 4, 1, sketch)], areas, rtol=0.1)
    sketch[:64] = 0
    with pytest.raises(DataError, match="outline must be closed"):
        next(predictor.synthetic_pairs("NV", 1, sketch=sketch))


def test_sample_from_several_threads_equals_sample_from_one(predictor):
    sketch, second = example_sketches(predictor.size)[0], Predictor(dict(predictor.weights))
    expected = [predictor.sample(sketch, "MEL", 2, seed=k) for k in range(4)]
    expected_pairs = list(predictor.synthetic_pairs("NV", 4, seed=1))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit((predictor, second)[k % 2].sample, sketch, "MEL", 2, 1.0, k) for k in range(4)]
        pairs = pool.submit(lambda: list(predictor.synthetic_pairs("NV", 4, seed=1)))
        assert all(np.array_equal(job.result(), images) for job, images in zip(jobs, expected, strict=True))
    assert np.array_equal(pairs.result()[-1][0], expected_pairs[-1][0])


def test_analyze_gives_outline_probabilities_heatmap_and_sketch(predictor):
    image, mask = render(1, 4, size=200)
    analysis = predictor.analyze(image)
    assert analysis.image.shape == image.shape and not np.array_equal(analysis.image, image)
    assert abs(analysis.lesion_fraction - mask.mean()) < 0.15 and analysis.outside_fraction == 0
    assert list(analysis.probabilities) == ["MEL", "SK", "NV"]
    assert sum(analysis.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert analysis.heatmap.shape == (128, 128, 3)
    assert analysis.sketch.shape == (128, 128) and set(np.unique(analysis.sketch)) == {0, 255}


def test_analyze_lesion_beside_the_central_square_reports_the_outside_fraction(predictor):
    image, _ = render(1, 4, size=200)
    wide = np.concatenate([image, np.broadcast_to(image[:1, :1], (200, 300, 3))], axis=1)
    analysis = predictor.analyze(wide)
    assert analysis.image.shape == wide.shape and analysis.outside_fraction > 0.2


def test_analyze_of_one_color_raises(predictor):
    with pytest.raises(DataError, match="one color only"):
        predictor.analyze(np.full((99, 99, 3), 180, np.uint8))


def test_heatmap_overlay_changes_only_warm_pixels():
    image, heat = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.float32)
    heat[0, 0] = 1
    result = heatmap_overlay(image, heat)
    assert np.array_equal(result[1:], image[1:]) and result[0, 0, 0] > 180 > result[0, 0, 2]


def test_predict_folder_gives_a_row_per_readable_image_and_the_other_files_as_problems(predictor, tmp_path):
    for seed in range(3):
        Image.fromarray(render(1, seed)[0]).save(tmp_path / f"{seed}.png")
    Image.fromarray(render(2, 1)[0]).save(tmp_path / "1.jpg")
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "uniform.png")
    (tmp_path / "broken.jpg").write_text("not an image")
    table, analyses, problems = predict_folder(predictor, tmp_path)
    assert list(table.columns) == ["file", "diagnosis", "lesion_fraction", "MEL", "SK", "NV"]
    assert list(table["file"]) == ["0.png", "1.jpg", "1.png", "2.png"]
    assert (table["diagnosis"] == table[["MEL", "SK", "NV"]].idxmax(axis=1)).all()
    assert list(table["lesion_fraction"]) == [analysis.lesion_fraction for analysis in analyses]
    assert problems[0].startswith("broken.jpg is damaged or not an image")
    assert problems[1].startswith("uniform.png: The image has one color only")
    with pytest.raises(DataError, match="nothing needs at least one readable image"):
        predict_folder(predictor, tmp_path / "nothing")

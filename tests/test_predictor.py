from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.sketches import mask_from_sketch, shrink
from helpers.data.store import StoreConfig
from helpers.phantoms.render import render
from helpers.shell.inference import iter_images
from helpers.views.predictor import (
    DISPLAY_SIDE,
    Predictor,
    Request,
    display_name,
    example_sketches,
    find_weights,
    heatmap_overlay,
    predict_folder,
    read_drawing,
    read_photo,
    share_inside,
)

# -------------------------------------------------------------------------------------------------------------- files

LABELS = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def test_read_photo_applies_exif_rotation_and_shrink_limits_the_size(tmp_path):
    array = np.zeros((600, 1200, 3), np.uint8)
    array[:, :600] = 255
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[0x0112] = 6  # rotate clockwise
    image.save(tmp_path / "a.jpg", exif=exif)
    photo = shrink(read_photo(tmp_path / "a.jpg"), DISPLAY_SIDE)
    assert photo.shape == (512, 256, 3) and photo[:240].min() > 240 and photo[272:].max() < 15
    Image.fromarray(array[:20, 590:611]).save(tmp_path / "b.png")
    assert shrink(read_photo(tmp_path / "b.png"), DISPLAY_SIDE).shape == (20, 21, 3), "small photos keep their size"


def test_read_of_unusable_files_raises_without_naming_the_folder(tmp_path):
    (tmp_path / "note.png").write_text("not an image")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:9_000])
    Image.new("1", (9_000, 9_000)).save(tmp_path / "huge.png")
    Image.new("RGB", (8, 400)).save(tmp_path / "thin.png")
    messages = {
        "note": "not an image",
        "cut": "damaged",
        "huge": "at most 80,000,000 in all, got 9000 x 9000",
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
    assert "data/released/cgan.safetensors, 128 px, MEL NV BCC AKIEC BKL DF VASC" in str(predictor)


def test_display_name_of_unknown_class_is_the_class():
    assert display_name("MEL") == "melanoma" and display_name("wart") == "wart"


def test_sample_depends_on_seed_class_tone_and_structure(predictor):
    (sketch, *_) = example_sketches(predictor.size)
    images = predictor.sample(sketch, "MEL", count=3, seed=5)
    assert [image.shape for image in images] == [(128, 128, 3)] * 3 and images[0].dtype == np.uint8
    repeated = predictor.sample(sketch, "MEL", count=2, seed=5)
    assert np.array_equal(repeated, images[:2]), "the first images of a seed do not depend on the count"
    assert not np.array_equal(images[0], predictor.sample(sketch, "MEL", count=1, seed=6)[0])
    assert not np.array_equal(images[0], predictor.sample(sketch, "VASC", count=1, seed=5)[0])
    first, second = predictor.sample(sketch, "MEL", count=2, tone=0, seed=5, structure=0)
    assert np.array_equal(first, second)
    assert np.abs(images[0].astype(float) - images[1]).mean() > 10, "the latent changes the image"
    tones, structures = ({"tone": 1, "structure": 0}, {"tone": 0, "structure": 1})
    for settings in (tones, structures):
        first, second = predictor.sample(sketch, "MEL", count=2, seed=5, **settings)
        assert np.abs(first.astype(float) - second).mean() > 1, settings


def test_sample_artifacts_change_the_image_and_unknown_ones_raise_with_the_known_ones(predictor):
    (sketch, *_) = example_sketches(predictor.size)
    plain, dark = (np.stack(predictor.sample(sketch, "NV", 8, artifacts=names)) for names in ([], ["dark_corner"]))
    assert dark[:, :12, :12].mean() < plain[:, :12, :12].mean() - 5, "the corner is darker"
    with pytest.raises(DataError, match=r"must be of dark_corner, hair, .*, patches, got wig, 7"):
        predictor.sample(sketch, "NV", 1, artifacts=["hair", "wig", 7])


def test_sample_artifacts_of_a_generator_that_knows_none_raise(predictor, monkeypatch):
    monkeypatch.setattr(predictor.networks["cgan"], "num_artifacts", 0)
    with pytest.raises(DataError, match="cannot add artifacts: it was not conditioned on them"):
        predictor.sample(example_sketches(predictor.size)[0], "NV", 1, artifacts=["hair"])


@pytest.mark.parametrize("index", [0, 2])
def test_regenerate_changes_the_region_of_one_image_only(predictor, index):
    region = np.zeros((predictor.size, predictor.size), np.uint8)
    region[40:90, 40:90] = 1
    request = Request(example_sketches(predictor.size)[1], "MEL", 3, 0.7, 5, 0.6, ["hair"])
    original = predictor.generate(request)[index]
    assert {request: 1}[request], "gradio may hash what it stores"
    first, second, again = (predictor.regenerate(request, index, region, seed) for seed in (0, 1, 0))
    for image in (first, second):
        changed = (image != original).any(axis=2)
        assert not changed[region == 0].any() and changed[region == 1].mean() > 0.9
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    same_seed = predictor.regenerate(request, index, region, new_seed=5 + index)
    assert not np.array_equal(same_seed, original), "also with the seed of the image itself"


def test_regenerate_of_an_image_that_is_none_of_them_raises(predictor):
    region = np.ones((predictor.size, predictor.size), np.uint8)
    for index in (-1, 2):
        with pytest.raises(DataError, match=f"must be one of 1 to 2, got {index + 1}"):
            predictor.regenerate(Request(example_sketches(predictor.size)[0], "MEL", 2), index, region)


def test_sample_of_unknown_class_raises_with_the_known_ones(predictor):
    with pytest.raises(DataError, match="must be one of MEL, NV, BCC, AKIEC, BKL, DF, VASC, got SK"):
        predictor.sample(example_sketches(predictor.size)[0], "SK")


def test_predictor_with_only_a_cgan_explains_how_to_get_a_dcgan_and_analyzes_nothing(predictor):
    cgan_only = Predictor({"cgan": predictor.weights["cgan"]})
    with pytest.raises(DataError, match="train dcgan"):
        cgan_only.sample_without_sketch("MEL")
    analysis = cgan_only.analyze(render(0, 3)[0])
    assert (analysis.lesion_fraction, analysis.outside_fraction, analysis.probabilities) == (0, 0, {})
    assert analysis.heatmap is None and analysis.sketch is None and analysis.heat_inside is None


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
    assert list(analysis.probabilities) == LABELS
    assert sum(analysis.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert analysis.heatmap.shape == (128, 128, 3) and 0 < analysis.heat_inside <= 1
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


def test_share_inside_is_the_share_of_the_heat_and_none_without_heat_or_mask():
    heat, inside = np.zeros((4, 4), np.float32), np.zeros((4, 4), bool)
    heat[0], heat[3, 0], inside[0, :2] = 1, 1, True
    assert share_inside(heat, inside) == pytest.approx(2 / 5)
    assert share_inside(heat, ~inside) == pytest.approx(3 / 5)
    assert share_inside(heat, ~inside & inside) is None and share_inside(0 * heat, inside) is None


def test_heat_inside_is_that_of_the_mask_in_the_central_square(predictor):
    image, mask = render(1, 4, size=200)
    wide = np.concatenate([image[:, :1].repeat(100, axis=1), image, image[:, -1:].repeat(100, axis=1)], axis=1)
    wide_mask = np.pad(mask, ((0, 0), (100, 100)))
    (_, _, square), (_, _, whole) = (predictor.classify_with_heatmap(*x) for x in ((image, mask), (wide, wide_mask)))
    assert whole["heat_inside"] == pytest.approx(square["heat_inside"])
    assert predictor.classify_with_heatmap(image, 1 - 0 * mask)[2]["heat_inside"] == 1
    assert predictor.classify_with_heatmap(image, 0 * mask)[2]["heat_inside"] is None


def test_predict_folder_gives_a_row_per_readable_image_and_the_other_files_as_problems(predictor, tmp_path):
    for seed in range(3):
        Image.fromarray(render(1, seed)[0]).save(tmp_path / f"{seed}.png")
    Image.fromarray(render(2, 1)[0]).save(tmp_path / "1.jpg")
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "uniform.png")
    (tmp_path / "broken.jpg").write_text("not an image")
    Image.fromarray(255 * render(1, 0)[1]).save(tmp_path / "mask.png")
    (tmp_path / "photo.raw").write_text("not read")
    table, analyses, problems = predict_folder(predictor, tmp_path)
    assert list(table.columns) == ["file", "diagnosis", "lesion_fraction", *LABELS]
    assert list(table["file"]) == ["0.png", "1.jpg", "1.png", "2.png"]
    assert (table["diagnosis"] == table[LABELS].idxmax(axis=1)).all()
    assert list(table["lesion_fraction"]) == [analysis.lesion_fraction for analysis in analyses]
    assert "1 files of formats that are not read (.raw) are left out: photo.raw" in problems[0]
    assert problems[1].startswith("broken.jpg is damaged or not an image")
    assert problems[2] == "mask.png is a mask or a drawing, not a photo"
    assert problems[3].startswith("uniform.png: The image has one color only")
    with pytest.raises(DataError, match="nothing needs at least one readable image"):
        predict_folder(predictor, tmp_path / "nothing")


def test_predict_folder_reads_what_the_command_classify_reads(predictor, tmp_path):
    for name in ("MEL/a.png", "NV/b.png", "NV/b_lesion.png", "NV/c_superpixels.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(render(1, len(name))[0]).save(tmp_path / name)
    table, _, problems = predict_folder(predictor, tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for _, path, *_ in iter_images(tmp_path, StoreConfig(64), [])]
    assert list(table["file"]) == names == ["MEL/a.png", "NV/b.png"]
    assert problems == ["b_lesion.png is a mask or a drawing, not a photo"]


def test_predict_folder_without_a_readable_image_says_what_was_left_out(predictor, tmp_path):
    (tmp_path / "scan.psd").write_text("not read")
    with pytest.raises(DataError, match=r"needs at least one readable image, got none; 1 files .* scan\.psd"):
        predict_folder(predictor, tmp_path)

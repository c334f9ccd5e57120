import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from factories import write_image, write_lines, write_mask
from PIL import Image

from helpers.__main__ import main
from helpers.config import get_config
from helpers.data.files import DataError
from helpers.data.store import StoreConfig, load_row, resize
from helpers.phantoms.render import render
from helpers.shell.base import check_outputs
from helpers.shell.inference import iter_images, write_rows
from helpers.views.predictor import Predictor, find_weights, read_photo


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ids_and_problems(folder: Path) -> tuple[list[str], str]:
    problems = []
    return [image_id for image_id, *_ in iter_images(folder, StoreConfig(16), problems)], "\n".join(problems)


def test_iter_images_takes_no_masks_of_the_images_ids(tmp_path):
    for name in ("x1", "x2"):
        write_mask(tmp_path / "AUTO" / f"{name}.png")
        write_mask(tmp_path / "GT" / f"{name}.bmp")
        write_image(tmp_path / "IMG" / f"{name}.jpg")
    problems = []
    paths = [item.path for item in iter_images(tmp_path, StoreConfig(16), problems)]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["IMG/x1.jpg", "IMG/x2.jpg"]
    assert len(problems) == 1 and problems[0].startswith("4 (AUTO/x1.png, AUTO/x2.png, GT/x1.bmp")
    assert "are masks or drawings, not images" in problems[0]


@pytest.mark.parametrize("ending", ["_Segmentation", "_lesion", "_roi", "_mask", "_GroundTruth"])
def test_iter_images_leaves_out_files_named_as_masks(tmp_path, ending):
    write_image(tmp_path / "a.jpg")
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}{ending}.png")  # whatever it shows
    ids, problems = ids_and_problems(tmp_path)
    assert ids == ["a"] and f"2 (a{ending}.png, b{ending}.png) are masks" in problems


def test_iter_images_names_whatever_it_skips(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "inner/b.jpg")
    for name in ("c.RAW", "d.svg", "e.jpg"):
        write_lines(tmp_path / name, "no image")
    ids, problems = ids_and_problems(tmp_path)
    assert ids == ["a"] and "2 files of formats that are not read (.raw .svg) are left out: c.RAW, d.svg" in problems
    assert "1 files in folders that are not read (inner) are left out: inner/b.jpg" in problems
    assert "e.jpg is missing, damaged or not an image" in problems


def test_check_outputs_refuses_inputs_by_any_name(tmp_path, capsys):
    image = write_image(tmp_path / "a.png")
    os.link(image, tmp_path / "link.png")
    (tmp_path / "symlink.png").symlink_to(image)
    for name in ("a.png", "link.png", "symlink.png", "../" + tmp_path.name + "/a.png"):
        with pytest.raises(DataError, match="is read by this command and would be overwritten"):
            check_outputs([tmp_path / "new.png", tmp_path / name], [None, image])
    with pytest.raises(DataError, match="is a folder, expected the name of a file"):
        check_outputs([tmp_path], [])
    with pytest.raises(DataError, match=r"a\.png is a file, expected the name of a folder"):
        check_outputs([image / "MEL/b.png"], [])
    check_outputs([tmp_path / "new.png"], [image])
    assert capsys.readouterr().out == ""
    check_outputs([image, tmp_path / "new.png"], [])
    assert "! 1 existing files are replaced: " in capsys.readouterr().out


@pytest.mark.parametrize("inner", ["MEL", "."])
def test_segment_below_its_images_overwrites_none(tmp_path, capsys, inner):
    write_image(tmp_path / "T/MEL/a.png")
    before = content(tmp_path)
    assert main(["segment", "--images", str(tmp_path / "T"), "--out", str(tmp_path / "T" / inner)]) == 2
    assert "--out" in capsys.readouterr().err and content(tmp_path) == before


@pytest.mark.parametrize("sketches", ["S", "S/MEL"])
def test_generate_into_its_sketches_overwrites_none(tmp_path, capsys, sketches):
    write_mask(tmp_path / sketches / "a.png")
    before = content(tmp_path)
    assert main(["generate", "--sketches", str(tmp_path / sketches), "--out", str(tmp_path / "S")]) == 2
    assert "--out" in capsys.readouterr().err and content(tmp_path) == before


def test_export_onto_its_checkpoint_keeps_it(tmp_path, capsys):
    checkpoint = shutil.copy(get_config().released / "classifier.safetensors", tmp_path)
    before = content(tmp_path)
    assert main(["export", "classifier", "--checkpoint", str(checkpoint), "--out", str(checkpoint)]) == 2
    assert "would be overwritten" in capsys.readouterr().err and content(tmp_path) == before


def test_classify_writes_names_of_any_alphabet_and_says_what_it_replaces(tmp_path, capsys):
    write_image(tmp_path / "in/a.png").rename(tmp_path / "in/родинка.png")
    command = ["classify", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "p.csv")]
    assert main(command) == 0 and "replaced" not in capsys.readouterr().out
    assert main(command) == 0 and "1 existing files are replaced" in capsys.readouterr().out
    assert list(pd.read_csv(tmp_path / "p.csv", encoding="utf-8")["image_id"]) == ["родинка"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["p.csv"]


@pytest.mark.parametrize("command", ["classify", "segment"])
def test_without_a_readable_image_the_reasons_are_named(tmp_path, capsys, command):
    write_mask(tmp_path / "in/a.png")
    write_lines(tmp_path / "in/b.jpg", "%!PS-Adobe-3.0 EPSF-3.0", "{} loop")
    assert main([command, "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "got none; " in error and "b.jpg is missing, damaged or not an image (expected JPEG" in error
    assert "1 (a.png) are masks or drawings" in error and not list(tmp_path.glob("out/*"))


def test_classify_says_that_plain_skin_has_one_color(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    skin = np.full((64, 64, 3), (220, 180, 160)) + np.random.default_rng(0).integers(-2, 3, (64, 64, 3))
    Image.fromarray(skin.astype(np.uint8)).save(tmp_path / "in/plain.png")
    assert main(["classify", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "p.csv")]) == 0
    assert "plain.png has one color only" in capsys.readouterr().out


def test_classify_and_segment_in_batches_equal_one_by_one(tmp_path, monkeypatch):
    """Whatever the size of a batch and the number of threads; rows are in the order of the files."""
    sizes = [(64, 48), (300, 200), (90, 120)]
    for k in range(7):
        image = cv2.resize(render(k, seed=k, size=128)[0], sizes[k % 3])
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / f"{k}.png")
    results = []
    for batch_size, workers in ((1, 1), (3, 4), (64, 2)):
        monkeypatch.setattr("helpers.shell.inference.BATCH_SIZE", batch_size)
        monkeypatch.setattr("helpers.config.cpu_count", lambda workers=workers: workers)
        out = tmp_path / f"{batch_size}"
        for command, target in (("classify", out / "p.csv"), ("segment", out)):
            assert main([command, "--images", str(tmp_path / "in"), "--out", str(target)]) == 0
        probabilities = pd.read_csv(out / "p.csv", index_col="image_id").drop(columns=["diagnosis", "unsure", "unlike"])
        masks = [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]
        results.append((probabilities, masks, (out / "areas.csv").read_text().splitlines()))
    (first, first_masks, first_areas), *others = results
    assert list(first.index) == list(range(7)) and len(first_areas) == 8
    assert [mask.shape[::-1] for mask in first_masks] == [sizes[k % 3] for k in range(7)]
    for probabilities, masks, _ in others:
        assert np.abs(probabilities - first).to_numpy().max() < 1e-4
        assert np.mean([np.mean(a != b) for a, b in zip(masks, first_masks, strict=True)]) < 1e-3


def test_write_rows_that_fails_keeps_the_old_file(tmp_path):
    file = write_lines(tmp_path / "p.csv", "old")

    class Full:
        def __str__(self) -> str:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="the disk is full; the previous one is kept"):
        write_rows(file, ("a",), [("1",), (Full(),)], tmp_path, [])
    assert file.read_text() == "old\n" and list(tmp_path.iterdir()) == [file]


def test_shell_page_and_store_read_png_and_jpeg_alike(tmp_path, capsys):
    """The same probabilities of the released classifier for PNG and JPEG (quality 95), and of shell and page for either
    file; the network's input is the store's image."""
    for k in range(3):
        image = cv2.resize(render(k, seed=k, size=512)[0][:384], (2400, 1800), interpolation=cv2.INTER_CUBIC)
        for folder, suffix in (("png", "png"), ("jpeg", "jpg")):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / folder / f"{k}.{suffix}", quality=95)
    tables = []
    for folder in ("png", "jpeg"):
        out = tmp_path / f"{folder}.csv"
        checkpoint = get_config().released / "classifier.safetensors"  # not one that notebooks trained
        arguments = ["--checkpoint", str(checkpoint), "--images", str(tmp_path / folder), "--out", str(out)]
        assert main(["classify", *arguments]) == 0
        tables.append(pd.read_csv(out, index_col="image_id").drop(columns=["diagnosis", "unsure", "unlike"]))
    assert np.abs(tables[0] - tables[1]).to_numpy().max() < 0.02
    predictor = Predictor(find_weights(get_config()))
    for folder, table in zip(("png", "jpeg"), tables, strict=True):
        files = sorted((tmp_path / folder).iterdir())
        page = [predictor.analyze(read_photo(file)).probabilities for file in files]
        assert np.abs(pd.DataFrame(page)[table.columns].to_numpy() - table.to_numpy()).max() < 1e-5
        row = SimpleNamespace(path=files[0], mask_path=pd.NA, sketch_path=pd.NA)
        config = StoreConfig(predictor.networks["classifier"].size, "structure")
        assert np.array_equal(load_row(row, config)[0], resize(read_photo(files[0]), config))

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from factories import course, folders, isic2016

from helpers.__main__ import main, read_sketches
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.models.cgan import load_cgan
from helpers.models.classifier import ClassifierConfig, load_classifier, train_classifier
from helpers.models.dcgan import load_dcgan
from helpers.models.segmenter import SegmenterConfig, load_segmenter, train_segmenter
from helpers.models.trainer import TrainConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("LESION_PROFILE", "LESION_DATASET", "LESION_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_audit_says_what_a_folder_is(phantoms, capsys):
    assert main(["audit", str(phantoms)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("phantoms: 120 pictures") and "copies under another label" in told
    assert len(told.splitlines()) <= 40


def test_audit_of_a_subset(phantoms, capsys):
    assert main(["audit", str(phantoms), "--classes", "MEL", "BKL"]) == 0
    told = capsys.readouterr().out
    assert "BKL" in told and "VASC" not in told


def test_audit_fails_on_data_that_cannot_be_used(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 2
    assert "none of the known layouts" in capsys.readouterr().err
    pictures = isic2016(tmp_path / "isic") / "ISBI2016_ISIC_Part1_Training_Data"
    for path in list(pictures.iterdir())[:6]:
        path.write_bytes(b"")
    assert main(["audit", str(tmp_path / "isic")]) == 1
    assert "CANNOT BE USED" in capsys.readouterr().out


def test_audit_writes_nothing(phantoms, tmp_path, monkeypatch):
    before = sorted((p, p.stat().st_mtime_ns) for p in phantoms.rglob("*"))
    monkeypatch.chdir(tmp_path)
    main(["audit", str(phantoms)])
    assert sorted((p, p.stat().st_mtime_ns) for p in phantoms.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def prepare(folder, stores, *more) -> int:
    return main(["prepare", "--data-root", str(folder), "--size", "32", "--out", str(stores), *more])


def test_prepare_writes_one_store_and_opens_it_again(tmp_path, capsys):
    folder, stores = isic2016(tmp_path / "isic"), tmp_path / "stores"
    assert prepare(folder, stores, "--dataset", "isic2016") == 0
    assert prepare(folder, stores, "--dataset", "isic2016") == 0
    assert len(list(stores.iterdir())) == 1
    store = Store(next(stores.iterdir()))
    assert len(store) == 20 and store.config.size == 32
    assert set(store.table["split"]) == {"train", "val", "test"}
    assert "isic2016" in capsys.readouterr().out


def test_prepare_of_class_folders(tmp_path, capsys):
    folder, stores = folders(tmp_path / "tree"), tmp_path / "stores"
    assert prepare(folder, stores, "--dataset", "folders") == 2
    assert "style 'structure'" in capsys.readouterr().err
    assert (
        prepare(folder, stores, "--dataset", "folders", "--style", "structure", "--classes", "nevus", "melanoma") == 0
    )
    store = Store(next(stores.iterdir()))
    assert store.classes == ["nevus", "melanoma"] and len(store) == 18


@pytest.mark.parametrize("dataset", ["course", "folders"])
def test_what_cannot_be_downloaded_is_said(tmp_path, capsys, dataset):
    assert prepare(tmp_path / "absent", tmp_path / "stores", "--dataset", dataset) == 2
    assert "no download called" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, capsys):
    (tmp_path / "stores").write_text("a file")
    assert prepare(isic2016(tmp_path / "isic"), tmp_path / "stores", "--dataset", "isic2016") == 2
    assert "error: " in capsys.readouterr().err


def test_the_shell_door():
    told = subprocess.run(
        [sys.executable, "-m", "helpers", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "audit" in told.stdout and "prepare" in told.stdout


# ------------------------------------------------------------------------------------------------- train and draw


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> Path:
    """A checkpoint that the shell door made; too few steps to be worth looking at."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helpers.config.ROOT", root)  # stores go there, not into the repository's data folder
        patch.setenv("LESION_PROFILE", "smoke")
        assert main(["train", "cgan", "--data-root", str(phantoms), "--steps", "2", "--out", str(root / "run")]) == 0
        assert main(["train", "cgan", "--data-root", str(phantoms), "--steps", "3", "--out", str(root / "run")]) == 0
    return root / "run" / "checkpoint.pt"


@pytest.fixture
def drawings(tmp_path) -> Path:
    """Three outlines as people hand them in: white on black, black on paper, large and not square."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    for name, shape, turned in (
        ("a.png", (64, 64), False),
        ("sketch_b.png", (64, 64), True),
        ("c.jpg", (300, 400), True),
    ):
        drawing = np.zeros(shape, np.uint8)
        cv2.circle(drawing, (shape[1] // 2, shape[0] // 2), shape[0] // 4, 255, max(2, shape[0] // 60))
        cv2.imwrite(str(folder / name), 255 - drawing if turned else drawing)
    return folder


def draw(checkpoint, sketches, out, *more) -> int:
    return main(["draw", "--checkpoint", str(checkpoint), "--sketches", str(sketches), "--out", str(out), *more])


def drawn(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.png"))}


def test_train_writes_all_that_is_promised_and_goes_on(trained):
    assert {"checkpoint.pt", "history.json", "grid-000002.png", "grid-000003.png"} <= {
        p.name for p in trained.parent.iterdir()
    }


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {code!r})
import torch
torch.set_num_threads(1)
import helpers.config
from helpers.__main__ import main, read_sketches
helpers.config.ROOT = Path({root!r})
length = ["--steps", "24", "--save-every", "4"]
sys.exit(main(["train", "cgan", "--data-root", {phantoms!r}, *length, "--out", sys.argv[1]]))
"""


def test_killed_in_the_middle_and_the_same_command_again(phantoms, tmp_path):
    """kill -9 while the two networks train, then the same command: the same weights, averages and history."""
    code = KILLED.format(code=str(ROOT), root=str(tmp_path), phantoms=str(phantoms))
    environment = os.environ | {"LESION_PROFILE": "smoke"}

    def command(out: str) -> list[str]:
        return [sys.executable, "-c", code, str(tmp_path / out)]

    subprocess.run(command("whole"), check=True, capture_output=True, env=environment)
    process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while process.poll() is None and not (tmp_path / "killed/checkpoint.pt").is_file():
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = torch.load(tmp_path / "killed/checkpoint.pt", weights_only=True)
    assert 0 < kept["step"] < 24
    subprocess.run(command("killed"), check=True, capture_output=True, env=environment)
    one, other = (torch.load(tmp_path / out / "checkpoint.pt", weights_only=True) for out in ("whole", "killed"))
    assert one["step"] == other["step"] == 24 and one["history"] == other["history"]
    for part in ("networks", "ema_models"):
        for name, weights in one[part].items():
            assert all(torch.equal(w, other[part][name][k]) for k, w in weights.items()), name


def test_draw_every_class_for_every_sketch(trained, drawings, tmp_path, capsys):
    assert draw(trained, drawings, tmp_path / "one", "--seed", "4") == 0
    assert draw(trained, drawings, tmp_path / "two", "--seed", "4") == 0
    assert draw(trained, drawings, tmp_path / "three", "--seed", "5") == 0
    one = drawn(tmp_path / "one")
    classes = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
    assert set(one) == {f"{c}/{i}.png" for c in classes for i in "abc"}
    assert one == drawn(tmp_path / "two") != drawn(tmp_path / "three")
    assert cv2.imread(str(tmp_path / "one/MEL/c.png")).shape == (64, 64, 3)
    told = capsys.readouterr().out
    assert "checkpoint.pt: 64 px, sketches of style contour, MEL NV" in told and "!" not in told


@pytest.mark.parametrize("paper, ink", [(190, 40), (225, 90), (50, 200), (255, 0)])
def test_paper_and_boards_need_not_be_white_or_black(trained, tmp_path, paper, ink):
    (tmp_path / "in").mkdir()
    drawing = np.full((200, 200, 3), paper, np.uint8)
    cv2.circle(drawing, (100, 100), 50, (ink,) * 3, 3)
    cv2.imwrite(str(tmp_path / "in/a.png"), drawing)
    problems = []
    sketch = read_sketches(tmp_path / "in", 64, problems)["a"]
    assert not problems and 0.01 < (sketch > 0).mean() < 0.1 and sketch[0, 0] == 0


@pytest.mark.parametrize(
    "table", ["image_id,label\na,BCC\nb,NV\nc.jpg,NV\n", "image,MEL,NV,BCC\na,0,0,1\nb,0.0,1.0,0.0\nc,0,1,0\n"]
)
def test_draw_by_a_label_file(trained, drawings, tmp_path, table):
    (tmp_path / "labels.csv").write_text(table)
    assert draw(trained, drawings, tmp_path / "out", "--labels", str(tmp_path / "labels.csv")) == 0
    assert set(drawn(tmp_path / "out")) == {"BCC/a.png", "NV/b.png", "NV/c.png"}


def test_draw_names_what_it_leaves_out(trained, drawings, tmp_path, capsys):
    (drawings / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(drawings / "empty.png"), np.zeros((64, 64), np.uint8))
    cv2.imwrite(str(drawings / "a_mask.png"), np.eye(64, dtype=np.uint8) * 255)
    shade = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    cv2.imwrite(str(drawings / "photo.png"), shade)
    (tmp_path / "labels.csv").write_text("image_id,label\nsketch_a.bmp,BCC\nb,lupus\nz,NV\nc,\n")
    assert draw(trained, drawings, tmp_path / "out", "--labels", str(tmp_path / "labels.csv")) == 0
    told = capsys.readouterr().out
    for part in (
        "broken.png is missing, damaged",
        "empty.png is empty",
        "photo.png is a filled area",
        "none of MEL NV",
        "(a_mask.png) have the id",
        "2 sketches have no label",
        "1 ids of labels.csv have no sketch (z)",
    ):
        assert part in told
    assert set(drawn(tmp_path / "out")) == {"BCC/a.png"}


def test_draw_says_why_it_cannot(trained, drawings, tmp_path, capsys):
    assert draw(tmp_path / "none.pt", drawings, tmp_path / "out") == 2
    assert "train cgan" in capsys.readouterr().err
    for name, content in (("torn.pt", trained.read_bytes()[:1000]), ("text.pt", b"weights")):
        (tmp_path / name).write_bytes(content)
        assert draw(tmp_path / name, drawings, tmp_path / "out") == 2
        assert f"{name} is not a checkpoint" in capsys.readouterr().err
    torch.save({"settings": {"classes": []}}, tmp_path / "other.pt")
    assert draw(tmp_path / "other.pt", drawings, tmp_path / "out") == 2
    assert "other.pt is not a checkpoint" in capsys.readouterr().err
    assert draw(trained, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    assert draw(trained, tmp_path / "nothing", tmp_path / "out") == 2
    assert "nothing to draw" in capsys.readouterr().err
    (tmp_path / "labels.csv").write_text("image_id,age\na,40\n")
    assert draw(trained, drawings, tmp_path / "out", "--labels", str(tmp_path / "labels.csv")) == 2
    assert "neither a column 'label'" in capsys.readouterr().err
    (tmp_path / "labels.csv").write_text("image_id,label\na,NV\na,MEL\n")
    assert draw(trained, drawings, tmp_path / "out", "--labels", str(tmp_path / "labels.csv")) == 2
    assert "under different labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--steps", "--batch", "--width", "--size", "--save-every"])
def test_train_refuses_numbers_that_are_none(option, capsys):
    for value in ("0", "-3", "many"):
        with pytest.raises(SystemExit):
            main(["train", "cgan", option, value])
        assert "is not a whole number from 1 up" in capsys.readouterr().err


def test_train_refuses_a_size_it_has_no_network_for(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    assert main(["train", "cgan", "--data-root", str(phantoms), "--size", "96", "--steps", "1"]) == 2
    assert "96 is not one of 64, 128, 256" in capsys.readouterr().err


@pytest.fixture(scope="module")
def judging(phantom_store, tmp_path_factory) -> Path:
    """Folders of real, other real and copied pictures by class, and a classifier to judge them."""
    place = tmp_path_factory.mktemp("judging")
    for row, image in enumerate(phantom_store.images):
        folder = place / ("real", "floor", "synthetic")[row % 3] / phantom_store.classes[phantom_store.labels[row]]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{row}.png"), image[..., ::-1])
    settings = ClassifierConfig(64, tuple(phantom_store.classes))
    train_classifier(phantom_store, settings, place / "classifier", TrainConfig(2, 4))
    return place


def rate(judging: Path, *more: str, synthetic: str = "synthetic") -> int:
    features = ("--features", str(judging / "classifier" / "checkpoint.pt"))
    return main(["quality", "--real", str(judging / "real"), "--synthetic", str(judging / synthetic), *features, *more])


def test_quality_as_json_and_as_a_table(judging, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    assert rate(judging, "--floor", str(judging / "floor"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["extractor"] == "classifier" and told["n_real"] == 40 and told["n_synthetic"] == 39
    assert all(isinstance(told[k], float) for k in ("kid", "fd", "floor_kid", "floor_fd")) and told["floor_n"] == 39
    assert len(list((tmp_path / "data" / "features").glob("*.npz"))) == 4, "three sets and the blurred one"
    assert rate(judging, "--floor", str(judging / "floor")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["extractor", "compared", "class", "n"] and "nan" not in "".join(lines).lower()
    assert any(line.startswith("! synthetic, ") and "too few" in line for line in lines)


def test_quality_says_why_it_cannot(judging, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    (judging / "empty").mkdir(exist_ok=True)
    assert rate(judging, synthetic="empty") == 2
    assert "holds no pictures" in capsys.readouterr().err
    (judging / "one").mkdir(exist_ok=True)
    cv2.imwrite(str(judging / "one" / "a.png"), np.zeros((64, 64, 3), np.uint8))
    assert rate(judging, synthetic="one") == 2
    assert "1 images are too few to measure" in capsys.readouterr().err
    assert main(["quality", "--real", str(judging), "--synthetic", str(judging), "--features", "resnet19"]) == 2
    assert "there is no network 'resnet19'" in capsys.readouterr().err
    monkeypatch.setattr(
        "helpers.metrics.extractors.load_extractor", lambda name: (_ for _ in ()).throw(DataError(f"no {name}"))
    )
    assert main(["quality", "--real", str(judging / "real"), "--synthetic", str(judging / "real")]) == 2
    assert "nobody to judge: no inception; no mobilenet_v2" in capsys.readouterr().err


ODD = {"a.png": (50, 70, 3), "grey.png": (64, 64), "clear.png": (80, 60, 4), "large.jpg": (3000, 4000, 3)}


def odd_pictures(folder: Path) -> Path:
    """Pictures of several sizes and modes, an all-black one and a damaged one."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in ODD.items():
        coarse = rng.integers(0, 255, (8, 8, *shape[2:])).astype(np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(coarse, shape[1::-1]))
    cv2.imwrite(str(folder / "black.png"), np.zeros((40, 30, 3), np.uint8))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_train_classifier(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    command = ["train", "classifier", "--dataset", "phantoms", "--data-root", str(phantoms), "--out", str(tmp_path)]
    assert main([*command, "--steps", "2", "--batch", "4"]) == 0
    assert "trained, balanced accuracy on val 0." in capsys.readouterr().out
    assert load_classifier(tmp_path / "checkpoint.pt")[1].arch == "small"


def test_train_dcgan(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    command = ["train", "dcgan", "--dataset", "phantoms", "--data-root", str(phantoms), "--out", str(tmp_path)]
    assert main([*command, "--steps", "2", "--batch", "4", "--width", "8", "--projected", "--turned"]) == 0
    settings = load_dcgan(tmp_path / "checkpoint.pt")[1]
    assert (settings.base_channels, settings.projected, settings.d4_augment) == (8, True, True)
    assert (tmp_path / "grid-000002.png").is_file()


def test_train_cgan_begins_with_the_weights_of_another(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    command = ["train", "cgan", "--dataset", "phantoms", "--data-root", str(phantoms), "--steps", "1", "--batch", "4"]
    assert main([*command, "--no-projected", "--out", str(tmp_path / "one")]) == 0
    assert not load_cgan(tmp_path / "one/checkpoint.pt")[1].projected
    start = str(tmp_path / "one/checkpoint.pt")
    assert main([*command, "--start", start, "--turned", "--out", str(tmp_path / "two")]) == 0
    settings = load_cgan(tmp_path / "two/checkpoint.pt")[1]
    assert settings.projected and settings.d4_augment
    assert main([*command, "--start", str(tmp_path / "none.pt"), "--out", str(tmp_path / "three")]) == 2
    assert "none.pt" in capsys.readouterr().err


def test_classify_writes_probabilities(judging, tmp_path, capsys):
    images, checkpoint = odd_pictures(tmp_path / "in"), judging / "classifier" / "checkpoint.pt"
    command = ["classify", "--checkpoint", str(checkpoint), "--images", str(images), "--out", str(tmp_path / "p.csv")]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "broken.jpg is missing, damaged" in told and "black.png is all one colour: what is said of it" in told
    assert "5 pictures, " in told and "not for diagnosis" in told
    table = pd.read_csv(tmp_path / "p.csv", index_col="image_id")
    classes = load_classifier(checkpoint)[1].classes
    assert sorted(table.index) == ["a", "black", "clear", "grey", "large"]
    assert list(table.columns) == ["diagnosis", *classes]
    p = table[list(classes)]
    assert p.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5) and (p.idxmax(axis=1) == table["diagnosis"]).all()


def test_classify_says_why_it_cannot(judging, trained, tmp_path, capsys):
    checkpoint = judging / "classifier" / "checkpoint.pt"
    for file, images, why in (
        (tmp_path / "none.pt", tmp_path, "train classifier"),
        (trained, tmp_path, "is not a checkpoint of a classifier"),
        (checkpoint, tmp_path / "nowhere", "there is no folder"),
        (checkpoint, tmp_path, "nothing to classify"),
    ):
        assert main(["classify", "--checkpoint", str(file), "--images", str(images), "--out", str(tmp_path / "x")]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def segmenter(phantom_store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    train_segmenter(phantom_store, SegmenterConfig(64, pretrained=False), folder, TrainConfig(2, 4))
    return folder / "checkpoint.pt"


def segment(checkpoint: Path, images: Path, out: Path) -> int:
    return main(["segment", "--checkpoint", str(checkpoint), "--images", str(images), "--out", str(out)])


def test_segment_writes_masks_at_the_images_own_sizes(segmenter, tmp_path, capsys):
    images = odd_pictures(tmp_path / "in")
    assert segment(segmenter, images, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "broken.jpg is missing, damaged" in told and "black.png is all one colour: its mask is empty" in told
    table = pd.read_csv(tmp_path / "out" / "areas.csv", index_col="image_id")
    assert sorted(table.index) == ["a", "black", "clear", "grey", "large"]
    for name, shape in ODD.items():
        mask = cv2.imread(str(tmp_path / "out" / f"{name.split('.')[0]}.png"), cv2.IMREAD_UNCHANGED)
        row = table.loc[name.split(".")[0]]
        assert mask.shape == shape[:2] == (row["height"], row["width"]) and set(np.unique(mask)) <= {0, 255}
        assert row["lesion_pixels"] == (mask > 0).sum()
        assert row["lesion_fraction"] == pytest.approx((mask > 0).mean(), abs=1e-6)
    assert table.loc["black", "lesion_pixels"] == 0


def test_segment_says_why_it_cannot(segmenter, trained, tmp_path, capsys):
    assert segment(tmp_path / "none.pt", tmp_path, tmp_path / "out") == 2
    assert "train segmenter" in capsys.readouterr().err
    assert segment(trained, tmp_path, tmp_path / "out") == 2
    assert "is not a checkpoint of a segmenter" in capsys.readouterr().err
    assert segment(segmenter, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    assert segment(segmenter, tmp_path / "nothing", tmp_path / "out") == 2
    assert "nothing to segment" in capsys.readouterr().err
    assert segment(segmenter, tmp_path / "nothing", tmp_path / "nothing" / ".." / "nothing") == 2
    assert "is the folder of the images" in capsys.readouterr().err


def test_train_segmenter(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    command = ["train", "segmenter", "--dataset", "phantoms", "--data-root", str(phantoms), "--out", str(tmp_path)]
    assert main([*command, "--steps", "2", "--batch", "4", "--network", "FPN", "--width", "64"]) == 0
    assert "trained, mean Jaccard on val 0." in capsys.readouterr().out
    settings = load_segmenter(tmp_path / "checkpoint.pt")[1]
    assert (settings.arch, settings.decoder_channels) == ("FPN", 64)
    assert main([*command, "--steps", "2", "--batch", "4", "--width", "16"]) == 2
    assert "width 16 is below 32" in capsys.readouterr().err


def test_experiment(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    command = ["experiment", "segmentation", "--dataset", "phantoms", "--data-root", str(phantoms)]
    assert main([*command, "--seeds", "0", "--steps", "2", "--shares", "0.5", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert told.count("50% of the real images, ") == 5 and "drawn only against real: one seed, no verdict" in told
    assert (tmp_path / "out" / "arms-jaccard.csv").is_file() and (
        tmp_path / "out" / "comparisons-jaccard.csv"
    ).is_file()
    assert len(list((tmp_path / "out").glob("*-0.5-0.csv"))) == 5
    assert main([*command, "--steps", "3", "--out", str(tmp_path / "out")]) == 2
    assert "holds another experiment" in capsys.readouterr().err
    some = [*command, "--seeds", "0", "--steps", "2", "--shares", "0.5", "--arms", "real", "real + augmentation"]
    assert main([*some, "--out", str(tmp_path / "some")]) == 0
    told = capsys.readouterr().out
    assert "real + augmentation against real: one seed" in told and "drawn" not in told
    assert (
        not (tmp_path / "some" / "generator-0.5").exists() and len(list((tmp_path / "some").glob("*-0.5-0.csv"))) == 2
    )
    assert main([*some, "unreal", "--out", str(tmp_path / "some")]) == 2
    assert "no arm 'unreal': there are real, real + augmentation, real + drawn," in capsys.readouterr().err
    assert main([*command, "--shares", "1.5", "--out", str(tmp_path / "out")]) == 2
    assert "shares [1.5] of the training images are not in (0, 1]" in capsys.readouterr().err


def test_experiments_on_classifiers(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    about = ["--dataset", "phantoms", "--data-root", str(phantoms), "--seeds", "0", "--steps", "1", "--draw-steps", "1"]
    out = tmp_path / "diagnosis"
    assert main(["experiment", "diagnosis", *about, "--shares", "0.5", "--drawn", "7", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert json.loads((out / "plan.json").read_text())["generator"]["projected"] is False
    assert told.count("50% of the real images, ") == 15 and "one seed, no verdict" in told
    assert {p.name for p in out.glob("arms*")} == {
        f"arms-{m}.csv" for m in ("auc", "average-precision", "balanced-accuracy")
    }
    out = tmp_path / "balancing"
    more = ["--noise-steps", "1", "--made", "4", "--projected"]
    assert main(["experiment", "balancing", *about, *more, "--out", str(out)]) == 0
    plan = json.loads((out / "plan.json").read_text())
    assert plan["cgan"]["projected"] and plan["dcgan"]["projected"]
    told = capsys.readouterr().out
    assert "rare: " in told and told.count("DCGAN against ") == 2 and len(list(out.glob("comparisons*"))) == 2
    assert main(["experiment", "balancing", *about, *more, "--out", str(out), "--arms", "blended"]) == 0
    told = capsys.readouterr().out
    assert "blended" in told and "DCGAN" not in told
    assert main(["experiment", "balancing", *about, "--folds", "60", "--out", str(tmp_path / "x")]) == 2
    assert "fewer lesions than the 60 folds" in capsys.readouterr().err


def test_small_data_experiment_and_its_options(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    about = ["--dataset", "phantoms", "--data-root", str(phantoms), "--seeds", "0", "--steps", "1", "--judged", "10"]
    out = tmp_path / "out"
    assert main(["experiment", "small-data", *about, "--shares", "0.5", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "judged by mobilenet_v2" in told and "copied_pixels" in told and "whole recipe 0.5" in told
    assert (out / "table.csv").is_file()
    with pytest.raises(SystemExit):
        main(["experiment", "ablation", *about, "--shares", "0.5"])
    ablation = ["experiment", "ablation", *about, "--out", str(tmp_path / "ablation"), "--arms", "photographs"]
    assert main(ablation) == 0 and [f.name for f in (tmp_path / "ablation").glob("photo*")] == ["photographs-1-0.csv"]
    assert (tmp_path / "ablation/some.csv").is_file() and not (tmp_path / "ablation/table.csv").exists()
    assert main([*ablation, "all"]) == 2 and "no arm 'all'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["experiment", "small-data", *about, "--draw-steps", "1"])


def test_unpaired_training_says_whose_sketches_it_takes(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.config.ROOT", tmp_path)
    monkeypatch.setenv("LESION_PROFILE", "smoke")
    steps = ["--size", "64", "--steps", "1", "--batch", "4", "--width", "8", "--unpaired"]
    root = course(tmp_path / "course")
    command = ["train", "cgan", *steps]
    assert main([*command, "--dataset", "course", "--data-root", str(root), "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert re.search(r"\d+ unpaired sketches", told) and "of memory at most" in told
    assert main([*command, "--dataset", "phantoms", "--data-root", str(phantoms), "--out", str(tmp_path / "b")]) == 0
    assert "no unpaired sketches: each picture comes with any of the others'" in capsys.readouterr().out


def test_the_page_opens_with_released_or_named_weights(monkeypatch, capsys, tmp_path):
    from helpers.views import demo

    asked = []
    monkeypatch.setattr(demo, "launch_page", lambda page, port, wait: asked.append((page.title, port, wait)))
    assert main(["demo", "--port", "7999"]) == 0
    assert asked == [("Sketch2Lesion", 7999, True)]
    assert "cgan: data/released/cgan.safetensors, 128 px, MEL SK NV" in capsys.readouterr().out
    assert main(["demo", "--cgan", str(tmp_path / "gone.pt")]) == 2
    assert "there is no" in capsys.readouterr().err

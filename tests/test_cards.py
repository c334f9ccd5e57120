import pytest
from PIL import Image

from helpers.config import ROOT
from helpers.data.files import DataError
from helpers.phantoms.photo import ARTIFACTS
from helpers.views.cards import CLASSIFIER_GENERATOR, FIGURES, cgan_figure, write_cards

RELEASED = ROOT / "data" / "released"


def test_write_cards_of_the_released_weights_equals_the_tracked_size(tmp_path):
    paths = write_cards(RELEASED, ["dcgan", "artifacts"], out=tmp_path)
    assert paths == [tmp_path / "dcgan.png", tmp_path / "artifacts.png"]
    for path in paths:
        with Image.open(path) as written, Image.open(RELEASED / path.name) as tracked:
            assert written.size == tracked.size and written.mode == "P"
        assert path.stat().st_size < 300_000
    assert all((RELEASED / f"{name}.png").is_file() for name in FIGURES)


def test_cgan_figure_has_a_row_of_artifacts_if_the_generator_takes_them():
    file = RELEASED / "cgan.safetensors"
    axes = cgan_figure(file, file).axes
    names = ["sketch", *(name.replace("_", " ") for name in ARTIFACTS)]
    assert len(axes) == 5 * 8 and [axis.get_xlabel() for axis in axes[-8:]] == names
    file = RELEASED / CLASSIFIER_GENERATOR
    assert len(cgan_figure(file, file).axes) == 4 * 4


def test_write_cards_with_an_unknown_name_or_missing_file_raises(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of cgan, .*, got 'gan'"):
        write_cards(RELEASED, ["gan"], out=tmp_path)
    with pytest.raises(DataError, match=r"dcgan\.safetensors"):
        write_cards(tmp_path, ["dcgan"])

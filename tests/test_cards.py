import hashlib

import pytest
from PIL import Image

from helpers.config import ROOT
from helpers.data.files import DataError
from helpers.phantoms.render import ARTIFACTS
from helpers.views.cards import FIGURES, cgan_figure, write_cards, write_checksums

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
    file = RELEASED.parent / "training" / "cgan-isic2016.safetensors"
    assert len(cgan_figure(file, file).axes) == 4 * 3


CARDS = [*sorted(RELEASED.glob("*.md")), *sorted((RELEASED.parent / "training").glob("*.md"))]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_card_has_the_checksum_of_its_file(card):
    checksum = hashlib.sha256(card.with_suffix(".safetensors").read_bytes()).hexdigest()
    assert card.read_text().splitlines()[2] == f"SHA-256: `{checksum}`", "`python -m helpers cards` writes it"


def test_write_checksums_replaces_that_of_the_previous_file(tmp_path):
    (tmp_path / "a.md").write_text("# a.safetensors\n\nText.\n\nMore.\n")
    (tmp_path / "README.md").write_text("# not a card\n")
    for content in (b"first", b"second"):
        (tmp_path / "a.safetensors").write_bytes(content)
        assert write_checksums(tmp_path) == [tmp_path / "a.md"]
        expected = f"# a.safetensors\n\nSHA-256: `{hashlib.sha256(content).hexdigest()}`\n\nText.\n\nMore.\n"
        assert (tmp_path / "a.md").read_text() == expected
    assert len(CARDS) == 8


def test_write_cards_with_an_unknown_name_or_missing_file_raises(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of cgan, .*, got 'gan'"):
        write_cards(RELEASED, ["gan"], out=tmp_path)
    with pytest.raises(DataError, match=r"dcgan\.safetensors"):
        write_cards(tmp_path, ["dcgan"])

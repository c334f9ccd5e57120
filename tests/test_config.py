import pytest

from helpers.config import PROFILES, ROOT, SIZES, display_path, get_config


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("LESION_PROFILE", "LESION_DATASET", "LESION_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_default_is_the_demo_on_the_embedded_sample():
    cfg = get_config("data")
    assert (cfg.profile, cfg.dataset, cfg.seed) == ("demo", "phantoms", 0)
    assert cfg.data_root == ROOT / "data/phantoms-demo" and cfg.outputs == ROOT / "outputs/phantoms-demo"
    assert cfg.workers >= 1 and cfg.size == SIZES["data"]["demo"]["size"]


def test_environment_chooses(monkeypatch, tmp_path):
    monkeypatch.setenv("LESION_PROFILE", "full")
    monkeypatch.setenv("LESION_DATASET", "isic2017")
    assert get_config("data").data_root == ROOT / "data/isic2017"
    monkeypatch.setenv("LESION_DATA_ROOT", "../elsewhere")
    assert get_config("data").data_root == ROOT / "../elsewhere", "counts from the repository, not from the notebook"
    monkeypatch.setenv("LESION_DATA_ROOT", str(tmp_path))
    assert get_config("data").data_root == tmp_path
    assert get_config("data").outputs == ROOT / "outputs/isic2017-full"


def test_what_is_given_goes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LESION_DATASET", "isic2017")
    monkeypatch.setenv("LESION_DATA_ROOT", "somewhere")
    cfg = get_config("data", dataset="ham10000")
    assert cfg.data_root == ROOT / "data/ham10000", "the root of another data set is not this one's"
    assert get_config("data", dataset="isic2017").data_root == ROOT / "somewhere"
    assert get_config("data", data_root=tmp_path).data_root == tmp_path
    monkeypatch.delenv("LESION_DATASET")
    assert get_config("data", dataset="ham10000").data_root == ROOT / "somewhere", "a root alone is meant for this set"


def test_empty_variables_are_no_choice(monkeypatch):
    monkeypatch.setenv("LESION_DATASET", "")
    assert get_config("data").dataset == "phantoms"


@pytest.mark.parametrize("variable", ["LESION_PROFILE", "LESION_DATASET"])
def test_unknown_names_are_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "nonsense")
    with pytest.raises(ValueError, match=f"{variable}='nonsense' is not one of"):
        get_config("data")


def test_every_part_has_every_profile():
    for part, sizes in SIZES.items():
        assert set(sizes) == set(PROFILES), part
        assert len({tuple(sorted(values)) for values in sizes.values()}) == 1, part
    with pytest.raises(ValueError, match="no settings for 'soup'"):
        get_config("soup")


def test_paths_are_shown_from_the_root(tmp_path, monkeypatch):
    assert display_path(ROOT / "data/x") == "data/x"
    monkeypatch.chdir(tmp_path)
    assert display_path(tmp_path / "y") == "y"

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.data.files import DataError, read_image
from helpers.experiments import results
from helpers.experiments.results import Page, command_line, commit, markdown_table, publish, with_interval

ROWS = pd.DataFrame(
    {"arm": ["real", "both"], "measure": "jaccard", "value": [0.5, 1 / 3], "n": [12, 12], "seconds": [10.0, 20.0]}
)
TABLE = pd.DataFrame({"jaccard": ["0.50", np.nan]}, index=pd.Index(["real", "both"], name="arm"))


def page(**changes) -> Page:
    values = {"question": "Does it help?", "settings": ["data"], "table": TABLE, "verdict": ["No."], "limits": ["one"]}
    return Page(**values | changes)


def test_publish_writes_numbers_with_their_origin(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["helpers", "experiment", "toy", "--seed", "1"])
    monkeypatch.setenv("LESION_DATASET", "ham10000")
    monkeypatch.delenv("LESION_PROFILE", raising=False)
    plt.figure()
    paths = publish("toy", ROWS, page(figure=plt.gcf(), caption="Bars"), tmp_path)
    assert [path.name for path in paths] == ["toy.csv", "toy.md", "toy.png"]
    table = pd.read_csv(paths[0])
    np.testing.assert_allclose(table["value"], [0.5, 1 / 3], rtol=1e-5)
    assert set(table["command"]) == {"LESION_DATASET=ham10000 python -m helpers experiment toy --seed 1"}
    assert (
        table["commit"].str.fullmatch(r"[0-9a-f]{7,}\+?|unknown").all() and table["machine"].str.contains("torch").all()
    )
    text = paths[1].read_text(encoding="utf-8")
    order = [
        "# Does it help?",
        "- data",
        "| arm | jaccard |",
        "| both |  |",
        "toy.png",
        "*Bars*",
        "No.",
        "- one",
        "30 s",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


def test_publish_writes_images_and_shows_them(tmp_path):
    images = {"no R1": np.zeros((4, 12, 3), np.uint8)}
    _, text = publish("toy", ROWS, page(images=images), tmp_path)
    assert read_image(tmp_path / "toy" / "no R1.png").shape == (4, 12, 3)
    assert "| no R1 | ![no R1](toy/no%20R1.png) |" in text.read_text(encoding="utf-8")


def test_publish_keeps_a_given_command(tmp_path):
    (csv, _) = publish("toy", ROWS.assign(command=["by hand", None]), page(), tmp_path)
    assert pd.read_csv(csv)["command"].tolist() == ["by hand", command_line()]


@pytest.mark.parametrize("rows", [ROWS.drop(columns="n"), ROWS.assign(n=[12, None])])
def test_publish_without_n_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="n"):
        publish("toy", rows, page(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_page_with_six_settings_is_refused():
    with pytest.raises(ValueError, match="at most 5"):
        page(settings=["line"] * 6)


def test_command_line_names_no_folder_of_the_machine(monkeypatch):
    for name in ("LESION_PROFILE", "LESION_DATASET"):
        monkeypatch.delenv(name, raising=False)
    words = [
        "evaluate",
        str(results.ROOT / "data/x.pt"),
        "--data-root",
        "/home/ann/ham",
        "--out=/home/ann/o",
        "--seed",
        "1",
    ]
    expected = "python -m helpers evaluate data/x.pt --data-root DIR --out=DIR --seed 1"
    assert command_line(words) == expected
    assert command_line(["x", "--also-root", "/home/ann/isic"]) == "python -m helpers x --also-root DIR"


def test_command_line_names_the_data_set_once(monkeypatch):
    monkeypatch.delenv("LESION_PROFILE", raising=False)
    monkeypatch.setenv("LESION_DATASET", "ham10000")
    assert command_line(["audit", "DIR"]) == "LESION_DATASET=ham10000 python -m helpers audit DIR"
    assert command_line(["prepare", "--dataset", "isic2017"]) == "python -m helpers prepare --dataset isic2017"


def test_commit_outside_of_git_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"


def test_markdown_table_without_index_name_has_only_columns():
    assert markdown_table(pd.DataFrame({"a": [1]})) == "| a |\n| --- |\n| 1 |"


# ------------------------------------------------------------------------------------------------- reading published


PUBLISHED = pd.DataFrame(
    {
        "arm": ["b against a", "b against a", "a"],
        "measure": ["recall", "accuracy", "recall"],
        "value": [0.5, 0.25, 1 / 3],
        "low": [0.4, np.nan, 0.3],
        "high": [0.6, np.nan, 0.4],
        "n": [12, 12, 9],
    }
)


def test_read_published_selects_rows_by_the_values_of_columns(tmp_path):
    PUBLISHED.to_csv(tmp_path / "toy.csv", index=False)
    assert len(results.read_published("toy", tmp_path)) == 3
    assert results.read_published("toy", tmp_path, arm="b against a", measure="recall")["value"].tolist() == [0.5]


def test_read_published_without_file_or_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"absent\.csv does not exist"):
        results.read_published("absent", tmp_path)
    PUBLISHED.to_csv(tmp_path / "toy.csv", index=False)
    with pytest.raises(DataError, match=r"toy\.csv has no row with .*AUC"):
        results.read_published("toy", tmp_path, measure="AUC")


def test_to_table_gives_values_with_interval_and_n_in_the_order_of_the_file():
    table = results.to_table(PUBLISHED, ["arm"], "measure")
    assert table.columns.tolist() == ["recall", "accuracy"]
    assert table.index.tolist() == [("b against a", 12), ("a", 9)] and table.index.names == ["arm", "N"]
    assert table.to_numpy().tolist() == [["0.500 (0.400 to 0.600)", "0.250"], ["0.333 (0.300 to 0.400)", ""]]


def test_to_charts_gives_a_chart_per_title_with_breakable_names():
    charts = results.to_charts(PUBLISHED.assign(arm=["b against a", "c", "a"]), "measure", "arm")
    assert list(charts) == ["recall", "accuracy"]
    assert charts["recall"] == {"b\nagainst a": [0.5, 0.4, 0.6], "a": [1 / 3, 0.3, 0.4]}


def test_with_interval_of_a_value_without_interval_is_the_value():
    assert with_interval(0.8123, 0.7991, 0.824) == "0.812 (0.799 to 0.824)"
    assert with_interval(1, float("nan"), float("nan")) == "1.000"

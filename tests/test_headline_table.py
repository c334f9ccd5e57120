import pandas as pd
import pytest

from helpers.config import ROOT
from helpers.data.files import DataError
from helpers.experiments.headline import Row, answers_table, readme_table, write_tables

ROW = Row("KID", "HAM10000", "cgan", {"measure": "kid", "class": "all"}, "other real images {floor}")


def write_results(folder, **changes) -> None:
    rows = {"measure": ["kid", "kid"], "class": ["all", "MEL"], "value": [0.0207, 0.5], "low": [0.01, None]}
    rows |= {"high": [0.03, None], "n": [1000, 20], "floor": [0.0042, None]}
    pd.DataFrame(rows | changes).to_csv(folder / "cgan.csv", index=False)


def test_readme_table_shows_value_interval_n_and_floor(tmp_path):
    write_results(tmp_path)
    table = readme_table([ROW, Row("absent", "x", "absent")], tmp_path).splitlines()
    assert table[2:] == [
        "| [KID](outputs/results/cgan.md) | HAM10000, N 1,000 | **0.021** (0.010 to 0.030) | other real images 0.004 |"
    ]


def test_readme_table_compares_with_another_row(tmp_path):
    write_results(tmp_path)
    row = Row("KID of MEL", "HAM10000", "cgan", {"class": "MEL"}, "all classes {other}", {"class": "all"})
    assert readme_table([row], tmp_path).splitlines()[2].endswith("| **0.500** | all classes 0.021 |")


def test_readme_table_refuses_an_ambiguous_row(tmp_path):
    write_results(tmp_path, **{"class": ["all", "all"]})
    with pytest.raises(DataError, match="2 rows"):
        readme_table([ROW], tmp_path)


def test_answers_table_lists_questions_and_verdicts(tmp_path):
    (tmp_path / "a.md").write_text("# Does it help?\n\n- data\n\n## Verdict\n\nNo: 0.1.\nYes.\n\n## Limits\n\n- one\n")
    (tmp_path / "b.md").write_text("no page")
    assert answers_table(tmp_path).splitlines()[2:] == ["| [Does it help?](results/a.md) | No: 0.1. Yes. |"]


def test_answers_table_shows_the_first_four_sentences(tmp_path):
    verdict = "\n".join(f"- {k}\n  wrapped." for k in range(6))
    (tmp_path / "a.md").write_text(f"# Does it help?\n\n## Verdict\n\n{verdict}\n\n## Limits\n\n- one\n")
    (line,) = answers_table(tmp_path).splitlines()[2:]
    assert line.endswith("| 0 wrapped. 1 wrapped. 2 wrapped. 3 wrapped. (2 more on the page) |")


def test_write_tables_replaces_what_is_between_the_markers(tmp_path):
    (tmp_path / "outputs/results").mkdir(parents=True)
    for file in (tmp_path / "README.md", tmp_path / "outputs/README.md"):
        file.write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    write_tables(tmp_path)
    write_tables(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text and text.count("| measure |") == 1 and text.startswith("before\n<!-- results -->\n")
    assert text.endswith("<!-- end of results -->\nafter\n")
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(DataError, match="needs the lines"):
        write_tables(tmp_path)


def test_tables_of_this_repository_are_those_of_its_results():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "outputs/README.md")]
    for text, table in zip(texts, (readme_table(), answers_table()), strict=True):
        assert f"<!-- results -->\n\n{table}\n\n<!-- end of results -->" in text, "run `python -m helpers results`"

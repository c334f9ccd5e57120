"""The results table of the README and the list of answers in `outputs/README.md`, made from published results."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from helpers.config import ROOT
from helpers.data.files import DataError, atomic_file
from helpers.experiments.results import RESULTS, markdown_table

ISIC2017_WINNER = "challenge winner 0.765, whole images ([Codella et al.](https://arxiv.org/abs/1710.05006))"


MAX_SENTENCES = 4  # of a verdict in the list of answers


@dataclass(frozen=True)
class Row:
    """One number of the README: which row of which file it is, and what to compare it with."""

    measure: str
    data: str
    file: str  # CSV in `outputs/results`
    # Columns and values that select one row; "" is an empty cell.
    where: dict[str, str | float] = field(default_factory=dict)
    reference: str = ""  # {floor}, {real} and {majority} are those of the row, {other} is the value of another one
    other: dict[str, str | float] = field(default_factory=dict)  # selects it, in the same file


GENERATED = {"protocol": "natural", "compared": "synthetic"}
BY_FEATURES = GENERATED | {"extractor": "mobilenet_v2"}
RESNET = {"init": "random init", "class": "", "measure": "balanced_accuracy"}
ADDED = {"data": "ham10000", "fraction": 0.1, "seed": "", "against": "", "measure": "balanced_accuracy"}
BALANCING = {"experiment": "balancing", "setting": "64 px, five folds, three seeds",
             "measure": "recall of AKIEC, DF, VASC"}  # fmt: skip
# In the order of the README.
ROWS = (
    Row("KID of generated images", "HAM10000 test", "cgan-ham10000-test",
        BY_FEATURES | {"class": "all", "measure": "kid"}, "other real images {floor}"),
    Row("their recall (variety)", "HAM10000 test", "cgan-ham10000-test",
        BY_FEATURES | {"class": "all", "measure": "recall"}, "other real images {floor}"),
    Row("their copies of training images", "HAM10000 test", "cgan-ham10000-test",
        BY_FEATURES | {"measure": "copies"}, "{real} by definition"),
    Row("Dice of their sketch and the segmented lesion", "HAM10000 val", "cgan-ham10000-val",
        {"protocol": "natural", "compared": "synthetic", "measure": "sketch_dice"}, "real images {real}"),
    Row("ResNet18 trained on real images: balanced accuracy on real ones", "HAM10000 test",
        "real-vs-generated-ham10000-128", RESNET | {"compared": "real"}, "chance, of seven classes, 0.143"),
    Row("the same ResNet18 on generated images", "sketches of HAM10000 test", "real-vs-generated-ham10000-128",
        RESNET | {"compared": "generated"}, "on real images {other}", RESNET | {"compared": "real"}),
    Row("segmentation, Jaccard", "ISIC 2017 test", "segmenter-isic2017-test", {"measure": "jaccard", "class": ""},
        ISIC2017_WINNER),
    Row("classification, balanced accuracy", "HAM10000 test", "classifier-ham10000-test",
        {"measure": "balanced_accuracy"}, "always the majority {majority}"),
    Row("with 10 % of the images: generated ones added", "HAM10000 test", "real-vs-synthetic-ham10000-128",
        ADDED | {"arm": "real + synthetic + augmentation"}, "augmentation alone {other}",
        ADDED | {"arm": "real + augmentation"}),
    Row("rare classes, half of the images generated: recall", "HAM10000, five folds", "earlier",
        BALANCING | {"arm": "half of them by the DCGAN"}, "oversampling {other}", BALANCING | {"arm": "oversampled"}),
)  # fmt: skip


def readme_table(rows: Sequence[Row] = ROWS, folder: Path = RESULTS) -> str:
    """Markdown table of those rows whose file exists. Raises `DataError` if a file has no such row, or several."""
    lines = []
    for row in rows:
        file = folder / f"{row.file}.csv"
        if not file.is_file():
            continue
        found = select_row(file, row.where)
        facts = {name: f"{found[name]:.3f}" for name in ("floor", "real", "majority") if name in found}
        facts |= {"other": f"{select_row(file, row.other)['value']:.3f}"} if row.other else {}
        value = f"**{found['value']:.3f}**"
        if pd.notna(found.get("low")):
            value += f" ({found['low']:.3f} to {found['high']:.3f})"
        page = f"[{row.measure}](outputs/results/{row.file}{'.csv' if row.file == 'earlier' else '.md'})"
        lines.append([page, f"{row.data}, N {found['n']:,.0f}", value, row.reference.format(**facts)])
    return markdown_table(pd.DataFrame(lines, columns=["measure", "data", "ours (95 %)", "compare with"]))


def select_row(file: Path, where: dict[str, str | float]) -> pd.Series:
    """The row of a CSV with these values. Raises `DataError` if it has none, or several."""
    table = pd.read_csv(file)
    for column, value in where.items():
        table = table[table[column].astype(object).fillna("") == value]
    if len(table) != 1:
        raise DataError(f"{file.name} has {len(table)} rows of {where}, 1 needed")
    return table.iloc[0]


def answers_table(folder: Path = RESULTS) -> str:
    """Markdown table of the pages in `folder`: question with link, and the first `MAX_SENTENCES` of the verdict."""
    lines = []
    for page in sorted(folder.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        title, verdict = re.match(r"# (.*)", text), re.search(r"## Verdict\n\n(.*?)\n\n## ", text, re.DOTALL)
        if title and verdict:
            sentences = [" ".join(line.split()) for line in verdict[1].removeprefix("- ").split("\n- ")]
            more = f"({len(sentences) - MAX_SENTENCES} more on the page)"
            shown = sentences[:MAX_SENTENCES] + [more] * (len(sentences) > MAX_SENTENCES)
            lines.append([f"[{title[1]}](results/{page.name})", " ".join(shown)])
    return markdown_table(pd.DataFrame(lines, columns=["question", "answer"]))


def write_tables(root: Path = ROOT) -> list[Path]:
    """Write both tables between their markers, `<!-- results -->` and `<!-- end of results -->`; returns the files.
    Raises `DataError` if a file lacks them."""
    tables = {root / "README.md": readme_table(folder=root / "outputs" / "results"),
              root / "outputs" / "README.md": answers_table(root / "outputs" / "results")}  # fmt: skip
    for file, table in tables.items():
        text = file.read_text(encoding="utf-8")
        parts = re.split(r"(?<=<!-- results -->\n).*(?=<!-- end of results -->)", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise DataError(f"{file.name} needs the lines <!-- results --> and <!-- end of results -->")
        with atomic_file(file) as temporary:
            temporary.write_text(f"\n{table}\n\n".join(parts), encoding="utf-8")
    return list(tables)

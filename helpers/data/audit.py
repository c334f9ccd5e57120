"""Check a data set: unreadable files, duplicates, contradicting labels, lesions in several splits.

`audit(dataset)` reports and changes nothing; `clean(report)` returns the data set with these faults removed.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from helpers.config import display_path
from helpers.data.duplicates import exact_pairs, fingerprint, near_pairs
from helpers.data.files import DataError
from helpers.data.splits import assign_lesion_ids, groups_with_conflict, lesion_groups, split_by_lesion
from helpers.data.tables import MISSING_LIMIT, DatasetTable

Pair = tuple[str, str]


@dataclass
class Report:
    """Faults of a data set, by image id.

    `groups (N,)` numbers the rows of the table: rows with the same number must stay in the same split.
    `contents` has the `pixel_hash` of every row, "" if it is unreadable.
    """

    dataset: DatasetTable
    groups: np.ndarray
    contents: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)
    unreadable_masks: dict[str, str] = field(default_factory=dict)
    unreadable_sketches: dict[str, str] = field(default_factory=dict)
    size_mismatches: dict[str, str] = field(default_factory=dict)
    empty_masks: list[str] = field(default_factory=list)
    full_masks: list[str] = field(default_factory=list)
    exact_duplicates: list[Pair] = field(default_factory=list)
    near_duplicates: list[Pair] = field(default_factory=list)
    conflicts: list[list[str]] = field(default_factory=list)
    leaks: list[list[str]] = field(default_factory=list)
    conflicting_labels: list[str] = field(default_factory=list)  # lesion ids with several diagnoses
    shapes: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def contradicting(self) -> set[str]:
        """Images with a copy that has another label."""
        return {image_id for copies in self.conflicts for image_id in copies}

    @property
    def unusable(self) -> str:
        """Reason why the data cannot be used, empty if it can."""
        table = self.dataset.table
        for files, errors, count in (
            ("images", self.unreadable, len(table)),
            ("masks", self.unreadable_masks, table["mask_path"].notna().sum()),
            ("sketches", self.unreadable_sketches, table["sketch_path"].notna().sum()),
        ):
            if len(errors) > MISSING_LIMIT * count:
                return (
                    f"{len(errors)} of {count} {files} cannot be read, at most {100 * MISSING_LIMIT:.0f} % may be: "
                    f"{next(iter(errors.values()))}"
                )
        if (dropped := len(self.contradicting)) > MISSING_LIMIT * len(table):
            return (
                f"{dropped} of {len(table)} images have a copy with another label, at most {100 * MISSING_LIMIT:.0f} % "
                f"may: {' = '.join(self.conflicts[0][:3])}"
            )
        if mismatches := list(self.size_mismatches.values()):
            return f"{len(mismatches)} masks or sketches do not have the size or shape of their image: {mismatches[0]}"
        return ""

    def __str__(self) -> str:
        return "\n".join(_report_lines(self))


def audit(dataset: DatasetTable, workers: int = 2, progress: bool = True) -> Report:
    """Read every image, mask and sketch once with `workers` threads, compare all images and report the faults.

    Nothing is changed or written.
    """
    table = dataset.table
    with ThreadPoolExecutor(workers) as pool:
        work = pool.map(fingerprint, table["path"], table["mask_path"], table["sketch_path"])
        prints = list(tqdm(work, "auditing", len(table), disable=not progress, leave=False))
        exact = list(exact_pairs(prints))
        near = near_pairs(prints, pool)
    ids = table["image_id"].to_numpy()
    lesions = table["lesion_id"].to_numpy()
    no_lesions = np.full(len(table), pd.NA)
    groups = lesion_groups(len(table), lesions, exact + near)
    copies = lesion_groups(len(table), no_lesions, exact + near)
    by_lesion_id = lesion_groups(len(table), lesions, [])
    # Near duplicates that share a lesion id are repeat images of one lesion: no fault.
    unexplained = [(a, b) for a, b in near if pd.isna(lesions[a]) or pd.isna(lesions[b]) or lesions[a] != lesions[b]]

    def messages(attribute: str) -> dict[str, str]:
        return {i: getattr(p, attribute) for i, p in zip(ids, prints, strict=True) if getattr(p, attribute)}

    def id_pairs(pairs: list[tuple[int, int]]) -> list[Pair]:
        return [(ids[a], ids[b]) for a, b in pairs]

    return Report(
        dataset=dataset,
        groups=groups,
        contents=[p.content for p in prints],
        unreadable=messages("error"),
        unreadable_masks=messages("mask_error"),
        unreadable_sketches=messages("sketch_error"),
        size_mismatches=messages("size_mismatch"),
        empty_masks=[i for i, p in zip(ids, prints, strict=True) if p.foreground == 0],
        full_masks=[i for i, p in zip(ids, prints, strict=True) if p.foreground == 1],
        exact_duplicates=id_pairs(exact),
        near_duplicates=id_pairs(unexplained),
        conflicts=[list(ids[rows]) for rows in groups_with_conflict(copies, table["label"])],
        leaks=[list(ids[rows]) for rows in groups_with_conflict(groups, table["split"])],
        conflicting_labels=[str(lesions[rows[0]]) for rows in groups_with_conflict(by_lesion_id, table["label"])],
        shapes=pd.Series([p.shape for p in prints if not p.error]).value_counts().to_dict(),
    )


def clean(report: Report, seed: int = 0) -> DatasetTable:
    """Return the audited data set without its faults; splits are complete, see `split_by_lesion`.

    Unreadable images and copies with contradicting labels are removed, empty masks become unknown. Every change is
    added to `problems`, with its count. Raises `DataError` if the data cannot be used.
    """
    if report.unusable:
        raise DataError(f"{report.dataset.root}: {report.unusable}; replace these files and run the command again")
    dataset, table = report.dataset, report.dataset.table
    keep = ~table["image_id"].isin(set(report.unreadable) | report.contradicting).to_numpy()
    unknown = {
        "mask_path": table["image_id"].isin([*report.empty_masks, *report.unreadable_masks]),
        "sketch_path": table["image_id"].isin(list(report.unreadable_sketches)),
    }
    labels = table["label"].fillna(-1).to_numpy(int)
    splits = split_by_lesion(table["split"].to_numpy(), report.groups, labels, seed)
    moved = table["split"].notna().to_numpy() & (splits != table["split"].fillna("").to_numpy()) & keep
    leaked = np.isin(table["image_id"], [i for ids in report.leaks for i in ids])
    changes = [
        _count_line(len(report.unreadable), "unreadable images left out"),
        _count_line(len(report.contradicting), "images left out because a copy of them has another label"),
        _count_line(len(report.empty_masks), "empty masks treated as unknown"),
        _count_line(len(report.unreadable_masks), "unreadable masks treated as unknown"),
        _count_line(len(report.unreadable_sketches), "unreadable sketches treated as unknown"),
        _count_line(int((moved & leaked).sum()), "images moved so that each lesion is in one split"),
    ]
    lesions = assign_lesion_ids(table, report.groups)
    paths = {column: table[column].mask(is_unknown) for column, is_unknown in unknown.items()}
    table = table.assign(split=pd.array(splits, "string"), lesion_id=lesions, content=report.contents, **paths)
    table = table[keep].reset_index(drop=True)
    return replace(dataset, table=table, problems=dataset.problems + [line for line in changes if line])


def _count_line(count: int, text: str) -> str:
    return f"{count} {text}" if count else ""


# ---------------------------------------------------------------------------------------------------- printed report


def _report_lines(report: Report) -> Iterator[str]:
    yield from _heading(report)
    yield f"\n{report.dataset.counts().to_string()}\n"
    yield from (f"! {problem}" for problem in report.dataset.problems)
    for name, items in (
        ("unreadable images", list(report.unreadable.values())),
        ("unreadable masks", list(report.unreadable_masks.values())),
        ("unreadable sketches", list(report.unreadable_sketches.values())),
        ("masks and sketches that do not fit their image", list(report.size_mismatches.values())),
        ("empty masks", report.empty_masks),
        ("masks that cover the entire image", report.full_masks),
        ("exact copies", report.exact_duplicates),
        ("near duplicates without a common lesion id", report.near_duplicates),
        ("copies with different labels", report.conflicts),
        ("lesion ids with several diagnoses", report.conflicting_labels),
        ("lesions or copies in several splits", report.leaks),
    ):
        yield f"{'!' if items else ' '} {len(items):5,} {name}{_examples(items)}"
    faulty = any((report.unreadable, report.unreadable_masks, report.empty_masks, report.conflicts, report.leaks))
    if report.unusable:
        yield f"\nCANNOT BE USED: {report.unusable}"
    else:
        yield "\ncan be used" + ("; `prepare` removes these faults and lists its changes" if faulty else "")


def _heading(report: Report) -> Iterator[str]:
    dataset, table = report.dataset, report.dataset.table
    yield f"{dataset.name}: {len(table):,} images in {display_path(dataset.root)}"
    sizes = sorted(report.shapes.items(), key=lambda item: -item[1])
    facts = ["sizes " + ", ".join(f"{width} x {height}" for (height, width), _ in sizes[:3])]
    facts[0] += f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    facts += [f"{table['mask_path'].notna().sum():,} masks", f"{table['sketch_path'].notna().sum():,} sketches"]
    facts += [f"{len(dataset.unpaired_sketches):,} unpaired sketches"] if dataset.unpaired_sketches else []
    lesions = table["lesion_id"].dropna()
    repeats = len(lesions) - lesions.nunique()
    facts += [f"{lesions.nunique():,} lesions, {repeats:,} repeat images" if len(lesions) else "no lesion ids"]
    yield "; ".join(facts)


def _examples(items: list) -> str:
    """The first three ids, groups of ids or messages as text."""
    examples = [" = ".join(item) if isinstance(item, (tuple, list)) else item for item in items[:3]]
    return ": " + ", ".join(examples) + (", ..." if len(items) > 3 else "") if items else ""

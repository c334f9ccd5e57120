"""Can this data be trusted? Damaged files, copies, contradicting labels, lesions on both sides of a split.

`audit(dataset)` looks and reports, `trusted(report)` gives the data set with what was found put right.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import local

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from helpers.config import display_path
from helpers.data.files import DataError, image_shape, read_image, read_mask, read_sketch, size_mismatch_message
from helpers.data.layouts import MISSING_LIMIT, DatasetTable

COMPARE_SIZE = 150  # pixels of the shorter side at which pictures are compared
KEYPOINTS = 200
NEIGHBORS = 3  # candidates looked at for each picture
MIN_SIMILARITY = 0.4  # correlation of signatures below which no candidate was ever confirmed
BEST_MATCHES = 60
# Of these so many must agree, and so widely, in pixels, they must lie round their main axis. Set by eye on pairs that
# HAM10000 (26,000 candidates) and ISIC 2017 confirm: fewer agree by chance, narrower is one ruler in two pictures.
MIN_INLIERS = 21
MIN_SPREAD = 5.0


Pair = tuple[str, str]


@dataclass
class Fingerprint:
    """What is kept of one picture: enough to recognise it, not enough to fill the memory."""

    content: str = ""
    shape: tuple[int, int] = (0, 0)
    signature: np.ndarray | None = None  # (512,) float32
    points: np.ndarray | None = None  # (K, 2) float32
    descriptors: np.ndarray | None = None  # (K, 32) uint8
    foreground: float | None = None  # share of the mask, None without one
    error: str = ""  # sentences on what is wrong, empty where nothing is
    mask_error: str = ""
    sketch_error: str = ""
    size_mismatch: str = ""  # a mask or sketch that is not of this picture


@dataclass
class Report:
    """What the audit found. Ids everywhere; `groups` numbers what must stay on one side of a split, row by row."""

    dataset: DatasetTable
    groups: np.ndarray
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
    def unusable(self) -> str:
        """Why the data cannot be used, or nothing."""
        table = self.dataset.table
        for what, damaged, count in (
            ("pictures", self.unreadable, len(table)),
            ("masks", self.unreadable_masks, table["mask_path"].notna().sum()),
            ("sketches", self.unreadable_sketches, table["sketch_path"].notna().sum()),
        ):
            if len(damaged) > MISSING_LIMIT * count:
                return f"{len(damaged)} of {count} {what} cannot be read"
        if self.size_mismatches:
            return f"{len(self.size_mismatches)} masks or sketches are not of their pictures: {next(iter(self.size_mismatches.values()))}"
        return ""

    @property
    def usable(self) -> bool:
        return not self.unusable

    def __str__(self) -> str:
        return "\n".join(_report_lines(self))


def audit(dataset: DatasetTable, workers: int = 2, progress: bool = True) -> Report:
    """Open every picture and mask once and compare them all. Nothing is changed or written."""
    table = dataset.table
    with ThreadPoolExecutor(workers) as pool:
        work = pool.map(fingerprint, table["path"], table["mask_path"], table["sketch_path"])
        prints = list(tqdm(work, "auditing", len(table), disable=not progress, leave=False))
        exact = list(_exact_pairs(prints))
        near = near_pairs(prints, pool)
    ids = table["image_id"].to_numpy()
    lesions = table["lesion_id"].to_numpy()
    groups = lesion_groups(len(table), lesions, exact + near)
    copies = lesion_groups(len(table), np.full(len(table), pd.NA), exact + near)
    # Repeat photographs that share a lesion id are known to be the same lesion: nothing to report.
    unexplained = [(a, b) for a, b in near if pd.isna(lesions[a]) or pd.isna(lesions[b]) or lesions[a] != lesions[b]]

    def told(what: str) -> dict[str, str]:
        return {i: getattr(p, what) for i, p in zip(ids, prints, strict=True) if getattr(p, what)}

    def named(pairs: list[tuple[int, int]]) -> list[Pair]:
        return [(ids[a], ids[b]) for a, b in pairs]

    return Report(
        dataset=dataset,
        groups=groups,
        unreadable=told("error"),
        unreadable_masks=told("mask_error"),
        unreadable_sketches=told("sketch_error"),
        size_mismatches=told("size_mismatch"),
        empty_masks=[i for i, p in zip(ids, prints, strict=True) if p.foreground == 0],
        full_masks=[i for i, p in zip(ids, prints, strict=True) if p.foreground == 1],
        exact_duplicates=named(exact),
        near_duplicates=named(unexplained),
        conflicts=[list(ids[rows]) for rows in _groups_with_conflict(copies, table["label"])],
        leaks=[list(ids[rows]) for rows in _groups_with_conflict(groups, table["split"])],
        conflicting_labels=[
            str(lesions[rows[0]])
            for rows in _groups_with_conflict(lesion_groups(len(table), lesions, []), table["label"])
        ],
        shapes=pd.Series([p.shape for p in prints if not p.error]).value_counts().to_dict(),
    )


# ----------------------------------------------------------------------------------------------- comparing pictures

_tools = local()  # an ORB detector is not safe to share between threads


def fingerprint(path: str, mask_path: str | None = None, sketch_path: str | None = None) -> Fingerprint:
    """Open one picture, its mask and its sketch; what is wrong with them is kept as a sentence, not raised."""
    try:
        content = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
        image, shape = read_image(path, min_size=COMPARE_SIZE), image_shape(path)
    except (OSError, DataError) as error:
        return Fingerprint(error=str(error))
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = COMPARE_SIZE / min(gray.shape)
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if not hasattr(_tools, "orb"):
        _tools.orb = cv2.ORB_create(KEYPOINTS, 1.2, 4, 10, 0, 2, cv2.ORB_HARRIS_SCORE, 21, 5)
    keypoints, descriptors = _tools.orb.detectAndCompute(gray, None)
    found = Fingerprint(content, shape, signature(gray), np.float32([k.pt for k in keypoints]), descriptors)
    _look_at_mask(found, mask_path)
    _look_at_sketch(found, sketch_path)
    return found


def _look_at_mask(found: Fingerprint, path: str | None) -> None:
    if path is None or pd.isna(path):
        return
    try:
        mask = read_mask(path)
    except DataError as error:
        found.mask_error = str(error)
        return
    found.foreground = float(mask.mean())
    if mask.shape != found.shape:
        found.size_mismatch = size_mismatch_message(path, mask.shape, found.shape)


def _look_at_sketch(found: Fingerprint, path: str | None) -> None:
    if path is None or pd.isna(path):
        return
    try:
        height, width = read_sketch(path).shape
    except DataError as error:
        found.sketch_error = str(error)
        return
    # Sketches come at sizes of their own; what has another shape was not drawn from this picture.
    if abs(width * found.shape[0] / (height * found.shape[1]) - 1) > 0.02:
        found.size_mismatch = size_mismatch_message(path, (height, width), found.shape)


def signature(gray: np.ndarray) -> np.ndarray:
    """A perceptual hash in real numbers: gradients in eight directions over 8 x 8 cells, `float32 (512,)`.

    Each gradient is divided by those around it, so exposure and white balance do not count, and a small shift stays
    within a cell.
    """
    small = cv2.GaussianBlur(cv2.resize(gray, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32), (0, 0), 1)
    dx, dy = cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1)
    around = cv2.GaussianBlur(np.hypot(dx, dy), (0, 0), 8) + 2
    angles = np.arange(8, dtype=np.float32)[:, None, None] * np.float32(np.pi / 4)
    directed = np.maximum(dx * np.cos(angles) + dy * np.sin(angles), 0) / around
    return np.sqrt(directed.reshape(8, 8, 8, 8, 8).mean(axis=(2, 4)).ravel())


def _exact_pairs(prints: list[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Rows whose files are the same byte for byte: every copy with the first of its kind."""
    first: dict[str, int] = {}
    for row, content in enumerate(p.content for p in prints):
        if content and first.setdefault(content, row) != row:
            yield first[content], row


def near_pairs(prints: list[Fingerprint], pool: ThreadPoolExecutor) -> list[tuple[int, int]]:
    """Rows that show the same lesion: the most similar by signature, confirmed by their geometry; not exact copies."""
    rows = [row for row, p in enumerate(prints) if p.signature is not None]
    if len(rows) < 2:
        return []
    pairs = [(rows[a], rows[b]) for a, b in _candidates(np.stack([prints[row].signature for row in rows]))]
    pairs = [(a, b) for a, b in pairs if prints[a].content != prints[b].content]
    confirmed = pool.map(lambda pair: same_lesion(prints[pair[0]], prints[pair[1]]), pairs)
    return [pair for pair, yes in zip(pairs, confirmed, strict=True) if yes]


def _candidates(signatures: np.ndarray, block: int = 1024) -> list[tuple[int, int]]:
    """Each row's nearest neighbours by correlation, as pairs (a < b), each once."""
    centred = signatures - signatures.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True) + 1e-9
    pairs = set()
    for start in range(0, len(centred), block):
        similar = centred[start : start + block] @ centred.T
        np.fill_diagonal(similar[:, start:], -1)
        nearest = np.argpartition(-similar, min(NEIGHBORS, len(centred) - 1) - 1, axis=1)[:, :NEIGHBORS]
        for row, column in zip(*np.nonzero(np.take_along_axis(similar, nearest, 1) > MIN_SIMILARITY), strict=True):
            a, b = start + int(row), int(nearest[row, column])
            pairs.add((min(a, b), max(a, b)))
    return sorted(pairs)


def same_lesion(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether ORB keypoints (Rublee et al. 2011) of two pictures agree on one shift, turn and zoom.

    Dark blobs on pale skin look alike; freckles, hairs and pigment in the same arrangement do not occur twice.
    """
    if one.descriptors is None or other.descriptors is None:
        return False
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(one.descriptors, other.descriptors)
    if len(matches) < MIN_INLIERS:
        return False
    best = sorted(matches, key=lambda match: match.distance)[:BEST_MATCHES]
    here, there = one.points[[m.queryIdx for m in best]], other.points[[m.trainIdx for m in best]]
    cv2.setRNGSeed(0)  # RANSAC draws at random; an audit must say the same thing twice
    geometry, agreeing = cv2.estimateAffinePartial2D(here, there, ransacReprojThreshold=3, maxIters=300)
    if geometry is None or agreeing.sum() < MIN_INLIERS:
        return False
    zoom = np.hypot(geometry[0, 0], geometry[1, 0])
    breadth = np.sqrt(np.linalg.eigvalsh(np.cov(here[agreeing.ravel() > 0].T))[0])
    # All keypoints thrown onto one point "agree" too (a zoom near zero), and so do those of one small spot or a ruler.
    return 0.5 < zoom < 2 and breadth > MIN_SPREAD


# ------------------------------------------------------------------------------------------------ groups and splits


def lesion_groups(count: int, lesions: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """A number per row, equal for rows of one lesion id and for rows joined by pairs, however indirectly."""
    first = pd.Series(np.arange(count)).groupby(pd.Series(lesions), dropna=True).transform("first")
    links = [(row, int(head)) for row, head in first.dropna().items()] + pairs
    here, there = np.array(links, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(here)), (here, there)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _groups_with_conflict(groups: np.ndarray, values: pd.Series) -> list[np.ndarray]:
    """Rows of every group in which more than one known value stands."""
    kinds = values.groupby(groups).nunique()
    return [np.flatnonzero(groups == number) for number in kinds.index[kinds > 1]]


def split_by_lesion(
    splits: np.ndarray, groups: np.ndarray, labels: np.ndarray, fraction: float = 0.1, seed: int = 0
) -> np.ndarray:
    """Complete splits: groups whole, official splits kept, and what has none goes to "train".

    A group in several splits goes to the one that is measured on ("test" before "val" before "train"), so an official
    test set keeps every picture. A missing "val" or "test" is drawn from "train": `share` of each class by
    pictures, at least one group of a class that has three, never its last.
    """
    ranks = pd.Series(splits).map({"train": 0, "val": 1, "test": 2}).fillna(0).astype(int)
    whole = ranks.groupby(groups).transform("max").to_numpy()
    frame = pd.DataFrame({"group": groups, "label": labels, "rank": whole})
    rng = np.random.default_rng(seed)
    for rank in sorted({1, 2} - set(ranks)):
        drawn = _sample_groups(frame, fraction, rng)
        frame.loc[frame["group"].isin(drawn), "rank"] = rank
    return np.array(["train", "val", "test"], dtype=object)[frame["rank"]]


def _sample_groups(frame: pd.DataFrame, fraction: float, rng: np.random.Generator) -> list[int]:
    """Groups of the training rows that together hold `share` of each class."""
    drawn: list[int] = []
    strata = frame.groupby("group").agg(label=("label", "first"), rank=("rank", "first"), size=("label", "size"))
    for _, stratum in strata.groupby("label"):
        free = stratum[stratum["rank"] == 0]
        target = fraction * stratum["size"].sum()
        order = free.iloc[rng.permutation(len(free))]
        # A group is taken while that brings the sum nearer to the target.
        before = order["size"].cumsum() - order["size"]
        taken = order.index[before + order["size"] / 2 <= target]
        # A rare class is still measured on, and still trained on.
        drawn += list(order.index[: min(max(len(taken), 1), len(free) - 1)])
    return drawn


def clean(report: Report, seed: int = 0) -> DatasetTable:
    """The audited data set put right: damaged and contradicting pictures left out, empty masks unknown, splits whole.

    Everything done is said in `problems`, with counts. Raises `DataError` when the data cannot be used.
    """
    if not report.usable:
        raise DataError(f"{report.dataset.root}: {report.unusable}")
    dataset, table = report.dataset, report.dataset.table
    contradicting = {i for copies in report.conflicts for i in copies}
    keep = ~table["image_id"].isin(set(report.unreadable) | contradicting).to_numpy()
    unknown = {
        "mask_path": table["image_id"].isin([*report.empty_masks, *report.unreadable_masks]),
        "sketch_path": table["image_id"].isin(list(report.unreadable_sketches)),
    }
    labels = table["label"].fillna(-1).to_numpy(int)
    splits = split_by_lesion(table["split"].to_numpy(), report.groups, labels, seed=seed)
    moved = table["split"].notna().to_numpy() & (splits != table["split"].fillna("").to_numpy()) & keep
    leaked = np.isin(table["image_id"], [i for ids in report.leaks for i in ids])
    done = [
        _count_line(len(report.unreadable), "unreadable pictures left out"),
        _count_line(len(contradicting), "pictures left out because a copy of them has another label"),
        _count_line(len(report.empty_masks), "empty masks taken as unknown"),
        _count_line(len(report.unreadable_masks), "unreadable masks taken as unknown"),
        _count_line(len(report.unreadable_sketches), "unreadable sketches taken as unknown"),
        _count_line(int((moved & leaked).sum()), "pictures moved so that no lesion stands in two splits"),
    ]
    lesions = assign_lesion_ids(table, report.groups)
    table = table.assign(
        split=pd.array(splits, "string"), lesion_id=lesions, **{c: table[c].mask(gone) for c, gone in unknown.items()}
    )
    table = table[keep].reset_index(drop=True)
    return replace(dataset, table=table, problems=dataset.problems + [line for line in done if line])


def assign_lesion_ids(table: pd.DataFrame, groups: np.ndarray) -> pd.Series:
    """One `lesion_id` for all pictures of a group, the first of theirs (of a picture without one its `image_id`), so
    that whatever is split or resampled later keeps copies together too; still unknown for a picture alone."""
    names = table["lesion_id"].fillna(table["image_id"]).groupby(groups)
    known = table["lesion_id"].notna() | (names.transform("size") > 1)
    return names.transform("min").where(known).astype("string")


def _count_line(count: int, what: str) -> str:
    return f"{count} {what}" if count else ""


# ------------------------------------------------------------------------------------------------------- one screen


def _report_lines(report: Report) -> Iterator[str]:
    yield from _heading(report)
    yield f"\n{report.dataset.counts().to_string()}\n"
    yield from (f"! {problem}" for problem in report.dataset.problems)
    for what, found in (
        ("unreadable pictures", list(report.unreadable.values())),
        ("unreadable masks", list(report.unreadable_masks.values())),
        ("unreadable sketches", list(report.unreadable_sketches.values())),
        ("masks and sketches that are not of their picture", list(report.size_mismatches.values())),
        ("empty masks", report.empty_masks),
        ("masks that cover the whole picture", report.full_masks),
        ("exact copies", report.exact_duplicates),
        ("near duplicates that no lesion id explains", report.near_duplicates),
        ("copies under another label", report.conflicts),
        ("lesion ids with several diagnoses", report.conflicting_labels),
        ("lesions or copies in several splits", report.leaks),
    ):
        yield f"{'!' if found else ' '} {len(found):5,} {what}{_examples(found)}"
    faulty = any((report.unreadable, report.unreadable_masks, report.empty_masks, report.conflicts, report.leaks))
    yield (
        "\nCANNOT BE USED: " + report.unusable
        if report.unusable
        else "\ncan be used" + ("; `prepare` puts these faults right and says how" if faulty else "")
    )


def _heading(report: Report) -> Iterator[str]:
    dataset, table = report.dataset, report.dataset.table
    yield f"{dataset.name}: {len(table):,} pictures in {display_path(dataset.root)}"
    sizes = sorted(report.shapes.items(), key=lambda item: -item[1])
    facts = ["sizes " + ", ".join(f"{width} x {height}" for (height, width), _ in sizes[:3])]
    facts[0] += f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    facts += [
        f"{table[f'{what}_path'].notna().sum():,} {what}{'es' if what == 'sketch' else 's'}"
        for what in ("mask", "sketch")
    ]
    facts += [f"{len(dataset.unpaired_sketches):,} unpaired sketches"] if dataset.unpaired_sketches else []
    lesions = table["lesion_id"].dropna()
    repeats = len(lesions) - lesions.nunique()
    facts += [f"{lesions.nunique():,} lesions, {repeats:,} repeat photographs" if len(lesions) else "no lesion ids"]
    yield "; ".join(facts)


def _examples(found: list, most: int = 3) -> str:
    examples = [" = ".join(item) if isinstance(item, (tuple, list)) else item for item in found[:most]]
    return ": " + ", ".join(examples) + (", ..." if len(found) > most else "") if found else ""

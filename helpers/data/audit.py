"""Check a data set: unreadable files, duplicates, contradicting labels, lesions in several splits.

`audit(dataset)` reports and changes nothing; `clean(report)` returns the data set with these faults removed.
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
from helpers.data.files import DataError, image_shape, read_image, read_mask, size_mismatch_message
from helpers.data.layouts import MISSING_LIMIT, DatasetTable

COMPARE_SIZE = 150  # pixels of the shorter side at which images are compared
KEYPOINTS = 200
NEIGHBORS = 3  # candidates per image
MIN_SIMILARITY = 0.4  # correlation of signatures; no candidate below it was ever confirmed
CHUNK = 1024  # rows of the similarity matrix at a time
BEST_MATCHES = 60
# Of the best matches at least `MIN_INLIERS` must fit one similarity transform and have a standard deviation of
# `MIN_SPREAD` pixels around their main axis. Chosen by inspecting pairs of HAM10000 (26,000 candidates) and ISIC 2017:
# fewer inliers occur by chance, a smaller spread is the same ruler in two images.
MIN_INLIERS = 21
MIN_SPREAD = 5.0
HELD_OUT_FRACTION = 0.1  # of each class, for a missing "val" or "test" split

Pair = tuple[str, str]


@dataclass
class Fingerprint:
    """What the audit keeps of one image, its mask and its sketch: about 10 kB instead of the pixels."""

    content: str = ""
    shape: tuple[int, int] = (0, 0)
    signature: np.ndarray | None = None  # (512,) float32
    points: np.ndarray | None = None  # (K, 2) float32
    descriptors: np.ndarray | None = None  # (K, 32) uint8
    foreground: float | None = None  # fraction of the image that the mask covers, None without a mask
    error: str = ""  # error messages, empty if there is no error
    mask_error: str = ""
    sketch_error: str = ""
    size_mismatch: str = ""  # of a mask or sketch that does not belong to this image


@dataclass
class Report:
    """Faults of a data set, by image id.

    `groups (N,)` numbers the rows of the table: rows with the same number must stay in the same split.
    """

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
        if mismatches := list(self.size_mismatches.values()):
            return f"{len(mismatches)} masks or sketches do not have the size or shape of their image: {mismatches[0]}"
        return ""

    @property
    def usable(self) -> bool:
        """Whether `clean` accepts the data."""
        return not self.unusable

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
        exact = list(_exact_pairs(prints))
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
        unreadable=messages("error"),
        unreadable_masks=messages("mask_error"),
        unreadable_sketches=messages("sketch_error"),
        size_mismatches=messages("size_mismatch"),
        empty_masks=[i for i, p in zip(ids, prints, strict=True) if p.foreground == 0],
        full_masks=[i for i, p in zip(ids, prints, strict=True) if p.foreground == 1],
        exact_duplicates=id_pairs(exact),
        near_duplicates=id_pairs(unexplained),
        conflicts=[list(ids[rows]) for rows in _groups_with_conflict(copies, table["label"])],
        leaks=[list(ids[rows]) for rows in _groups_with_conflict(groups, table["split"])],
        conflicting_labels=[str(lesions[rows[0]]) for rows in _groups_with_conflict(by_lesion_id, table["label"])],
        shapes=pd.Series([p.shape for p in prints if not p.error]).value_counts().to_dict(),
    )


# ------------------------------------------------------------------------------------------------- comparing images

_thread_local = local()  # an ORB detector cannot be shared between threads


def fingerprint(path: str, mask_path: str | None = None, sketch_path: str | None = None) -> Fingerprint:
    """Read an image, its mask and its sketch (None or `<NA>`: there is none); errors are recorded, not raised."""
    try:
        content = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
        image, shape = read_image(path, min_size=COMPARE_SIZE), image_shape(path)
    except (OSError, DataError) as error:
        return Fingerprint(error=str(error))
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = COMPARE_SIZE / min(gray.shape)
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if not hasattr(_thread_local, "orb"):
        _thread_local.orb = cv2.ORB_create(KEYPOINTS, 1.2, 4, 10, 0, 2, cv2.ORB_HARRIS_SCORE, 21, 5)
    keypoints, descriptors = _thread_local.orb.detectAndCompute(gray, None)
    result = Fingerprint(content, shape, signature(gray), np.float32([k.pt for k in keypoints]), descriptors)
    _check_mask(result, mask_path)
    _check_sketch(result, sketch_path)
    return result


def _check_mask(image: Fingerprint, path: str | None) -> None:
    """Record the mask's foreground fraction, or its error or size mismatch, in the fingerprint of its image."""
    if path is None or pd.isna(path):
        return
    try:
        mask = read_mask(path)
    except DataError as error:
        image.mask_error = str(error)
        return
    image.foreground = float(mask.mean())
    if mask.shape != image.shape:
        image.size_mismatch = size_mismatch_message(path, mask.shape, image.shape)


def _check_sketch(image: Fingerprint, path: str | None) -> None:
    """Record a sketch's error or mismatch in the fingerprint of its image."""
    if path is None or pd.isna(path):
        return
    try:
        height, width = read_image(path).shape[:2]
    except DataError as error:
        image.sketch_error = str(error)
        return
    # A sketch may have another size than its image, but not another aspect ratio.
    if abs(width * image.shape[0] / (height * image.shape[1]) - 1) > 0.02:
        image.size_mismatch = size_mismatch_message(path, (height, width), image.shape)


def signature(gray: np.ndarray) -> np.ndarray:
    """Perceptual hash of `gray uint8 (H, W)`: gradients in 8 directions over 8 x 8 cells, `float32 (512,)`.

    Gradients are divided by the local gradient magnitude, which cancels exposure and white balance; a small shift stays
    within a cell.
    """
    small = cv2.GaussianBlur(cv2.resize(gray, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32), (0, 0), 1)
    dx, dy = cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1)
    local_magnitude = cv2.GaussianBlur(np.hypot(dx, dy), (0, 0), 8) + 2
    angles = np.arange(8, dtype=np.float32)[:, None, None] * np.float32(np.pi / 4)
    gradients = np.maximum(dx * np.cos(angles) + dy * np.sin(angles), 0) / local_magnitude  # (8, 64, 64)
    return np.sqrt(gradients.reshape(8, 8, 8, 8, 8).mean(axis=(2, 4)).ravel())


def _exact_pairs(prints: list[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Pairs of rows with byte-identical image files: the first row of each content with every copy of it."""
    first: dict[str, int] = {}
    for row, content in enumerate(p.content for p in prints):
        if content and first.setdefault(content, row) != row:
            yield first[content], row


def near_pairs(prints: list[Fingerprint], pool: ThreadPoolExecutor) -> list[tuple[int, int]]:
    """Pairs of rows (a < b) that show the same lesion, without exact copies: similar by signature, then confirmed by
    `same_lesion`."""
    rows = [row for row, p in enumerate(prints) if p.signature is not None]
    if len(rows) < 2:
        return []
    pairs = [(rows[a], rows[b]) for a, b in _candidates(np.stack([prints[row].signature for row in rows]))]
    pairs = [(a, b) for a, b in pairs if prints[a].content != prints[b].content]
    confirmed = pool.map(lambda pair: same_lesion(prints[pair[0]], prints[pair[1]]), pairs)
    return [pair for pair, is_same in zip(pairs, confirmed, strict=True) if is_same]


def _candidates(signatures: np.ndarray) -> list[tuple[int, int]]:
    """Each row's nearest neighbors by correlation, as sorted unique pairs (a < b). signatures: (N, 512)."""
    centered = signatures - signatures.mean(axis=0)
    centered /= np.linalg.norm(centered, axis=1, keepdims=True) + 1e-9
    pairs = set()
    for start in range(0, len(centered), CHUNK):
        similarity = centered[start : start + CHUNK] @ centered.T  # (rows of the chunk, N)
        np.fill_diagonal(similarity[:, start:], -1)
        nearest = np.argpartition(-similarity, min(NEIGHBORS, len(centered) - 1) - 1, axis=1)[:, :NEIGHBORS]
        similar = np.take_along_axis(similarity, nearest, 1) > MIN_SIMILARITY
        for row, column in zip(*np.nonzero(similar), strict=True):
            a, b = start + int(row), int(nearest[row, column])
            pairs.add((min(a, b), max(a, b)))
    return sorted(pairs)


def same_lesion(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether the ORB keypoints (Rublee et al., ICCV 2011) of two images fit one shift, rotation and scale.

    Lesions look alike as dark blobs on pale skin, but the arrangement of freckles, hairs and pigment is unique.
    """
    if a.descriptors is None or b.descriptors is None:
        return False
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(a.descriptors, b.descriptors)
    if len(matches) < MIN_INLIERS:
        return False
    best = sorted(matches, key=lambda match: match.distance)[:BEST_MATCHES]
    points_a, points_b = a.points[[m.queryIdx for m in best]], b.points[[m.trainIdx for m in best]]
    cv2.setRNGSeed(0)  # RANSAC samples at random; the audit must be reproducible
    transform, inliers = cv2.estimateAffinePartial2D(points_a, points_b, ransacReprojThreshold=3, maxIters=300)
    if transform is None or inliers.sum() < MIN_INLIERS:
        return False
    scale = np.hypot(transform[0, 0], transform[1, 0])
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(points_a[inliers.ravel() > 0].T))[0])
    # Inliers also arise if all points map to one point (scale near 0) or lie in one small spot or on a ruler.
    return 0.5 < scale < 2 and spread > MIN_SPREAD


# ------------------------------------------------------------------------------------------------ groups and splits


def lesion_groups(count: int, lesions: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Group number of each of `count` rows: equal for rows with the same lesion id (`lesions`, `<NA>` if unknown) and
    for rows connected, directly or not, by `pairs`."""
    first = pd.Series(np.arange(count)).groupby(pd.Series(lesions), dropna=True).transform("first")
    links = [(row, int(head)) for row, head in first.dropna().items()] + pairs
    rows, columns = np.array(links, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _groups_with_conflict(groups: np.ndarray, values: pd.Series) -> list[np.ndarray]:
    """Row numbers of every group with more than one known value."""
    num_values = values.groupby(groups).nunique()
    return [np.flatnonzero(groups == group) for group in num_values.index[num_values > 1]]


def split_by_lesion(splits: np.ndarray, groups: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Split of every row, `object (N,)` of "train", "val", "test", with every group in one split.

    Official splits are kept; rows without one go to "train". A group that spans several goes to the evaluation split
    ("test" before "val" before "train"), so an official test set stays complete. A split "val" or "test" without any
    row is sampled from "train": `HELD_OUT_FRACTION` of the images of each class, at least one group if the class has
    three, never its last.
    """
    ranks = pd.Series(splits).map({"train": 0, "val": 1, "test": 2}).fillna(0).astype(int)
    group_ranks = ranks.groupby(groups).transform("max").to_numpy()
    frame = pd.DataFrame({"group": groups, "label": labels, "rank": group_ranks})
    rng = np.random.default_rng(seed)
    for rank in sorted({1, 2} - set(ranks)):
        sampled = _sample_groups(frame, rng)
        frame.loc[frame["group"].isin(sampled), "rank"] = rank
    return np.array(["train", "val", "test"], dtype=object)[frame["rank"]]


def _sample_groups(frame: pd.DataFrame, rng: np.random.Generator) -> list[int]:
    """Groups of training rows that together hold `HELD_OUT_FRACTION` of each class."""
    sampled: list[int] = []
    strata = frame.groupby("group").agg(label=("label", "first"), rank=("rank", "first"), size=("label", "size"))
    for _, stratum in strata.groupby("label"):
        training = stratum[stratum["rank"] == 0]
        target = HELD_OUT_FRACTION * stratum["size"].sum()
        order = training.iloc[rng.permutation(len(training))]
        # Take groups as long as each brings the sum nearer to the target.
        before = order["size"].cumsum() - order["size"]
        selected = order.index[before + order["size"] / 2 <= target]
        # Rare classes need at least one group for evaluation and one for training.
        sampled += list(order.index[: min(max(len(selected), 1), len(training) - 1)])
    return sampled


def clean(report: Report, seed: int = 0) -> DatasetTable:
    """Return the audited data set without its faults; splits are complete, see `split_by_lesion`.

    Unreadable images and copies with contradicting labels are removed, empty masks become unknown. Every change is
    added to `problems`, with its count. Raises `DataError` if the data cannot be used.
    """
    if not report.usable:
        raise DataError(f"{report.dataset.root}: {report.unusable}; replace these files and run the command again")
    dataset, table = report.dataset, report.dataset.table
    contradicting = {i for copies in report.conflicts for i in copies}
    keep = ~table["image_id"].isin(set(report.unreadable) | contradicting).to_numpy()
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
        _count_line(len(contradicting), "images left out because a copy of them has another label"),
        _count_line(len(report.empty_masks), "empty masks treated as unknown"),
        _count_line(len(report.unreadable_masks), "unreadable masks treated as unknown"),
        _count_line(len(report.unreadable_sketches), "unreadable sketches treated as unknown"),
        _count_line(int((moved & leaked).sum()), "images moved so that each lesion is in one split"),
    ]
    lesions = assign_lesion_ids(table, report.groups)
    paths = {column: table[column].mask(is_unknown) for column, is_unknown in unknown.items()}
    table = table.assign(split=pd.array(splits, "string"), lesion_id=lesions, **paths)
    table = table[keep].reset_index(drop=True)
    return replace(dataset, table=table, problems=dataset.problems + [line for line in changes if line])


def assign_lesion_ids(table: pd.DataFrame, groups: np.ndarray) -> pd.Series:
    """One `lesion_id` per group of several images, so that later splits and resampling keep copies together.

    It is the smallest of the group's lesion ids, where an image without one counts with its `image_id`. An ungrouped
    image keeps its own, which may be `<NA>`.
    """
    names = table["lesion_id"].fillna(table["image_id"]).groupby(groups)
    known = table["lesion_id"].notna() | (names.transform("size") > 1)
    return names.transform("min").where(known).astype("string")


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

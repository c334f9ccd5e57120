"""Do all feature extractors say the same of a generator? One table: distances with their floors, by every extractor."""

import time
from pathlib import Path

import pandas as pd

from helpers.config import Config, display_path
from helpers.experiments.evaluate_generator import distances, sample_images
from helpers.experiments.evaluation import load_generator, open_store
from helpers.experiments.results import Page
from helpers.metrics.extractors import PRETRAINED, SKIN, load_extractors

EXTRACTORS = (*PRETRAINED, SKIN)
MEASURES = {"kid": 4, "fd": 1, "precision": 2, "recall": 2}  # with their digits
REMARKS = {
    "inception": "FD is the FID",
    "mobilenet_v2": "weights: see limits",
    "efficientnet_lite2": "same family as the discriminator's features",
    SKIN: "trained without labels on training images, so its floor is the held-out split that is not evaluated",
}
LIMITS = (
    "One generator and one sample of its images: the intervals do not include the variance of its training.",
    "The MobileNetV2 weights used here are converted from a quantized release; torchvision's give other numbers.",
    "EfficientNet-Lite2 is of the family of EfficientNet-Lite1, the features of the projected discriminator, and may "
    "favor generators that were trained with it.",
    "Distances of different extractors have different units: compare each with its own floor only.",
)


def compare_extractors(checkpoint: str | Path, split: str, cfg: Config) -> pd.DataFrame:
    """Row per extractor and measure of `MEASURES`: `extractor measure value low high n n_real floor floor_low
    floor_high seconds note`, of up to 1,000 images in the natural mix of classes; what is not available has one row
    with the reason in `note`.

    Raises `DataError` if the file is not a generator's or does not fit the data set.
    """
    generate, config = load_generator(checkpoint)
    store = open_store(cfg, config.size, config.style, classes=config.classes)
    generated, rows = sample_images(generate, store, split, "natural"), []
    for name in EXTRACTORS:
        started = time.perf_counter()
        extractors, missing = load_extractors([name])
        measured = distances(generated, extractors, cfg.features, [], by_class=False)
        found = [row for row in measured_rows(measured) if row["measure"] in MEASURES]
        seconds = (time.perf_counter() - started) / max(len(found), 1)
        rows += [row | {"seconds": seconds, "note": REMARKS.get(name)} for row in found]
        rows += [{"extractor": name, "measure": "kid", "note": reason} for reason in missing.values()]
    columns = ["extractor", "measure", "value", "low", "high", "n", "n_real", "floor", "floor_low", "floor_high"]
    return pd.DataFrame(rows).reindex(columns=[*columns, "seconds", "note"]).assign(split=split)


def measured_rows(rows: list[dict]) -> list[dict]:
    """Of the rows of `distances`, those of all generated images, with the interval of their floor; FID counts as FD."""
    rows = [row | {"measure": row["measure"].replace("fid", "fd")} for row in rows if row["class"] == "all"]
    floors = {
        row["measure"]: {"floor": row["value"], "floor_low": row.get("low"), "floor_high": row.get("high")}
        for row in rows
        if row["compared"] == "floor"
    }
    return [row | floors.get(row["measure"], {}) for row in rows if row["compared"] == "synthetic"]


def above_floor(table: pd.DataFrame) -> dict[str, bool]:
    """Of each extractor that was run, whether the interval of KID lies above the interval of its floor."""
    kids = table[(table["measure"] == "kid") & table["value"].notna()]
    return {row.extractor: bool(row.low > row.floor_high) for row in kids.itertuples()}


def verdict(table: pd.DataFrame) -> list[str]:
    """Whether the extractors agree, in sentences."""
    above = above_floor(table)
    far, near = ([name for name, is_above in above.items() if is_above == side] for side in (True, False))
    if not above:
        return ["No extractor is available."]
    if far and near:
        return [f"The extractors disagree: by {', '.join(far)} KID lies above the interval of the floor, by "
                f"{', '.join(near)} it does not."]  # fmt: skip
    says = "lies above the interval of the floor: generated images can be told from real ones" if far else \
        "does not lie above the interval of the floor"  # fmt: skip
    count = f"All {len(above)} extractors agree" if len(above) > 1 else f"Only {next(iter(above))} was run"
    return [f"{count}: KID {says}."]


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """A line per extractor, rounded: every measure next to its floor, FD also as a multiple of it."""
    lines = {name: summary_line(part) for name, part in table.groupby("extractor", sort=False)}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("extractor")


def summary_line(rows: pd.DataFrame) -> dict[str, str | int | None]:
    """The cells of one extractor in `summary_table`, from its rows."""
    rows, line = rows.set_index("measure"), {"note": rows["note"].iloc[0]}
    if rows["value"].isna().all():
        return {"note": f"not run: {line['note']}"}
    for name, digits in MEASURES.items():
        line[name], line[f"{name} floor"] = (f"{rows.loc[name, column]:.{digits}f}" for column in ("value", "floor"))
    for end, prefix in (("kid", ""), ("kid floor", "floor_")):
        line[end] += " ({:.4f} to {:.4f})".format(*(rows.loc["kid", f"{prefix}{side}"] for side in ("low", "high")))
    line["fd / floor"] = f"{rows.loc['fd', 'value'] / rows.loc['fd', 'floor']:.2f}"
    return {"n": int(rows["n"].iloc[0]), **{name: line[name] for name in line if name != "note"}, "note": line["note"]}


def to_page(table: pd.DataFrame, checkpoint: str | Path, data: str) -> Page:
    """The page of published results."""
    settings = [f"Generator: {display_path(checkpoint)}", f"Data: {data}, split {table['split'][0]}",
                "Floor: as many other real images, of the training split where the note does not say otherwise",
                "An extractor sees a difference if the interval of KID lies above that of its floor"]  # fmt: skip
    return Page("Do all feature extractors say the same of the generator?", settings, summary_table(table),
                verdict(table), LIMITS)  # fmt: skip

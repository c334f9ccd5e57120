"""The one shell door: `python -m helpers audit | prepare | train | draw | quality`."""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.config import DATASETS, get_config, shown
from helpers.data.audit import audit
from helpers.data.files import DataError
from helpers.data.layouts import open_dataset, pictures_by_id, read, read_labels
from helpers.data.store import StoreSettings, load_sketch, prepare


def audit_command(args: argparse.Namespace, cfg) -> int:
    report = audit(read(args.folder, args.classes), workers=cfg.workers)
    print(report)
    return 0 if report.usable else 1


def prepare_command(args: argparse.Namespace, cfg) -> int:
    start = time.perf_counter()
    dataset = open_dataset(cfg, args.classes)
    settings = StoreSettings(args.size or cfg.size, args.style, args.geometry, cfg.seed)
    store = prepare(dataset, args.out or cfg.stores, settings, workers=cfg.workers)
    stored = replace(dataset, table=store.table)
    print(stored.counts().to_string())
    print("".join(f"! {problem}\n" for problem in store.problems) + f"{store}\n{shown(store.folder)}")
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


def train_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.cgan import CGANSettings, train_cgan  # seconds to load: not for every command
    from helpers.models.classifier import ClassifierSettings, train_classifier
    from helpers.models.training import Run

    dataset, size, out = open_dataset(cfg, args.classes), args.size or cfg.size, args.out or cfg.outputs / args.method
    if args.method == "classifier" and not dataset.has_outlines:
        args.style = "structure"  # it looks at no sketches, and these can be made of any set
    store = prepare(dataset, cfg.stores, StoreSettings(size, args.style, "square", cfg.seed), workers=cfg.workers)
    run = Run(args.steps or cfg.steps, args.batch or cfg.batch, args.seed, save_every=args.save_every)
    if args.method == "classifier":
        train_classifier(store, ClassifierSettings(size, tuple(store.classes), args.network or cfg.network), out, run)
        print(f"trained: python -m helpers quality --features {shown(out / 'checkpoint.pt')} --real FOLDER ...")
    else:
        settings = CGANSettings(size, tuple(store.classes), args.style, args.width or cfg.width)
        train_cgan(store, settings, out, run)
        place = shown(out / "checkpoint.pt")
        print(f"trained: python -m helpers draw --checkpoint {place} --sketches FOLDER --out FOLDER")
    return 0


def draw_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.cgan import draw, load_cgan  # seconds to load: not for every command

    checkpoint = args.checkpoint or cfg.outputs / "cgan" / "checkpoint.pt"
    if not checkpoint.is_file():
        raise DataError(
            f"there is no {shown(checkpoint)}: `python -m helpers train cgan` makes one, --checkpoint names one"
        )
    generator, settings = load_cgan(checkpoint)
    print(f"{shown(checkpoint)}: {settings.size} px, sketches of style {settings.style}, {' '.join(settings.classes)}")
    problems = []
    sketches = read_sketches(args.sketches, settings.size, problems)
    labels = labels_of(sketches, args.labels, list(settings.classes), problems)
    print("".join(f"! {problem}\n" for problem in problems), end="")
    if not labels:
        raise DataError(f"nothing to draw: no sketch in {args.sketches} that can be read and has a label")
    for k, name in enumerate(settings.classes):
        if ids := [image_id for image_id in sketches if name in labels.get(image_id, ())]:
            images = draw(generator, np.stack([sketches[i] for i in ids]), [k] * len(ids), args.seed)
            (args.out / name).mkdir(parents=True, exist_ok=True)
            for image_id, image in zip(ids, images, strict=True):
                Image.fromarray(image).save(args.out / name / f"{image_id}.png")
            print(f"{len(ids)} images in {shown(args.out / name)}")
    return 0


MOSTLY_INK = 0.35  # share of a picture: a photograph or unevenly lit paper exceeds it, a line drawing does not


def read_sketches(folder: Path, size: int, problems: list[str]) -> dict[str, np.ndarray]:
    """Every drawing of a folder by its id, `(size, size)` in {0, 255}; what cannot be read or is empty is named."""
    found = {}
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    for image_id, path in pictures_by_id(folder, problems).items():
        try:
            drawing = load_sketch(path, StoreSettings(size))
        except DataError as error:
            problems.append(str(error))
            continue
        inked = (drawing > 0).mean()
        if 0 < inked < MOSTLY_INK:
            found[image_id] = drawing
        else:
            problems.append(f"{path} is {'a filled area, no line drawing,' if inked else 'empty'} and is not drawn")
    return found


def labels_of(sketches: dict, file: Path | None, classes: list[str], problems: list[str]) -> dict[str, list[str]]:
    """Under which class names each sketch is drawn: the one in the label file, or all of them without a file."""
    if file is None:
        return dict.fromkeys(sketches, classes)
    labels = read_labels(file, classes, problems)
    if without := [i for i in sketches if i not in labels]:
        problems.append(
            f"{len(without)} sketches have no label in {file.name} and are not drawn ({', '.join(without[:5])})"
        )
    if absent := [i for i in labels if i not in sketches]:
        problems.append(f"{len(absent)} ids of {file.name} have no sketch ({', '.join(absent[:5])})")
    return {i: [labels[i]] for i in sketches if i in labels}


def quality_command(args: argparse.Namespace, cfg) -> int:
    from helpers.metrics.features import judge, judges_at_hand, pictures_in  # seconds to load: not for every command
    from helpers.metrics.quality import quality

    real, synthetic = pictures_in(args.real), pictures_in(args.synthetic)
    floor = args.floor and pictures_in(args.floor)
    checkpoint = cfg.outputs / "classifier" / "checkpoint.pt"
    judges, missing = ([judge(args.features)], []) if args.features else judges_at_hand(checkpoint)
    if not judges:
        raise DataError("nobody to judge: " + "; ".join(missing))
    found = quality(real, synthetic, judges, floor, cfg.features)
    used = [f"the classifier is {shown(args.features or checkpoint)}" for j in judges if j.name == "classifier"]
    found.notes += used + missing
    print(json.dumps(found.summary()) if args.json else found)
    return 0


def positive(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def parser() -> argparse.ArgumentParser:
    door = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = door.add_subparsers(required=True, metavar="COMMAND")
    classes = {"nargs": "+", "metavar": "CLASS", "help": "keep only these classes"}

    look = commands.add_parser("audit", help="say what a folder is and whether it can be trusted; writes nothing")
    look.add_argument("folder", type=Path)
    look.add_argument("--classes", **classes)
    look.set_defaults(run=audit_command, part="data")

    make = commands.add_parser("prepare", help="download if absent, audit, split by lesion, write the store")
    make.add_argument("--dataset", choices=DATASETS, help="default: LESION_DATASET, else the embedded sample")
    make.add_argument("--data-root", type=Path, help="its folder; default: LESION_DATA_ROOT, else data/<dataset>")
    make.add_argument("--size", type=int, help="pixels of a side; default: the profile's")
    make.add_argument("--style", choices=("contour", "structure"), default="contour", help="of the sketches")
    make.add_argument("--geometry", choices=("square", "whole"), default="square", help="central square or all of it")
    make.add_argument("--classes", **classes)
    make.add_argument("--out", type=Path, help="folder for the store; default: data/stores")
    make.set_defaults(run=prepare_command, part="data")
    learn = commands.add_parser("train", help="train a network; goes on from the checkpoint if one is there")
    learn.add_argument("method", choices=("cgan", "classifier"))
    learn.add_argument("--dataset", choices=DATASETS, help="default: LESION_DATASET, else the embedded sample")
    learn.add_argument("--data-root", type=Path, help="its folder; default: LESION_DATA_ROOT, else data/<dataset>")
    learn.add_argument("--style", choices=("contour", "structure"), default="contour", help="of the sketches")
    learn.add_argument("--classes", **classes)
    for name in ("size", "width", "steps", "batch"):
        learn.add_argument(f"--{name}", type=positive, help="default: the profile's")
    learn.add_argument("--network", metavar="NAME", help="of the classifier: small, or one of torchvision's")
    learn.add_argument("--seed", type=int, default=0)
    learn.add_argument("--save-every", type=positive, default=500, metavar="STEPS", help="default: 500")
    learn.add_argument("--out", type=Path, help="folder for checkpoint, history and grids; default: outputs/.../METHOD")
    learn.set_defaults(run=train_command, part=None)

    pen = commands.add_parser("draw", help="sketches -> images, by a trained network")
    pen.add_argument(
        "--dataset", choices=DATASETS, help="whose network: default: LESION_DATASET, else the embedded sample"
    )
    pen.add_argument("--checkpoint", type=Path, help="default: the one of `train cgan`")
    pen.add_argument("--sketches", type=Path, required=True, metavar="FOLDER")
    pen.add_argument(
        "--labels", type=Path, metavar="CSV", help="image_id,label or one-hot columns; without it every class"
    )
    pen.add_argument("--seed", type=int, default=0)
    pen.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets <class name>/<image_id>.png")
    pen.set_defaults(run=draw_command, part="cgan")

    rate = commands.add_parser("quality", help="how near are synthetic images to real ones?")
    rate.add_argument("--real", type=Path, required=True, metavar="FOLDER", help="pictures, or a folder per class")
    rate.add_argument("--synthetic", type=Path, required=True, metavar="FOLDER")
    rate.add_argument("--floor", type=Path, metavar="FOLDER", help="other real pictures; default: part of --real")
    rate.add_argument(
        "--features", metavar="NAME", help="inception or a network of torchvision (NAME=FILE: its weights), or a "
        "classifier's checkpoint.pt; "
        "default: inception, mobilenet_v2 and the classifier of notebook 5, as far as they can be had"
    )  # fmt: skip
    rate.add_argument("--dataset", choices=DATASETS, help="whose classifier: default: LESION_DATASET, else the sample")
    rate.add_argument("--json", action="store_true")
    rate.set_defaults(run=quality_command, part="quality")
    return door


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        cfg = get_config(
            args.part or {"cgan": "cgan", "classifier": "quality"}[args.method],
            dataset=getattr(args, "dataset", None),
            data_root=getattr(args, "data_root", None),
        )
        return args.run(args, cfg)
    except (ValueError, OSError, MemoryError) as error:  # DataError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""The one shell door: `python -m helpers audit | prepare | train METHOD | draw | quality | segment | classify |
experiment QUESTION | release METHOD | demo`.
"""

import argparse
import csv
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.config import DATASETS, get_config, shown
from helpers.data.audit import audit
from helpers.data.files import DataError, picture_shape, read_image
from helpers.data.layouts import open_dataset, pictures_by_id, read, read_labels
from helpers.data.sketches import MOSTLY_INK
from helpers.data.store import Store, StoreSettings, fit, load_sketch, prepare


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
    from helpers.models.training import peak_memory  # seconds to load: not for every command

    done = args.train(args, cfg)
    print(peak_memory())
    return done


def train_cgan_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.cgan import CGANSettings, train_cgan  # seconds to load: not for every command

    files = open_dataset(cfg, args.classes).unpaired_sketches if args.unpaired else []
    store, out = training_store(args, cfg, None if files else args.style), training_folder(args, cfg)
    settings = CGANSettings(store.settings.size, tuple(store.classes), args.style, args.width or cfg.width)
    projected = cfg.projected if args.projected is None else args.projected
    settings = replace(settings, paired=not args.unpaired, projected=projected, turned=args.turned)
    sketches, problems = None, []
    if files:
        found = line_drawings({str(path): path for path in files}, settings.size, problems)
        print("".join(f"! {problem}\n" for problem in problems) + f"{len(found):,} unpaired sketches")
        if not found:
            raise DataError("no unpaired sketch can be read: there is nothing to draw from")
        sketches = np.stack(list(found.values()))
    elif args.unpaired:
        print("no unpaired sketches: each picture comes with any of the others'")
    train_cgan(store, settings, out, training_run(args, cfg), sketches=sketches, start=args.start)
    place = shown(out / "checkpoint.pt")
    print(f"trained: python -m helpers draw --checkpoint {place} --sketches FOLDER --out FOLDER")
    return 0


def train_classifier_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.classifier import ClassifierSettings, train_classifier

    store, out = training_store(args, cfg), training_folder(args, cfg)
    network = args.network or cfg.network
    settings = ClassifierSettings(store.settings.size, tuple(store.classes), network, balance=args.balance)
    history = train_classifier(store, settings, out, training_run(args, cfg))
    best = max(history["val_balanced_accuracy"], default=float("nan"))
    place = shown(out / "checkpoint.pt")
    print(f"trained, balanced accuracy on val {best:.3f}: python -m helpers classify --checkpoint {place} --images ...")
    return 0


def train_dcgan_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.dcgan import DCGANSettings, train_dcgan

    store, out = training_store(args, cfg), training_folder(args, cfg)
    settings = DCGANSettings(store.settings.size, tuple(store.classes), args.width or cfg.width)
    settings = replace(settings, projected=args.projected, turned=args.turned)
    train_dcgan(store, settings, out, training_run(args, cfg))
    print(f"trained; what it draws: {shown(out)}/grid-*.png")
    return 0


def train_segmenter_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.segmenter import SegmenterSettings, plain, train_segmenter

    store, out = training_store(args, cfg, geometry="whole"), training_folder(args, cfg)
    settings = SegmenterSettings(store.settings.size, args.network or cfg.network, args.encoder or cfg.encoder)
    settings, run = replace(settings, width=args.width or settings.width), training_run(args, cfg)
    if args.plain:
        settings, run = plain(settings), replace(run, average_over=1)
    history = train_segmenter(store, settings, out, run, start=args.start)
    best = max(history["val_jaccard"], default=float("nan"))
    place = shown(out / "checkpoint.pt")
    print(
        f"trained, mean Jaccard on val {best:.3f}: python -m helpers segment --checkpoint {place} --images FOLDER ..."
    )
    return 0


def training_store(args: argparse.Namespace, cfg, style: str | None = None, geometry: str = "square") -> Store:
    """What a network is trained on; without a `style` sketches do not matter, and are of one that the set can have."""
    dataset = open_dataset(cfg, args.classes)
    style = style or ("contour" if dataset.has_outlines else "structure")
    return prepare(
        dataset, cfg.stores, StoreSettings(args.size or cfg.size, style, geometry, cfg.seed), workers=cfg.workers
    )


def training_folder(args: argparse.Namespace, cfg) -> Path:
    return args.out or cfg.outputs / args.method


def training_run(args: argparse.Namespace, cfg):
    from helpers.models.training import Run

    steps = args.steps or cfg.steps
    save_every = args.save_every or min(500, max(1, steps // 12))
    return Run(steps, args.batch or cfg.batch, args.seed, save_every=save_every)


def checkpoint_of(method: str, args: argparse.Namespace, cfg) -> Path:
    """The named checkpoint, else the one that `train METHOD` wrote, else the released weights; says so when phantoms
    taught it. Raises `DataError` when there is none."""
    checkpoint = args.checkpoint or cfg.outputs / method / "checkpoint.pt"
    released = cfg.released / f"{method}.safetensors"
    if not args.checkpoint and not checkpoint.is_file() and released.is_file():
        return released
    if not checkpoint.is_file():
        how = f"`python -m helpers train {method}` makes one, --checkpoint names one"
        raise DataError(f"there is no {shown(checkpoint)}: {how}")
    if not args.checkpoint and cfg.dataset == "phantoms" and released.is_file():
        print(f"{shown(checkpoint)} was taught by phantoms; for photographs: --checkpoint {shown(released)}")
    return checkpoint


def release_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.cgan import load_cgan
    from helpers.models.classifier import load_classifier
    from helpers.models.dcgan import load_dcgan
    from helpers.models.released import release
    from helpers.models.segmenter import load_segmenter

    load = {"cgan": load_cgan, "classifier": load_classifier, "dcgan": load_dcgan, "segmenter": load_segmenter}
    checkpoint = args.checkpoint or cfg.outputs / args.method / "checkpoint.pt"
    if not checkpoint.is_file():
        raise DataError(f"there is no {shown(checkpoint)}: `python -m helpers train {args.method}` makes one")
    load[args.method](checkpoint)  # or says that it is no such network's
    file = release(checkpoint, args.out or cfg.released / f"{args.method}.safetensors")
    print(
        f"{shown(file)}: {file.stat().st_size / 1e6:.1f} MB; write beside it what it was trained on and how good it is"
    )
    return 0


def readable(folder: Path, size: int, problems: list[str]) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Id, path and image of every picture of a folder, one by one, for photographs can be large; what cannot be read is
    named. `size`: a side that is needed, larger ones may be read smaller."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    for image_id, path in pictures_by_id(folder, problems).items():
        try:
            yield image_id, path, read_image(path, at_least=size)
        except DataError as error:
            problems.append(str(error))


def draw_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.cgan import draw, load_cgan  # seconds to load: not for every command

    checkpoint = checkpoint_of("cgan", args, cfg)
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


def read_sketches(folder: Path, size: int, problems: list[str]) -> dict[str, np.ndarray]:
    """Every drawing of a folder by its id, `(size, size)` in {0, 255}; what cannot be read or is empty is named."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    return line_drawings(pictures_by_id(folder, problems), size, problems)


def line_drawings(files: dict[str, Path], size: int, problems: list[str]) -> dict[str, np.ndarray]:
    """The same of these files."""
    found = {}
    for image_id, path in files.items():
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


def segment_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.segmenter import load_segmenter, one_colour, segment  # seconds to load: not for every command

    checkpoint = checkpoint_of("segmenter", args, cfg)
    if args.out.resolve() == args.images.resolve():
        raise DataError(f"{args.out} is the folder of the images, which masks of the same names would overwrite")
    segmenter, settings = load_segmenter(checkpoint)
    print(f"{shown(checkpoint)}: {settings.network} with {settings.encoder}, {settings.size} px")
    problems, areas = [], []
    args.out.mkdir(parents=True, exist_ok=True)
    for image_id, path, image in readable(args.images, settings.size, problems):
        height, width = picture_shape(path)
        if one_colour(image):
            problems.append(f"{path} is all one colour: its mask is empty")
        (mask,) = segment(segmenter, [image], [(height, width)])
        Image.fromarray(255 * mask).save(args.out / f"{image_id}.png")
        areas.append((image_id, width, height, int(mask.sum()), round(float(mask.mean()), 6)))
    print("".join(f"! {problem}\n" for problem in problems), end="")
    if not areas:
        raise DataError(f"nothing to segment: no picture in {args.images} that can be read")
    with open(args.out / "areas.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "width", "height", "lesion_pixels", "lesion_share"), *areas])
    print(f"{len(areas)} masks and areas.csv in {shown(args.out)}")
    return 0


def demo_command(args: argparse.Namespace, cfg) -> int:
    from helpers.views.demo import build_page, launch_page
    from helpers.views.studio import LOADERS, Studio, weights_at_hand

    studio = Studio(weights_at_hand(cfg, {method: getattr(args, method) for method in LOADERS}))
    print(studio)
    for end in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # uploads go with the page then too
        signal.signal(end, lambda *_: sys.exit(0))
    launch_page(build_page(studio), args.port, wait=True)
    return 0


def classify_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.classifier import classify, load_classifier  # seconds to load: not for every command

    checkpoint = checkpoint_of("classifier", args, cfg)
    classifier, settings = load_classifier(checkpoint)
    out, problems, rows = args.out or cfg.outputs / "classified.csv", [], []
    for image_id, path, image in readable(args.images, settings.size, problems):
        if image.max() == image.min():
            problems.append(f"{path} is all one colour: what is said of it means nothing")
        (found,) = classify(classifier, fit(image, StoreSettings(settings.size))[None])
        rows.append((image_id, settings.classes[int(found.argmax())], *(round(float(p), 6) for p in found)))
    print("".join(f"! {problem}\n" for problem in problems), end="")
    if not rows:
        raise DataError(f"nothing to classify: no picture in {args.images} that can be read")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "diagnosis", *settings.classes), *rows])
    named = Counter(row[1] for row in rows)
    print(f"{shown(checkpoint)}: {settings.network}, {settings.size} px, temperature {classifier.temperature:.2f}")
    print(f"{len(rows)} pictures, {', '.join(f'{n} {name}' for name, n in named.most_common())}: {shown(out)}")
    print("not for diagnosis, and not for any decision about a patient")
    return 0


def segmentation_command(args: argparse.Namespace, cfg) -> int:
    from helpers.experiments.segmentation import COMPARED, segmentation_experiment, segmentation_plan

    store, out = experiment_store(args, cfg, "whole"), args.out or cfg.outputs / "segmentation-experiment"
    results = segmentation_experiment(store, segmentation_plan(cfg, store), out, args.split, args.arms)
    print(f"{store}\nmean Jaccard on the real images of {args.split}, 95 % intervals over images and seeds")
    report(results, ["jaccard"], COMPARED, out)
    return 0


def diagnosis_command(args: argparse.Namespace, cfg) -> int:
    from helpers.experiments.diagnosis import (
        COMPARED,
        auc,
        average_precision,
        balanced_accuracy,
        diagnosis_experiment,
        diagnosis_plan,
        recalls_by_arm,
    )

    store, out = experiment_store(args, cfg), args.out or cfg.outputs / "diagnosis-experiment"
    results = diagnosis_experiment(store, diagnosis_plan(cfg, store), out, args.split, args.arms)
    print(f"{store}\non the real images of {args.split}, 95 % intervals over lesions and seeds")
    report(results, [balanced_accuracy, auc, average_precision], COMPARED, out)
    print(recalls_by_arm(results).round(3).to_string())
    return 0


def balancing_command(args: argparse.Namespace, cfg) -> int:
    from helpers.experiments.balancing import (
        balancing_experiment,
        balancing_plan,
        better_remedy,
        compared,
        rare_classes,
        rare_recall,
    )
    from helpers.experiments.cells import called, summary
    from helpers.experiments.diagnosis import balanced_accuracy, recalls_by_arm

    store, out = experiment_store(args, cfg), args.out or cfg.outputs / "balancing-experiment"
    plan = balancing_plan(cfg, store)
    results = balancing_experiment(store, plan, out, args.arms)
    rare = rare_classes(store)
    measure = rare_recall(store.classes, rare)
    print(f"{store}\nrare: {' '.join(rare)}; every lesion tested once, 95 % intervals over lesions and seeds")
    for one in (measure, balanced_accuracy):
        best = better_remedy(summary(results, one))
        print(
            f"by {called(one)}, {best} is the better of the usual remedies asked, which the others are compared with\n"
        )
        report(results, [one], compared(best, plan.often), out)
    print(recalls_by_arm(results).round(3).to_string())
    return 0


def ablation_command(args: argparse.Namespace, cfg) -> int:
    from helpers.experiments.ablation import ablation_experiment, ablation_plan, in_table, small_data_experiment
    from helpers.metrics.features import any_judge

    store, judge = experiment_store(args, cfg), any_judge("mobilenet_v2")
    out = args.out or cfg.outputs / f"{args.question}-experiment"
    plan = ablation_plan(cfg, store)
    if args.question == "ablation":
        results = ablation_experiment(store, plan, judge, out, args.arms)
    else:
        results = small_data_experiment(store, plan, judge, out)
    table = in_table(results)
    seeds = " ".join(map(str, plan.seeds))
    print(f"{store}\ndrawings of val sketches against their photographs, judged by {judge.name}")
    print(f"after {plan.run.steps} steps of {plan.run.batch} pictures; means over seeds {seeds}\n")
    print(table.round(3).to_string())
    table.to_csv(out / ("some.csv" if getattr(args, "arms", None) else "table.csv"))
    return 0


def experiment_store(args: argparse.Namespace, cfg, geometry: str = "square") -> Store:
    """The store of an experiment, whose options go before the profile's sizes."""
    for name in PLANNED:
        if getattr(args, name, None):
            setattr(cfg, name, getattr(args, name))
    settings = StoreSettings(cfg.size, "contour", geometry, cfg.seed)
    return prepare(open_dataset(cfg), cfg.stores, settings, workers=cfg.workers)


def report(results, measures: list, pairs: list[tuple[str, str]], out: Path) -> None:
    """Arms and their comparisons by each measure, printed and written to `out`."""
    print(
        f"networks start from: {', '.join(results['start'].unique())}; generators are the same for all seeds, so what"
    )
    print("chance does in *their* training is in no interval\n")
    from helpers.experiments.cells import called, comparisons, in_words, summary

    for measure in measures:
        arms, found = summary(results, measure), comparisons(results, measure, pairs)
        name = called(measure).replace(" ", "-")
        arms.to_csv(out / f"arms-{name}.csv")
        found.to_csv(out / f"comparisons-{name}.csv")
        print(arms.round(4).to_string(), found.round(4).to_string(), "\n".join(in_words(found, measure)), sep="\n\n")
        print()


# Options of an experiment; where they are not given, sizes are the profile's.
PLANNED = (
    "size",
    "steps",
    "network",
    "draw_steps",
    "projected",
    "noise_steps",
    "pairs",
    "drawn",
    "made",
    "often",
    "shares",
    "folds",
    "seeds",
    "judged",
)


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

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dataset", choices=DATASETS, help="default: LESION_DATASET, else the embedded sample")
    common.add_argument("--data-root", type=Path, help="its folder; default: LESION_DATA_ROOT, else data/<dataset>")
    common.add_argument("--classes", **classes)
    for name in ("size", "steps", "batch"):
        common.add_argument(f"--{name}", type=positive, help="default: the profile's")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--save-every", type=positive, metavar="STEPS", help="default: a twelfth, 500 at most")
    common.add_argument("--out", type=Path, help="folder for checkpoint and history; default: outputs/.../METHOD")
    learn = commands.add_parser("train", help="train a network; goes on from the checkpoint if one is there")
    methods = learn.add_subparsers(required=True, metavar="METHOD", dest="method")
    one = methods.add_parser("cgan", parents=[common], help="sketch + diagnosis -> image")
    one.add_argument("--width", type=positive, help="channels at half the resolution; default: the profile's")
    one.add_argument("--style", choices=("contour", "structure"), default="contour", help="of the sketches")
    knows = "whether the discriminator knows photographs of ImageNet; default: the profile's"
    one.add_argument("--projected", action=argparse.BooleanOptionalAction, help=knows)
    one.add_argument("--turned", action="store_true", help="photographs come in all eight positions of the square")
    one.add_argument("--start", type=Path, metavar="CHECKPOINT", help="begin with the weights of another training")
    one.add_argument("--unpaired", action="store_true", help="learn from sketches that belong to none of the pictures")
    one.set_defaults(run=train_command, train=train_cgan_command, part="cgan")
    one = methods.add_parser("classifier", parents=[common], help="image -> diagnosis")
    one.add_argument("--network", metavar="NAME", help="small, or one of torchvision's; default: the profile's")
    one.add_argument("--balance", choices=("sampling", "loss", "none"), default="sampling", help="of the classes")
    one.set_defaults(run=train_command, train=train_classifier_command, part="quality")
    one = methods.add_parser("dcgan", parents=[common], help="noise + diagnosis -> image")
    one.add_argument("--width", type=positive, help="channels at half the resolution; default: the profile's")
    one.add_argument("--projected", action="store_true", help="with a discriminator that knows photographs of ImageNet")
    one.add_argument("--turned", action="store_true", help="photographs come in all eight positions of the square")
    one.set_defaults(run=train_command, train=train_dcgan_command, part="dcgan")
    one = methods.add_parser("segmenter", parents=[common], help="image -> mask")
    one.add_argument("--network", metavar="NAME", help="Unet, DeepLabV3Plus, ...; default: the profile's")
    one.add_argument("--encoder", metavar="NAME", help="mobilenet_v2, resnet34, ...; default: the profile's")
    one.add_argument("--width", type=positive, help="channels of the decoder where it is widest; default: 128")
    one.add_argument("--start", type=Path, metavar="CHECKPOINT", help="begin with the weights of another training")
    one.add_argument("--plain", action="store_true", help="no pretraining, augmentation or averaging: to compare with")
    one.set_defaults(run=train_command, train=train_segmenter_command, part="segmenter")

    give = commands.add_parser("release", help="weights to give away, from a checkpoint; half precision, safetensors")
    give.add_argument("method", choices=("cgan", "classifier", "dcgan", "segmenter"))
    give.add_argument("--dataset", choices=DATASETS, help="whose network: default: LESION_DATASET, else the sample")
    give.add_argument("--checkpoint", type=Path, help="default: the one of `train METHOD`")
    give.add_argument("--out", type=Path, metavar="FILE", help="default: data/released/METHOD.safetensors")
    give.set_defaults(run=release_command, part="cgan")

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

    trial = commands.add_parser("experiment", help="many trainings compared; goes on where it stopped")
    questions = trial.add_subparsers(required=True, metavar="QUESTION")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dataset", choices=DATASETS, help="default: LESION_DATASET, else the embedded sample")
    shared.add_argument("--data-root", type=Path, help="its folder; default: LESION_DATA_ROOT, else data/<dataset>")
    for name, what in (("size", "pixels of a side"), ("steps", "of every training")):
        shared.add_argument(f"--{name}", type=positive, help=f"{what}; default: the profile's")
    shared.add_argument("--seeds", type=int, nargs="+")
    shared.add_argument("--out", type=Path, help="folder of the results; default: outputs/.../QUESTION-experiment")
    drawn = argparse.ArgumentParser(add_help=False)
    drawn.add_argument("--draw-steps", type=positive, help="of the CGAN; default: the profile's")
    drawn.add_argument("--projected", action="store_true", help="generators whose discriminators know photographs")
    some = argparse.ArgumentParser(add_help=False)
    some.add_argument("--arms", nargs="+", metavar="ARM", help="only these of the experiment's; default: all")
    part = argparse.ArgumentParser(add_help=False)
    part.add_argument("--shares", type=float, nargs="+", help="of the real training images, in (0, 1]")
    part.add_argument("--split", choices=("val", "test"), default="test", help="real images to score on")
    one = questions.add_parser(
        "segmentation", parents=[shared, some, drawn, part], help="do drawn pairs help to segment?"
    )
    one.add_argument("--pairs", type=positive, help="drawn; default: the profile's")
    one.set_defaults(run=segmentation_command, part="experiment")
    one = questions.add_parser(
        "diagnosis", parents=[shared, some, drawn, part], help="do drawn images help to classify?"
    )
    one.add_argument("--network", metavar="NAME", help="small, or one of torchvision's; default: the profile's")
    one.add_argument("--drawn", type=positive, help="images; default: the profile's")
    one.set_defaults(run=diagnosis_command, part="diagnosis")
    one = questions.add_parser("balancing", parents=[shared, some, drawn], help="what gains recall of rare classes?")
    one.add_argument("--network", metavar="NAME", help="small, or one of torchvision's; default: the profile's")
    one.add_argument("--noise-steps", type=positive, help="of the DCGAN; default: the profile's")
    one.add_argument("--made", type=positive, help="synthetic images of rare classes; default: the profile's")
    one.add_argument("--often", type=positive, nargs="+", help="real images seen for each made one, an arm for each")
    one.add_argument("--folds", type=positive, help="by lesion; default: the profile's")
    one.set_defaults(run=balancing_command, part="balancing")

    for name, question in (("ablation", "what is each ingredient of the projected CGAN worth?"),
                           ("small-data", "how many photographs does the projected CGAN need?")):  # fmt: skip
        one = questions.add_parser(name, parents=[shared] + [some] * (name == "ablation"), help=question)
        one.add_argument("--judged", type=positive, help="drawings; default: the profile's")
        if name == "small-data":
            one.add_argument("--shares", type=float, nargs="+", help="of the training images, in (0, 1]")
        one.set_defaults(run=ablation_command, part="ablation", question=name)

    cut = commands.add_parser("segment", help="images -> masks, by a trained network")
    cut.add_argument("--dataset", choices=DATASETS, help="whose network: default: LESION_DATASET, else the sample")
    cut.add_argument("--checkpoint", type=Path, help="default: the one of `train segmenter`")
    cut.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    cut.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets <image_id>.png and areas.csv")
    cut.set_defaults(run=segment_command, part="segmenter")

    say = commands.add_parser("classify", help="images -> probabilities of the diagnoses, by a trained network")
    say.add_argument("--dataset", choices=DATASETS, help="whose network: default: LESION_DATASET, else the sample")
    say.add_argument("--checkpoint", type=Path, help="default: the one of `train classifier`")
    say.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    say.add_argument("--out", type=Path, metavar="CSV", help="default: outputs/.../classified.csv")
    say.set_defaults(run=classify_command, part="quality")

    page = commands.add_parser("demo", help="the web page: draw a lesion, analyse a photograph")
    page.add_argument("--port", type=int, help="default: the first free one from 7860")
    for method in ("cgan", "segmenter", "classifier", "dcgan"):
        page.add_argument(f"--{method}", type=Path, metavar="CHECKPOINT", help="default: the released weights")
    page.set_defaults(run=demo_command, part="cgan")
    return door


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        cfg = get_config(
            args.part,
            dataset=getattr(args, "dataset", None),
            data_root=getattr(args, "data_root", None),
        )
        return args.run(args, cfg)
    except (ValueError, OSError, MemoryError) as error:  # DataError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""Command line: `python -m helpers audit | prepare | train METHOD | generate | quality | segment | classify |
experiment NAME | export METHOD | demo`.
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

from helpers.config import DATASETS, display_path, get_config
from helpers.data.audit import audit
from helpers.data.files import DataError, image_shape, read_image
from helpers.data.layouts import ARTIFACTS, images_by_id, open_dataset, read, read_labels
from helpers.data.sketches import read_drawings
from helpers.data.store import UNKNOWN, Store, StoreConfig, prepare, resize

METHODS = ("cgan", "dcgan", "segmenter", "classifier")
EXPORTS = (*METHODS, "artifacts")

# ---------------------------------------------------------------------------------------------------------------- data


def audit_command(args: argparse.Namespace, cfg) -> int:
    report = audit(read(args.folder, args.classes), workers=cfg.workers)
    print(report)
    return 0 if report.usable else 1


def prepare_command(args: argparse.Namespace, cfg) -> int:
    started = time.perf_counter()
    dataset = open_dataset(cfg, args.classes)
    config = StoreConfig(args.size or cfg.size, args.style, args.crop, cfg.seed)
    store = prepare(dataset, args.out or cfg.stores, config, workers=cfg.workers)
    if (store.artifacts == UNKNOWN).any() and (cfg.released / "artifacts.safetensors").is_file():
        from helpers.models.artifacts import ensure_artifacts

        ensure_artifacts(store)
    stored = replace(dataset, table=store.table)
    print(stored.counts().to_string())
    print_problems(store.problems)
    print(f"{store}\n{display_path(store.folder)}")
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


# ------------------------------------------------------------------------------------------------------------ training
# Modules that import torch are imported inside the commands: it takes seconds, and not every command needs it.


def train_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.trainer import peak_memory

    status = args.train(args, cfg)
    print(peak_memory())
    return status


def train_cgan_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.gan import GANConfig, grown_config, train_gan

    files = open_dataset(cfg, args.classes).unpaired_sketches if args.unpaired else []
    store, out = training_store(args, cfg, None if files else args.style), training_folder(args, cfg)
    config = GANConfig(
        store.config.size,
        tuple(store.classes),
        args.style,
        args.base_channels or cfg.base_channels,
        paired=not args.unpaired,
        projected=cfg.projected if args.projected is None else args.projected,
        d4_augment=args.d4_augment,
        artifacts=args.artifacts,
        noise_channels=args.noise_channels,
        code_channels=args.code_channels,
        fine_lines=args.fine_lines,
    )
    if args.grow:
        config = grown_config(config, args.grow)
    sketches = None
    if files:
        problems = []
        drawings = read_drawings({str(path): path for path in files}, config.size, problems)
        print_problems(problems)
        print(f"{len(drawings):,} unpaired sketches")
        if not drawings:
            raise DataError("none of the unpaired sketches can be read: at least one is needed")
        sketches = np.stack(list(drawings.values()))
    elif args.unpaired:
        print("no unpaired sketches found: each image gets a random sketch of the data set")
    run, curve = train_config(args, cfg), None
    if args.evaluate_every:
        from accelerate import PartialState

        from helpers.experiments.learning_curve import LearningCurve
        from helpers.metrics.extractors import load_extractor

        images_per_step = run.batch_size * PartialState().num_processes
        curve = LearningCurve(store, load_extractor("mobilenet_v2"), out, images_per_step, args.evaluate_every)
    init_from = args.grow or args.init_from
    train_gan(store, config, out, run, sketches=sketches, init_from=init_from, evaluate=curve)
    checkpoint = display_path(out / "checkpoint.pt")
    print(f"trained: python -m helpers generate --checkpoint {checkpoint} --sketches FOLDER --out FOLDER")
    return 0


def train_dcgan_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.dcgan import DCGANConfig, train_dcgan

    store, out = training_store(args, cfg), training_folder(args, cfg)
    config = DCGANConfig(
        store.config.size,
        tuple(store.classes),
        args.base_channels or cfg.base_channels,
        projected=args.projected,
        d4_augment=args.d4_augment,
    )
    train_dcgan(store, config, out, train_config(args, cfg))
    print(f"trained; generated images: {display_path(out)}/grid-*.png")
    return 0


def train_segmenter_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.segmenter import SegmenterConfig, baseline_config, train_segmenter

    store, out = training_store(args, cfg, crop="none"), training_folder(args, cfg)
    config = SegmenterConfig(store.config.size, args.arch or cfg.arch, args.encoder or cfg.encoder_name)
    config = replace(config, decoder_channels=args.decoder_channels or config.decoder_channels)
    run = train_config(args, cfg)
    if args.baseline:
        config, run = baseline_config(config), replace(run, ema_nimg=1)
    history = train_segmenter(store, config, out, run, init_from=args.init_from)
    best = max(history["val_jaccard"], default=float("nan"))
    checkpoint = display_path(out / "checkpoint.pt")
    print(f"trained, mean Jaccard on val {best:.3f}: "
          f"python -m helpers segment --checkpoint {checkpoint} --images FOLDER --out FOLDER")  # fmt: skip
    return 0


def train_classifier_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.classifier import ClassifierConfig, train_classifier

    store, out = training_store(args, cfg), training_folder(args, cfg)
    if args.lesion_only and not args.out:
        out = out.with_name("classifier-lesion-only")
    config = ClassifierConfig(
        store.config.size,
        tuple(store.classes),
        args.arch or cfg.arch,
        balance=args.balance,
        lesion_only=args.lesion_only,
    )
    history = train_classifier(store, config, out, train_config(args, cfg))
    best = max(history["val_balanced_accuracy"], default=float("nan"))
    checkpoint = display_path(out / "checkpoint.pt")
    print(f"trained, balanced accuracy on val {best:.3f}: "
          f"python -m helpers classify --checkpoint {checkpoint} --images FOLDER")  # fmt: skip
    return 0


def train_artifacts_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.artifacts import ArtifactConfig, read_flags, read_ids, train_artifacts

    store, out = training_store(args, cfg), training_folder(args, cfg)
    flags = read_flags(args.flags) if args.flags else None
    exclude = set().union(*map(read_ids, args.exclude or []))
    config = ArtifactConfig(store.config.size)
    history = train_artifacts(store, config, out, train_config(args, cfg), flags, exclude, args.init_from)
    print(f"trained, mean average precision on val {max(history['val_ap'], default=float('nan')):.3f}")
    return 0


def training_store(args: argparse.Namespace, cfg, style: str | None = None, crop: str = "center") -> Store:
    """The store to train on. Without a `style` sketches are not used, and the style is one that the data set allows."""
    dataset = open_dataset(cfg, args.classes)
    style = style or ("contour" if dataset.has_contours else "structure")
    config = StoreConfig(args.size or cfg.size, style, crop, cfg.seed)
    return prepare(dataset, cfg.stores, config, workers=cfg.workers)


def training_folder(args: argparse.Namespace, cfg) -> Path:
    return args.out or cfg.outputs / args.method


def train_config(args: argparse.Namespace, cfg):
    from helpers.models.trainer import TrainConfig

    steps = args.steps or cfg.steps
    save_every = args.save_every or min(500, max(1, steps // 12))
    batch_size = args.batch_size or cfg.batch_size
    return TrainConfig(steps, batch_size, args.seed, save_every=save_every, minutes=args.minutes)


def export_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.artifacts import load_artifacts
    from helpers.models.checkpoint import export_weights
    from helpers.models.classifier import load_classifier
    from helpers.models.dcgan import load_dcgan
    from helpers.models.gan import load_gan
    from helpers.models.segmenter import load_segmenter

    load = {"cgan": load_gan, "dcgan": load_dcgan, "segmenter": load_segmenter, "classifier": load_classifier}
    load |= {"artifacts": load_artifacts}
    checkpoint = args.checkpoint or cfg.outputs / args.method / "checkpoint.pt"
    if not checkpoint.is_file():
        raise DataError(f"{display_path(checkpoint)} does not exist: `python -m helpers train {args.method}` writes it")
    load[args.method](checkpoint)  # raises if the checkpoint is of another method
    file = args.out or cfg.released / f"{args.method}.safetensors"
    export_weights(checkpoint, file, args.all_networks, args.license)
    print(f"{display_path(file)}: {file.stat().st_size / 1e6:.1f} MB; "
          "write a model card next to it: training data, license, measured quality")  # fmt: skip
    return 0


# ----------------------------------------------------------------------------------------------------------- inference


def find_checkpoint(method: str, args: argparse.Namespace, cfg) -> Path:
    """The given checkpoint, else the one that `train METHOD` wrote, else the released weights; prints a note if it was
    trained on phantoms. Raises `DataError` if none exists."""
    checkpoint = args.checkpoint or cfg.outputs / method / "checkpoint.pt"
    released = cfg.released / f"{method}.safetensors"
    if not args.checkpoint and not checkpoint.is_file() and released.is_file():
        return released
    if not checkpoint.is_file():
        raise DataError(f"{display_path(checkpoint)} does not exist: train one with `python -m helpers train {method}` "
                        "or name one with --checkpoint")  # fmt: skip
    if not args.checkpoint and cfg.dataset == "phantoms" and released.is_file():
        print(f"note: {display_path(checkpoint)} was trained on synthetic phantoms; for real images use "
              f"--checkpoint {display_path(released)}")  # fmt: skip
    return checkpoint


def generate_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.gan import NOT_CONDITIONED, load_gan, random_artifacts, sample

    checkpoint = find_checkpoint("cgan", args, cfg)
    generator, config = load_gan(checkpoint)
    print(f"{display_path(checkpoint)}: {config.size} px, sketch style {config.style}, {' '.join(config.classes)}")
    artifacts = parse_artifacts(args.artifacts)
    if artifacts.any() and not generator.num_artifacts:
        raise DataError(f"{display_path(checkpoint)}: {NOT_CONDITIONED}")
    problems = []
    sketches = read_sketches(args.sketches, config.size, problems)
    labels = labels_for(sketches, args.labels, list(config.classes), problems)
    print_problems(problems)
    if not labels:
        raise DataError(f"{args.sketches} needs at least one readable sketch with a label, got none")
    for k, name in enumerate(config.classes):
        if ids := [image_id for image_id in sketches if name in labels.get(image_id, ())]:
            inputs, indices, flags = np.stack([sketches[i] for i in ids]), [k] * len(ids), None
            if args.artifacts == "real":
                flags = random_artifacts(generator, indices, args.seed)
            elif artifacts.any():
                flags = np.tile(artifacts, (len(ids), 1))
            images = sample(generator, inputs, indices, args.seed, artifacts=flags)
            (args.out / name).mkdir(parents=True, exist_ok=True)
            for image_id, image in zip(ids, images, strict=True):
                Image.fromarray(image).save(args.out / name / f"{image_id}.png")
            print(f"{len(ids)} images in {display_path(args.out / name)}")
    return 0


def parse_artifacts(text: str) -> np.ndarray:
    """Names separated by commas, or "none" or "real" -> flags `(7,)` in {0, 1}; "real" gives all 1. Raises `DataError`
    for an unknown name."""
    if text in ("none", "real"):
        return np.full(len(ARTIFACTS), text == "real", np.uint8)
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in ARTIFACTS]:
        raise DataError(f"--artifacts must be none, real or names from {', '.join(ARTIFACTS)}; got {unknown[0]!r}")
    return np.array([name in names for name in ARTIFACTS], np.uint8)


def read_sketches(folder: Path, size: int, problems: list[str]) -> dict[str, np.ndarray]:
    """Sketches `(size, size)` in {0, 255} of a folder by image id, see `read_drawings`."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    return read_drawings(images_by_id(folder, problems), size, problems)


def labels_for(sketches: dict, file: Path | None, classes: list[str], problems: list[str]) -> dict[str, list[str]]:
    """Class names to generate for each sketch: the one of the label file, or all classes without a file."""
    if file is None:
        return dict.fromkeys(sketches, classes)
    labels = read_labels(file, classes, problems)
    if unlabeled := [i for i in sketches if i not in labels]:
        problems.append(
            f"{len(unlabeled)} sketches have no label in {file.name} and are left out ({', '.join(unlabeled[:5])})"
        )
    if absent := [i for i in labels if i not in sketches]:
        problems.append(f"{len(absent)} ids of {file.name} have no sketch ({', '.join(absent[:5])})")
    return {i: [labels[i]] for i in sketches if i in labels}


def iter_images(folder: Path, size: int, problems: list[str]) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Yield id, path and image `uint8 (H, W, 3)` of every image of a folder, one at a time because images can be large;
    unreadable ones go to `problems`. `size`: pixels per side that are needed; larger JPEGs may be read at reduced
    size."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    for image_id, path in images_by_id(folder, problems).items():
        try:
            yield image_id, path, read_image(path, min_size=size)
        except DataError as error:
            problems.append(str(error))


def segment_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.segmenter import is_uniform, load_segmenter, segment

    checkpoint = find_checkpoint("segmenter", args, cfg)
    if args.out.resolve() == args.images.resolve():
        raise DataError(f"--out must not be the image folder {args.out}: masks would overwrite images of the same name")
    segmenter, config = load_segmenter(checkpoint)
    print(f"{display_path(checkpoint)}: {config.arch} with {config.encoder_name}, {config.size} px")
    problems, areas = [], []
    args.out.mkdir(parents=True, exist_ok=True)
    for image_id, path, image in iter_images(args.images, config.size, problems):
        height, width = image_shape(path)
        if is_uniform(image):
            problems.append(f"{path} has one color only: its mask is empty")
        (mask,) = segment(segmenter, [image], [(height, width)])
        Image.fromarray(255 * mask).save(args.out / f"{image_id}.png")
        areas.append((image_id, width, height, int(mask.sum()), round(float(mask.mean()), 6)))
    print_problems(problems)
    if not areas:
        raise DataError(f"{args.images} needs at least one readable image, got none")
    with open(args.out / "areas.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "width", "height", "lesion_pixels", "lesion_fraction"), *areas])
    print(f"{len(areas)} masks and areas.csv in {display_path(args.out)}")
    return 0


def classify_command(args: argparse.Namespace, cfg) -> int:
    from helpers.models.classifier import load_classifier, predict_proba

    checkpoint = find_checkpoint("classifier", args, cfg)
    classifier, config = load_classifier(checkpoint)
    out, problems, rows = args.out or cfg.outputs / "classified.csv", [], []
    for image_id, path, image in iter_images(args.images, config.size, problems):
        if image.max() == image.min():
            problems.append(f"{path} has one color only: its probabilities are meaningless")
        (probs,) = predict_proba(classifier, resize(image, StoreConfig(config.size))[None])
        rows.append((image_id, config.classes[int(probs.argmax())], *(round(float(p), 6) for p in probs)))
    print_problems(problems)
    if not rows:
        raise DataError(f"{args.images} needs at least one readable image, got none")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "diagnosis", *config.classes), *rows])
    counts = Counter(row[1] for row in rows)
    print(f"{display_path(checkpoint)}: {config.arch}, {config.size} px, temperature {classifier.temperature:.2f}")
    print(f"{len(rows)} images, {', '.join(f'{n} {name}' for name, n in counts.most_common())}: {display_path(out)}")
    print("not for diagnosis, and not for any decision about a patient")
    return 0


def quality_command(args: argparse.Namespace, cfg) -> int:
    from helpers.metrics.extractors import ImageSet, available_extractors, load_extractor
    from helpers.metrics.quality import quality

    real, synthetic = ImageSet.from_folder(args.real), ImageSet.from_folder(args.synthetic)
    floor = args.floor and ImageSet.from_folder(args.floor)
    checkpoint = cfg.outputs / "classifier" / "checkpoint.pt"
    extractors, missing = ([load_extractor(args.features)], []) if args.features else available_extractors(checkpoint)
    if not extractors:
        raise DataError("no feature extractor available: " + "; ".join(missing))
    result = quality(real, synthetic, extractors, floor, cfg.features)
    result.notes += [
        f"the classifier is {display_path(args.features or checkpoint)}" for e in extractors if e.name == "classifier"
    ]
    result.notes += missing
    print(json.dumps(result.summary()) if args.json else result)
    return 0


def demo_command(args: argparse.Namespace, cfg) -> int:
    from helpers.views.demo import build_page, launch_page
    from helpers.views.predictor import LOADERS, Predictor, find_weights

    predictor = Predictor(find_weights(cfg, {method: getattr(args, method) for method in LOADERS}))
    print(predictor)
    for signum in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # a normal exit deletes the uploads
        signal.signal(signum, lambda *_: sys.exit(0))
    launch_page(build_page(predictor), args.port, wait=True)
    return 0


def print_problems(problems: list[str]) -> None:
    print("".join(f"! {problem}\n" for problem in problems), end="")


# --------------------------------------------------------------------------------------------------------- experiments


def segmentation_command(args: argparse.Namespace, cfg) -> int:
    from helpers.experiments.segmentation import COMPARISON_PAIRS, segmentation_experiment, segmentation_plan

    store, out = experiment_store(args, cfg, "none"), args.out or cfg.outputs / "segmentation-experiment"
    results = segmentation_experiment(store, segmentation_plan(cfg, store), out, args.split, args.arms)
    print(f"{store}\nmean Jaccard on the real images of {args.split}, 95 % intervals over images and seeds")
    report(results, ["jaccard"], COMPARISON_PAIRS, out)
    return 0


def real_vs_synthetic_command(args: argparse.Namespace, cfg) -> int:
    from helpers.experiments.real_vs_synthetic import (
        COMPARISON_PAIRS,
        auc,
        average_precision,
        balanced_accuracy,
        real_vs_synthetic_experiment,
        real_vs_synthetic_plan,
        recalls_by_arm,
    )

    store, out = experiment_store(args, cfg), args.out or cfg.outputs / "real-vs-synthetic-experiment"
    results = real_vs_synthetic_experiment(store, real_vs_synthetic_plan(cfg, store), out, args.split, args.arms)
    print(f"{store}\non the real images of {args.split}, 95 % intervals over lesions and seeds")
    report(results, [balanced_accuracy, auc, average_precision], COMPARISON_PAIRS, out)
    print(recalls_by_arm(results).round(3).to_string())
    return 0


def balancing_command(args: argparse.Namespace, cfg) -> int:
    from helpers.experiments.balancing import (
        balancing_experiment,
        balancing_plan,
        best_baseline,
        comparison_pairs,
        rare_classes,
        rare_recall,
    )
    from helpers.experiments.real_vs_synthetic import balanced_accuracy, recalls_by_arm
    from helpers.experiments.runner import metric_name, summary

    store, out = experiment_store(args, cfg), args.out or cfg.outputs / "balancing-experiment"
    plan = balancing_plan(cfg, store)
    results = balancing_experiment(store, plan, out, args.arms)
    rare = rare_classes(store)
    print(
        f"{store}\nrare classes: {' '.join(rare)}; every lesion is tested once, 95 % intervals over lesions and seeds"
    )
    for measure in (rare_recall(store.classes, rare), balanced_accuracy):
        best = best_baseline(summary(results, measure))
        print(f"by {metric_name(measure)} the best baseline is {best}; the other arms are compared with it\n")
        report(results, [measure], comparison_pairs(best, plan.real_per_synthetic), out)
    print(recalls_by_arm(results).round(3).to_string())
    return 0


def ablation_command(args: argparse.Namespace, cfg) -> int:
    from helpers.experiments.ablation import ablation_experiment, ablation_plan, mean_over_seeds, small_data_experiment
    from helpers.metrics.extractors import load_extractor_or_random

    store, extractor = experiment_store(args, cfg), load_extractor_or_random("mobilenet_v2")
    out = args.out or cfg.outputs / f"{args.experiment}-experiment"
    plan = ablation_plan(cfg, store)
    if args.experiment == "ablation":
        results = ablation_experiment(store, plan, extractor, out, args.arms)
    else:
        results = small_data_experiment(store, plan, extractor, out)
    table = mean_over_seeds(results)
    run = plan.train_config
    print(f"{store}\ngenerated images of val sketches against the real images, features of {extractor.name}")
    print(
        f"after {run.steps} steps with batch size {run.batch_size}; means over seeds {' '.join(map(str, plan.seeds))}\n"
    )
    print(table.round(3).to_string())
    table.to_csv(out / ("some.csv" if getattr(args, "arms", None) else "table.csv"))
    return 0


# Options of the experiments that replace the profile's values.
EXPERIMENT_OPTIONS = ("size", "steps", "arch", "gan_steps", "projected", "dcgan_steps", "num_pairs", "num_synthetic",
                      "real_per_synthetic", "fractions", "folds", "seeds", "num_eval")  # fmt: skip


def experiment_store(args: argparse.Namespace, cfg, crop: str = "center") -> Store:
    """The store of an experiment; options given on the command line replace the profile's values in `cfg`."""
    for name in EXPERIMENT_OPTIONS:
        if getattr(args, name, None):
            setattr(cfg, name, getattr(args, name))
    config = StoreConfig(cfg.size, "contour", crop, cfg.seed)
    return prepare(open_dataset(cfg), cfg.stores, config, workers=cfg.workers)


def report(results, measures: list, pairs: list[tuple[str, str]], out: Path) -> None:
    """Print the arms and their comparisons by each measure, and write both as CSV to `out`."""
    from helpers.experiments.runner import comparisons, metric_name, summary, to_sentences

    print(
        f"initial weights: {', '.join(results['init'].unique())}; all seeds share the generators, so the intervals do"
    )
    print("not include the variance of GAN training\n")
    for measure in measures:
        arms, differences = summary(results, measure), comparisons(results, measure, pairs)
        name = metric_name(measure).replace(" ", "-")
        arms.to_csv(out / f"arms-{name}.csv")
        differences.to_csv(out / f"comparisons-{name}.csv")
        sentences = "\n".join(to_sentences(differences, measure))
        print(arms.round(4).to_string(), differences.round(4).to_string(), sentences, sep="\n\n")
        print()


# -------------------------------------------------------------------------------------------------------------- parser


def positive_int(text: str) -> int:
    """Argparse type: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def natural_number(text: str) -> int:
    """Argparse type: an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


FROM_PROFILE = "default: from the profile"
DATASET_HELP = "default: LESION_DATASET, else the embedded sample"


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Options of commands that read a data set."""
    parser.add_argument("--dataset", choices=DATASETS, help=DATASET_HELP)
    parser.add_argument("--data-root", type=Path, help="its folder; default: LESION_DATA_ROOT, else data/<dataset>")


def add_training_dataset(parser: argparse.ArgumentParser, method: str = "network") -> None:
    """Option of commands that only look for the checkpoint that `train` wrote for a data set."""
    parser.add_argument("--dataset", choices=DATASETS, help=f"data set the {method} was trained on; {DATASET_HELP}")


def add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="keep only these classes")


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    add_data_parsers(commands)
    add_train_parsers(commands)
    add_inference_parsers(commands)
    add_experiment_parsers(commands)
    return root


def add_data_parsers(commands) -> None:
    command = commands.add_parser("audit", help="recognize a data folder and report its problems; writes nothing")
    command.add_argument("folder", type=Path)
    add_classes(command)
    command.set_defaults(run=audit_command, part="data")

    command = commands.add_parser("prepare", help="download if absent, audit, split by lesion, write the store")
    add_dataset(command)
    command.add_argument("--size", type=int, help=f"pixels per side; {FROM_PROFILE}")
    command.add_argument("--style", choices=("contour", "structure"), default="contour", help="sketch style")
    command.add_argument("--crop", choices=("center", "none"), default="center", help="central square, or whole image")
    add_classes(command)
    command.add_argument("--out", type=Path, help="folder for the store; default: data/stores")
    command.set_defaults(run=prepare_command, part="data")


def add_init_from(parser) -> None:
    parser.add_argument("--init-from", type=Path, metavar="CHECKPOINT", help="initialize with the weights of this file")


def add_train_parsers(commands) -> None:
    common = argparse.ArgumentParser(add_help=False)
    add_dataset(common)
    add_classes(common)
    common.add_argument("--size", type=positive_int, help=f"pixels per side; {FROM_PROFILE}")
    common.add_argument("--steps", type=positive_int, help=f"training steps; {FROM_PROFILE}")
    common.add_argument("--minutes", type=positive_float, help="time budget instead of --steps")
    common.add_argument("--batch-size", type=positive_int, help=f"images per step; {FROM_PROFILE}")
    common.add_argument("--seed", type=int, default=0, help="random seed; default: 0")
    common.add_argument("--save-every", type=positive_int, metavar="STEPS", help="default: steps / 12, at most 500")
    common.add_argument("--out", type=Path, help="folder for checkpoint and history; default: outputs/.../METHOD")
    gan = argparse.ArgumentParser(add_help=False)
    gan.add_argument("--base-channels", type=positive_int, help=f"channels at half the resolution; {FROM_PROFILE}")
    init = argparse.ArgumentParser(add_help=False)
    add_init_from(init)

    train = commands.add_parser("train", help="train a network; resumes from the checkpoint if there is one")
    methods = train.add_subparsers(required=True, metavar="METHOD", dest="method")
    method = methods.add_parser("cgan", parents=[common, gan], help="sketch + diagnosis -> image")
    method.add_argument("--style", choices=("contour", "structure"), default="contour", help="sketch style")
    method.add_argument(
        "--projected", action=argparse.BooleanOptionalAction, help=f"projected discriminator; {FROM_PROFILE}"
    )
    for name, default, text in (
        ("--artifacts", True, "condition on the artifact flags (ruler, hair, ...)"),
        ("--d4-augment", True, "random 90-degree rotations, flips and small shifts of the images"),
        ("--fine-lines", False, "sketch lines as an input at half the resolution"),
    ):
        text = f"{text}; default: {'on' if default else 'off'}"
        method.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=text)
    method.add_argument(
        "--noise-channels", type=natural_number, default=8, help="of the random maps at 8 to 32 px; default: 8"
    )
    method.add_argument(
        "--code-channels", type=natural_number, default=4, help="of the encoder's code at 8 px; default: 4"
    )
    method.add_argument(
        "--evaluate-every", type=positive_int, metavar="IMAGES", help="scores on val to val.csv, images to progress.png"
    )
    initial = method.add_mutually_exclusive_group()
    add_init_from(initial)
    initial.add_argument("--grow", type=Path, metavar="CHECKPOINT", help="initialize with weights of half the size")
    method.add_argument("--unpaired", action="store_true", help="train on sketches without matching images")
    method.set_defaults(run=train_command, train=train_cgan_command, part="cgan")

    method = methods.add_parser("dcgan", parents=[common, gan], help="latent + diagnosis -> image")
    method.add_argument("--projected", action="store_true", help="projected discriminator")
    method.add_argument("--d4-augment", action="store_true", help="random 90-degree rotations and flips of the images")
    method.set_defaults(run=train_command, train=train_dcgan_command, part="dcgan")

    method = methods.add_parser("segmenter", parents=[common, init], help="image -> mask")
    method.add_argument("--arch", metavar="NAME", help=f"Unet, DeepLabV3Plus, ...; {FROM_PROFILE}")
    method.add_argument("--encoder", metavar="NAME", help=f"mobilenet_v2, resnet34, ...; {FROM_PROFILE}")
    method.add_argument("--decoder-channels", type=positive_int, help="of the widest decoder layer; default: 128")
    method.add_argument("--baseline", action="store_true", help="random init, cross-entropy only, 256 decoder "
                        "channels, no augmentation, no EMA, no TTA")  # fmt: skip
    method.set_defaults(run=train_command, train=train_segmenter_command, part="segmenter")

    method = methods.add_parser("classifier", parents=[common], help="image -> diagnosis")
    method.add_argument("--arch", metavar="NAME", help=f"small_cnn, or a torchvision classifier; {FROM_PROFILE}")
    method.add_argument("--balance", choices=("sampling", "loss", "none"), default="sampling", help="class balancing")
    method.add_argument("--lesion-only", action="store_true", help="on images whose surroundings are gray")
    method.set_defaults(run=train_command, train=train_classifier_command, part="classifier")

    method = methods.add_parser("artifacts", parents=[common, init], help="image -> seven artifact flags")
    method.add_argument(
        "--flags", type=Path, metavar="CSV", help="image_id and seven flags; default: the data set's own"
    )
    method.add_argument(
        "--exclude", type=Path, nargs="+", metavar="CSV", help="do not train on the ids in the first column"
    )
    method.set_defaults(run=train_command, train=train_artifacts_command, part="artifacts")

    export = commands.add_parser("export", help="write the weights of a checkpoint as safetensors in half precision")
    export.add_argument("method", choices=EXPORTS)
    add_training_dataset(export)
    export.add_argument("--checkpoint", type=Path, help="default: the one of `train METHOD`")
    export.add_argument("--out", type=Path, metavar="FILE", help="default: data/released/METHOD.safetensors")
    export.add_argument("--license", metavar="NAME", help="of the training data, for the file's header")
    export.add_argument(
        "--all-networks", action="store_true", help="also encoder and discriminator, to continue the training of a GAN"
    )
    export.set_defaults(run=export_command, part="cgan")


def add_inference_parsers(commands) -> None:
    command = commands.add_parser("generate", help="sketches -> synthetic images")
    add_training_dataset(command)
    command.add_argument("--checkpoint", type=Path, help="default: the one of `train cgan`, else the released weights")
    command.add_argument("--sketches", type=Path, required=True, metavar="FOLDER", help="line drawings")
    command.add_argument("--labels", type=Path, metavar="CSV", help="image_id,label or one-hot; default: every class")
    command.add_argument("--artifacts", default="none", help="in the images: none, real (as often as in the "
                         "training images of the class) or names such as hair,ruler; default: none")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="random seed; default: 0")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets <class>/<image_id>.png")
    command.set_defaults(run=generate_command, part="cgan")

    command = commands.add_parser("quality", help="distances between synthetic and real images: KID, FID, ...")
    command.add_argument("--real", type=Path, required=True, metavar="FOLDER", help="images, or one folder per class")
    command.add_argument("--synthetic", type=Path, required=True, metavar="FOLDER", help="arranged as --real")
    command.add_argument("--floor", type=Path, metavar="FOLDER", help="other real images; default: a part of --real")
    command.add_argument("--features", metavar="NAME", help="inception, a torchvision network (NAME=FILE: its weights) "
                         "or a classifier's checkpoint.pt; default: inception, mobilenet_v2 and the classifier of "
                         "notebook 5, as far as available")  # fmt: skip
    add_training_dataset(command, "classifier")
    command.add_argument("--json", action="store_true", help="print a summary as JSON instead of the table")
    command.set_defaults(run=quality_command, part="classifier")

    command = commands.add_parser("segment", help="images -> masks")
    add_training_dataset(command)
    command.add_argument(
        "--checkpoint", type=Path, help="default: the one of `train segmenter`, else the released weights"
    )
    command.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets <image_id>.png and areas.csv")
    command.set_defaults(run=segment_command, part="segmenter")

    command = commands.add_parser("classify", help="images -> class probabilities")
    add_training_dataset(command)
    command.add_argument(
        "--checkpoint", type=Path, help="default: the one of `train classifier`, else the released weights"
    )
    command.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    command.add_argument("--out", type=Path, metavar="CSV", help="default: outputs/.../classified.csv")
    command.set_defaults(run=classify_command, part="classifier")

    command = commands.add_parser("demo", help="web page: draw a lesion, analyze an image")
    command.add_argument("--port", type=int, help="default: the first free one from 7860")
    for method in METHODS:
        command.add_argument(f"--{method}", type=Path, metavar="CHECKPOINT", help="default: the released weights")
    command.set_defaults(run=demo_command, part="cgan")


def add_experiment_parsers(commands) -> None:
    common = argparse.ArgumentParser(add_help=False)
    add_dataset(common)
    common.add_argument("--size", type=positive_int, help=f"pixels per side; {FROM_PROFILE}")
    common.add_argument("--steps", type=positive_int, help=f"steps of every training; {FROM_PROFILE}")
    common.add_argument("--seeds", type=int, nargs="+", help=f"random seeds of the trainings; {FROM_PROFILE}")
    common.add_argument("--out", type=Path, help="folder for the results; default: outputs/.../NAME-experiment")
    gan = argparse.ArgumentParser(add_help=False)
    gan.add_argument("--gan-steps", type=positive_int, help=f"steps of the CGAN; {FROM_PROFILE}")
    gan.add_argument("--projected", action="store_true", help="generators with a projected discriminator")
    arms = argparse.ArgumentParser(add_help=False)
    arms.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms; default: all")
    fractions = argparse.ArgumentParser(add_help=False)
    fractions.add_argument("--fractions", type=float, nargs="+", help="of the real training images, in (0, 1]")
    split = argparse.ArgumentParser(add_help=False)
    split.add_argument("--split", choices=("val", "test"), default="test", help="real images to score on")

    experiment = commands.add_parser("experiment", help="compare many trainings; resumes where it stopped")
    names = experiment.add_subparsers(required=True, metavar="NAME", dest="experiment")
    command = names.add_parser("segmentation", parents=[common, arms, gan, fractions, split],
                               help="do synthetic pairs help to segment?")  # fmt: skip
    command.add_argument("--num-pairs", type=positive_int, help=f"synthetic image and mask pairs; {FROM_PROFILE}")
    command.set_defaults(run=segmentation_command, part="segmentation")

    command = names.add_parser("real-vs-synthetic", parents=[common, arms, gan, fractions, split],
                               help="do synthetic images help to classify?")  # fmt: skip
    command.add_argument("--arch", metavar="NAME", help=f"small_cnn, or a torchvision classifier; {FROM_PROFILE}")
    command.add_argument("--num-synthetic", type=positive_int, help=f"synthetic images; {FROM_PROFILE}")
    command.set_defaults(run=real_vs_synthetic_command, part="real_vs_synthetic")

    command = names.add_parser("balancing", parents=[common, arms, gan], help="what raises the recall of rare classes?")
    command.add_argument("--arch", metavar="NAME", help=f"small_cnn, or a torchvision classifier; {FROM_PROFILE}")
    command.add_argument("--dcgan-steps", type=positive_int, help=f"steps of the DCGAN; {FROM_PROFILE}")
    command.add_argument("--num-synthetic", type=positive_int, help=f"synthetic images of rare classes; {FROM_PROFILE}")
    command.add_argument("--real-per-synthetic", type=positive_int, nargs="+",
                         help="real images per synthetic image; one arm per value")  # fmt: skip
    command.add_argument("--folds", type=positive_int, help=f"cross-validation folds by lesion; {FROM_PROFILE}")
    command.set_defaults(run=balancing_command, part="balancing")

    command = names.add_parser(
        "ablation", parents=[common, arms], help="what does each part of the projected CGAN contribute?"
    )
    command.add_argument("--num-eval", type=positive_int, help=f"generated images to evaluate; {FROM_PROFILE}")
    command.set_defaults(run=ablation_command, part="ablation")

    command = names.add_parser(
        "small-data", parents=[common, fractions], help="how many images does the projected CGAN need?"
    )
    command.add_argument("--num-eval", type=positive_int, help=f"generated images to evaluate; {FROM_PROFILE}")
    command.set_defaults(run=ablation_command, part="ablation")


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

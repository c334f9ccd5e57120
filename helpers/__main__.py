"""The one shell door: `python -m helpers audit FOLDER`, `python -m helpers prepare`."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from helpers.config import DATASETS, get_config, shown
from helpers.data.audit import audit
from helpers.data.layouts import open_dataset, read
from helpers.data.store import StoreSettings, prepare


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


def parser() -> argparse.ArgumentParser:
    door = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = door.add_subparsers(required=True, metavar="COMMAND")
    classes = {"nargs": "+", "metavar": "CLASS", "help": "keep only these classes"}

    look = commands.add_parser("audit", help="say what a folder is and whether it can be trusted; writes nothing")
    look.add_argument("folder", type=Path)
    look.add_argument("--classes", **classes)
    look.set_defaults(run=audit_command)

    make = commands.add_parser("prepare", help="download if absent, audit, split by lesion, write the store")
    make.add_argument("--dataset", choices=DATASETS, help="default: LESION_DATASET, else the embedded sample")
    make.add_argument("--data-root", type=Path, help="its folder; default: LESION_DATA_ROOT, else data/<dataset>")
    make.add_argument("--size", type=int, help="pixels of a side; default: the profile's")
    make.add_argument("--style", choices=("contour", "structure"), default="contour", help="of the sketches")
    make.add_argument("--geometry", choices=("square", "whole"), default="square", help="central square or all of it")
    make.add_argument("--classes", **classes)
    make.add_argument("--out", type=Path, help="folder for the store; default: data/stores")
    make.set_defaults(run=prepare_command)
    return door


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        cfg = get_config("data", dataset=getattr(args, "dataset", None), data_root=getattr(args, "data_root", None))
        return args.run(args, cfg)
    except (ValueError, OSError) as error:  # DataError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

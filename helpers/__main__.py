"""Command line: `python -m helpers COMMAND`. The options of a command are the fields of its dataclass in
`helpers/shell`, read by tyro. This file imports nothing heavy, so that help and typing errors come at once."""

import os
import signal
import sys
from difflib import get_close_matches
from importlib import import_module

PROGRAM = "python -m helpers"
# Command -> its class and what it does.
COMMANDS = {
    "audit": ("data:Audit", "recognize a data folder and report its problems; writes nothing"),
    "prepare": ("data:Prepare", "download if absent, audit, split by lesion, write the store"),
    "shrink": ("data:Shrink", "copy HAM10000 as small JPEGs, to carry it to another machine"),
    "train cgan": ("training:TrainCGAN", "sketch + diagnosis -> image; every `train` resumes from its checkpoint"),
    "train dcgan": ("training:TrainDCGAN", "latent + diagnosis -> image"),
    "train segmenter": ("training:TrainSegmenter", "image -> mask"),
    "train classifier": ("training:TrainClassifier", "image -> diagnosis"),
    "train artifacts": ("training:TrainArtifacts", "image -> seven artifact flags"),
    "train skin": ("training:TrainSkin", "image -> features, learned without labels: the extractor `skin`"),
    "generate": ("inference:Generate", "sketches -> synthetic images"),
    "segment": ("inference:Segment", "images -> masks"),
    "classify": ("inference:Classify", "images -> class probabilities"),
    "evaluate folders": ("evaluation:EvaluateFolders", "distances between synthetic and real images: KID, FID, ..."),
    "evaluate generator": ("evaluation:EvaluateGenerator", "quality, diversity and copies of generated images"),
    "evaluate segmenter": ("evaluation:EvaluateSegmenter", "masks of real images against the experts'"),
    "evaluate classifier": ("evaluation:EvaluateClassifier", "diagnoses of real images, calibration"),
    "evaluate extractor": (
        "evaluation:EvaluateExtractor",
        "does KID rise with known damage, do features hold the label?",
    ),
    "evaluate artifacts": ("evaluation:EvaluateArtifacts", "average precision of every artifact flag"),
    "experiment segmentation": ("experiments:Segmentation", "do synthetic pairs help to segment?"),
    "experiment real-vs-synthetic": ("experiments:RealVsSynthetic", "do synthetic images help to classify?"),
    "experiment balancing": ("experiments:Balancing", "what raises the recall of rare classes?"),
    "experiment ablation": ("experiments:Ablation", "what does each part of the CGAN contribute?"),
    "experiment small-data": ("experiments:SmallData", "how many images does the CGAN need?"),
    "experiment real-vs-generated": ("publishing:RealVsGenerated", "does a classifier recognize generated images?"),
    "experiment features": ("publishing:Features", "do features of generated images classify real ones?"),
    "experiment backbones": ("publishing:Backbones", "which classification network is best?"),
    "experiment segmenters": ("publishing:Segmenters", "which segmentation network is best?"),
    "experiment extractors": ("publishing:Extractors", "do all feature extractors say the same of a generator?"),
    "experiment kid-scale": ("publishing:KidScale", "what does a KID of 0.02, 0.1, 0.8 look like?"),
    "results": ("publishing:Results", "write the tables of README and outputs/README from outputs/results"),
    "export": ("training:Export", "write a checkpoint as safetensors in half precision"),
    "blind-test": ("evaluation:BlindTest", "real and generated images for a reader to sort"),
    "cards": ("evaluation:Cards", "write the sample images of the model cards"),
    "demo": ("inference:Demo", "web page: draw a lesion, analyze an image"),
}


def usage() -> str:
    """The list of commands."""
    lines = (f"  {name:<29} {text}" for name, (_, text) in COMMANDS.items())
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [--help] [OPTIONS]",
            "",
            *lines,
            "",
            f"Options and their defaults: {PROGRAM} COMMAND --help",
        ]
    )


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's name and its arguments. Raises `ValueError` with the nearest name for an unknown command."""
    for length in (2, 1):
        if (name := " ".join(arguments[:length])) in COMMANDS:
            return name, arguments[length:]
    words = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    if methods := [name for name in COMMANDS if name.startswith(f"{words} ")]:
        raise ValueError(f"{words!r} needs another word: {', '.join(methods)}")
    near = get_close_matches(words, COMMANDS, n=1, cutoff=0.5)
    hint = f"perhaps you meant {near[0]!r}" if near else f"`{PROGRAM} --help` lists all"
    raise ValueError(f"unknown command {words!r}: {hint}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 2 after an error, whose message goes to stderr, and as other programs
    128 + the signal's number if it was stopped by hand (130, 143) or if nobody reads its output any more (141)."""
    try:
        try:
            return run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()  # a closed pipe would else be noticed when the interpreter ends
    except BrokenPipeError:  # `| head` has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt as error:
        print(str(error) or "stopped", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)
    except (ValueError, OSError, MemoryError) as error:  # DataError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit status. Raises `ValueError`, `OSError` or `MemoryError` for the user."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, options = split_command(arguments)
    module, class_name = COMMANDS[name][0].split(":")
    command = getattr(import_module(f"helpers.shell.{module}"), class_name)
    return command.parse(options, f"{PROGRAM} {name}", COMMANDS[name][1]).run()


if __name__ == "__main__":
    sys.exit(main())

"""Commands that measure: folders of images, or one network on real data."""

import json
from dataclasses import dataclass
from pathlib import Path

from helpers.config import display_path
from helpers.data.files import DataError
from helpers.metrics.extractors import ImageSet, available_extractors, load_extractor
from helpers.metrics.quality import quality
from helpers.shell.base import Command


@dataclass(frozen=True, kw_only=True)
class EvaluateFolders(Command):
    """The last line of `--json` is one object with the keys `fd kid ...`."""

    real: Path  # folder of images, or of one folder per class
    synthetic: Path  # arranged as --real
    floor: Path | None = None  # folder of other real images; default: a part of --real
    extractor: str | None = None  # inception, a torchvision network, NAME=FILE with its weights, or a checkpoint.pt; default: all that are available
    json: bool = False  # print a summary as JSON instead of the table

    def run(self) -> int:
        cfg = self.config()
        real, synthetic = ImageSet.from_folder(self.real), ImageSet.from_folder(self.synthetic)
        floor = self.floor and ImageSet.from_folder(self.floor)
        checkpoint = cfg.outputs / "classifier" / "checkpoint.pt"
        extractors, missing = (
            ([load_extractor(self.extractor)], []) if self.extractor else available_extractors(checkpoint)
        )
        if not extractors:
            raise DataError("no feature extractor available: " + "; ".join(missing))
        result = quality(real, synthetic, extractors, floor, cfg.features)
        if any(extractor.name == "classifier" for extractor in extractors):
            result.notes.append(f"the classifier is {display_path(self.extractor or checkpoint)}")
        result.notes += missing
        print(json.dumps(result.summary()) if self.json else result)
        return 0

"""What the experiments share: their folder, and the page of results that `--publish` writes to `outputs/results`."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers.config import display_path
from helpers.data.store import Store
from helpers.data.tables import write_csv
from helpers.experiments.results import Page, publish
from helpers.models.trainer import TrainConfig
from helpers.shell.base import DataCommand


@dataclass(frozen=True, kw_only=True)
class ExperimentCommand(DataCommand):
    """Writes its tables to a folder, which must not hold the same experiment with other settings."""

    out: Path | None = None  # folder for the results; default: outputs/.../NAME-experiment
    publish: bool = False  # write csv, page and figure to outputs/results

    def folder(self, name: str) -> Path:
        """Where the results go."""
        return self.out or self.config().outputs / f"{name}-experiment"

    def publish_page(self, name: str, store: Store, rows: pd.DataFrame, page: Page) -> None:
        """Write the rows as CSV to the folder, and publish both if asked to."""
        write_csv(rows, self.folder(name) / "table.csv", index=False)
        if self.publish:
            print_paths(publish(f"{name}-{self.config().dataset}-{store.config.size}", rows, page))

    def report(self, name: str, store: Store, rows: pd.DataFrame, page: Page) -> None:
        """Print the page's table and verdict, then as `publish_page`."""
        print(f"{store}\n\n{page.table.to_string(na_rep='')}\n")
        print("\n".join(page.verdict))
        self.publish_page(name, store, rows, page)


@dataclass(frozen=True, kw_only=True)
class ArmsCommand(ExperimentCommand):
    """An experiment of which some arms can be run alone."""

    arms: tuple[str, ...] = ()  # only these arms; default: all


def print_paths(paths: list[Path]) -> None:
    """A line for each file that was written."""
    print(*map(display_path, paths), sep="\n")


def data_line(store: Store) -> str:
    """Data set, size and splits; says so if the images are phantoms."""
    return f"data: {store!r}" + " (synthetic phantoms, no real images)" * (store.name == "phantoms")


def training_line(train: TrainConfig, early_stopping: bool = True) -> str:
    """Length of the training."""
    length = f"{train.minutes:g} minutes" if train.minutes else f"{train.steps} steps"
    if not early_stopping:
        return f"{length} of {train.batch_size} images"
    return f"at most {length} of {train.batch_size} images, fewer if val stops improving"

"""Results of `runner.run_grid` for reading: rows to publish, a table, and sentences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.experiments.results import with_interval
from helpers.experiments.runner import (
    WITHOUT_COLLAPSED,
    Measure,
    collapsed_seeds,
    comparisons,
    metric_name,
    summary,
    to_sentences,
)
from helpers.metrics.prediction_tables import classes_of, recall_of

COLUMNS = ["data", "arm", "against", "fraction", "seed", "measure", "value", "low", "high", "n", "seeds", "collapsed",
           "verdict", "generator", "init", "seconds"]  # fmt: skip


class Scored(NamedTuple):
    """Results by one measure."""

    measure: Measure
    arms: pd.DataFrame  # of `summary`
    differences: pd.DataFrame  # of `comparisons`


@dataclass(frozen=True)
class Scores:
    """Results of all runs on one data set, and their scores by every measure, the main one first."""

    results: pd.DataFrame
    scored: list[Scored]
    data: str = ""

    @classmethod
    def of(cls, results: pd.DataFrame, pairs: dict[Measure, Sequence[tuple[str, str]]], data: str = "") -> "Scores":
        """`pairs`: by measure, which arms are compared."""
        scored = [Scored(m, summary(results, m), comparisons(results, m, p)) for m, p in pairs.items()]
        return cls(results, scored, data)

    def with_recalls(self) -> "Scores":
        """With the recall of every class that has test images; recalls are not compared."""
        classes, present = classes_of(self.results), self.results["label"].unique()
        measures = [recall_of(classes, name) for k, name in enumerate(classes) if k in present]
        recalls = [Scored(m, summary(self.results, m), comparisons(self.results, m, [])) for m in measures]
        return Scores(self.results, [*self.scored, *recalls], self.data)

    def rows(self, with_seconds: bool = True) -> pd.DataFrame:
        """A row per arm, fraction, seed and measure; a row per arm, fraction and measure with the mean over `seeds`
        trainings and its interval; and a row per paired difference `against` another arm. The `seconds` of a training
        are in one of its rows, or in none if not `with_seconds`; the others have 0."""
        rows = []
        for k, scored in enumerate(self.scored):
            rows += self._run_rows(scored.measure, with_seconds and k == 0)
            rows += self._mean_rows(scored) + self._difference_rows(scored)
        return pd.DataFrame(rows).reindex(columns=COLUMNS).assign(data=self.data or pd.NA)

    def _run_rows(self, measure: Measure, with_seconds: bool) -> list[dict]:
        rows = []
        for (fraction, arm, seed), run in self.results.groupby(["fraction", "arm", "seed"], sort=False):
            weights = np.ones((1, len(run)))
            value = run[measure].mean() if isinstance(measure, str) else measure(run, weights).item()
            row = {"arm": arm, "fraction": fraction, "seed": seed, "measure": _key(measure), "value": value}
            row |= {"n": count_of(measure, run), "seconds": run["seconds"].iloc[0] if with_seconds else 0.0}
            rows.append(row | {k: run[k].iloc[0] for k in ("collapsed", "generator", "init") if k in run})
        return rows

    def _mean_rows(self, scored: Scored) -> list[dict]:
        rows, name = [], metric_name(scored.measure)
        for (fraction, arm), row in scored.arms.iterrows():
            base = arm.removesuffix(WITHOUT_COLLAPSED)
            runs = self.results[(self.results["fraction"] == fraction) & (self.results["arm"] == base)]
            run = runs[runs["seed"] == runs["seed"].iloc[0]]
            new = {"arm": arm, "fraction": fraction, "measure": _key(scored.measure), "value": row[name]}
            new |= {"low": row["from"], "high": row["to"], "n": count_of(scored.measure, run), "seeds": row["seeds"]}
            facts = {k: run[k].iloc[0] for k in ("generator", "init") if k in run}
            rows.append(new | facts | {"collapsed": row.get("collapsed"), "seconds": 0.0})
        return rows

    def _difference_rows(self, scored: Scored) -> list[dict]:
        return [
            {"arm": arm, "against": reference, "fraction": fraction, "measure": _key(scored.measure)}
            | {"value": row["difference"], "low": row["from"], "high": row["to"], "n": row["N"], "seeds": row["seeds"]}
            | {"collapsed": row.get("collapsed"), "verdict": row["verdict"], "seconds": 0.0}
            for (fraction, arm, reference), row in scored.differences.iterrows()
        ]

    def table(self) -> pd.DataFrame:
        """A row per fraction and arm, rounded: every measure with its interval, N, seeds, collapsed runs, seconds."""
        first = self.scored[0].arms
        columns = {
            metric_name(s.measure): [
                with_interval(*numbers) for numbers in s.arms[[metric_name(s.measure), "from", "to"]].to_numpy()
            ]
            for s in self.scored
        }
        table = pd.DataFrame(columns, index=first.index).assign(N=first["N"], seeds=first["seeds"])
        table = table.assign(**{k: first[k] for k in ["collapsed"] if k in first}, seconds=first["seconds"].round())
        table.index = table.index.set_levels([f"{100 * level:g} %" for level in table.index.levels[0]], level=0)
        return table

    def sentences(self, arms: Iterable[str]) -> list[str]:
        """The verdict by the main measure, which runs collapsed, and which of `arms` were not run."""
        where = f"On {self.data}: " if self.data else ""
        lines = [f"{where}{line}." for line in to_sentences(self.scored[0].differences, self.scored[0].measure)]
        for (fraction, arm), runs in self.results.groupby(["fraction", "arm"], sort=False):
            if seeds := sorted(collapsed_seeds(runs)):
                lines.append(f"{where}{arm} at {fraction:.0%} collapsed with seed {', '.join(map(str, seeds))}.")
        if absent := [arm for arm in arms if arm not in set(self.results["arm"])]:
            lines.append(f"Not run: {', '.join(absent)}.")
        return lines

    def intervals(self) -> dict[str, dict[str, list[float]]]:
        """The main measure for `plots.intervals`: a chart per fraction, a row per arm."""
        charts, (measure, arms, _) = {}, self.scored[0]
        for (fraction, arm), row in arms.iterrows():
            chart = charts.setdefault(f"{fraction:.0%} of the training images", {})
            chart[arm] = [row[metric_name(measure)], row["from"], row["to"]]
        return charts


def count_of(measure: Measure, run: pd.DataFrame) -> int:
    """Number of images of a run that a measure is of: those of a class for its recall."""
    label = getattr(measure, "label", None)
    return len(run) if label is None else int((run["label"] == label).sum())


def _key(measure: Measure) -> str:
    return measure if isinstance(measure, str) else measure.__name__

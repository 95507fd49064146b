"""The log of an ablation study, one JSON line per trained and evaluated run, and the table over its seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import Self

from pydantic import Field, ValidationError

from storage_schemas.errors import UserError
from storage_schemas.location import Location
from uwm.ablations import BASE, Variant
from uwm.eval.result import Estimate, Evaluation, Metric, ModeName, Result
from uwm.report.tables import METRIC_LABELS, MODE_LABELS, with_error

HEADLINES: tuple[tuple[ModeName, Metric], ...] = (
    ("forward", Metric.LATENT_MSE),
    ("video", Metric.LATENT_MSE),
    ("inverse", Metric.ACTION_MSE),
    ("policy", Metric.ACTION_MSE),
)
"""What variants are compared by: errors, so that less is better."""


class Measured(Result):
    """One mean error of one run."""

    mode: ModeName
    metric: Metric
    value: float


class Row(Result):
    """One line of the log: what was trained, and what it is worth."""

    run: str = Field(description="`base`, or the ablation and the level")
    seed: int
    settings: tuple[str, ...] = Field(description="what differs from the base")
    checkpoint: str
    checkpoint_identity: str
    parameters: int
    dataset: str
    dataset_version: int
    evaluation: str = Field(description="folder of the whole result")
    measured: tuple[Measured, ...]

    @classmethod
    def of(cls, run: str, seed: int, settings: tuple[str, ...], evaluation: Evaluation, folder: str) -> Self:
        """The line of an evaluated run."""
        said = evaluation.settings
        scores = ((mode, metric, evaluation.score(mode, metric)) for mode, metric in HEADLINES)
        return cls(
            run=run,
            seed=seed,
            settings=settings,
            checkpoint=said.checkpoint,
            checkpoint_identity=said.checkpoint_identity,
            parameters=said.parameters,
            dataset=said.dataset_uri,
            dataset_version=said.dataset_version,
            evaluation=folder,
            measured=tuple(
                Measured(mode=mode, metric=metric, value=score.model.mean) for mode, metric, score in scores if score
            ),
        )

    def value(self, mode: ModeName, metric: Metric) -> float | None:
        """One mean error, if it was measured."""
        return next((m.value for m in self.measured if (m.mode, m.metric) == (mode, metric)), None)


class ResultsLog:
    """The rows of a study in one file, in the order in which they were made; written whole, so never half a row.

    Args:
        location: the file, JSON lines.
    """

    def __init__(self, location: Location) -> None:
        self._location = location

    def rows(self) -> tuple[Row, ...]:
        """All rows. Raises UserError when a line is none."""
        try:
            lines = self._location.read_bytes().splitlines()
        except FileNotFoundError:
            return ()
        try:
            return tuple(Row.model_validate_json(line) for line in lines)
        except ValidationError as error:
            raise UserError(f"{self._location.uri} is no log of ablations of this version: move it away") from error

    def add(self, row: Row) -> None:
        """Append a row, unless it is there."""
        rows = self.rows()
        if row not in rows:
            text = "".join(kept.model_dump_json() + "\n" for kept in (*rows, row))
            self._location.write_bytes(text.encode())


def table(variants: Sequence[Variant], rows: Sequence[Row]) -> tuple[tuple[str, ...], ...]:
    """Mean and standard error over seeds of every level, the base first; the head is the first line.

    A level that the base has shows the base's numbers.
    """
    head = ("ablation", "level", "origin", "seeds", "parameters", *(f"{_label(*pair)} ↓" for pair in HEADLINES))
    lines = [("base", "", "", *_cells(BASE, rows))]
    for variant in variants:
        level = f"{variant.level.name} (base)" if variant.run == BASE else variant.level.name
        lines.append((variant.ablation.name, level, variant.level.origin, *_cells(variant.run, rows)))
    return (head, *lines)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and standard error of one number per seed; a single seed tells no error."""
    count = len(values)
    error = statistics.stdev(values) / math.sqrt(count) if count > 1 else 0.0
    return Estimate(mean=statistics.fmean(values), error=error, count=count)


def _cells(run: str, rows: Sequence[Row]) -> tuple[str, ...]:
    mine = {row.seed: row for row in rows if row.run == run}  # a later row of the same seed replaces an earlier one
    if not mine:
        return "0", "", *("" for _ in HEADLINES)
    parameters = next(reversed(mine.values())).parameters
    cells = []
    for mode, metric in HEADLINES:
        values = [value for row in mine.values() if (value := row.value(mode, metric)) is not None]
        cells.append(with_error(over_seeds(values)) if values else "")
    return str(len(mine)), f"{parameters:,}", *cells


def _label(mode: ModeName, metric: Metric) -> str:
    return f"{MODE_LABELS[mode]}, {METRIC_LABELS[metric]}"

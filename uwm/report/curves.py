"""The losses of a training run as numbers over steps."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uwm.events import load_metrics


@dataclass(frozen=True, kw_only=True)
class Series:
    """One logged quantity: at training steps (n,), its values (n,)."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def smooth(self, window: int) -> "Series":
        """A centred running mean over about `window` points; narrower at both ends, never shifted."""
        if window < 2 or len(self.values) < 3:
            return self
        half = min(window, len(self.values)) // 2
        total = np.concatenate([[0.0], np.cumsum(self.values)])
        position = np.arange(len(self.values))
        reach = np.minimum(np.minimum(position, position[::-1]), half)
        mean = (total[position + reach + 1] - total[position - reach]) / (2 * reach + 1)
        return Series(steps=self.steps, values=mean)


def loss_series(folder: str) -> Mapping[str, Series]:
    """The total loss of the run in `folder`, and its parts when it has several; empty when nothing was logged yet.

    Values that are not finite are left out: they can't be drawn, and the log keeps them.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for progress in load_metrics(folder):
        parts = {name: value for name, value in progress.logs.items() if name.endswith("loss")}
        shown = {"loss": progress.loss} | (parts if len(parts) > 1 else {})
        for name, value in shown.items():
            if np.isfinite(value):
                points.setdefault(name, []).append((progress.step, value))
    return {name: _series(pairs) for name, pairs in points.items()}


def _series(points: list[tuple[int, float]]) -> Series:
    steps, values = zip(*points, strict=True)
    return Series(steps=np.array(steps, np.int64), values=np.array(values, np.float64))

"""Per-episode reductions: dataset statistics that never read a frame and never go stale."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from storage_schemas.episode import Episode


@dataclass(frozen=True, kw_only=True)
class FieldStatistics:
    """Reductions of one field over known, finite steps; arrays are float64 (D,), empty when count is 0."""

    count: int
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    sum: NDArray[np.float64]
    sumsq: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of every dimension (D,)."""
        return self.sum / max(1, self.count)

    @property
    def std(self) -> NDArray[np.float64]:
        """Population standard deviation of every dimension (D,)."""
        return np.sqrt(np.maximum(self.sumsq / max(1, self.count) - self.mean**2, 0.0))

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self | None:
        """Statistics of steps (N, D); None when no step is finite."""
        finite = values[np.isfinite(values).all(axis=1)].astype(np.float64)
        if len(finite) == 0:
            return None
        squares = (finite**2).sum(axis=0)
        return cls(
            count=len(finite), min=finite.min(axis=0), max=finite.max(axis=0), sum=finite.sum(axis=0), sumsq=squares
        )

    @classmethod
    def combine(cls, parts: Iterable[Mapping[str, Any]]) -> Self:
        """Statistics of all steps together, from per-episode JSON objects. Raises ValueError if D differs."""
        known = [part for part in parts if part["count"]]
        if not known:
            empty = np.zeros(0)
            return cls(count=0, min=empty, max=empty, sum=empty, sumsq=empty)
        columns = {name: np.array([part[name] for part in known]) for name in ("min", "max", "sum", "sumsq")}
        return cls(
            count=sum(part["count"] for part in known),
            min=columns["min"].min(axis=0),
            max=columns["max"].max(axis=0),
            sum=columns["sum"].sum(axis=0),
            sumsq=columns["sumsq"].sum(axis=0),
        )

    def to_json(self) -> dict[str, Any]:
        """The statistics as a JSON object."""
        arrays = {name: getattr(self, name).tolist() for name in ("min", "max", "sum", "sumsq")}
        return {"count": self.count, **arrays}


def episode_statistics(episode: Episode) -> str:
    """JSON of the statistics of `action` (known steps) and of every `state/<field>`."""
    fields = {"action": episode.action[episode.action_mask]}
    fields |= {f"state/{name}": values for name, values in episode.state.items()}
    statistics = {name: FieldStatistics.of(values) for name, values in fields.items()}
    return json.dumps({name: s.to_json() for name, s in statistics.items() if s is not None}, allow_nan=False)

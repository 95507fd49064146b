"""How a field of one dataset's state becomes a state of the run: the same, converted, or masked.

Letters: n steps, d numbers of the field, e of the run's state.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.conversions import convert, routes
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Space
from uwm.conditions import RunState
from uwm.config import DatasetRef


@dataclass(frozen=True, kw_only=True)
class StatePlan:
    """What becomes of a dataset's field in a run that observes a state."""

    state: RunState
    field: str
    """Of the dataset; empty when it has none that says anything of the state."""
    source: Space | None = None
    """What its numbers mean, where they are converted; None takes them as they are stored."""

    @property
    def dim(self) -> int:
        """D."""
        return self.state.dim if self.source is None else self.source.dim

    def apply(self, values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Numbers of the field (n, d) as the state's (n, e), and which of them are known; zero where not."""
        numbers = values.astype(np.float64)
        known = np.isfinite(numbers)
        if self.source is None or self.state.space is None:
            return np.where(known, numbers, 0.0), known
        out, mask = np.zeros((len(values), self.state.dim)), np.zeros((len(values), self.state.dim), np.bool_)
        rates = self.source.rate, self.state.space.rate
        for route in routes(self.source, self.state.space):
            rows = known[:, route.origin].all(axis=1)
            if route.source is not None and rows.any():
                out[rows, route.place] = convert(numbers[rows, route.origin], route.source, route.target, rates=rates)
                mask[rows, route.place] = True
        return out, mask


def state_plan(spec: DatasetSpec, ref: DatasetRef, state: RunState) -> StatePlan:
    """What becomes of a dataset's field in a run: by the name that the run gives it, else by the state's own.

    What is declared is used as it stands or converted. What is not declared is used where the run's state is not
    either, or where the run names the field; nothing is taken for a meaning because it has as many numbers.
    """
    named = ref.states.get(state.name)
    field = state.name if named is None else named
    own, wanted = spec.state(field), state.space
    if wanted is None or own == wanted:
        return StatePlan(state=state, field=field)
    if own is None or not says(own):
        return StatePlan(state=state, field=field if named is not None or not says(wanted) else "")
    fits = any(route.source is not None for route in routes(own, wanted))
    return StatePlan(state=state, field=field, source=own) if fits else StatePlan(state=state, field="")


def says(space: Space) -> bool:
    """Whether a space says what its numbers mean."""
    return any(part.quantity != "other" for part in space.parts)

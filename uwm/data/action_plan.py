"""How the actions of one dataset become the run's: same, converted, or padded with zeros and masked.

Dimension letters: S action steps of the run, k dataset steps of each (the stride), A and D action dimensions of the run
and of the dataset.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from storage_schemas.conversions import Route, convert, dropped, routes
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Part, Space
from storage_schemas.strides import stride_steps, strided, unsummable
from uwm.config import DataConfig, DatasetRef


@dataclass(frozen=True, kw_only=True)
class ActionPlan:
    """What becomes of the actions of a dataset in a run."""

    source: Space | None
    """The dataset's own; None when nobody said it."""
    target: Space | None
    """The run's."""
    source_dim: int
    """D."""
    target_dim: int
    """A."""
    stride: int = 1
    """k."""

    @property
    def strides(self) -> Space | None:
        """The dataset's own space, step by step of the run."""
        return None if self.source is None else strided(self.source, self.stride)

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        """How each part of the run's space is filled; none when either space is undeclared."""
        if self.source is None or self.target is None:
            return ()
        return routes(self.strides or self.source, self.target)

    @cached_property
    def how(self) -> Literal["same", "converted", "unused"]:
        """`same`: the dataset's numbers are the run's; `unused`: none of them can be."""
        if self.target is None:
            return "same" if self.source_dim == self.target_dim else "unused"
        if self.strides == self.target:
            return "same"
        return "converted" if any(route.source is not None for route in self.routes) else "unused"

    @cached_property
    def is_plain(self) -> bool:
        """Whether the dataset's numbers are used as they are stored, all of them and step by step."""
        return self.how == "same" and self.stride == 1

    @property
    def known(self) -> NDArray[np.bool_]:
        """(A,) the dimensions of the run that the dataset says something about."""
        mask = np.full(self.target_dim, self.how == "same")
        for route in self.routes if self.how == "converted" else ():
            mask[route.place] = route.source is not None
        return mask

    @property
    def dropped(self) -> tuple[Part, ...]:
        """Parts of the dataset that the run does not use."""
        return dropped(self.source, self.routes) if self.source is not None and self.routes else ()

    @cached_property
    def problem(self) -> str:
        """Why the dataset's known actions can't be used in this run; empty when they can."""
        if self.source is None and self.target is not None:
            return "does not say what its actions mean, and the run's are declared"
        if self.how == "unused":
            return self._dims if self.target is None else self._disjoint
        return self._unstridden

    @property
    def _dims(self) -> str:
        return f"has {self.source_dim}-dim actions, the run takes {self.target_dim}"

    @property
    def _disjoint(self) -> str:
        own, wanted = ("; ".join(space.lines) if space else "" for space in (self.source, self.target))
        return f"has no part of the run's actions: it has {own}; the run takes {wanted}"

    @property
    def _unstridden(self) -> str:
        """Why a stride can't be told as one step."""
        if self.stride == 1:
            return ""
        if self.source is None:
            return f"does not say what its actions mean, so {self.stride} steps can't be told as one"
        reasons = [reason for part in self.source.parts if (reason := unsummable(part))]
        return f"can't tell {self.stride} steps as one: {reasons[0]}" if reasons else ""

    def apply(
        self, values: NDArray[np.float32], known: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Actions of the dataset as the run's.

        Args:
            values: (S k, D), zero where unknown.
            known: (S k,).

        Returns:
            (S, A) and which of them are known, (S, A); zero where not.
        """
        out = np.zeros((len(values) // self.stride, self.target_dim), np.float32)
        mask = np.zeros(out.shape, np.bool_)
        if self.problem:
            return out, mask
        if self.stride > 1 and self.source is not None:
            values, known = stride_steps(values, known, self.source, self.stride)
        if self.how == "same":
            out[known], mask[known] = values[known], True
        elif self.how == "converted" and known.any():
            rows = np.flatnonzero(known)
            for route in self.routes:
                if route.source is not None:
                    out[rows, route.place] = self._converted(values[rows, route.origin], route, route.source)
                    mask[rows, route.place] = True
        return out, mask

    def inverse(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (S, A) of the run as the dataset's robot is told them, (S, D).

        Raises:
            ValueError: when the run's actions do not say all of them.
        """
        if self.how == "same":
            return np.asarray(actions, np.float32)
        if self.source is None or self.how == "unused" or self.dropped:
            missing = ", ".join(part.name for part in self.dropped) or "its space"
            raise ValueError(f"the run's actions do not say {missing}")
        out = np.zeros((len(actions), self.source_dim), np.float32)
        for route in self.routes:
            if route.source is not None:
                values = actions[:, route.place]
                out[:, route.origin] = convert(values, route.target, route.source, rates=self._rates[::-1])
        return out

    @property
    def _rates(self) -> tuple[float | None, float | None]:
        """Steps per second of the dataset's strides, and of the run."""
        own = self.strides.rate if self.strides else None
        return own, None if self.target is None else self.target.rate

    def _converted(self, values: NDArray[np.float32], route: Route, source: Part) -> NDArray[np.float32]:
        if route.how == "same":  # number for number
            return values
        return convert(values, source, route.target, rates=self._rates)


def action_plan(spec: DatasetSpec, ref: DatasetRef, config: DataConfig) -> ActionPlan:
    """What becomes of the actions of a dataset in a run."""
    return ActionPlan(
        source=spec.action,
        target=config.action,
        source_dim=spec.action_dim,
        target_dim=config.action_dim,
        stride=ref.stride,
    )

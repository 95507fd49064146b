"""What the steps since the last report were like."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uwm.train.distributed import World


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The same in all processes, but for the time."""

    logs: dict[str, float]
    """Means of what was logged, the loss among it."""
    losses: list[float]
    """Of every step."""
    norms: list[float]
    """Of every step's gradient, before clipping."""
    seconds: float
    waited: float
    """Share of the time that the processes stood still waiting for data, 0 to 1."""


@dataclass
class Meter:
    """Collects since the last report; tensors stay on the device until they are read."""

    rate: float = 0.0
    """Learning rate of the last step."""
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    _step: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps it has seen."""
        return len(self.losses)

    def share(self, logs: Mapping[str, Tensor], weight: float) -> None:
        """Take what one batch logged, whose share of its step in this process is `weight`."""
        for name, value in logs.items():
            self._step[name] = self._step[name] + weight * value if name in self._step else weight * value

    def step(self, norm: Tensor) -> None:
        """The step is done."""
        self.losses.append(self._step["loss"])
        self.norms.append(norm)
        for name, value in self._step.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self._step = {}

    def read(self, world: World) -> Reading:
        """All of it, over all processes; waits for the device and for the others."""
        seconds = time.perf_counter() - self.since
        own = [*(total / self.steps for total in self.sums.values()), *self.losses]
        values = [*torch.stack([value.float() for value in own]).tolist(), self.waited / seconds]
        *means, waited = (total / world.size for total in world.sum(values))
        return Reading(
            logs=dict(zip(self.sums, means, strict=False)),
            losses=means[len(self.sums) :],
            norms=torch.stack(self.norms).tolist(),
            seconds=seconds,
            waited=waited,
        )

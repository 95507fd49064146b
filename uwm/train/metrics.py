"""What the steps since the last report were like."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uwm.train.distributed import World


@dataclass(frozen=True, kw_only=True)
class MetricSums:
    """What a process adds to the metrics of all."""

    logs: tuple[float, ...]
    """Means over the process's steps, in the order in which they were first logged."""
    losses: tuple[float, ...]
    waited: float


@dataclass(frozen=True, kw_only=True)
class MetricsSummary:
    """What the steps were like over all processes, and the same in all of them but for the time."""

    logs: dict[str, float]
    """Means of what was logged, the loss among it."""
    losses: tuple[float, ...]
    """Loss of every step."""
    norms: list[float]
    """Norm of every step's gradient, before clipping."""
    seconds: float
    waited: float
    """Share of the time that the processes stood still waiting for data, 0 to 1."""


@dataclass
class Metrics:
    """Collects the steps since the last report; tensors stay on the device until they are read."""

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

    def add(self, logs: Mapping[str, Tensor], weight: float) -> None:
        """Take what one micro-batch logged, which is the part `weight` of its step in this process."""
        for name, value in logs.items():
            self._step[name] = self._step[name] + weight * value if name in self._step else weight * value

    def end_step(self, norm: Tensor) -> None:
        """Close a step, whose gradient had this norm."""
        self.losses.append(self._step["loss"])
        self.norms.append(norm)
        for name, value in self._step.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self._step = {}

    def read(self, world: World) -> MetricsSummary:
        """All of it, over all processes; waits for the device and for the others."""
        seconds, names = time.perf_counter() - self.since, len(self.sums)
        tensors = [*(total / self.steps for total in self.sums.values()), *self.losses]
        values = torch.stack([value.float() for value in tensors]).tolist()  # one copy to the host
        own = MetricSums(logs=tuple(values[:names]), losses=tuple(values[names:]), waited=self.waited / seconds)
        total = world.sum(own)
        return MetricsSummary(
            logs={name: value / world.size for name, value in zip(self.sums, total.logs, strict=True)},
            losses=tuple(loss / world.size for loss in total.losses),
            norms=torch.stack(self.norms).tolist(),
            seconds=seconds,
            waited=total.waited / world.size,
        )

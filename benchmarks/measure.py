"""CPU time of several ways to do the same work, interleaved so that a busy machine slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

Work = Callable[[int], object]
"""Does the piece of work with that number; equal numbers mean equal work for all contenders."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Median cost of one piece of work over the rounds, all threads of the process counted."""

    cpu_ms: float
    wall_ms: float

    @property
    def per_cpu_second(self) -> float:
        """Pieces of work done in a second of CPU time."""
        return 1000 / self.cpu_ms


def interleave(contenders: Mapping[str, Work], *, rounds: int, pieces: int = 1, size: int = 1) -> dict[str, Cost]:
    """Measure all contenders in turn, `rounds` times; each round does `pieces` pieces of work with each.

    A first round, which warms caches up, does not count. Costs are of a `size`-th of a piece.
    """
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            for piece in range(turn * pieces, (turn + 1) * pieces):
                work(piece)
            if turn:
                cpu[name].append((time.process_time() - cpu_start) / (pieces * size) * 1000)
                wall[name].append((time.perf_counter() - wall_start) / (pieces * size) * 1000)
    return {name: Cost(cpu_ms=median(cpu[name]), wall_ms=median(wall[name])) for name in contenders}

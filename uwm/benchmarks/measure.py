"""CPU time of several ways to do the same work, interleaved so that a busy machine slows all of them alike."""

import json
import multiprocessing
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

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


def interleave(
    contenders: Mapping[str, Work], *, rounds: int, pieces: int = 1, size: int = 1, warm: bool = False
) -> dict[str, Cost]:
    """Measure all contenders in turn, `rounds` times; each round does `pieces` pieces of work with each.

    A first round, which warms caches up, does not count, unless they are `warm`. Costs are of a `size`-th of a piece.
    """
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(1 if warm else 0, rounds + 1):
        for name, work in contenders.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            for piece in range(turn * pieces, (turn + 1) * pieces):
                work(piece)
            if turn:
                cpu[name].append((time.process_time() - cpu_start) / (pieces * size) * 1000)
                wall[name].append((time.perf_counter() - wall_start) / (pieces * size) * 1000)
    return {name: Cost(cpu_ms=median(cpu[name]), wall_ms=median(wall[name])) for name in contenders}


Opener = Callable[[], Work]
"""Makes a contender's work; picklable."""


@dataclass(frozen=True, kw_only=True)
class WorkerCost(Cost):
    """Cost in a process of its own."""

    resident_mb: float
    """Memory of the process at the end."""
    growth_mb: float
    """Memory that the process grew by after the first counted round."""


def interleave_workers(
    contenders: "Mapping[str, Opener | Script]", *, rounds: int, size: int = 1
) -> tuple[dict[str, WorkerCost], dict[str, str]]:
    """As `interleave`, but every contender has a fresh process, as a loader's worker has.

    What one contender leaves behind in the allocator then does not change what another costs.

    Returns:
        Costs of the contenders that run here, and why the others do not.
    """
    with ExitStack() as stack:
        workers: dict[str, _Worker | _ScriptWorker] = {}
        for name, each in contenders.items():
            workers[name] = _ScriptWorker(each) if isinstance(each, Script) else _Worker(each)
            stack.enter_context(workers[name])
        failed = {name: reason for name, worker in workers.items() if (reason := worker.failure())}
        seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in workers if name not in failed}
        for turn in range(rounds + 1):
            for name, measured in seen.items():
                measured.append(workers[name].run(turn))
    costs = {}
    for name, measured in seen.items():
        cpu, wall, resident = zip(*measured[1:], strict=True)
        costs[name] = WorkerCost(
            cpu_ms=median(cpu) * 1000 / size,
            wall_ms=median(wall) * 1000 / size,
            resident_mb=resident[-1],
            growth_mb=resident[-1] - resident[0],
        )
    return costs, failed


@dataclass(frozen=True, kw_only=True)
class Script:
    """A contender that runs in another interpreter.

    Attributes:
        command: starts it; it reads a line of JSON for each piece and answers with the CPU and wall seconds that the
            piece took and its resident megabytes; to an empty list with its version.
        version: how its version must begin.
        ask: what it is asked for a piece of work.
    """

    command: Sequence[str]
    version: str
    ask: Callable[[int], Sequence[int]]


class _ScriptWorker:
    """The process of a script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._process = subprocess.Popen(script.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def failure(self) -> str:
        """Why it can't work; empty when it can."""
        version = self._ask([])
        return "" if str(version).startswith(self._script.version) else f"it has version {version or 'none'}"

    def run(self, piece: int) -> tuple[float, float, float]:
        """CPU and wall seconds of a piece of work, and the memory after it."""
        cpu, wall, resident = self._ask(self._script.ask(piece))
        return cpu, wall, resident

    def _ask(self, question: Sequence[int]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return json.loads(self._process.stdout.readline() or "null")


class _Worker:
    """A contender's process."""

    def __init__(self, opener: Opener) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, opener), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()

    def failure(self) -> str:
        """Why it can't work; empty when it can."""
        return str(self._pipe.recv())

    def run(self, piece: int) -> tuple[float, float, float]:
        """CPU and wall seconds of a piece of work, and the memory after it."""
        self._pipe.send(piece)
        measured: tuple[float, float, float] = self._pipe.recv()
        return measured


def _serve(pipe: "Connection", opener: Opener) -> None:
    """Open, then work on request until the other side hangs up."""
    try:
        work = opener()
    except (ImportError, OSError, RuntimeError) as error:
        pipe.send(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
        return
    pipe.send("")
    with suppress(EOFError):
        while True:
            piece = pipe.recv()
            cpu, wall = time.process_time(), time.perf_counter()
            work(piece)
            pipe.send((time.process_time() - cpu, time.perf_counter() - wall, _resident_mb()))


def _resident_mb() -> float:
    """Memory of this process that is in RAM; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)

"""`uwm bench scale`: an ingestion's scheduling at full size, against what `uwm plan` says of it.

A private Prefect server, a runner with its workers, and as many batches as the ingestion would have. The batches are
not decoded: each task run hands back the rows of synthetic episodes, and the flow commits them. So the task runs, the
rows of the database, the results' way to the flow and the commits are those of the real thing.
"""

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flows.capacity import Plan, make_plan
from flows.server import Server, client_environment, local_server
from storage_schemas.store import open_dataset

_SETTLED = 5
"""Looks at the database, a second apart, without a change: the server writes its events behind the run."""
_PATIENCE = 600


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What a simulated ingestion did."""

    episodes: int
    """In the dataset at the end."""
    versions: int
    task_runs: int
    database_rows: Mapping[str, int]
    """Rows that came to each table of the server's database."""
    database_bytes: int
    table_bytes: int
    """Of the dataset's episode table with its log."""
    table_files: int
    seconds: float
    """From the first task run to the last commit, with the start of the workers."""
    cpu_seconds: float
    """Of the flow in this time; the workers and the server not counted."""
    commit_seconds: float
    """Of these, in commits."""


@dataclass(frozen=True, kw_only=True)
class ScaleResult:
    """A plan and what came of it."""

    plan: Plan
    measured: Simulated

    @property
    def rows(self) -> list[tuple[str, float, float]]:
        """What was compared: predicted and measured."""
        plan, found = self.plan, self.measured
        return [
            ("task runs", plan.task_runs, found.task_runs),
            ("versions", plan.commits, found.versions),
            ("database rows", plan.total_rows, sum(found.database_rows.values())),
            *((f"  {name}", count, found.database_rows.get(name, 0)) for name, count in plan.database_rows.items()),
            ("database MB", plan.database_bytes / 1e6, found.database_bytes / 1e6),
            ("episode table MB", plan.table_bytes / 1e6, found.table_bytes / 1e6),
            ("flow, CPU s", plan.coordination_seconds, found.cpu_seconds),
        ]


def bench_scale(episodes: int = 100_000, *, batch: int = 256, runner: str = "dask", workers: int = 2) -> ScaleResult:
    """Simulate an ingestion and plan the same one.

    Args:
        episodes: how many.
        batch: episodes per task run.
        runner: one of `flows.runners.RUNNERS`.
        workers: of the runner.

    Raises:
        RuntimeError: when the simulated ingestion fails.
    """
    plan = make_plan(episodes, batch=batch, workers=workers)
    with (
        tempfile.TemporaryDirectory(prefix="uwm-") as folder,
        local_server(Path(folder) / "prefect", port=0) as server,
    ):
        before, size = _settle(server, 0), _size(server)
        store = Path(folder) / "dataset"
        seconds, cpu, committing = _run(server, store, episodes, batch, runner, workers)
        after = _settle(server, plan.task_runs)
        grown = {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)}
        dataset = open_dataset(str(store))
        files = [path for path in (store / "episodes").rglob("*") if path.is_file()]
        return ScaleResult(
            plan=plan,
            measured=Simulated(
                episodes=len(set(dataset.episodes.episode_ids)),
                versions=dataset.version,
                task_runs=grown.get("task_run", 0),
                database_rows=grown,
                database_bytes=_size(server) - size,
                table_bytes=sum(path.stat().st_size for path in files),
                table_files=len(files),
                seconds=round(seconds, 1),
                cpu_seconds=round(cpu, 1),
                commit_seconds=round(committing, 1),
            ),
        )


def _run(server: Server, store: Path, episodes: int, batch: int, runner: str, workers: int) -> list[float]:
    arguments = [str(store), str(episodes), str(batch), runner, str(workers)]
    command = [sys.executable, "-m", "benchmarks.simulation", *arguments]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        **client_environment(server),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the simulated ingestion failed: {done.stderr[-2000:]}")
    return [float(word) for word in done.stdout.split()[-3:]]


def _settle(server: Server, task_runs: int) -> dict[str, int]:
    """Rows of every table, once all task runs are there and nothing changes any more."""
    deadline = time.monotonic() + _PATIENCE
    seen: list[dict[str, int]] = []
    while time.monotonic() < deadline:
        seen.append(_count(server))
        if seen[-1]["task_run"] >= task_runs and seen[-_SETTLED:] == [seen[-1]] * _SETTLED:
            return seen[-1]
        time.sleep(1)
    raise RuntimeError(f"after {_PATIENCE} s the server holds {seen[-1]['task_run']} of {task_runs} task runs")


def _count(server: Server) -> dict[str, int]:
    with closing(sqlite3.connect(f"file:{server.home / 'prefect.db'}?mode=ro", uri=True, timeout=60)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}  # noqa: S608


def _size(server: Server) -> int:
    """Bytes of the database, with what has not been merged into its file yet."""
    return sum(path.stat().st_size for path in server.home.glob("prefect.db*"))

"""What an ingestion of a given size costs beside its decoding: task runs, database rows, commits, time.

The constants are what `uwm bench scale` measured when it carried out as many batches on a real server, but for those
that say otherwise; it prints both sides again on your machine. See docs/decisions/0010-scaling.md. Imports no prefect.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from storage_schemas.errors import UserError

ROWS_PER_TASK_RUN: Mapping[str, float] = {
    "task_run": 1,
    "task_run_state": 3,
    "log": 1,
    "events": 3,
    "event_resources": 9,
}
"""Pending, running, completed: one state and one event each, an event with three related resources."""
ROWS_PER_FLOW_RUN: Mapping[str, float] = {
    "flow": 1,
    "flow_run": 1,
    "flow_run_state": 3,
    "log": 2,
    "events": 5,
    "event_resources": 9,
}
DATABASE_BYTES = 350_000, 22_000
"""Of a flow run and of a task run, on SQLite."""
TABLE_BYTES_PER_COMMIT, TABLE_BYTES_PER_EPISODE = 10_500, 91
COORDINATION_SECONDS = 0.12
"""CPU time of the flow per task run: submitting it, taking its result, committing it.

Read with `ps` late in a run of 391 task runs; a smaller run of `uwm bench scale` gave 0.11.
"""
START_SECONDS = 10.0
"""Until the workers of a private cluster have imported what they need. An estimate, not a measurement."""
SECONDS_PER_EPISODE = 1.0
"""CPU time of converting an episode. A round number, not a measurement: `uwm bench ingest` measures yours."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An ingestion ahead of time."""

    episodes: int
    batch: int
    workers: int
    flow_runs: int
    task_runs: int
    commits: int
    """Versions of the dataset."""
    database_rows: Mapping[str, int]
    """Rows that the run adds to tables of the Prefect server; events and their resources go after 7 days."""
    database_bytes: int
    table_bytes: int
    """Of the dataset's episode table with its log; frames not counted."""
    coordination_seconds: float
    """CPU time of the flow: submitting, taking results, committing."""
    convert_seconds: float
    """CPU time of all batches."""
    wall_seconds: float
    """The workers side by side, or the one flow that commits: whichever takes longer."""

    @property
    def total_rows(self) -> int:
        """Of all tables."""
        return sum(self.database_rows.values())


def make_plan(
    episodes: int, *, batch: int = 64, workers: int = 2, seconds_per_episode: float = SECONDS_PER_EPISODE
) -> Plan:
    """What an ingestion of new episodes costs.

    Args:
        episodes: of the source.
        batch: episodes per task run and commit.
        workers: processes that convert batches side by side, each with a core of its own; one core more is the flow's.
        seconds_per_episode: CPU time of converting one.

    Raises:
        UserError: when a number is out of range.
    """
    if min(episodes, batch, workers) < 1 or seconds_per_episode < 0:
        raise UserError("episodes, batch and workers are at least 1, and seconds per episode not negative")
    tasks = math.ceil(episodes / batch)
    tables = dict.fromkeys([*ROWS_PER_TASK_RUN, *ROWS_PER_FLOW_RUN])
    coordination = tasks * COORDINATION_SECONDS
    converting = episodes * seconds_per_episode
    return Plan(
        episodes=episodes,
        batch=batch,
        workers=workers,
        flow_runs=1,
        task_runs=tasks,
        commits=tasks,
        database_rows={
            name: round(tasks * ROWS_PER_TASK_RUN.get(name, 0) + ROWS_PER_FLOW_RUN.get(name, 0)) for name in tables
        },
        database_bytes=DATABASE_BYTES[0] + tasks * DATABASE_BYTES[1],
        table_bytes=tasks * TABLE_BYTES_PER_COMMIT + episodes * TABLE_BYTES_PER_EPISODE,
        coordination_seconds=coordination,
        convert_seconds=converting,
        wall_seconds=START_SECONDS + max(coordination, converting / min(workers, tasks)),
    )

"""The command about size: plan."""

from dataclasses import asdict
from typing import Annotated

import typer

from flows.capacity import SECONDS_PER_EPISODE, make_plan
from flows.cli.console import say_json, say_table
from flows.cli.data import AsJson


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(plan)


def plan(
    episodes: Annotated[int, typer.Argument(metavar="EPISODES", min=1, help="How many are to be ingested.")],
    batch: Annotated[int, typer.Option(min=1, help="Episodes per task run and commit.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes that convert batches side by side.")] = 2,
    seconds_per_episode: Annotated[
        float, typer.Option(min=0, help="CPU time of converting one; `uwm bench ingest` measures yours.")
    ] = SECONDS_PER_EPISODE,
    json: AsJson = False,
) -> int:
    """Say ahead what an ingestion costs: task runs, rows of the server's database, versions, time.

    The rates were measured once; `uwm bench scale` holds them against a simulated ingestion on your machine.

    Example: uwm plan 100000 --batch 256 --workers 16
    """
    found = make_plan(episodes, batch=batch, workers=workers, seconds_per_episode=seconds_per_episode)
    if json:
        say_json(asdict(found) | {"total_rows": found.total_rows})
        return 0
    rows = [
        ("flow runs", f"{found.flow_runs:,}"),
        ("task runs", f"{found.task_runs:,}"),
        ("versions of the dataset", f"{found.commits:,}"),
        ("rows in the server's database", f"{found.total_rows:,}"),
        *((f"  {name}", f"{count:,}") for name, count in found.database_rows.items()),
        ("server's database, MB", f"{found.database_bytes / 1e6:,.1f}"),
        ("episode table and log, MB", f"{found.table_bytes / 1e6:,.1f}"),
        ("scheduling and commits, CPU s", f"{found.coordination_seconds:,.0f}"),
        ("converting, CPU s", f"{found.convert_seconds:,.0f}"),
        ("wall time, s", f"{found.wall_seconds:,.0f}"),
    ]
    say_table(f"{episodes:,} episodes, {batch} a batch, {workers} workers", ("", ""), rows)
    return 0

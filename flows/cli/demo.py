"""Commands that show it all: demo, ui."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import count, note, say, say_table
from flows.cli.jobs import LocalJobs, jobs_of
from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from flows.jobs.evaluate import Evaluated
    from flows.jobs.pipeline import Jobs

DEMO_FOLDER = Path("runs/demo")


def ui(
    folder: Annotated[Path, typer.Option(help="Folder of the demo, or of another private server.")] = DEMO_FOLDER,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; another one when it is taken.")] = 4200,
) -> int:
    """Open the Prefect server that keeps the demo's lineage, until Ctrl-C.

    Example: uwm ui --port 4300
    """
    from flows.lineage.pages import HOME_KEY
    from flows.runtime.server import local_server

    home = folder / "prefect"
    if not home.is_dir():
        raise UserError(f"{home} does not exist: run `uwm demo` first, or name another --folder")
    note("starting the Prefect server, this takes up to a minute")
    with local_server(home, port=port) as server:
        say(f"lineage: {server.url}/artifacts/key/{HOME_KEY}")
        say(f"runs:    {server.url}/runs")
        note("Ctrl-C stops it")
        try:
            return server.process.wait()
        except KeyboardInterrupt:
            return 0


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = DEMO_FOLDER,
    data: Annotated[Path, typer.Option(help="Folder with droid/ and video/.")] = Path("examples/data"),
    flow: Annotated[
        bool, typer.Option("--flow/--no-flow", help="Run as Prefect flows, on a private server if none is set.")
    ] = True,
) -> int:
    """Run the whole method on the example data: ingest, train, finetune, evaluate, report.

    A second run reuses what is done.

    Example: uwm demo
    """
    from flows.jobs.demo import require_data, run

    require_data(data)
    with _flow_jobs(folder) if flow else contextlib.nullcontext(LocalJobs(quiet=False)) as jobs:
        result = run(jobs, folder, data, note)
    show_headlines(result.evaluated)
    if result.reused:
        say(f"{count(result.reused, 'result')} of earlier runs reused; `make clean` removes them")
    say(f"report:  {result.report} (all five modes, predictions, loss curves)")
    say("lineage: make ui (or uwm lineage)")
    return 0


@contextlib.contextmanager
def _flow_jobs(folder: Path) -> "Iterator[Jobs]":
    """The jobs as flows: on the configured server, or on a private one for as long as the block runs."""
    from flows.runtime.server import become_client, configured_api_url, local_server, require_server

    configured = configured_api_url()
    if configured:
        require_server(configured)
        yield jobs_of(True, quiet=False)
        return
    note("starting a Prefect server of its own, this takes up to a minute")
    with local_server(folder / "prefect") as server:
        become_client(server)
        yield jobs_of(True, quiet=False)


def show_headlines(evaluated: "Sequence[Evaluated]") -> None:
    """Print what evaluations gain over the trivial baselines, one column each."""
    from uwm.report.tables import headline_rows

    rows = [
        (row.label, row.baseline, *(f"{cell.change} {cell.mark}" if cell else "" for cell in row.cells))
        for row in headline_rows([item.evaluation for item in evaluated])
    ]
    title = "Held-out episodes: gain over the trivial baseline (▲ better, ▼ worse, ≈ not told apart)"
    say_table(title, ("question", "baseline", *(item.label for item in evaluated)), rows)


COMMANDS = (demo, ui)

"""Commands that operate a site: deploy, worker, promoted."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import say, say_json, say_table
from flows.cli.lineage import find_root
from flows.cli.options import AsJson, Root
from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from flows.jobs.promotion import Decision

SiteFile = Annotated[Path, typer.Argument(metavar="SITE", help="Site file: what runs where and when.")]


def deploy(
    site: SiteFile = Path("deploy.toml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")] = False,
    json: AsJson = False,
) -> int:
    """Register all deployments of a site with the Prefect server; a second time changes nothing.

    Makes the work pool, the GPU slots, the deployments with their schedules, and the automations that mark silent runs
    as crashed, resume crashed runs, and start a chain when a dataset has a new version.

    Example: uwm deploy deploy.toml --dry-run
    """
    from flows.deploy.site import load_site

    parsed = load_site(site)
    from flows.cli.jobs import use_flow

    if not use_flow(None):
        raise UserError("deploying needs a Prefect server: set PREFECT_API_URL to its address")
    from flows.deploy.deployments import deploy as bring

    changes = bring(parsed, folder=site.absolute().parent, dry_run=dry_run)
    if json:
        say_json([{"kind": item.kind, "name": item.name, "what": item.what} for item in changes])
    else:
        say_table(
            "would be" if dry_run else "",
            ("kind", "name", "change"),
            [(item.kind, item.name, item.what) for item in changes],
        )
    return 0


def worker(
    pool: Annotated[str, typer.Option(help="Work pool that it takes flow runs from.")] = "uwm",
    queue: Annotated[
        list[str] | None,
        typer.Option(
            help="Take runs of this work queue only; may be given more than once. By default all.", metavar="NAME"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most flow runs at once.")] = None,
    name: Annotated[str | None, typer.Option(help="Name in the UI; by default one is made up.")] = None,
) -> int:
    """Run a Prefect process worker until SIGTERM, with what our flow runs need.

    Where GPU machines have a queue of their own (gpu_queue in the site file), they serve that one and the others
    the queue default, so that no training lands on a machine without a GPU.

    Example: uwm worker --limit 1 --queue gpu
    """
    from flows.cli.jobs import use_flow

    if not use_flow(None):
        raise UserError("a worker needs a Prefect server: set PREFECT_API_URL to its address")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    command += [word for each in queue or () for word in ("--work-queue", each)]
    command += ["--limit", str(limit)] if limit else []
    command += ["--name", name] if name else []
    os.execve(sys.executable, command, worker_environment())  # noqa: S606 - no shell


def worker_environment() -> dict[str, str]:
    """Variables of a worker: flow runs take its interpreter, and say often that they are alive."""
    from flows.runtime.timeouts import HEARTBEAT_SECONDS

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}


def promoted(
    track: Annotated[
        str | None, typer.Argument(metavar="TRACK", help="Show its decisions; else the best of all.")
    ] = None,
    root: Root = None,
    json: AsJson = False,
) -> int:
    """Show the best checkpoint of every track, or all decisions of one with their reasons.

    Example: uwm promoted policy --json
    """
    from flows.jobs.promotion import Track, tracks

    folder = root or find_root(None)
    names = tracks(folder)
    if track is not None and track not in names:
        raise UserError(f"no track {track!r} under {folder}: there is {', '.join(names) or 'none'}")
    if track is not None:
        return _show(Track(folder, track).decisions(), json)
    all_tracks = [Track(folder, name) for name in names]
    if json:
        say_json({item.name: best.model_dump(mode="json") if (best := item.best()) else None for item in all_tracks})
        return 0
    for item in all_tracks:
        best = item.best()
        say(f"{item.name}: {f'{best.checkpoint}, {best.uri}' if best else 'nothing promoted yet'}")
    if not all_tracks:
        say(f"no decisions under {folder} yet")
    return 0


def _show(decisions: "list[Decision]", json: bool) -> int:
    if json:
        say_json([item.model_dump(mode="json") for item in decisions])
    for item in () if json else decisions:
        verdict = "promoted" if item.promoted else "not promoted"
        say(f"{item.number}: {item.candidate.checkpoint} {verdict}: {item.reason}")
    return 0


COMMANDS = (deploy, worker, promoted)

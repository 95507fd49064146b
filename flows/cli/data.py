"""Commands about data: ingest, inspect, verify."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import count, note, progress_bar, say, say_json, say_table
from flows.cli.execution import carried_out

if TYPE_CHECKING:
    from flows.jobs import Ingested

Store = Annotated[str, typer.Argument(metavar="STORE", help="Dataset: a folder or a URI such as s3://bucket/droid.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Version = Annotated[int | None, typer.Option(min=0, help="Dataset version; the newest by default.")]
Flow = Annotated[
    bool | None,
    typer.Option(
        "--flow/--no-flow", help="Run as a Prefect flow; by default when PREFECT_API_URL or a profile is set."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(ingest)
    app.command()(inspect)
    app.command()(verify)


def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, file or glob of raw data.")],
    store: Store,
    format: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="droid-rlds, video, ...; found out from the source by default.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option(help="Name of the collection; by default the lab or folder.")
    ] = None,
    camera: Annotated[str | None, typer.Option(help="Camera that video frames count as.")] = None,
    fps: Annotated[float | None, typer.Option(help="Most steps per second of video (15).")] = None,
    clip_steps: Annotated[
        int | None, typer.Option(min=1, help="Most steps of an episode cut from video (150).")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Decoder of videos: pyav or decord (pyav).")] = None,
    val_percent: Annotated[
        int | None, typer.Option(min=0, max=100, help="Per cent of episodes held out, fixed for a new store (10).")
    ] = None,
    reject: Annotated[
        str | None,
        typer.Option(
            help="What to keep out, by the doctor's names: black,static,idle,duplicate,copy,missing_camera,"
            "out_of_range,time_gap,too_short; none for no filter (video: black,static,copy)."
        ),
    ] = None,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Bring robot episodes or videos into a store as a new version.

    Ingesting again adds only what is new. Bad records are quarantined with a reason and never stop the rest.

    Example: uwm ingest examples/data/droid runs/droid --format droid-rlds
    """
    options: dict[str, Any] = {
        "format": format,
        "collection": collection,
        "camera": camera,
        "fps": fps,
        "clip_steps": clip_steps,
        "backend": backend,
        "val_percent": val_percent,
        "reject": None if reject is None else reject.split(","),
    }
    result = carried_out(flow, quiet=json).ingest(source, store, **options)
    if json:
        say_json(result.report)
    else:
        show_ingested(result)
    return 0


def show_ingested(result: "Ingested") -> None:
    """Say in a few lines what an ingestion did."""
    report = result.report
    for rejection in report.quarantined:
        note(f"quarantined: {rejection.source_uri}: {rejection.reason}: {rejection.detail}")
    done = f"{count(report.added, 'episode')} added, {report.replaced} replaced, {report.present} there already"
    say(f"{report.store_uri} is at version {report.version}: {done}, {len(report.quarantined)} quarantined")


def inspect(store: Store, version: Version = None, json: AsJson = False) -> int:
    """Show what a dataset version holds.

    Example: uwm inspect runs/droid --version 1 --json
    """
    from dataclasses import asdict

    from flows.jobs import summary_of

    facts = asdict(summary_of(store, version))
    if json:
        say_json(facts)
    else:
        rows = [(name, _short(value)) for name, value in facts.items()]
        say_table(store, ("", ""), rows)
    return 0


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        shown = ", ".join(map(str, value[:12]))
        return f"{shown}, … ({len(value)})" if len(value) > 12 else shown
    return f"{value:,}" if isinstance(value, int) else str(value)


def verify(store: Store, version: Version = None, json: AsJson = False) -> int:
    """Check every byte of a dataset version; exit code 1 when something is damaged.

    Example: uwm verify runs/droid
    """
    from dataclasses import asdict

    from storage_schemas.integrity import verify as check

    with progress_bar(quiet=json) as display:
        task = display.add_task("verify", total=None)
        report = check(store, version, progress=lambda done, total: display.update(task, completed=done, total=total))
    if json:
        say_json({"ok": report.ok, "problems": [asdict(problem) for problem in report.problems]})
    elif report.ok:
        say(f"{store}: everything is as it was written")
    for problem in () if json else report.problems:
        say(f"damaged: episode {problem.episode_id}, part {problem.part}: {problem.what}")
    return 0 if report.ok else 1

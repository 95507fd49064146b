"""Commands about data: ingest, inspect, verify, diff, tag, remove, gc, backup."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import count, note, progress_bar, say, say_json, say_table
from flows.cli.execution import carried_out
from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from flows.jobs.ingest import Ingested

Store = Annotated[str, typer.Argument(metavar="STORE", help="Dataset: a folder or a URI such as s3://bucket/droid.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Version = Annotated[int | None, typer.Option(min=0, help="Dataset version; the newest by default.")]
VersionName = Annotated[
    str | None, typer.Option("--version", metavar="NUMBER|TAG", help="Dataset version; the newest by default.")
]
Flow = Annotated[
    bool | None,
    typer.Option(
        "--flow/--no-flow", help="Run as a Prefect flow; by default when PREFECT_API_URL or a profile is set."
    ),
]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Episodes or video files per task run and commit (64); up to 256 for many.")
]
RunnerName = Annotated[
    str | None, typer.Option("--runner", help="Who does the task runs: threads, processes or dask (threads).")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Task runs at once (one thread, or a process per core).")]
Cluster = Annotated[str | None, typer.Option(help="A Dask cluster that runs already: tcp://HOST:8786.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(ingest)
    app.command()(inspect)
    app.command()(verify)
    app.command()(diff)
    app.command()(tag)
    app.command()(remove)
    app.command()(gc)
    app.command()(backup)


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
    batch: Batch = None,
    runner: RunnerName = None,
    workers: Workers = None,
    cluster: Cluster = None,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Bring robot episodes or videos into a store as a new version.

    Ingesting again adds only what is new. Bad records are quarantined with a reason and never stop the rest.
    Batches are spread over processes or a cluster with --runner or --cluster; the result is the same.

    Example: uwm ingest examples/data/droid runs/droid --format droid-rlds

    Example: uwm ingest /data/droid stores/droid --runner dask --workers 8 --batch 128
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
        "batch_episodes": batch,
        **spread(runner, workers, cluster),
    }
    given = {name: value for name, value in options.items() if value is not None}
    result = carried_out(flow, quiet=json).ingest(source, store, **given)
    if json:
        say_json(result.report)
    else:
        show_ingested(result)
    return 0


def spread(runner: str | None, workers: int | None, cluster: str | None) -> dict[str, Any]:
    """The options that say who does the task runs, checked.

    Raises:
        UserError: when they make no sense.
    """
    from flows.runtime.task_runners import choose

    choose(runner, workers, cluster)
    return {"runner": runner, "workers": workers, "cluster": cluster}


def show_ingested(result: "Ingested") -> None:
    """Say in a few lines what an ingestion did."""
    report = result.report
    for rejection in report.quarantined:
        note(f"quarantined: {rejection.source_uri}: {rejection.reason}: {rejection.detail}")
    done = f"{count(report.added, 'episode')} added, {report.replaced} replaced, {report.present} there already"
    say(f"{report.store_uri} is at version {report.version}: {done}, {len(report.quarantined)} quarantined")


def inspect(store: Store, version: VersionName = None, json: AsJson = False) -> int:
    """Show what a dataset version holds.

    Example: uwm inspect runs/droid --version 1 --json
    """
    from dataclasses import asdict

    from flows.jobs.ingest import summary_of

    facts = asdict(summary_of(store, _number(store, version)))
    if json:
        say_json(facts)
    else:
        rows = [(name, _short(value)) for name, value in facts.items()]
        say_table(store, ("", ""), rows)
    return 0


def _number(store: str, version: str | None) -> int | None:
    """The number of a version that is given as a number or a tag."""
    if version is None or version.isdecimal():
        return None if version is None else int(version)
    from storage_schemas.catalog.versions import find_tag
    from storage_schemas.location import locate

    return find_tag(locate(store), version).version


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        shown = ", ".join(map(str, value[:12]))
        return f"{shown}, … ({len(value)})" if len(value) > 12 else shown
    return f"{value:,}" if isinstance(value, int) else str(value)


def verify(store: Store, version: VersionName = None, json: AsJson = False) -> int:
    """Check every byte of a dataset version; exit code 1 when something is damaged.

    Example: uwm verify runs/droid
    """
    from dataclasses import asdict

    from storage_schemas.maintenance.verify import verify as check

    number = _number(store, version)
    with progress_bar(quiet=json) as display:
        task = display.add_task("verify", total=None)
        report = check(store, number, progress=lambda done, total: display.update(task, completed=done, total=total))
    if json:
        say_json({"ok": report.ok, "problems": [asdict(problem) for problem in report.problems]})
    elif report.ok:
        say(f"{store}: everything is as it was written")
    for problem in () if json else report.problems:
        say(f"damaged: episode {problem.episode_id}, part {problem.part}: {problem.what}")
    return 0 if report.ok else 1


def diff(
    store: Store,
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="A version: its number or a tag.")],
    after: Annotated[str | None, typer.Argument(metavar="AFTER", help="Another; the newest by default.")] = None,
    json: AsJson = False,
) -> int:
    """Show which episodes were added, removed or changed from one version to another.

    Example: uwm diff runs/droid 1 2
    """
    from storage_schemas.catalog.versions import diff as compare

    found = compare(store, before, after)
    if json:
        say_json(found)
        return 0
    counts = ", ".join(f"{found.count(kind):,} {kind}" for kind in ("added", "removed", "changed"))
    counts += f", {found.unchanged:,} as before; {found.steps:+,} steps"
    say(f"{store}, version {found.before} to {found.after}: {counts}")
    for change in found.changes:
        lengths = " -> ".join("none" if n is None else f"{n}" for n in (change.length_before, change.length_after))
        say(f"{change.kind}: {change.episode_id}, {lengths} steps, {change.source_uri}")
    return 0


def tag(
    store: Store,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The tag; without one, list them.")] = None,
    version: VersionName = None,
    move: Annotated[bool, typer.Option("--move", help="Take the name from the version that has it.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Take the name away; the version stays.")] = False,
    json: AsJson = False,
) -> int:
    """Name a dataset version, so that every command takes the name for its number; or list the names.

    Example: uwm tag runs/droid paper-2026 --version 1
    """
    from dataclasses import asdict

    from storage_schemas.catalog.versions import drop_tag, set_tag, tags

    if name is None:
        if drop or move or version is not None:
            raise UserError("name the tag: uwm tag STORE NAME")
        found = tags(store)
    else:
        found = [drop_tag(store, name) if drop else set_tag(store, name, _number(store, version), move=move)]
    if json:
        say_json([asdict(each) for each in found])
    for each in () if json else found:
        say(f"{each.name} {'was' if drop else 'is'} version {each.version} of {store}")
    return 0


def remove(
    store: Store,
    episodes: Annotated[list[str], typer.Argument(metavar="EPISODE...", help="Ids, as verify and diff print them.")],
    reason: Annotated[str, typer.Option(help="Why, in one line; kept in the quarantine.")] = "",
    forget: Annotated[
        bool, typer.Option("--forget", help="Don't quarantine: ingesting the source again brings them back.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Take episodes out of a store: a new version without them. Older versions keep them.

    Ingestion leaves them out from now on, unless --forget is given.

    Example: uwm remove runs/droid 3f0c8a12 --reason "the camera was covered"
    """
    from storage_schemas.catalog.quarantine import withdraw

    result = withdraw(store, episodes, detail=reason, forget=forget)
    if json:
        say_json({"version": result.version, "removed": result.removed})
    else:
        say(f"{store} is at version {result.version}: {count(result.removed, 'episode')} removed")
    return 0


def gc(
    store: Store,
    age: Annotated[float, typer.Option(min=0, help="Safety age in hours: younger files may be in the making.")] = 24.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what was found; by default it is only listed.")
    ] = False,
    json: AsJson = False,
) -> int:
    """List, or delete, what crashed writers have left and no version names. Old versions stay readable.

    Example: uwm gc runs/droid --age 48 --delete
    """
    from datetime import timedelta

    from storage_schemas.maintenance.orphans import collect_orphans

    report = collect_orphans(store, age=timedelta(hours=age), remove=delete)
    if json:
        say_json(report)
        return 0
    for orphan in report.orphans:
        say(f"{orphan.name}: {orphan.bytes:,} bytes, last written {orphan.modified:%Y-%m-%d %H:%M} UTC")
    done = "deleted" if delete else "found"
    say(
        f"{store}: {count(len(report.orphans), 'orphan')} with {report.bytes:,} bytes {done}"
        f", {report.young} younger than {age:g} h left alone"
        + ("; give --delete to delete them" if report.orphans and not delete else "")
    )
    return 0


def backup(
    store: Store,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Where to: nothing yet, or an older copy.")],
    json: AsJson = False,
) -> int:
    """Copy a dataset with all its versions, also while others write to it; again copies only what is new.

    Restore with the places exchanged. Cached latents are left out: `uwm latents` makes them again.

    Example: uwm backup s3://lab/stores/droid /backup/droid
    """
    from storage_schemas.maintenance.backup import back_up

    with progress_bar(quiet=json) as display:
        task = display.add_task("backup", total=None)
        report = back_up(store, target, progress=lambda done, total: display.update(task, completed=done, total=total))
    if json:
        say_json(report)
    else:
        copied = f"{count(report.copied, 'file')} with {report.bytes:,} bytes copied, {report.present} there already"
        say(f"{report.target_uri} is at version {report.version} of {report.store_uri}: {copied}")
    return 0

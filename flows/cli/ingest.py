"""Commands that bring data in, or say what is wrong with it: ingest, doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import count, note, progress_bar, say, say_json, say_table
from flows.cli.jobs import jobs_of, use_flow
from flows.cli.options import AsJson, Flow, Store, Version, checked
from flows.jobs.options import RunnerOptions
from pipelines.options import IngestOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.jobs.ingest import Ingested
    from pipelines.checks.quality import LeftOut, Rejection
    from pipelines.doctor.diagnose import Diagnosis

_SHOWN = 20
"""Findings of one reason that the terminal shows."""


def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, file or glob of raw data.")],
    store: Store,
    options: IngestOptions,
    runner: RunnerOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much there is and about how long it takes; write nothing.")
    ] = False,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Bring robot episodes or videos into a store as a new version.

    Ingesting again adds only what is new. Bad records are quarantined with a reason and never stop the rest; exit code
    2 when nothing else was there.
    Batches are spread over processes or a cluster with --runner or --cluster; the result is the same.

    Example: uwm ingest examples/data/droid runs/droid --format droid-rlds

    Example: uwm ingest /data/droid stores/droid --runner dask --workers 8 --batch 128
    """
    if dry_run:
        return _say_dry_run(source, store, options, json=json)
    result = jobs_of(flow, quiet=json).ingest(source, store, options, runner)
    if json:
        say_json(result.report)
    else:
        show_ingested(result)
    return 2 if result.report.nothing_good else 0


def _say_dry_run(source: str, store: str, options: IngestOptions, *, json: bool) -> int:
    from pipelines.dry_run import dry_run

    found = dry_run(source, store, options)
    if json:
        say_json(found)
    else:
        _note_oddities(found.rejected, found.left_out)
        minutes = f"{found.seconds / 60:.0f} minutes" if found.seconds >= 120 else f"{found.seconds:.0f} s"
        size = f"{found.bytes / 1e6:.1f} MB of {found.source_format}"
        about = f"{count(found.episodes, 'episode')}, {count(found.steps, 'step')}, {found.stored_bytes / 1e6:.1f} MB"
        say(f"{count(found.references, 'new reference')} ({size}), {count(found.present, 'episode')} there already")
        say(
            f"about {about} of frames, {minutes} in one process; measured on {found.measured} of them. "
            "Nothing was written."
        )
    return 2 if found.rejected and not found.episodes + found.present else 0


def _note_oddities(rejected: "Sequence[Rejection]", left_out: "Sequence[LeftOut]") -> None:
    for rejection in rejected:
        note(f"quarantined: {rejection.source_uri}: {rejection.reason}: {rejection.detail}")
    for item in left_out:
        note(f"{item.label}: {item.source_uri}: {item.what}")


def show_ingested(result: "Ingested") -> None:
    """Say in a few lines what an ingestion did."""
    report = result.report
    _note_oddities(report.quarantined, report.left_out)
    done = f"{count(report.added, 'episode')} added, {report.replaced} replaced, {report.present} there already"
    say(f"{report.store_uri} is at version {report.version}: {done}, {len(report.quarantined)} quarantined")


def doctor(
    target: Annotated[str, typer.Argument(metavar="SOURCE|DATASET", help="Raw data of any format, or a store.")],
    format: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="Of raw data: droid-rlds, video, ...; found out by default.")
    ] = None,
    mapping: Annotated[
        str | None, typer.Option(help="What the fields of RLDS mean: a shipped mapping or a TOML file, as in ingest.")
    ] = None,
    version: Version = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a report with pictures to this file.")] = None,
    json: AsJson = False,
    flow: Flow = None,
) -> int:
    """Say all that is wrong with raw data or a store; exit code 1 when some of it can't be used.

    Looks at every frame, changes nothing. The names of its doubts are filters of `uwm ingest --reject`.

    Example: uwm doctor /data/videos --html report.html
    """
    diagnosis = _diagnose(
        target, checked(IngestOptions, {"format": format, "mapping": mapping}), version, flow, quiet=json
    )
    if html is not None:
        from pipelines.doctor.page import write_page

        write_page(diagnosis, str(html))
    if json:
        say_json(diagnosis.to_dict())
    else:
        show(diagnosis)
        if html is not None:
            say(f"report: {html}")
    return 0 if diagnosis.ok else 1


def _diagnose(
    target: str, options: IngestOptions, version: str | None, flow: bool | None, *, quiet: bool
) -> "Diagnosis":
    if use_flow(flow):
        from flows.doctor import doctor as run
        from flows.runtime.user_errors import as_function

        return as_function(run)(target, options, version)
    from pipelines.doctor.diagnose import diagnose

    with progress_bar(quiet=quiet) as display:
        task = display.add_task("doctor", total=None)
        return diagnose(
            target,
            options,
            version=version,
            progress=lambda p: display.update(task, completed=p.done, total=p.total),
        )


def show(diagnosis: "Diagnosis") -> None:
    """Print the findings and the verdict."""
    from pipelines.doctor.page import groups, verdict

    def short(text: str) -> str:
        return text.replace(diagnosis.target.rstrip("/") + "/", "")

    rows = []
    for group in groups(diagnosis):
        mark = "✗" if group.fatal else "?"
        rows += [(f"{mark} {group.reason}", short(one.source_uri), short(one.detail)) for one in group.shown[:_SHOWN]]
        if group.count > _SHOWN:
            rows.append(("", f"{group.count - _SHOWN} more", ""))
    if rows:
        say_table(diagnosis.target, ("finding", "place", "what"), rows)
    say(verdict(diagnosis))


COMMANDS = (ingest, doctor)

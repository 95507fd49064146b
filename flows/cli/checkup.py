"""The command `doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import progress_bar, say, say_json, say_table
from flows.cli.data import AsJson, Flow, Version
from flows.cli.execution import use_flow

if TYPE_CHECKING:
    from pipelines.doctor.diagnose import Diagnosis

_SHOWN = 20
"""Findings of one reason that the terminal shows."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(doctor)


def doctor(
    target: Annotated[str, typer.Argument(metavar="SOURCE|DATASET", help="Raw data of any format, or a store.")],
    format: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="Of raw data: droid-rlds, video, ...; found out by default.")
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
    found = _carried_out(target, format, version, flow, quiet=json)
    if html is not None:
        from pipelines.doctor.page import write_page

        write_page(found, str(html))
    if json:
        say_json(found.to_dict())
    else:
        show(found)
        if html is not None:
            say(f"report: {html}")
    return 0 if found.ok else 1


def _carried_out(
    target: str,
    format: str | None,  # noqa: A002
    version: int | None,
    flow: bool | None,
    *,
    quiet: bool,
) -> "Diagnosis":
    if use_flow(flow):
        from flows.doctor import doctor as run
        from flows.runtime.user_errors import as_function

        return as_function(run)(target, format, version)
    from pipelines.doctor.diagnose import diagnose

    with progress_bar(quiet=quiet) as display:
        task = display.add_task("doctor", total=None)
        return diagnose(
            target,
            format=format,
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

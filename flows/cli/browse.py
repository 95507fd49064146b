"""The command that shows the episodes of a dataset in a browser."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import count, note, progress_bar, say, say_json
from flows.cli.options import AsJson, Root, Store, Version
from flows.lineage.data import BROWSE_PORT, LOOPBACK


def browse(
    store: Store,
    out: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Write the pages into a new folder instead of serving.")
    ] = None,
    version: Version = None,
    root: Root = None,
    most: Annotated[int, typer.Option(min=0, help="Episodes that FOLDER gets whole, evenly spread.")] = 200,
    ui: Annotated[
        str | None, typer.Option(metavar="URL", help="Prefect UI that links lead to; by default the configured one's.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on: there is no password.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any.")] = BROWSE_PORT,
    json: AsJson = False,
) -> int:
    """Show the episodes of a dataset version: filters, videos, actions and states as curves, and provenance.

    Example: uwm browse runs/demo/stores/robot
    """
    from flows.browse.episodes import Browsed
    from storage_schemas.lineage.records import graph, lineage_root
    from storage_schemas.store.dataset import open_dataset

    browsed = Browsed(open_dataset(store, version), graph(root or lineage_root(store)), ui or _configured_ui())
    if out is None:
        from flows.browse.server import serve

        serve(browsed, host=host, port=port, ready=_say_at_once)
        return 0
    from flows.browse.site import write_site

    with progress_bar(quiet=json) as display:
        task = display.add_task("browse", total=None)
        written = write_site(
            browsed, out, most=most, progress=lambda done, total: display.update(task, completed=done, total=total)
        )
    if json:
        say_json({"version": browsed.dataset.version, "episodes": len(browsed.dataset), "whole": written})
    else:
        note(f"{count(written, 'episode')} of {len(browsed.dataset):,} written whole")
        say(str(out / "index.html"))
    return 0


def _say_at_once(url: str) -> None:
    say(f"{url}  (stop with ^C)")
    sys.stdout.flush()


def _configured_ui() -> str:
    """The configured server's pages, else those of `uwm ui`."""
    from flows.runtime.server import DEFAULT_PORT, configured_api_url

    return configured_api_url().rstrip("/").removesuffix("/api") or f"http://{LOOPBACK}:{DEFAULT_PORT}"


COMMANDS = (browse,)

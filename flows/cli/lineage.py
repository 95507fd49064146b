"""Commands about where things come from and how they look: lineage, ui, demo."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.console import count, note, say, say_json, say_table
from flows.cli.data import AsJson
from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from flows.jobs.evaluate import Evaluated
    from storage_schemas.lineage.records import LineageGraph

Format = Literal["text", "json"]
Kind = Literal["source", "dataset", "checkpoint", "evaluation"]

Root = Annotated[
    str | None, typer.Option(help="Folder of lineage records; by default UWM_LINEAGE, else the one found from here.")
]
DEMO_FOLDER = Path("runs/demo")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(lineage)
    app.command()(ui)
    app.command()(demo)


def lineage(
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="kind/name@version, a piece of it, or the path of a thing.")
    ] = None,
    root: Root = None,
    kind: Annotated[Kind | None, typer.Option(help="List only nodes of this kind.")] = None,
    files: Annotated[
        bool, typer.Option("--files", help="List every raw file that NODE leads back to, with its fingerprint.")
    ] = False,
    file: Annotated[
        str | None, typer.Option(metavar="PATH|URI", help="List everything that saw this raw file.")
    ] = None,
    format: Annotated[Format, typer.Option(help="Lines to read, or what --json prints.")] = "text",  # noqa: A002
    publish: Annotated[
        bool, typer.Option("--publish", help="Bring the pages to the configured Prefect server.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Show what came from what: sources, dataset versions, checkpoints, evaluations.

    With a NODE: what it came from, what is known of it, and what came of it. --files and --file ask the
    episode tables, in both directions; exit code 1 says that a dataset could not be asked.

    Example: uwm lineage checkpoint/demo-finetune --files
    """
    from storage_schemas.lineage.records import graph

    found = graph(root or find_root(node))
    shown = found.find(node) if node else None
    chosen: Format = "json" if json else format
    if publish:
        _publish(found.root)
    if kind and (node or file or files):
        raise UserError("--kind lists nodes: it goes with no NODE, --files or --file")
    if file is not None:
        return _seen_by(found, file, chosen)
    if files:
        return _raw_files(found, shown, chosen)
    say(_shown(found, shown, kind, chosen))
    return 0


def _shown(found: "LineageGraph", node: str | None, kind: Kind | None, chosen: Format) -> str:
    from json import dumps

    from flows.lineage.details import details_of
    from flows.lineage.text import as_json, described, listing, outline
    from storage_schemas.lineage.records import kind_of

    if kind:
        found = found.part([name for name in found.nodes if kind_of(name) == kind])
    if chosen == "json":
        details = details_of(found, [node] if node else [])
        return dumps(as_json(found, node, details), indent=1, ensure_ascii=False)
    if node:
        lines = outline(found, node)
        return "\n".join([*lines, "", node, *described(found, node, details_of(found, [node]).get(node, ()))])
    return "\n".join(listing(found)) or f"no lineage under {found.root} yet"


def _raw_files(found: "LineageGraph", node: str | None, chosen: Format) -> int:
    from flows.lineage.text import files_listing
    from storage_schemas.lineage.provenance import raw_files

    if node is None:
        raise UserError("--files needs a node: uwm lineage NODE --files")
    answer = raw_files(found, node)
    _say_answer(answer, files_listing(answer), chosen)
    return _complete(answer.missing)


def _seen_by(found: "LineageGraph", file: str, chosen: Format) -> int:
    from flows.lineage.text import sightings_listing
    from pipelines.files import printable
    from storage_schemas.lineage.provenance import sightings
    from storage_schemas.location import locate

    place = locate(file).uri
    answer = sightings(found, {file, place, printable(place)})
    if not answer.nodes and not answer.missing:
        raise UserError(f"nothing under {found.root} saw {file}")
    _say_answer(answer, sightings_listing(answer), chosen)
    return _complete(answer.missing)


def _say_answer(answer: object, lines: Sequence[str], chosen: Format) -> None:
    if chosen == "json":
        say_json(answer)
    elif lines:
        say("\n".join(lines))


def _complete(missing: Mapping[str, str]) -> int:
    for node, reason in missing.items():
        note(f"not asked: {node}: {reason}")
    return 1 if missing else 0


def find_root(node: str | None) -> str:
    """Where to look when nobody said: UWM_LINEAGE, beside the thing that `node` is the path of, or below here.

    Raises:
        UserError: when there is none, or more than one.
    """
    import os

    from storage_schemas.lineage.records import ROOT_VARIABLE

    if named := os.environ.get(ROOT_VARIABLE):
        return named
    beside = _above(Path(node)) if node else None
    if beside:
        return str(beside)
    patterns = ("lineage", "*/lineage", "runs/*/lineage")
    roots = sorted({path for pattern in patterns for path in Path().glob(pattern) if _holds_records(path)})
    if len(roots) == 1:
        return str(roots[0])
    if not roots:
        raise UserError("no lineage below this folder: name its folder with --root or UWM_LINEAGE")
    raise UserError(f"several lineages: choose with --root one of {', '.join(map(str, roots))}")


def _above(path: Path) -> Path | None:
    """The lineage folder beside `path` or beside a folder that it lies in."""
    if not path.exists():
        return None
    folders = (folder / "lineage" for folder in path.absolute().parents)
    return next((folder for folder in folders if _holds_records(folder)), None)


def _holds_records(folder: Path) -> bool:
    from storage_schemas.lineage.records import KINDS

    return any((folder / kind).is_dir() for kind in KINDS)


def _publish(root: str) -> None:
    from flows.cli.execution import use_flow

    use_flow(True)
    from flows.publish import republish

    note(f"{count(republish(root), 'page')} new or changed")


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
    from flows.cli.execution import Here
    from flows.jobs.demo import flow_steps, require_data, run

    require_data(data)
    with flow_steps(folder, note) if flow else nullcontext(Here(quiet=False).steps()) as steps:
        result = run(steps, folder, data, note)
    show_headlines(result.evaluated)
    if result.reused:
        say(f"{count(result.reused, 'result')} of earlier runs reused; `make clean` removes them")
    say(f"report:  {result.report} (all five modes, predictions, loss curves)")
    say("lineage: make ui (or uwm lineage)")
    return 0


def show_headlines(evaluated: "Sequence[Evaluated]") -> None:
    """Print what evaluations gain over the trivial baselines, one column each."""
    from uwm.report.tables import headline_rows

    rows = [
        (row.label, row.baseline, *(f"{cell.change} {cell.mark}" if cell else "" for cell in row.cells))
        for row in headline_rows([item.evaluation for item in evaluated])
    ]
    title = "Held-out episodes: gain over the trivial baseline (▲ better, ▼ worse, ≈ not told apart)"
    say_table(title, ("question", "baseline", *(item.label for item in evaluated)), rows)

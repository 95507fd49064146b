"""Commands about where things come from and how they look: lineage, ui, demo."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.console import count, note, say, say_json
from flows.cli.options import AsJson, Root
from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from storage_schemas.lineage.records import LineageGraph

Format = Literal["text", "json"]
Kind = Literal["source", "dataset", "checkpoint", "evaluation"]


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

    known = graph(root or find_root(node))
    shown = known.find(node) if node else None
    chosen: Format = "json" if json else format
    if publish:
        _publish(known.root)
    if kind and (node or file or files):
        raise UserError("--kind lists nodes: it goes with no NODE, --files or --file")
    if file is not None:
        return _seen_by(known, file, chosen)
    if files:
        return _raw_files(known, shown, chosen)
    say(_shown(known, shown, kind, chosen))
    return 0


def _shown(known: "LineageGraph", node: str | None, kind: Kind | None, chosen: Format) -> str:
    from json import dumps

    from flows.lineage.details import details_of
    from flows.lineage.text import as_json, described, listing, outline
    from storage_schemas.lineage.records import kind_of

    if kind:
        known = known.part([name for name in known.nodes if kind_of(name) == kind])
    if chosen == "json":
        details = details_of(known, [node] if node else [])
        return dumps(as_json(known, node, details), indent=1, ensure_ascii=False)
    if node:
        lines = outline(known, node)
        return "\n".join([*lines, "", node, *described(known, node, details_of(known, [node]).get(node, ()))])
    return "\n".join(listing(known)) or f"no lineage under {known.root} yet"


def _raw_files(known: "LineageGraph", node: str | None, chosen: Format) -> int:
    from flows.lineage.text import files_listing
    from storage_schemas.lineage.provenance import raw_files

    if node is None:
        raise UserError("--files needs a node: uwm lineage NODE --files")
    answer = raw_files(known, node)
    _say_answer(answer, files_listing(answer), chosen)
    return _complete(answer.missing)


def _seen_by(known: "LineageGraph", file: str, chosen: Format) -> int:
    from flows.lineage.text import sightings_listing
    from pipelines.files import printable
    from storage_schemas.lineage.provenance import sightings
    from storage_schemas.location import locate

    uri = locate(file).uri
    answer = sightings(known, {file, uri, printable(uri)})
    if not answer.nodes and not answer.missing:
        raise UserError(f"nothing under {known.root} saw {file}")
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
    from flows.cli.jobs import use_flow

    use_flow(True)
    from flows.publish import republish

    note(f"{count(republish(root), 'page')} new or changed")


COMMANDS = (lineage,)

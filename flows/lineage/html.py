"""The whole lineage as one HTML file that needs no network: a graph, a filter, a search, every node's details."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from flows.lineage.details import Details
from flows.lineage.pages import keys
from flows.lineage.picture import MAX_DRAWN, svg
from flows.lineage.sections import Section, facts_of
from storage_schemas.lineage.records import KINDS, LineageGraph, LineageRecord, kind_of

MAX_PICTURE_BYTES = 8_000_000
"""Of all pictures of the page, newest nodes first; beyond this, nodes show only text."""


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """What the page shows of one node; `anchor`s of the links are ids on the page."""

    node: str
    kind: str
    anchor: str
    record: LineageRecord | None
    facts: Sequence[tuple[str, str]]
    run_url: str
    sections: Sequence[Section]
    up: Sequence[tuple[str, str]]
    down: Sequence[tuple[str, str]]


def html(graph: LineageGraph, details: Details, focus: str | None = None) -> str:
    """The page: of everything, or of `focus` and all that it is connected with."""
    import jinja2

    shown = graph.around(focus) if focus else graph
    anchors = keys(shown)
    kept = _bounded(shown, details)
    views = [_view(shown, node, anchors, kept) for kind in KINDS for node in shown.nodes[::-1] if kind_of(node) == kind]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flows.lineage", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (files("flows.lineage") / "lineage.js").read_text()
    return environment.get_template("lineage.html").render(
        title=focus or "Lineage",
        root=graph.root,
        kinds=[(kind, sum(view.kind == kind for view in views)) for kind in KINDS],
        views=views,
        drawing=svg(shown, focus or "", anchors) if len(shown.nodes) <= MAX_DRAWN else "",  # escapes all names
        too_many=len(shown.nodes) > MAX_DRAWN,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _view(graph: LineageGraph, node: str, anchors: Mapping[str, str], details: Details) -> NodeView:
    record = graph.records.get(node)
    return NodeView(
        node=node,
        kind=kind_of(node),
        anchor=anchors[node],
        record=record,
        facts=facts_of(record),
        run_url=record.run_url if record and record.run_url.startswith(("http://", "https://")) else "",
        sections=details.get(node, ()),
        up=[(name, anchors[name]) for name in graph.parents(node)],
        down=[(name, anchors[name]) for name in graph.children(node)],
    )


def _bounded(graph: LineageGraph, details: Details) -> dict[str, Sequence[Section]]:
    """The details, without pictures where there would be too many."""
    found: dict[str, Sequence[Section]] = {}
    left = MAX_PICTURE_BYTES
    for node in graph.nodes[::-1]:
        sections = details.get(node, ())
        left -= sum(len(picture.url) for section in sections for picture in section.pictures)
        found[node] = sections if left >= 0 else [item.model_copy(update={"pictures": ()}) for item in sections]
    return found

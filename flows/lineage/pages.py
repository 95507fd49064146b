"""Lineage as markdown pages: one per node, one per kind, and a home page.

Pure functions of a `LineageGraph` and its details. Pages link to each other by artifact keys, so that any
Prefect server shows them as they are: `/artifacts/key/<key>`.
"""

import hashlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from flows.lineage.picture import MAX_DRAWN, svg
from flows.lineage.sections import Section, facts_of
from storage_schemas.images import data_url
from storage_schemas.lineage.records import KINDS, LineageGraph, LineageRecord, kind_of
from storage_schemas.markdown import plain, table

HOME_KEY = "lineage-home"
NEWEST = 20
"""Nodes of each kind on the home page."""
ROW_LETTERS = 80
"""Length of the facts in a row of a table."""
NAME_AND_VALUE = 2
"""Columns of a table that says what a record's facts say."""
PAGE_ROWS = 100
"""Nodes on one page of a kind; of the links on a node's page."""


def slug(node: str) -> str:
    """`node` in the letters that an artifact key may have: a-z, 0-9 and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", node.lower()).strip("-")


def keys(graph: LineageGraph) -> dict[str, str]:
    """The artifact key of every node.

    Two nodes whose ids differ only in what a key can't hold still get two keys: the older keeps the
    plain one, the other gets part of its id's hash.
    """
    links: dict[str, str] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        key = slug(node)
        if key in taken or key.startswith("lineage-"):
            key = f"{key}-{hashlib.sha256(node.encode()).hexdigest()[:6]}"
        taken.add(key)
        links[node] = key
    return links


# --- pages of nodes -----------------------------------------------------------------------------


def page(
    graph: LineageGraph, node: str, details: Sequence[Section] = (), links: Mapping[str, str] | None = None
) -> str:
    """The markdown page of `node`: its picture, facts and details, what it came from and what came of it.

    Args:
        graph: all records.
        node: whose page it is.
        details: what there is to say beyond its record.
        links: `keys(graph)`, when many pages are made.
    """
    links = keys(graph) if links is None else links
    record = graph.records.get(node)
    up, down = graph.upstream(node), graph.downstream(node)
    sections = [
        f"# {plain(node)}",
        _navigation(),
        _picture(*_neighbourhood(graph, node, up, down), node),
        _facts(record, details) if record else "There is **no record** of this node: it was made elsewhere.",
        *(_section(item) for item in details),
        _list("Made from", up, graph, links),
        _list("What came of it", down, graph, links),
    ]
    return "\n\n".join(sections) + "\n"


def _neighbourhood(graph: LineageGraph, node: str, up: Sequence[str], down: Sequence[str]) -> tuple[LineageGraph, str]:
    """What is drawn around a node: all it is connected with, or the nearest of both sides."""
    if 1 + len(up) + len(down) <= MAX_DRAWN:
        return graph.around(node), ""
    half = (MAX_DRAWN - 1) // 2
    above = up[: max(half, MAX_DRAWN - 1 - len(down))]
    below = down[: MAX_DRAWN - 1 - len(above)]
    hidden = len(up) + len(down) - len(above) - len(below)
    return graph.part({node, *above, *below}), f"\n\nThe nearest {MAX_DRAWN} nodes; {hidden:,} more are not drawn."


def _picture(graph: LineageGraph, note: str, focus: str) -> str:
    return f"![lineage graph]({data_url(svg(graph, focus).encode(), 'image/svg+xml')}){note}"


def _facts(record: LineageRecord, details: Sequence[Section]) -> str:
    """What is on record; what the details' tables of names and values say again is left to them."""
    again = {row[0] for section in details for row in section.rows if len(row) == NAME_AND_VALUE}
    rows = {"where": _code(record.uri), "made": _when(record), "identity": _code(record.identity)}
    rows |= {name: plain(value) for name, value in facts_of(record) if name.replace("_", " ") not in again}
    if link := run_link(record.run_url):
        rows["flow run"] = f"[open the flow run]({link})"
    return table(("", "on record"), [(plain(name), value) for name, value in rows.items()])


def _section(section: Section) -> str:
    parts = [f"## {plain(section.title)}"]
    if section.text:
        parts.append(plain(section.text))
    if section.link:
        parts.append(f"[{section.link}]({section.link})")
    if section.rows:
        rows = [[plain(cell) for cell in row] for row in section.rows]
        parts.append(table([plain(name) for name in section.header], rows))
    parts += [f"![{plain(item.caption)}]({item.url})\n\n{plain(item.caption)}" for item in section.pictures]
    return "\n\n".join(parts)


def _list(title: str, nodes: Sequence[str], graph: LineageGraph, links: Mapping[str, str]) -> str:
    if not nodes:
        return f"## {title}\n\nNothing."
    lines = []
    for node in nodes[:PAGE_ROWS]:
        record = graph.records.get(node)
        link = run_link(record.run_url) if record else ""
        run = f" · [flow run]({link})" if link else ""
        unknown = "" if record else " · no record"
        lines.append(f"- [{plain(node)}](/artifacts/key/{links[node]}){run}{unknown}")
    if len(nodes) > PAGE_ROWS:
        lines.append(f"- and {len(nodes) - PAGE_ROWS:,} more, farther away")
    return f"## {title}\n\n" + "\n".join(lines)


# --- pages of many nodes ------------------------------------------------------------------------


def kind_key(kind: str, number: int | None = None) -> str:
    """The artifact key of a kind's page, or of one of the pages of its older nodes."""
    return f"lineage-{kind}s" + (f"-{number}" if number else "")


def home(graph: LineageGraph, links: Mapping[str, str] | None = None) -> str:
    """The markdown page that shows the newest nodes of every kind."""
    links = keys(graph) if links is None else links
    picture = (
        _picture(graph, "", "")
        if len(graph.nodes) <= MAX_DRAWN
        else f"{len(graph.nodes):,} nodes are too many for one picture; each node's page draws its neighbourhood."
    )
    sections = ["# Lineage", _navigation(), f"Records under {_code(graph.root)}.", picture]
    for kind in KINDS:
        nodes = _of_kind(graph, kind)[::-1]
        sections += [f"## {kind.capitalize()}s ({len(nodes)})", _rows(nodes[:NEWEST], graph, links)]
        if len(nodes) > NEWEST:
            sections.append(f"[All {len(nodes):,} {kind}s](/artifacts/key/{kind_key(kind)})")
    return "\n\n".join(sections) + "\n"


def kind_pages(graph: LineageGraph, links: Mapping[str, str] | None = None) -> dict[str, str]:
    """Artifact key -> markdown page: for every kind its newest nodes, and numbered pages of the older ones.

    The numbered pages are filled from the oldest on, so that a full one never changes.
    """
    links = keys(graph) if links is None else links
    pages: dict[str, str] = {}
    for kind in KINDS:
        nodes = _of_kind(graph, kind)
        full = max(0, len(nodes) - 1) // PAGE_ROWS
        older = [f"[{number}](/artifacts/key/{kind_key(kind, number)})" for number in range(full, 0, -1)]
        for number in range(1, full + 1):
            some = nodes[(number - 1) * PAGE_ROWS : number * PAGE_ROWS][::-1]
            head = [f"# Lineage: {kind}s, page {number}", _navigation()]
            pages[kind_key(kind, number)] = "\n\n".join([*head, _rows(some, graph, links)]) + "\n"
        parts = [f"# Lineage: {kind}s ({len(nodes):,})", _navigation(kind)]
        parts.append(_rows(nodes[full * PAGE_ROWS :][::-1], graph, links))
        parts += [f"Older: {' · '.join(older)}"] if older else []
        pages[kind_key(kind)] = "\n\n".join(parts) + "\n"
    return pages


def _of_kind(graph: LineageGraph, kind: str) -> list[str]:
    return [node for node in graph.nodes if kind_of(node) == kind]


def _navigation(shown: str = "") -> str:
    """Links to home and to the kinds; always all of them, so that a new kind changes no old page."""
    kinds = (f"**{kind}s**" if kind == shown else f"[{kind}s](/artifacts/key/{kind_key(kind)})" for kind in KINDS)
    return " · ".join([f"[All lineage](/artifacts/key/{HOME_KEY})", *kinds])


def _rows(nodes: Sequence[str], graph: LineageGraph, links: Mapping[str, str]) -> str:
    if not nodes:
        return "None yet."
    return table(("node", "made", "facts"), [_row(node, graph, links) for node in nodes])


def _row(node: str, graph: LineageGraph, links: Mapping[str, str]) -> tuple[str, str, str]:
    record = graph.records.get(node)
    known = [f"{name} {value}" for name, value in facts_of(record)]
    facts = textwrap.shorten("; ".join(known), ROW_LETTERS, placeholder=" …") if record else "no record"
    return f"[{plain(node)}](/artifacts/key/{links[node]})", _when(record) if record else "", plain(facts)


def _when(record: LineageRecord) -> str:
    return record.created[:16].replace("T", " ") + " UTC"


def run_link(url: str) -> str:
    """A flow run's URL as a page should link it; empty when it leads nowhere on the web.

    A server on this machine may come back on another port, so its links leave out the host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return ""
    return parts.path if parts.hostname in ("127.0.0.1", "localhost", "::1") else url


# --- markdown -----------------------------------------------------------------------------------


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"

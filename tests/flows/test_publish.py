"""Publishing is idempotent and costs what is connected, not what there is; without a server."""

from dataclasses import dataclass

import pytest

from flows import publish as publishing
from flows.lineage.pages import HOME_KEY, NEWEST, PAGE_ROWS, kind_key
from storage_schemas.lineage.records import LineageGraph, LineageRecord

VERSIONS = 105
MAX_PAGE_BYTES = 100_000


@dataclass
class Held:
    description: str


class Server:
    """The artifacts of a Prefect server, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages: dict[str, str] = {}
        self.asked = 0
        monkeypatch.setattr(publishing.Artifact, "get", self.get)
        monkeypatch.setattr(publishing, "create_markdown_artifact", self.create)

    def get(self, key: str) -> Held | None:
        self.asked += 1
        return Held(self.pages[key]) if key in self.pages else None

    def create(self, _text: str, *, key: str, description: str) -> None:
        self.pages[key] = description


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def lab(root: str, islands: int, versions: int = VERSIONS) -> LineageGraph:
    """Many versions of one dataset, each from its source and the one before; and islands of two nodes each."""
    edges: dict[str, tuple[str, ...]] = {}
    for number in range(1, versions + 1):
        edges[f"source/s@{number}"] = ()
        before = (f"dataset/d@{number - 1}",) if number > 1 else ()
        edges[f"dataset/d@{number}"] = (f"source/s@{number}", *before)
    for number in range(islands):
        edges[f"source/island{number}@1"] = ()
        edges[f"dataset/island{number}@1"] = (f"source/island{number}@1",)
    records = {node: made(node, parents, order) for order, (node, parents) in enumerate(edges.items())}
    return LineageGraph(root=root, records=records)


def made(node: str, parents: tuple[str, ...], order: int) -> LineageRecord:
    kind, _, rest = node.partition("/")
    name, _, version = rest.partition("@")
    created = f"2026-01-01T{order // 3600:02d}:{order // 60 % 60:02d}:{order % 60:02d}.000+00:00"
    return LineageRecord(
        kind=kind, name=name, version=version, identity=node, uri="/nowhere", upstream=parents, created=created
    )


def test_a_new_node_touches_only_what_it_is_connected_with(tmp_path: object, server: Server) -> None:
    before = lab(str(tmp_path), islands=40, versions=10)
    assert publishing.publish(before, before.nodes) == len(server.pages)
    assert publishing.publish(before, before.nodes) == 0, "nothing changed, nothing is made"
    record = made("checkpoint/c@1", ("dataset/island7@1",), 9000)
    after = LineageGraph(root=before.root, records={**before.records, record.node: record})
    server.asked = 0
    changed = publishing.publish(after, [record.node])
    mentions = {record.node, "dataset/island7@1", "source/island7@1"}
    assert changed == len(mentions) + 2, "their pages, the page of checkpoints and the home page"
    assert server.asked == len(mentions) + 4 + 1, "of more than 100 pages"
    assert publishing.publish(after, after.nodes) == 0


def test_numbered_pages_of_a_kind_do_not_change_once_they_are_full(tmp_path: object, server: Server) -> None:
    found = lab(str(tmp_path), islands=0)
    publishing.publish(found, [])
    full = server.pages[kind_key("dataset", 1)]
    assert full.count("| [dataset/d@") == PAGE_ROWS
    records = dict(found.records)
    for number in range(VERSIONS + 1, VERSIONS + 100):
        record = made(f"dataset/d@{number}", (f"dataset/d@{number - 1}",), 9000 + number)
        records[record.node] = record
    publishing.publish(LineageGraph(root=found.root, records=records), [])
    assert server.pages[kind_key("dataset", 1)] == full
    rest = server.pages[kind_key("dataset")] + server.pages[kind_key("dataset", 2)]
    assert rest.count("| [dataset/d@") == VERSIONS + 99 - PAGE_ROWS
    assert f"(/artifacts/key/{kind_key('dataset', 1)})" in server.pages[kind_key("dataset")]


def test_pages_stay_small_in_a_large_lineage(tmp_path: object, server: Server) -> None:
    found = lab(str(tmp_path), islands=200)
    publishing.publish(found, ["dataset/d@75"])
    sizes = {key: len(text.encode()) for key, text in server.pages.items()}
    assert max(sizes.values()) < MAX_PAGE_BYTES, max(sizes.items(), key=lambda item: item[1])
    home = server.pages[HOME_KEY]
    assert home.count("| [dataset/") == NEWEST
    assert f"[All {VERSIONS + 200} datasets](/artifacts/key/lineage-datasets)" in home
    assert "more are not drawn" in server.pages["dataset-d-75"]
    assert "data:image/svg" in server.pages["dataset-d-75"]

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_schemas.errors import UserError
from storage_schemas.lineage import records as lineage
from storage_schemas.lineage.records import LineageRecord, graph, lineage_root, safe_name, write_record


def record(node: str, *upstream: str, identity: str = "", uri: str = "") -> LineageRecord:
    kind, _, rest = node.partition("/")
    name, _, version = rest.partition("@")
    return LineageRecord(
        kind=kind,
        name=name,
        version=version,
        identity=identity or node,
        uri=uri or f"/data/{name}",
        upstream=upstream,
        facts={"steps": 3, "loss": 0.5, "done": True, "note": "a|b"},
    )


CHAIN = (
    record("source/clips@aa"),
    record("source/droid_100@bb"),
    record("dataset/droid@1", "source/droid_100@bb"),
    record("dataset/video@1", "source/clips@aa"),
    record("checkpoint/pretrain@200", "dataset/droid@1", "dataset/video@1"),
    record("checkpoint/finetune@50", "dataset/droid@1", "checkpoint/pretrain@200"),
    record("evaluation/finetune-on-droid@50", "checkpoint/finetune@50", "dataset/droid@1"),
)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "lineage")
    else:
        yield "memory://lineage-test"
        memory = fsspec.filesystem("memory")
        if memory.exists("/lineage-test"):
            memory.rm("/lineage-test", recursive=True)


def test_a_record_comes_back_as_it_was_written(root: str) -> None:
    written = write_record(root, CHAIN[4])
    assert graph(root).records == {"checkpoint/pretrain@200": written}
    assert written.created
    assert written.facts == CHAIN[4].facts


def test_writing_again_changes_nothing_and_returns_the_first(root: str) -> None:
    first = write_record(root, CHAIN[0])
    again = write_record(root, record("source/clips@aa", uri="/elsewhere"))
    assert again == first
    assert len(graph(root).records) == 1


def test_another_identity_gets_another_node(root: str) -> None:
    first = write_record(root, record("dataset/droid@1", identity="table-1"))
    second = write_record(root, record("dataset/droid@1", identity="table-2"))
    assert first.node == "dataset/droid@1"
    assert second.node != first.node
    assert second.node.startswith("dataset/droid-")
    assert second.version == "1"
    assert write_record(root, record("dataset/droid@1", identity="table-2")) == second
    found = graph(root).identified("dataset", "table-2")
    assert found == second


def test_of_concurrent_writers_each_identity_keeps_one_record(tmp_path: Path) -> None:
    def write(number: int) -> None:
        write_record(str(tmp_path), record("dataset/droid@1", identity=f"table-{number % 3}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = graph(str(tmp_path)).records
    assert sorted(found.identity for found in records.values()) == ["table-0", "table-1", "table-2"]


def test_walks_go_all_the_way_nearest_first(root: str) -> None:
    for item in CHAIN:
        write_record(root, item)
    found = graph(root)
    up = found.upstream("evaluation/finetune-on-droid@50")
    assert set(up) == {item.node for item in CHAIN[:-1]}
    assert set(up[:2]) == {"checkpoint/finetune@50", "dataset/droid@1"}
    assert found.downstream("source/clips@aa") == [
        "dataset/video@1",
        "checkpoint/pretrain@200",
        "checkpoint/finetune@50",
        "evaluation/finetune-on-droid@50",
    ]
    assert [item.node for item in found.ancestry("dataset/video@1")] == ["source/clips@aa", "dataset/video@1"]


def test_around_keeps_ancestors_and_descendants_only(root: str) -> None:
    for item in CHAIN:
        write_record(root, item)
    part = graph(root).around("dataset/video@1")
    assert "source/droid_100@bb" not in part.nodes
    assert "evaluation/finetune-on-droid@50" in part
    assert all(node in part for node in part.nodes), "a node that is merely left out must not look unknown"


def test_a_missing_upstream_is_a_node_without_a_record(root: str) -> None:
    write_record(root, record("checkpoint/lonely@1", "dataset/lost@7"))
    found = graph(root)
    assert found.nodes == ["dataset/lost@7", "checkpoint/lonely@1"]
    assert "dataset/lost@7" not in found
    assert found.downstream("dataset/lost@7") == ["checkpoint/lonely@1"]


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("dataset/droid@1", "dataset/droid@1"),
        ("dataset/droid", "dataset/droid@10"),
        ("droid", "dataset/droid@10"),
        ("droid_1", "source/droid_100@bb"),
        ("/data/finetune", "checkpoint/finetune@50"),
    ],
)
def test_find_takes_ids_names_pieces_and_places(root: str, text: str, node: str) -> None:
    for item in (*CHAIN, record("dataset/droid@9"), record("dataset/droid@10")):
        write_record(root, item)
    assert graph(root).find(text) == node


@pytest.mark.parametrize(("text", "words"), [("nothing", "uwm lineage"), ("d", "ambiguous")])
def test_find_says_what_to_do_when_it_finds_none_or_many(root: str, text: str, words: str) -> None:
    for item in CHAIN:
        write_record(root, item)
    with pytest.raises(UserError, match=words):
        graph(root).find(text)


def test_the_root_lies_beside_the_data_unless_the_variable_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(lineage.ROOT_VARIABLE, raising=False)
    assert lineage_root(str(tmp_path / "demo" / "droid")) == str(tmp_path / "demo" / "lineage")
    assert lineage_root("s3://bucket/lab/droid") == "s3://bucket/lab/lineage"
    monkeypatch.setenv(lineage.ROOT_VARIABLE, "/elsewhere")
    assert lineage_root(str(tmp_path / "droid")) == "/elsewhere"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"kind": "dataset"}', b'{"node": 1, "upstream": 3}'])
def test_a_damaged_record_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dataset" / "droid@1.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"droid@1\.json is damaged") as caught:
        graph(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_crashed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / ".tmp-123").write_bytes(b"{half")
    assert graph(str(tmp_path)).records == {}


def test_the_file_is_plain_json_with_its_node_id(tmp_path: Path) -> None:
    write_record(str(tmp_path), CHAIN[2])
    raw = json.loads((tmp_path / "dataset" / "droid@1.json").read_text())
    assert raw["node"] == "dataset/droid@1"
    assert raw["upstream"] == ["source/droid_100@bb"]


@pytest.mark.parametrize(
    ("kind", "name", "version"), [("model", "a", "1"), ("dataset", "a/b", "1"), ("dataset", "a", "")]
)
def test_what_is_no_node_id_is_refused(kind: str, name: str, version: str) -> None:
    with pytest.raises(ValueError, match=r"kind|node id"):
        LineageRecord(kind=kind, name=name, version=version, identity="x", uri="/x")


@given(st.text(max_size=200))
def test_any_text_becomes_a_safe_name(text: str) -> None:
    name = safe_name(text)
    assert 0 < len(name) <= 100
    assert safe_name(name) == name
    assert not set(name) & set("/@ \n#?%:")
    assert name not in (".", "..")

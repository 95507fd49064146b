"""From any node to every raw file and back, on real episode tables."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.quarantine import withdraw
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode
from storage_schemas.lineage import provenance
from storage_schemas.lineage.provenance import RawEpisode, datasets_of, raw_files, sightings
from storage_schemas.lineage.records import LineageGraph, LineageRecord, graph, write_record
from storage_schemas.location import Location
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part

RAW = "/raw/robot"


def file(name: str) -> str:
    return f"{RAW}/{name}.tfrecord"


class Lab:
    """A dataset of three versions and what was made from them: version 3 has lost an episode of version 2."""

    def __init__(self, folder: Path, make_episode: Callable[..., Episode]) -> None:
        self.folder, self.make = folder, make_episode
        self.store, self.root = str(folder / "droid"), str(folder / "lineage")
        create_dataset(self.store, DatasetSpec(cameras=("left", "wrist"), action_dim=3))
        self.record("source", "robot", "aa", RAW)
        self.ingest(1, {"a": "one#record=0", "b": "one#record=1"}, "source/robot@aa")
        self.ingest(2, {"c": "two#record=0"}, "source/robot@aa", "dataset/droid@1")
        self.record("checkpoint", "early", "5", "/runs/early", "dataset/droid@2")
        withdraw(self.store, ["episode-b"])
        self.record("dataset", "droid", "3", self.store, "dataset/droid@2")
        self.record("checkpoint", "late", "9", "/runs/late", "dataset/droid@3")
        self.record("checkpoint", "tuned", "9", "/runs/tuned", "dataset/droid@3", "checkpoint/late@9")
        self.record("evaluation", "result", "1", "/runs/result", "checkpoint/early@5", "dataset/droid@3")

    def ingest(self, version: int, places: dict[str, str], *upstream: str) -> None:
        episodes = [self.make(name) for name in places]
        moved = [
            replace(episode, meta=replace(episode.meta, source_uri=file(place.partition("#")[0]) + "#" + tail))
            for episode, place in zip(episodes, places.values(), strict=True)
            for tail in [place.partition("#")[2]]
        ]
        commit(self.store, write_part(self.store, moved, run_id=f"run{version}"))
        self.record("dataset", "droid", str(version), self.store, *upstream)

    def record(self, kind: str, name: str, version: str, uri: str, *upstream: str) -> None:
        identity = f"{open_dataset(self.store).table_id}@{version}" if kind == "dataset" else f"{kind}{name}{version}"
        write_record(
            self.root,
            LineageRecord(kind=kind, name=name, version=version, identity=identity, uri=uri, upstream=upstream),
        )

    @property
    def graph(self) -> LineageGraph:
        return graph(self.root)


@pytest.fixture
def lab(tmp_path: Path, make_episode: Callable[..., Episode]) -> Lab:
    return Lab(tmp_path, make_episode)


def ids(episodes: tuple[RawEpisode, ...]) -> list[str]:
    return [episode.episode_id.removeprefix("episode-") for episode in episodes]


def test_a_checkpoint_leads_to_the_files_of_the_version_it_read_and_not_to_what_was_removed_before(lab: Lab) -> None:
    early, late = raw_files(lab.graph, "checkpoint/early@5"), raw_files(lab.graph, "checkpoint/late@9")
    assert (ids(early.episodes), ids(late.episodes)) == (["a", "b", "c"], ["a", "c"])
    assert early.files == late.files == [file("one"), file("two")]
    assert late.datasets == ("dataset/droid@3",)
    rows = open_dataset(lab.store, 3).episodes
    assert [(e.source_uri, e.fingerprint, e.split, e.steps) for e in late.episodes] == [
        (row.source_uri, row.source_fingerprint, row.split, row.length) for row in rows.rows()
    ]


def test_an_evaluation_leads_to_the_data_of_its_checkpoint_too(lab: Lab) -> None:
    assert datasets_of(lab.graph, "evaluation/result@1") == ["dataset/droid@3", "dataset/droid@2"]
    assert set(ids(raw_files(lab.graph, "evaluation/result@1").episodes)) == {"a", "b", "c"}


def test_a_source_lists_the_files_below_it(lab: Lab) -> None:
    found = raw_files(lab.graph, "source/robot@aa")
    assert found.files == [file("one"), file("two")]
    lab.record("source", "other", "bb", "/raw/rob")
    lab.record("dataset", "droid", "4", lab.store, "source/other@bb")
    assert raw_files(lab.graph, "source/other@bb").episodes == (), "/raw/robot does not lie in /raw/rob"


@pytest.mark.parametrize("source", [f"{RAW}/*.tfrecord", file("one"), "/raw/**/*"])
def test_globs_and_files_are_sources_as_well(lab: Lab, source: str) -> None:
    lab.record("source", "glob", "cc", source)
    lab.record("dataset", "droid-again", "1", lab.store, "source/glob@cc")
    record = replace(lab.graph.records["dataset/droid-again@1"], identity=f"{open_dataset(lab.store).table_id}@1")
    found = LineageGraph(root=lab.root, records={**lab.graph.records, record.node: record})
    assert raw_files(found, "source/glob@cc").files == [file("one")]


def test_a_file_leads_to_all_that_saw_it(lab: Lab) -> None:
    found = sightings(lab.graph, {file("two")})
    assert found.nodes == (
        "dataset/droid@2",
        "dataset/droid@3",
        "checkpoint/early@5",
        "checkpoint/late@9",
        "checkpoint/tuned@9",
        "evaluation/result@1",
    )
    assert [(e.dataset, e.episode_id) for e in found.episodes] == [
        ("dataset/droid@2", "episode-c"),
        ("dataset/droid@3", "episode-c"),
    ]


def test_one_place_in_a_file_is_told_from_the_next(lab: Lab) -> None:
    gone = sightings(lab.graph, {file("one") + "#record=1"})
    assert gone.nodes == ("dataset/droid@1", "dataset/droid@2", "checkpoint/early@5", "evaluation/result@1")
    assert sightings(lab.graph, {file("on")}).nodes == (), "a beginning of a name is another file"
    assert sightings(lab.graph, {file("one") + "#record"}).nodes == ()


def test_every_file_of_a_checkpoint_leads_back_to_it(lab: Lab) -> None:
    for node in ("checkpoint/early@5", "checkpoint/tuned@9", "evaluation/result@1"):
        for episode in raw_files(lab.graph, node).episodes:
            assert node in sightings(lab.graph, {episode.source_uri}).nodes


def test_what_cannot_be_asked_is_named_and_the_rest_answers(lab: Lab) -> None:
    lab.record("dataset", "lost", "1", str(lab.folder / "nowhere"))
    lab.record("checkpoint", "mixed", "1", "/runs/mixed", "dataset/lost@1", "dataset/droid@1", "dataset/gone@7")
    found = raw_files(lab.graph, "checkpoint/mixed@1")
    assert ids(found.episodes) == ["a", "b"]
    assert set(found.missing) == {"dataset/lost@1", "dataset/gone@7"}
    assert "nowhere does not exist" in found.missing["dataset/lost@1"]


def test_another_dataset_at_the_same_place_is_not_taken_for_the_one_on_record(lab: Lab) -> None:
    record = replace(lab.graph.records["dataset/droid@1"], identity="another-table@1")
    found = raw_files(LineageGraph(root=lab.root, records={record.node: record}), record.node)
    assert found.episodes == ()
    assert "another dataset by now" in found.missing[record.node]


def test_a_data_file_that_versions_share_is_read_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    genuine = provenance._read

    def counted(location: Location, table: Any, data_file: dict[str, Any], uris: Any) -> Any:
        opened.append(f"{location.uri}/{data_file['path']}")
        return genuine(location, table, data_file, uris)

    monkeypatch.setattr(provenance, "_read", counted)
    assert sightings(lab.graph, {file("one"), file("two")}).episodes
    assert len(opened) == len(set(opened)) <= 3, "three versions, whose second shares the first's file"


def test_lineage_of_a_moved_store_goes_with_it(lab: Lab, tmp_path: Path) -> None:
    before = raw_files(lab.graph, "dataset/droid@1")
    assert before.episodes
    (tmp_path / "elsewhere").mkdir()
    for name in ("droid", "lineage"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = graph(str(tmp_path / "elsewhere" / "lineage"))
    assert moved.find(str(tmp_path / "elsewhere" / "droid")).startswith("dataset/droid@")
    after = raw_files(moved, "dataset/droid@1")
    assert (after.episodes, after.missing) == (before.episodes, {})

from pathlib import Path

import pytest

from flows.lineage.records import (
    CheckpointPin,
    DatasetPin,
    checkpoint_root,
    record_checkpoint,
    record_dataset,
    record_evaluation,
    record_source,
    source_name,
)
from storage_schemas.lineage.records import graph, lineage_root


@pytest.fixture(autouse=True)
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UWM_LINEAGE", raising=False)


def pin(folder: Path, version: int = 1, table: str = "t1") -> DatasetPin:
    return DatasetPin(uri=str(folder / "droid"), version=version, table_id=table)


def checkpoint(*datasets: DatasetPin, run: str = "a", identity: str = "c1", **more: object) -> CheckpointPin:
    return CheckpointPin(
        uri=f"/runs/{run}", run=run, stage="pretrain", step=4, identity=identity, datasets=datasets, **more
    )


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/raw/droid_100/1.0.0", "droid_100"),
        ("/raw/clips/*.mp4", "clips"),
        ("/raw/my clips/", "my-clips"),
        ("s3://lab/raw/a.mp4", "a.mp4"),
    ],
)
def test_sources_are_named_by_what_people_call_them(uri: str, name: str) -> None:
    assert source_name(uri) == name


def test_the_same_place_with_other_content_is_another_version(tmp_path: Path) -> None:
    root = str(tmp_path / "lineage")
    made = [
        record_source(root, uri="/raw/clips", fingerprint=mark, facts={}, run_url="")
        for mark in ("aaaaaaaa1", "b", "b")
    ]
    assert [item.node for item in made] == ["source/clips@aaaaaaaa", "source/clips@b", "source/clips@b"]


def test_a_dataset_version_comes_from_its_sources_and_the_version_before(tmp_path: Path) -> None:
    root = str(tmp_path / "lineage")
    record_dataset(root, pin(tmp_path, 1), sources=["source/x@1"])
    later = record_dataset(root, pin(tmp_path, 4), sources=["source/y@1"])
    assert later.upstream == ("source/y@1", "dataset/droid@1")
    assert record_dataset(root, pin(tmp_path, 4), sources=["source/z@1"]) == later, "the first record stays"
    other = record_dataset(root, pin(tmp_path, 5, table="t2"))
    assert other.upstream == (), "another dataset at the same place has another history"


def test_a_checkpoint_brings_its_parents_and_datasets_with_it(tmp_path: Path) -> None:
    data = pin(tmp_path)
    parent = checkpoint(data, run="base", identity="c0")
    tuned = checkpoint(data, run="tuned", parents=(parent,))
    root = checkpoint_root(tuned)
    assert root == lineage_root(data.uri)
    assert record_checkpoint(root, tuned).upstream == ("dataset/droid@1", "checkpoint/base@4")
    assert set(graph(root).records) == {"dataset/droid@1", "checkpoint/base@4", "checkpoint/tuned@4"}


def test_data_that_lies_elsewhere_brings_its_ancestry_with_it(tmp_path: Path) -> None:
    here, there = pin(tmp_path / "here"), DatasetPin(uri=str(tmp_path / "there" / "video"), version=2, table_id="t9")
    far_root = lineage_root(there.uri)
    source = record_source(far_root, uri="/raw/clips", fingerprint="ff", facts={}, run_url="")
    record_dataset(far_root, there, sources=[source.node])
    both = checkpoint(here, there)
    root = checkpoint_root(both)
    node = record_checkpoint(root, both).node
    assert source.node in graph(root).upstream(node)
    assert source.node in graph(root).records


def test_an_evaluation_leads_back_to_both_sides(tmp_path: Path) -> None:
    data = pin(tmp_path)
    trained = checkpoint(data)
    root = checkpoint_root(trained)
    made = record_evaluation(
        root, checkpoint=trained, dataset=pin(tmp_path, 3), identity="abcdef123", uri="/r/e", facts={"split": "val"}
    )
    assert made.node == "evaluation/a-on-droid@4-abcdef"
    assert made.upstream == ("checkpoint/a@4", "dataset/droid@3")

"""Garbage: what no version names goes when it is old, and nothing else ever does."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from storage_schemas.catalog.commits import CommitResult
from storage_schemas.catalog.quarantine import withdraw
from storage_schemas.episode import Episode
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.maintenance.orphans import collect_orphans
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part

Make = Callable[..., Episode]
Add = Callable[..., CommitResult]
NOW = timedelta(0)


@pytest.fixture
def uri(make_episode: Make, add: Add, tmp_path: Path) -> Path:
    """Three versions whose newest names neither all parts nor all data files of the older ones."""
    add([make_episode("a"), make_episode("b")])
    add([make_episode("b", version=1), make_episode("c")])
    withdraw(tmp_path / "data", ["episode-c"])
    return tmp_path / "data"


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_nothing_that_any_version_names_is_an_orphan(uri: Path) -> None:
    before = tree(uri)
    report = collect_orphans(uri, age=NOW, remove=True)
    assert (report.orphans, report.young) == ((), 0)
    assert tree(uri) == before


def test_orphans_are_listed_and_go_only_when_told(uri: Path, make_episode: Make) -> None:
    before = tree(uri)
    (row,) = write_part(uri, [make_episode("lost")], run_id="dead")
    (uri / "parts/half").mkdir()
    (uri / "episodes/part-0-dead.parquet").write_bytes(b"x" * 10)
    (uri / "episodes/_delta_log/_commit_dead.json.tmp").write_bytes(b"{}")
    (uri / "tags").mkdir()
    (uri / "tags/.tmp-dead").write_bytes(b"")
    assert collect_orphans(uri).young == 5
    assert collect_orphans(uri).orphans == ()
    found = collect_orphans(uri, age=NOW)
    assert {orphan.name for orphan in found.orphans} == {
        f"parts/{row.part}", "parts/half", "episodes/part-0-dead.parquet", "tags/.tmp-dead",
        "episodes/_delta_log/_commit_dead.json.tmp",
    }  # fmt: skip
    assert found.bytes == row.part_bytes + 12
    assert not found.removed
    assert tree(uri) > before
    assert collect_orphans(uri, age=NOW, remove=True).orphans == found.orphans
    assert tree(uri) == before
    assert not (uri / "parts/half").exists()
    for version in range(open_dataset(uri).version + 1):
        assert verify(uri, version).ok


def test_a_part_is_as_young_as_its_newest_file(uri: Path, make_episode: Make) -> None:
    (row,) = write_part(uri, [make_episode("slow")], run_id="r")
    files = sorted(path for path in (uri / "parts" / row.part).rglob("*") if path.is_file())
    for file in files[1:]:
        os.utime(file, (time.time() - 1e6,) * 2)
    assert collect_orphans(uri, age=timedelta(hours=1)).orphans == ()
    os.utime(files[0], (time.time() - 7200,) * 2)
    assert [orphan.name for orphan in collect_orphans(uri, age=timedelta(hours=1)).orphans] == [f"parts/{row.part}"]


def test_a_log_without_its_beginning_keeps_every_data_file(uri: Path) -> None:
    DeltaTable(uri / "episodes").create_checkpoint()
    (uri / "episodes/_delta_log/00000000000000000001.json").unlink()
    (uri / "episodes/part-0-unknown.parquet").write_bytes(next((uri / "episodes").glob("*.parquet")).read_bytes())
    assert collect_orphans(uri, age=NOW, remove=True).orphans == ()


def test_a_damaged_table_stops_the_collection(uri: Path) -> None:
    file = next(iter(sorted((uri / "episodes").glob("*.parquet"))))
    file.unlink()
    with pytest.raises(DamagedError, match="missing"):
        collect_orphans(uri, age=NOW, remove=True)
    with pytest.raises(UserError):
        collect_orphans(uri.parent)

"""A dry run counts what an ingestion would do, and leaves no trace."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import run
from pipelines import dry_run as module
from pipelines.dry_run import dry_run
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from storage_schemas.errors import UserError

Make = Callable[..., Any]


@pytest.fixture
def source(tmp_path: Path, write_rlds: Make, make_features: Make) -> Path:
    good = [make_features(5, path=f"LAB/success/day/{n}/trajectory.h5", seed=n) for n in range(6)]
    folder = Path(write_rlds(tmp_path / "set", good[:3], good[3:]))
    shard = sorted(folder.glob("*tfrecord*"))[1]
    shard.write_bytes(shard.read_bytes() + b"torn")
    return folder


def traces(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_it_counts_and_leaves_no_trace(tmp_path: Path, source: Path) -> None:
    before = traces(tmp_path)
    found = dry_run(str(source), str(tmp_path / "store"))
    assert traces(tmp_path) == before
    report = ingest(str(source), str(tmp_path / "store"))
    assert (found.references, found.present, found.measured) == (6, 0, 3)
    assert (found.episodes, found.steps) == (report.added, report.steps) == (6, 30)
    reasons = [[one.reason for one in rejected] for rejected in (found.rejected, report.quarantined)]
    assert reasons == [["truncated", "count_mismatch"]] * 2
    shards = sum(path.stat().st_size for path in source.glob("*tfrecord*"))
    assert shards - 6 * 16 - 4 == found.bytes, "all but the framing"
    assert 0.9 * found.stored_bytes < found.bytes
    assert found.seconds > 0


def test_what_is_there_is_not_counted_again(tmp_path: Path, source: Path) -> None:
    store = str(tmp_path / "store")
    ingest(str(source), store)
    before = traces(tmp_path / "store")
    found = dry_run(str(source), store)
    assert (found.references, found.present, found.episodes, found.bytes, found.measured) == (0, 6, 0, 0, 0)
    assert traces(tmp_path / "store") == before
    with pytest.raises(UserError, match="can't be changed"):
        dry_run(str(source), store, IngestOptions(val_percent=50))


def test_only_some_are_read(tmp_path: Path, write_video: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_video(tmp_path / f"clips/{number}.mp4", frames=20 + 10 * number, seed=number)
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    found = dry_run(str(tmp_path / "clips"), str(tmp_path / "store"), IngestOptions(clip_steps=10))
    assert (found.references, found.measured) == (5, 1)
    assert found.episodes > 2


def test_the_command(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    assert run(["ingest", str(source), str(store), "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "6 new references" in told.out
    assert "about 6 episodes, 30 steps" in told.out
    assert "Nothing was written" in told.out
    assert "truncated" in told.err
    assert run(["ingest", str(source), str(store), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["references"] == 6
    assert not store.exists()
    bad = tmp_path / "bad/x.tfrecord-00000-of-00001"
    bad.parent.mkdir()
    bad.write_bytes(b"garbage" * 10)
    assert run(["ingest", str(bad), str(store), "--dry-run"]) == 2

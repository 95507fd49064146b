"""Commits against a model: any order of committers, replacements and removals, with files joined on the way."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_schemas.catalog import commits
from storage_schemas.catalog.commits import Committer, attempt, commit
from storage_schemas.catalog.rows import EpisodeRow
from storage_schemas.catalog.table import create_dataset
from storage_schemas.errors import StorageError
from storage_schemas.location import locate
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset


def row(name: str, fingerprint: str = "f", part: str = "p") -> EpisodeRow:
    return EpisodeRow(
        episode_id=name, part=part, start=0, length=5, fps=15.0, source_uri=f"file#{name}", source_format="test",
        source_fingerprint=fingerprint, collection="lab", language=[], success=None, cameras=[],
        frame_sizes=["", "", ""], action_steps=0, split="train", run_id="run",
        ingested_at=datetime(2026, 1, 2, tzinfo=UTC), checksum=0,
    )  # fmt: skip


@pytest.fixture
def new_uri(tmp_path: Path, spec: DatasetSpec) -> Callable[[], str]:
    """A function that creates an empty dataset in which the part `p` exists."""
    made: list[str] = []

    def new() -> str:
        place = tmp_path / f"data{len(made)}"
        made.append(str(place))
        create_dataset(place, spec)
        (place / "parts/p").mkdir(parents=True)
        (place / "parts/p/zarr.json").touch()
        return str(place)

    return new


NAMES = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),  # which committer; 2 is a new one every time
        st.lists(st.tuples(NAMES, st.sampled_from("xy")), max_size=4),
        st.sets(NAMES, max_size=2),
    ),
    max_size=9,
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_commits_follow_the_model(
    new_uri: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[int, list[tuple[str, str]], set[str]]],
) -> None:
    monkeypatch.setattr(commits, "_SMALL_FILE", 6)
    monkeypatch.setattr(commits, "_SMALL_FILES", 3)
    uri = new_uri()
    committers = [Committer(uri), Committer(uri)]
    model: dict[str, str] = {}
    history = [dict(model)]
    for which, rows, retire in steps:
        target = committers[which] if which < 2 else uri
        result = commit(target, [row(*pair) for pair in rows], retire=retire)
        wanted = dict(rows)
        gone = (retire & model.keys()) - wanted.keys()
        news = {name: mark for name, mark in wanted.items() if model.get(name) != mark}
        assert result.added + result.replaced == len(news)
        assert result.removed <= len(gone)
        for name in [*gone, *news]:
            model.pop(name, None)
        model |= news
        if gone or news:
            history.append(dict(model))
        assert result.version == len(history) - 1
    for version, expected in enumerate(history):
        table = open_dataset(uri, version).episodes
        assert dict(zip(table.episode_ids, table.column("source_fingerprint"), strict=True)) == expected
        assert table.episode_ids == list(expected)
        assert len(set(table.column("ordinal"))) == len(table)


def test_the_number_of_data_files_stays_small(new_uri: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "_SMALL_FILE", 20)
    monkeypatch.setattr(commits, "_SMALL_FILES", 5)
    uri = new_uri()
    committer = Committer(uri)
    files = []
    for i in range(60):
        assert commit(committer, [row(f"e{i}")]).version == i + 1
        files.append(len(DeltaTable(f"{uri}/episodes").file_uris()))
    assert max(files) <= 60 // 20 + 5
    assert open_dataset(uri).episodes.episode_ids == [f"e{i}" for i in range(60)]
    assert open_dataset(uri, 30).episodes.episode_ids == [f"e{i}" for i in range(30)]


def test_a_lost_answer_is_no_lost_commit(new_uri: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage took the commit but its answer never arrived: the next attempt finds the episodes."""
    uri = new_uri()
    committer = Committer(uri)
    real, calls = committer._write, 0

    def losing(*args: object) -> None:
        nonlocal calls
        real(*args)  # type: ignore[arg-type]
        calls += 1
        if calls == 1:
            raise StorageError("the answer was lost")

    monkeypatch.setattr(committer, "_write", losing)
    result = committer.commit([row("a"), row("b")])
    assert (result.version, result.added, result.present) == (1, 2, 0)
    assert open_dataset(uri).version == 1


def test_a_storage_that_stays_away_is_said_once(tmp_path: Path) -> None:
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        raise StorageError("away")

    with pytest.raises(StorageError, match="away"):
        attempt(locate(tmp_path), fail)
    assert calls == 3

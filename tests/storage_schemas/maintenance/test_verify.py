"""Verify finds every kind of damage and names the episode."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_schemas.catalog.commits import CommitResult, commit
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset

Make = Callable[..., Episode]
Add = Callable[..., CommitResult]


@pytest.fixture
def part(make_episode: Make, add: Add, tmp_path: Path) -> Path:
    """The folder of a part with three episodes."""
    add([make_episode("a"), make_episode("b", size=(16, 16)), make_episode("c", length=9)])
    return tmp_path / "data/parts" / open_dataset(tmp_path / "data").episodes.parts[0]


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def damaged(tmp_path: Path) -> set[str]:
    return {problem.episode_id for problem in verify(tmp_path / "data").problems}


def test_a_sound_dataset_is_ok(part: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(tmp_path / "data", progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert (report.version, report.episodes, report.problems) == (1, 3, ())
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert verify(tmp_path / "data", 0).ok
    with pytest.raises(UserError):
        verify(tmp_path / "data", 7)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(part: Path, tmp_path: Path, data: st.DataObject) -> None:
    files = sorted(path for path in part.rglob("*") if path.is_file() and path.name != "zarr.json")
    file = data.draw(st.sampled_from(files))
    at = data.draw(st.integers(0, file.stat().st_size - 1))
    flip(file, at)
    assert not verify(tmp_path / "data").ok
    flip(file, at)


def test_damage_names_its_episode(part: Path, tmp_path: Path) -> None:
    shard = part / "rgb_16x16/c/0/0/0/0/0"
    flip(shard, 500)
    assert damaged(tmp_path) == {"episode-b"}
    flip(shard, 500)
    action = part / "action/c/0/0"
    flip(action, 49 * 12)
    assert damaged(tmp_path) == {"", "episode-c"}
    flip(action, 49 * 12)
    assert verify(tmp_path / "data").ok


def test_a_cut_or_missing_shard_names_its_episodes(part: Path, tmp_path: Path) -> None:
    shard = part / "rgb_24x32/c/0/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert damaged(tmp_path) == {"episode-a", "episode-c"}
    shard.write_bytes(b"")
    assert damaged(tmp_path) == {"episode-a", "episode-c"}
    shard.unlink()
    assert damaged(tmp_path) == {"episode-a", "episode-c"}


def test_a_changed_or_missing_document_is_found(part: Path, tmp_path: Path) -> None:
    document = part / "action/zarr.json"
    document.write_text(json.dumps(json.loads(document.read_text()) | {"shape": [1, 3]}))
    assert [problem.what for problem in verify(tmp_path / "data").problems] == [
        "action/zarr.json is not what the schema says"
    ]
    document.write_text("{")
    assert not verify(tmp_path / "data").ok
    document.unlink()
    assert not verify(tmp_path / "data").ok


def test_a_lost_part_names_all_its_episodes(part: Path, tmp_path: Path) -> None:
    part.rename(tmp_path / "elsewhere")
    assert damaged(tmp_path) == {"episode-a", "episode-b", "episode-c"}


def test_rows_that_share_steps_are_found(part: Path, tmp_path: Path) -> None:
    uri = tmp_path / "data"
    row = open_dataset(uri).episodes.row(0)
    commit(uri, [replace(row, episode_id="twin")])
    assert [(p.episode_id, p.what) for p in verify(uri).problems] == [
        ("twin", "its steps are also those of episode episode-a")
    ]


def test_damage_in_one_part_leaves_the_others_alone(part: Path, make_episode: Make, add: Add, tmp_path: Path) -> None:
    add([make_episode("d", known=False)], codec="lossless")
    flip(part / "zarr.json", 0)
    assert damaged(tmp_path) == {"episode-a", "episode-b", "episode-c"}

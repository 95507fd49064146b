"""A store that was written before `EpisodeRow.flags` went: tests/data/store_with_flags.zip, made by commit fa96813."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.catalog.versions import diff
from storage_schemas.episode import Episode
from storage_schemas.maintenance.backup import back_up
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part

ARCHIVE = Path(__file__).resolve().parents[1] / "data" / "store_with_flags.zip"
Make = Callable[..., Episode]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "store")
    return tmp_path / "store"


def test_it_opens_at_every_version(store: Path) -> None:
    assert all(verify(store, version).ok for version in (0, "first", 2, None))
    dataset = open_dataset(store)
    assert dataset.episodes.episode_ids == ["a", "c"]
    assert dataset.episodes.row(0).language == ["move"]
    assert dataset.episodes.statistics("action").mean.tolist() == [18.0, 18.0]
    assert (dataset.frames(0, "left", [2]) == 10).all()
    assert [entry.detail for entry in quarantined(store)] == ["by hand"]


def test_it_is_added_to_and_taken_from(store: Path, make_episode: Make, tmp_path: Path) -> None:
    episode = replace(make_episode("new", action_dim=2, cameras=("left",)), state={})
    changed = replace(episode, meta=replace(episode.meta, episode_id="a"))
    assert commit(store, write_part(store, [episode, changed], run_id="r"), retire=["c"]).version == 4
    assert diff(store, 3).count("changed") == 1
    assert open_dataset(store).episodes.episode_ids == ["episode-new", "a"]
    back_up(store, tmp_path / "copy")
    assert all(verify(tmp_path / "copy", version).ok for version in range(5))


@pytest.mark.parametrize("small", [2])
def test_its_small_files_are_joined(
    store: Path, make_episode: Make, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_schemas.catalog.commits._SMALL_FILES", small)
    for name in "xy":
        commit(store, write_part(store, [make_episode(name, action_dim=2, cameras=("left",))], run_id="r"))
    assert open_dataset(store).episodes.episode_ids == ["a", "c", "episode-x", "episode-y"]
    assert verify(store).ok

"""Tags, differences between versions, and episodes that are taken out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage_schemas.catalog.commits import CommitResult, commit
from storage_schemas.catalog.quarantine import quarantined, withdraw, withdrawn_fingerprints
from storage_schemas.catalog.table import create_dataset
from storage_schemas.catalog.versions import EpisodeChange, diff, drop_tag, set_tag, tags
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part

Make = Callable[..., Episode]
Add = Callable[..., CommitResult]


@pytest.fixture
def uri(make_episode: Make, add: Add, tmp_path: Path) -> str:
    """Version 1: a, b; version 2: a, a longer b, c."""
    add([make_episode("a"), make_episode("b", length=5)])
    add([make_episode("b", length=7, version=1), make_episode("c")])
    return str(tmp_path / "data")


def test_a_tag_opens_its_version(uri: str) -> None:
    assert set_tag(uri, "paper-1.0", 1).version == 1
    assert set_tag(uri, "latest").version == 2
    assert open_dataset(uri, "paper-1.0").version == 1
    assert open_dataset(uri, "1").version == 1
    assert [(tag.name, tag.version) for tag in tags(uri)] == [("paper-1.0", 1), ("latest", 2)]
    assert drop_tag(uri, "latest").version == 2
    assert [tag.name for tag in tags(uri)] == ["paper-1.0"]
    with pytest.raises(UserError, match="no version or tag 'latest'"):
        open_dataset(uri, "latest")


def test_a_tag_moves_only_when_told(uri: str) -> None:
    first = set_tag(uri, "good", 1)
    assert set_tag(uri, "good", 1) == first
    with pytest.raises(UserError, match="for version 1"):
        set_tag(uri, "good", 2)
    assert set_tag(uri, "good", 2, move=True).version == 2
    assert open_dataset(uri, "good").version == 2


@pytest.mark.parametrize("name", ["", "7up", "../../escape", "a/b", "x y", "é"])
def test_names_that_cannot_be_tags(uri: str, name: str) -> None:
    with pytest.raises(UserError):
        set_tag(uri, name)
    with pytest.raises(UserError):
        drop_tag(uri, name)


def test_tags_of_another_dataset_or_damaged_ones_are_refused(
    uri: str, add: Add, make_episode: Make, tmp_path: Path
) -> None:
    set_tag(uri, "old", 1)
    add([make_episode("z")], name="other")
    (tmp_path / "other/tags").mkdir()
    (tmp_path / "other/tags/old.json").write_bytes((tmp_path / "data/tags/old.json").read_bytes())
    for use in (open_dataset, verify, diff, lambda uri, tag: set_tag(uri, "new", tag)):
        with pytest.raises(UserError, match="the tag 'old' is of another dataset that lay here before"):
            use(tmp_path / "other", "old")
    assert [tag.name for tag in tags(tmp_path / "other")] == ["old"]
    set_tag(tmp_path / "other", "old", move=True)
    assert open_dataset(tmp_path / "other", "old").version == 1
    (tmp_path / "data/tags/old.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        open_dataset(uri, "old")
    with pytest.raises(UserError, match="no version 9"):
        set_tag(uri, "future", 9)


def test_the_difference_of_two_versions(uri: str) -> None:
    found = diff(uri, 1, 2)
    assert found.changes == (
        EpisodeChange(episode_id="episode-b", kind="changed", source_uri="memory://b", length_before=5, length_after=7),
        EpisodeChange(
            episode_id="episode-c", kind="added", source_uri="memory://c", length_before=None, length_after=24
        ),
    )
    assert (found.unchanged, found.steps) == (1, 26)
    back = diff(uri, 2, 1)
    assert [change.kind for change in back.changes] == ["changed", "removed"]
    assert back.steps == -26
    assert diff(uri, 2).changes == ()
    assert diff(uri, 0).count("added") == 3


def test_what_is_taken_out_stays_in_older_versions_and_does_not_come_back(uri: str) -> None:
    before = open_dataset(uri)
    result = withdraw(uri, ["episode-b"], detail="the camera was covered")
    assert (result.version, result.removed, result.added, result.replaced) == (3, 1, 0, 0)
    assert open_dataset(uri).episodes.episode_ids == ["episode-a", "episode-c"]
    assert verify(uri).ok
    assert before.frames(1, "left", [0]).any()
    assert open_dataset(uri, 2).episodes.episode_ids == before.episodes.episode_ids
    (entry,) = quarantined(uri)
    assert (entry.source_uri, entry.reason, entry.detail) == ("memory://b", "withdrawn", "the camera was covered")
    assert withdrawn_fingerprints(uri) == {"0.1"}
    with pytest.raises(UserError, match="no episode 'episode-b' in version 3"):
        withdraw(uri, ["episode-b"])


def test_what_is_forgotten_may_come_back(uri: str, make_episode: Make, add: Add) -> None:
    withdraw(uri, ["episode-a", "episode-c"], forget=True)
    assert quarantined(uri) == []
    assert add([make_episode("a")]).added == 1
    assert open_dataset(uri).episodes.episode_ids == ["episode-b", "episode-a"]


def test_old_rows_can_be_committed_again(uri: str) -> None:
    old = open_dataset(uri).episodes.row(0)
    withdraw(uri, ["episode-a"])
    assert commit(uri, [old]).added == 1
    assert quarantined(uri) == []
    assert verify(uri).ok


def test_a_part_that_is_gone_cannot_be_committed(uri: str, make_episode: Make, tmp_path: Path) -> None:
    rows = write_part(uri, [make_episode("d")], run_id="r")
    (tmp_path / "data/parts" / rows[0].part / "zarr.json").unlink()
    with pytest.raises(UserError, match="run the ingestion again"):
        commit(uri, rows)
    assert open_dataset(uri).version == 2


def test_an_empty_dataset_has_no_tags(tmp_path: Path, uri: str) -> None:
    create_dataset(tmp_path / "new", open_dataset(uri).spec)
    assert tags(tmp_path / "new") == []
    with pytest.raises(UserError, match="does not exist"):
        tags(tmp_path / "nowhere")

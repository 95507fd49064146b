"""Every operation of the store over s3://, against moto's server."""

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from s3_server import FaultProxy

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.quarantine import quarantined, withdraw
from storage_schemas.catalog.table import create_dataset, dataset_exists
from storage_schemas.catalog.versions import diff, set_tag, tags
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.maintenance.orphans import collect_orphans
from storage_schemas.maintenance.verify import verify
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset, summary
from storage_schemas.store.parts import write_part

Make = Callable[..., Episode]


def test_places(s3: FaultProxy) -> None:
    place = locate("s3://bucket/a/file.bin")
    assert not place.exists()
    assert place.parent.names() == []
    place.write_bytes(b"0123456789", exclusive=True)
    with pytest.raises(FileExistsError):
        place.write_bytes(b"other", exclusive=True)
    assert (place.read_bytes(), place.read_bytes(2, 4), place.read_bytes(start=-3)) == (b"0123456789", b"23", b"789")
    assert (place.size(), place.exists(), place.parent.is_dir(), place.parent.names()) == (10, True, True, ["file.bin"])
    assert [(info.name, info.bytes) for info in place.parent.files()] == [("file.bin", 10)]
    assert place.parent.read_many(["file.bin"]) == [b"0123456789"]
    place.remove()
    assert not place.exists()
    with pytest.raises(FileNotFoundError):
        place.read_bytes()


def test_the_life_of_a_dataset(s3: FaultProxy, make_episode: Make, spec: DatasetSpec) -> None:
    uri = "s3://bucket/robots/data"
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(uri)
    assert not dataset_exists(uri)
    create_dataset(uri, spec)
    create_dataset(uri, spec)
    episodes = [make_episode("a"), make_episode("b", length=5)]
    assert commit(uri, write_part(uri, episodes, run_id="r", codec="lossless")).added == 2
    assert commit(uri, write_part(uri, episodes, run_id="r")).present == 2
    assert commit(uri, write_part(uri, [make_episode("b", length=7, version=1)], run_id="r")).replaced == 1
    set_tag(uri, "first", 1)
    dataset = open_dataset(uri, "first")
    assert (dataset.array(1, "action") == episodes[1].action).all()
    assert (dataset.frames(1, "wrist", [4, 0]) == np.asarray(episodes[1].frames["wrist"])[[4, 0]]).all()
    assert (dataset.actions(0, 3, 16)[0] == episodes[0].action[3:19]).all()
    assert summary(open_dataset(uri)).lengths == (24, 7)
    assert [change.kind for change in diff(uri, 1, 2).changes] == ["changed"]
    assert withdraw(uri, ["episode-a"]).version == 3
    assert len(quarantined(uri)) == 1
    assert [tag.name for tag in tags(uri)] == ["first"]
    assert all(verify(uri, version).ok for version in range(4))
    orphans = collect_orphans(uri, age=timedelta(0), remove=True).orphans
    assert len(orphans) == 1  # the part of the second commit, which found its episodes present
    assert all(verify(uri, version).ok for version in range(4))
    with pytest.raises(UserError, match="no version 9"):
        open_dataset(uri, 9)


def test_a_sample_costs_two_requests(s3: FaultProxy, make_episode: Make, spec: DatasetSpec) -> None:
    uri = "s3://bucket/data"
    create_dataset(uri, spec)
    cameras = ("left", "right", "wrist")
    episodes = [make_episode(name, length=300, cameras=cameras) for name in "ab"]
    commit(uri, write_part(uri, episodes, run_id="r"))
    dataset = open_dataset(uri)
    s3.reset()
    rng = np.random.default_rng(0)
    for _ in range(100):
        episode, step = int(rng.integers(2)), int(rng.integers(300))
        steps = np.unique(np.clip([step - 1, step, step + 15, step + 16], 0, 299))
        dataset.chunks(episode, steps, np.arange(3))
        dataset.actions(episode, step, 16)
    assert {method for method, _, _ in s3.requests} == {"GET"}
    assert len(s3.requests) <= 220

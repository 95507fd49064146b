"""Loading: sizes, masks, order, and any number of workers."""

import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import EncodedFrames, Episode, SegmentId
from storage_schemas.errors import DamagedError
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.parts import write_part
from uwm.config import DataConfig, DatasetRef
from uwm.data.actions import ActionTable
from uwm.data.batch import RawBatch
from uwm.data.frames import fit_frames
from uwm.data.loader import SegmentReader, Shard, batches
from uwm.data.mixture import mixture_sampler, open_mixture
from uwm.data.sampler import Pick


def config(*uris: str, **changes: object) -> DataConfig:
    values: dict[str, object] = {
        "datasets": [DatasetRef(uri=uri) for uri in uris],
        "cameras": ("wrist", "top", "left"),
        "action_dim": 3,
        "action_horizon": 4,
        "next_start": 3,
        "resize": (20, 30),
        "crop": (16, 24),
    }
    return DataConfig.model_validate(values | changes)


def reader(data: DataConfig) -> SegmentReader:
    return SegmentReader([member.dataset for member in open_mixture(data)], data)


def equal(one: RawBatch, two: RawBatch) -> bool:
    pairs = [(getattr(one, f.name), getattr(two, f.name)) for f in fields(one)]
    return all(torch.equal(a, b) for a, b in pairs)


def test_frames_actions_and_masks_come_from_the_store(make_store: Callable[..., str]) -> None:
    uri = make_store("robot", (9,))
    data = config(uri, resize=(24, 32))  # the stored size: frames pass through
    dataset = open_mixture(data)[0].dataset
    batch = reader(data).read([Pick(7, 0, SegmentId(0, 0)), Pick(8, 0, SegmentId(0, 4))])
    stored = dataset.frames(0, "wrist", [0, 0, 3, 4])
    assert torch.equal(batch.frames[0, 0], torch.from_numpy(stored).permute(0, 3, 1, 2))
    assert batch.view_mask[:, 1].sum() == 0, "the dataset has no such camera"
    assert batch.frames[:, 1].sum() == 0
    assert batch.view_mask[:, [0, 2]].all()
    assert np.array_equal(batch.action[1], dataset.array(0, "action")[4:8])
    assert batch.action_mask.all()
    assert batch.position.tolist() == [7, 8]
    assert batch.step.tolist() == [0, 4]


def test_what_lies_past_the_end_is_masked_and_zero(make_store: Callable[..., str]) -> None:
    batch = reader(config(make_store("robot", (6,)))).read([Pick(0, 0, SegmentId(0, 4))])
    assert batch.action_mask.tolist() == [[[True] * 3] * 2 + [[False] * 3] * 2]
    assert batch.action[0, 2:].abs().sum() == 0
    assert batch.view_mask[0, 0].tolist() == [True, True, False, False]
    assert batch.frames[0, 0, 2:].sum() == 0


@pytest.mark.parametrize("options", [{"known": False}, {"action_dim": 5}])
def test_actions_that_are_missing_or_of_another_space_are_masked(
    make_store: Callable[..., str], options: dict[str, object]
) -> None:
    batch = reader(config(make_store("video", (9,), **options))).read([Pick(0, 0, SegmentId(0, 1))])
    assert not batch.action_mask.any()
    assert batch.action.abs().sum() == 0
    assert batch.action.shape == (1, 4, 3)


def test_cover_keeps_the_aspect_and_stretch_does_not() -> None:
    frames = np.zeros((1, 40, 40, 3), np.uint8)
    frames[:, 10:30, 10:30] = 255  # a square in the middle
    cover = fit_frames(frames, (20, 40), "cover")[0, 0]
    assert (cover[:, 10] > 127).all(), "the rows above and below the middle half are cut"
    assert (cover > 127).sum() == 20 * 20
    stretch = fit_frames(frames, (20, 40), "stretch")[0, 0]
    assert (stretch > 127).sum() == 10 * 20


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (64, 3), (24, 32)])
@pytest.mark.parametrize("fit", ["cover", "stretch"])
def test_any_size_comes_out_right(size: tuple[int, int], fit: str) -> None:
    frames = np.full((2, *size, 3), 77, np.uint8)
    out = fit_frames(frames, (12, 17), fit)
    assert out.shape == (2, 3, 12, 17)
    assert out.dtype == torch.uint8
    assert (out == 77).all()


def run(
    data: DataConfig, start: int, stop: int, workers: int = 0, size: int = 3, shard: Shard | None = None
) -> list[RawBatch]:
    members = open_mixture(data)
    source = SegmentReader([member.dataset for member in members], data)
    order = mixture_sampler(members, 5)
    return list(batches(source, order, start=start, stop=stop, batch_size=size, workers=workers, shard=shard))


def test_order_is_the_same_from_any_place_and_with_workers(make_store: Callable[..., str]) -> None:
    data = config(make_store("robot"), make_store("video", (8,), known=False))
    straight = run(data, 0, 24)
    assert len(straight) == 8
    assert torch.cat([batch.position for batch in straight]).tolist() == list(range(24))
    for start, workers in ((9, 0), (3, 2)):
        resumed = run(data, start, 24, workers)
        expected = straight[start // 3 :]
        assert len(resumed) == len(expected)
        assert all(equal(one, two) for one, two in zip(resumed, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_damaged_names_episode_and_file_in_one_line(make_store: Callable[..., str], workers: int) -> None:
    uri = make_store("robot", (9,))
    row = open_mixture(config(uri))[0].dataset.episodes.row(0)
    for shard in Path(uri).glob("parts/*/rgb*/c/**/*"):
        if shard.is_file():
            content = shard.read_bytes()
            shard.write_bytes(bytes(4000) + content[4000:])
    with pytest.raises(DamagedError) as caught:
        run(config(uri), 0, 6, workers)
    assert str(caught.value).startswith(f"episode {row.episode_id} of {uri}, from {row.source_uri}: ")
    assert str(caught.value).endswith("`uwm verify` names all damage")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_any_number_of_processes_shares_the_same_steps(make_store: Callable[..., str], world: int) -> None:
    data = config(make_store("robot", (9, 8)))
    alone = run(data, 6, 24, size=6)
    ranks = [run(data, 6, 24, size=6 // world, shard=Shard(rank=rank, world=world)) for rank in range(world)]
    for step, whole in enumerate(alone):
        together = torch.cat([batches[step].position for batches in ranks])
        assert torch.equal(together, whole.position)
        assert torch.equal(torch.cat([batches[step].frames for batches in ranks]), whole.frames)


def test_a_shard_is_one_of_the_world() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Shard(rank=2, world=2)


def test_a_run_is_whole_steps(make_store: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match="no whole number of steps"):
        run(config(make_store("robot")), 0, 4)


def test_frames_are_decoded_into_place(make_store: Callable[..., str]) -> None:
    data = config(make_store("robot", (9, 7)), resize=(24, 32))
    dataset, spec = open_mixture(data)[0].dataset, data.segment_spec
    picks = [Pick(0, 0, SegmentId(0, 0)), Pick(1, 0, SegmentId(1, 5)), Pick(2, 0, SegmentId(0, 4))]
    batch = reader(data).read(picks)
    for row, (_, _, (episode, step)) in enumerate(picks):
        steps, real = spec.frame_steps(step, int(dataset.episodes.lengths[episode]))
        mask = torch.from_numpy(real)
        for camera in set(spec.cameras) & set(dataset.spec.cameras):
            view = data.cameras.index(camera)
            assert torch.equal(batch.view_mask[row, view], mask)
            stored = torch.from_numpy(dataset.frames(episode, camera, steps.tolist())).permute(0, 3, 1, 2)
            assert torch.equal(batch.frames[row, view, mask], stored[mask])
            assert batch.frames[row, view, ~mask].sum() == 0


def test_scaled_decoding_is_a_setting_and_stays_close(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    uri = str(tmp_path / "large")
    create_dataset(uri, DatasetSpec(cameras=("left", "wrist"), action_dim=3, val_percent=0))
    commit(uri, write_part(uri, [make_episode("large", size=(120, 160), length=12)], run_id="test"))
    pick = [Pick(0, 0, SegmentId(0, 2))]
    exact = reader(config(uri, resize=(30, 40))).read(pick).frames.float()
    scaled = reader(config(uri, resize=(30, 40), decode="scaled")).read(pick).frames.float()
    assert not torch.equal(exact, scaled)
    assert (exact - scaled).abs().mean() < 3
    large = {
        mode: reader(config(uri, resize=(100, 130), decode=mode)).read(pick).frames for mode in ("exact", "scaled")
    }
    assert torch.equal(large["exact"], large["scaled"]), "nothing shrinks to less than what is needed"


def test_actions_in_shared_memory_are_those_of_the_store(make_store: Callable[..., str]) -> None:
    dataset = open_mixture(config(make_store("robot", (9, 2, 7))))[0].dataset
    table = pickle.loads(pickle.dumps(ActionTable(dataset, [0, 2])))  # noqa: S301
    for episode in (0, 2):
        for step in range(int(dataset.episodes.lengths[episode])):
            for ours, theirs in zip(table.actions(episode, step, 4), dataset.actions(episode, step, 4), strict=True):
                assert np.array_equal(ours, theirs)


def test_workers_use_the_memory_of_batches_that_are_done_with(make_store: Callable[..., str]) -> None:
    data = config(make_store("robot", (9,)))
    members = open_mixture(data)
    source = SegmentReader([member.dataset for member in members], data)
    order = mixture_sampler(members, 5)
    expected = [batch.frames for batch in batches(source, order, start=0, stop=60, batch_size=3)]
    kept, view, inodes = [], None, set()
    for number, batch in enumerate(batches(source, order, start=0, stop=60, batch_size=3, workers=1, prefetch=1)):
        assert torch.equal(batch.frames, expected[number])
        inodes |= shared_inodes(batch.frames.nbytes)
        if number < 3:
            kept.append(batch)
        elif number == 3:
            view = batch.frames[1:, 0]  # outlives its batch
    assert view is not None
    assert torch.equal(view, expected[3][1:, 0]), "memory that a view still needs was used again"
    for number, batch in enumerate(kept):
        assert torch.equal(batch.frames, expected[number])
    assert 5 <= len(inodes) <= 9, "four batches are held, and a few are on their way; not twenty"


def shared_inodes(size: int) -> set[str]:
    """The shared files of at least that size which this process has mapped."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *name = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if name and "/torch_" in name[0] and last - first >= size:
            found.add(inode)
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_frame_is_one_line_with_its_episode_and_file(
    tmp_path: Path, make_episode: Callable[..., Episode], workers: int
) -> None:
    """As older versions stored it: with an end, but without half of its data."""
    uri = str(tmp_path / "store")
    create_dataset(uri, DatasetSpec(cameras=("left", "wrist"), action_dim=3, val_percent=0))
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    jpeg = simplejpeg.encode_jpeg(pixels)
    cut = jpeg[: len(jpeg) * 3 // 4] + b"\xff\xd9"
    frames = EncodedFrames(height=24, width=32, jpegs=(jpeg, cut, *[jpeg] * 7))
    episode = replace(make_episode("bad", length=9), frames={"left": frames, "wrist": frames})
    commit(uri, write_part(uri, [episode], run_id="test"))
    with pytest.raises(DamagedError) as caught:
        run(config(uri), 0, 6, workers=workers)
    assert "episode episode-bad from memory://bad has a frame that can't be decoded" in str(caught.value)
    assert "\n" not in str(caught.value)

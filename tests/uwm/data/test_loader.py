"""Loading: sizes, masks, order, and any number of workers."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from storage_schemas.episode import SegmentId
from uwm.config import DataConfig, DatasetRef
from uwm.data.batch import RawBatch
from uwm.data.frames import fit_frames
from uwm.data.loader import SegmentReader, batches
from uwm.data.mixture import mixture_sampler, open_mixture
from uwm.data.sampler import Pick


def config(*uris: str, **changes: object) -> DataConfig:
    values: dict[str, object] = {
        "datasets": [DatasetRef(uri=uri) for uri in uris],
        "cameras": ("wrist", "top", "left"),
        "action_dim": 3,
        "action_steps": 4,
        "next_start": 3,
        "resize": (20, 30),
        "crop": (16, 24),
    }
    return DataConfig.model_validate(values | changes)


def reader(data: DataConfig) -> SegmentReader:
    return SegmentReader([member.dataset for member in open_mixture(data)], data)


def equal(one: RawBatch, two: RawBatch) -> bool:
    pairs = [(getattr(one, f.name), getattr(two, f.name)) for f in fields(one)]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


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
    assert batch.action_mask.tolist() == [[True, True, False, False]]
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


def run(data: DataConfig, start: int, stop: int, workers: int = 0) -> list[RawBatch]:
    members = open_mixture(data)
    source = SegmentReader([member.dataset for member in members], data)
    order = mixture_sampler(members, 5)
    return list(batches(source, order, start=start, stop=stop, batch_size=3, workers=workers))


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


def test_batches_move_whole() -> None:
    values = {f.name: torch.zeros(1) for f in fields(RawBatch)}
    batch = RawBatch(**values)
    assert equal(batch.to(torch.device("cpu")), replace(batch))

"""From places in the sample order to collated bytes, in this process or in workers.

Dimension letters: B batch, V views, F frames of a view (observation, then next), S action steps, A
action dimensions, H and W a stored frame's size, H0 and W0 the loader's.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from storage_schemas.episode import Segment, SegmentSpec
from storage_schemas.store import Dataset as Store
from uwm.config import DataConfig
from uwm.data.batch import RawBatch
from uwm.data.mixture import MixtureSampler
from uwm.data.sampler import Pick


def fit_frames(frames: NDArray[np.uint8], size: tuple[int, int], fit: str = "cover") -> Tensor:
    """Bring frames to one size, antialiased; frames of that size pass through.

    Args:
        frames: (F, H, W, 3).
        size: H0, W0.
        fit: `cover` keeps the aspect and cuts what stands out evenly on both sides; `stretch` cuts nothing.

    Returns:
        (F, 3, H0, W0) uint8.
    """
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # channels last in memory
    height, width = images.shape[-2:]
    if fit == "cover":
        scale = max(size[0] / height, size[1] / width)
        rows = min(height, max(1, round(size[0] / scale)))
        columns = min(width, max(1, round(size[1] / scale)))
        top, left = (height - rows) // 2, (width - columns) // 2
        images = images[..., top : top + rows, left : left + columns]
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


class SegmentReader:
    """Reads picked segments of a run's datasets and collates them. Picklable; opens nothing until it reads.

    Args:
        datasets: of the mixture, in its order.
        config: what a sample holds.
    """

    def __init__(self, datasets: Sequence[Store], config: DataConfig) -> None:
        self._datasets = tuple(datasets)
        self._config = config
        self._specs = tuple(_spec_for(dataset, config) for dataset in datasets)

    def read(self, picks: Sequence[Pick]) -> RawBatch:
        """The samples of `picks`, in their order."""
        config, batch = self._config, len(picks)
        count = config.obs_frames + config.next_frames
        frames = torch.zeros(batch, len(config.cameras), count, 3, *config.resize, dtype=torch.uint8)
        view_mask = torch.zeros(batch, len(config.cameras), count, dtype=torch.bool)
        action = torch.zeros(batch, config.action_steps, config.action_dim)
        action_mask = torch.zeros(batch, config.action_steps, dtype=torch.bool)
        for row, pick in enumerate(picks):
            dataset = self._datasets[pick.dataset]
            spec = self._specs[pick.dataset]
            segment = dataset.read(pick.segment, spec)
            self._put_frames(segment, spec.cameras, frames[row], view_mask[row])
            if dataset.spec.action_dim == config.action_dim:
                mask = torch.from_numpy(segment.action_mask)
                action_mask[row] = mask
                action[row] = torch.from_numpy(segment.action).where(mask[:, None], 0.0)
        return RawBatch(
            frames=frames,
            view_mask=view_mask,
            action=action,
            action_mask=action_mask,
            dataset=torch.tensor([pick.dataset for pick in picks]),
            episode=torch.tensor([pick.segment.episode for pick in picks]),
            step=torch.tensor([pick.segment.step for pick in picks]),
            position=torch.tensor([pick.position for pick in picks]),
        )

    def _put_frames(self, segment: Segment, cameras: tuple[str, ...], frames: Tensor, view_mask: Tensor) -> None:
        """Fill one sample's frames (V, F, 3, H0, W0) and mask (V, F) in place; `cameras` are the segment's."""
        config = self._config
        for camera, known in zip(cameras, segment.view_mask, strict=True):
            if camera in segment.frames and known.any():
                view, mask = config.cameras.index(camera), torch.from_numpy(known)
                frames[view, mask] = fit_frames(segment.frames[camera][known], config.resize, config.fit)
                view_mask[view] = mask


def _spec_for(dataset: Store, config: DataConfig) -> SegmentSpec:
    """What to read of a dataset, which need not have all of the run's cameras."""
    return replace(config.segment_spec, cameras=tuple(c for c in config.cameras if c in dataset.spec.cameras))


class _Picked(Dataset[RawBatch]):
    """What a DataLoader asks for: whole batches by the range of their places."""

    def __init__(self, reader: SegmentReader, sampler: MixtureSampler) -> None:
        self._reader = reader
        self._sampler = sampler

    def __getitem__(self, places: range) -> RawBatch:
        return self._reader.read([self._sampler.pick(place) for place in places])


class _Places(Sampler[range]):
    """The places of each batch from `start` to `stop`."""

    def __init__(self, start: int, stop: int, batch_size: int) -> None:
        self._starts = range(start, stop, batch_size)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[range]:
        return (range(start, start + self._batch_size) for start in self._starts)


def batches(
    reader: SegmentReader,
    sampler: MixtureSampler,
    *,
    start: int,
    stop: int,
    batch_size: int,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[RawBatch]:
    """Batches of the samples at places `start` to `stop`, in order, whatever the number of workers.

    Workers are spawned, not forked: the storage library must not be used on both sides of a fork.

    Args:
        reader: of the run's datasets.
        sampler: the run's sample order.
        start: place of the first sample.
        stop: place after the last one; a multiple of `batch_size` away from `start`.
        batch_size: B.
        workers: reading processes; 0 reads here, when a batch is asked for.
        pin: whether batches lie in page-locked memory.
    """
    loader = DataLoader(
        _Picked(reader, sampler),
        batch_size=None,
        sampler=_Places(start, stop, batch_size),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_leave_signals_to_trainer,
        pin_memory=pin,
    )
    return iter(loader)


def _leave_signals_to_trainer(worker: int) -> None:
    """A signal to the whole process group asks the trainer to stop; it still needs its workers for that."""
    del worker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

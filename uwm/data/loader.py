"""From places in the sample order to collated bytes, in this process or in workers.

Frames are decoded straight into the batch's memory where their size fits; a batch that a worker makes lies in
shared memory from the start, in a buffer that is used again. Remote reads of a whole batch are under way at once.

Dimension letters: B batch, V views, F frames of a view (observation, then next), S action steps, A
action dimensions, H and W a stored frame's size, H0 and W0 the loader's.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import Dataset as Store
from storage_schemas.store.dataset import FrameRequest, blaming
from storage_schemas.store.latents import DRAWS
from uwm.config import DataConfig, DatasetRef
from uwm.data.action_plan import action_plan
from uwm.data.actions import ActionTable
from uwm.data.batch import RawBatch
from uwm.data.buffers import Buffers, Ticket
from uwm.data.cameras import camera_map, fill_views, view_places
from uwm.data.condition import ConditionReader, ConditionTable
from uwm.data.frames import decode_fitted
from uwm.data.latents import LatentStore
from uwm.data.mixture import MixtureSampler
from uwm.data.pinning import robot_of
from uwm.data.sampler import Pick


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """One sample and the frames that it has."""

    row: int
    pick: Pick
    steps: NDArray[np.int64]
    """(F,) steps of its frames."""
    real: NDArray[np.bool_]
    """(F,) whether they lie inside the episode."""
    mask: NDArray[np.bool_]
    """(V, F) which frames there are."""


@dataclass(frozen=True)
class _Load:
    """Frames of one sample that are fetched together: views of one size, each step once."""

    row: int
    request: FrameRequest
    views: list[int]
    """Places of the views on the batch's view axis, ascending on the store's."""
    places: list[list[int]]
    """For every step of the request, its places on the batch's frame axis."""


class SegmentReader:
    """Reads picked segments of a run's datasets and collates them. Picklable; opens nothing until it reads.

    Args:
        datasets: of the mixture, in its order.
        config: what a sample holds.
        latents: cached latents of each dataset, when training runs on them: then only the observation frames are
            read as images.
        actions: of each dataset in shared memory; None reads them from the store.
        condition: what of each dataset's states and instructions lies in shared memory.
        next_images: whether anyone looks at the images of the next observation; if not, they are not read.
        seed: of the run; with a sample's place it gives the sample's augmentation.
        refs: how the run names each dataset: with its cameras, robot and stride; by default all as they are.
    """

    def __init__(
        self,
        datasets: Sequence[Store],
        config: DataConfig,
        latents: Sequence[LatentStore] = (),
        actions: Sequence[ActionTable | None] = (),
        seed: int = 0,
        *,
        condition: Sequence[ConditionTable] = (),
        next_images: bool = True,
        refs: Sequence[DatasetRef] = (),
    ) -> None:
        self._datasets = tuple(datasets)
        self._config = config
        named = tuple(refs) or tuple(DatasetRef(uri=dataset.uri) for dataset in datasets)
        pairs = tuple(zip(self._datasets, named, strict=True))
        self._specs = tuple(replace(config.segment_spec, stride=ref.stride) for ref in named)
        self._views = tuple(_views(dataset, ref, config) for dataset, ref in pairs)
        self._plans = tuple(action_plan(dataset.spec, ref, config) for dataset, ref in pairs)
        self._robots = tuple(robot_of(ref, dataset.spec, config) for dataset, ref in pairs)
        self._latents = tuple(latents)
        self._next_images = next_images and not latents
        self._actions = tuple(actions) or (None,) * len(self._datasets)
        self._seed = seed
        self._condition = ConditionReader(self._datasets, config, named, condition)

    def shape(self, samples: int) -> tuple[int, ...]:
        """(B, V, F, H0, W0, 3) of the frames of so many samples."""
        config = self._config
        count = config.obs_frames + (config.next_frames if self._next_images else 0)
        return samples, len(config.cameras), count, *config.resize, 3

    def read(self, picks: Sequence[Pick], *, images: bool = True, out: Tensor | None = None) -> RawBatch:
        """The samples of `picks`, in their order.

        Args:
            picks: which.
            images: if False no frame is read and `frames` holds none.
            out: contiguous memory of `shape` for the frames, whatever is in it; new one when None.
        """
        samples = [self._sample(row, pick) for row, pick in enumerate(picks)]
        view_mask = np.stack([sample.mask for sample in samples])
        pixels = torch.from_numpy(np.empty(self.shape(len(picks)), np.uint8)) if out is None else out
        if images:
            self._read_frames(samples, pixels.numpy())
        else:
            pixels = pixels[:, :, :0]
        action, action_mask = self._read_actions(picks)
        condition = self._condition.read(picks, [sample.steps[: self._config.obs_frames] for sample in samples])
        latents, draws = self._read_latents(samples) if self._latents else self._draw(samples)
        if self._config.missing_views != "none":
            own = (draws.numpy(),) if self._latents else ()  # cached latents were augmented with theirs
            arrays = (view_mask, pixels.numpy(), latents.numpy(), *own)
            fill_views(
                arrays, [pick.position for pick in picks], self._seed, shuffled=self._config.missing_views == "random"
            )
        return RawBatch(
            frames=pixels.permute(0, 1, 2, 5, 3, 4),
            view_mask=torch.from_numpy(view_mask),
            action=torch.from_numpy(action),
            action_mask=torch.from_numpy(action_mask),
            dataset=torch.tensor([pick.dataset for pick in picks]),
            episode=torch.tensor([pick.segment.episode for pick in picks]),
            step=torch.tensor([pick.segment.step for pick in picks]),
            position=torch.tensor([pick.position for pick in picks]),
            latents=latents,
            draws=draws,
            **condition._asdict(),
            embodiment=torch.tensor([self._robots[pick.dataset] for pick in picks]),
        )

    def _sample(self, row: int, pick: Pick) -> _Sample:
        """Which frames a sample has."""
        config, dataset = self._config, self._datasets[pick.dataset]
        episode = pick.segment.episode
        ours, theirs = self._views[pick.dataset]
        length = int(dataset.episodes.lengths[episode])
        steps, real = self._specs[pick.dataset].frame_steps(pick.segment.step, length)
        mask = np.zeros((len(config.cameras), len(steps)), np.bool_)
        # rows in the run's order of views, sizes in the dataset's
        mask[ours] = (dataset.episodes.sizes[episode, theirs, :1] > 0) & real
        return _Sample(row=row, pick=pick, steps=steps, real=real, mask=mask)

    def _read_frames(self, samples: Sequence[_Sample], pixels: NDArray[np.uint8]) -> None:
        """Fill frames (B, V, F, H0, W0, 3): those that there are, and zeros."""
        loads: list[list[_Load]] = [[] for _ in self._datasets]
        count = pixels.shape[2]
        for sample in samples:
            loads[sample.pick.dataset] += self._loads(sample, count)
            # the memory holds an older batch: what this one does not fill must not show through
            if not sample.mask[:, :count].all():
                pixels[sample.row][~sample.mask[:, :count]] = 0
        used = [(dataset, group) for dataset, group in zip(self._datasets, loads, strict=True) if group]
        # of all datasets, before the first frame is decoded: remote reads are under way meanwhile
        streams = [dataset.fetch([load.request for load in group]) for dataset, group in used]
        for (dataset, group), stream in zip(used, streams, strict=True):
            for load in group:
                with blaming(dataset, load.request.episode):
                    self._decode(dataset, load, next(stream), pixels[load.row])

    def _loads(self, sample: _Sample, count: int) -> Iterator[_Load]:
        """What to fetch for the first `count` frames of a sample."""
        episode = sample.pick.segment.episode
        ours, theirs = self._views[sample.pick.dataset]
        groups: dict[tuple[int, int], list[int]] = {}
        sizes = self._datasets[sample.pick.dataset].episodes.sizes[episode, theirs].tolist()
        for i, (height, width) in enumerate(sizes):
            if height:
                groups.setdefault((height, width), []).append(i)
        places: dict[int, list[int]] = {}
        for index, (step, real) in enumerate(zip(sample.steps[:count].tolist(), sample.real.tolist(), strict=False)):
            if real:
                places.setdefault(step, []).append(index)
        if not places:
            return
        steps = np.array(list(places))  # they never descend
        for members in groups.values():
            request = FrameRequest(episode, steps, theirs[members])
            yield _Load(sample.row, request, ours[members].tolist(), list(places.values()))

    def _decode(self, dataset: Store, load: _Load, chunks: list[bytes | memoryview], out: NDArray[np.uint8]) -> None:
        """Decode one load into a sample's frames (V, F, H0, W0, 3)."""
        config, episode = self._config, load.request.episode
        height, width = dataset.episodes.sizes[episode, load.request.views[0]].tolist()
        if (height, width) == config.resize:
            slots = [out[view, places[0]] for places in load.places for view in load.views]
            dataset.decode(episode, chunks, slots)
        else:
            images = iter(decode_fitted(dataset, episode, chunks, (height, width), config))
            for places in load.places:
                for view in load.views:
                    out[view, places[0]] = next(images)
        for places in load.places:
            for repeated in places[1:]:
                out[load.views, repeated] = out[load.views, places[0]]

    def _read_actions(self, picks: Sequence[Pick]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(B, S, A) in the store's units and what of it is known; all else, or of another space, is zero and masked."""
        config = self._config
        action = np.zeros((len(picks), config.action_horizon, config.action_dim), np.float32)
        mask = np.zeros(action.shape, np.bool_)
        for row, pick in enumerate(picks):
            dataset, table = self._datasets[pick.dataset], self._actions[pick.dataset]
            plan = self._plans[pick.dataset]
            if plan.how != "unused":
                source = table or dataset
                with blaming(dataset, pick.segment.episode):
                    values, known = source.actions(*pick.segment, config.action_horizon * plan.stride)
                action[row], mask[row] = plan.apply(values, known)
        return action, mask

    def _draw(self, samples: Sequence[_Sample]) -> tuple[Tensor, Tensor]:
        """No latents, and the draws (B, V, 5) of samples that are augmented as they are read."""
        shape = len(self._config.cameras), DRAWS
        draws = uniform_draws(self._seed, [sample.pick.position for sample in samples], shape)
        return torch.zeros(len(samples), shape[0], 0, 0, 0, 0, dtype=torch.float16), draws

    def _read_latents(self, samples: Sequence[_Sample]) -> tuple[Tensor, Tensor]:
        """Latents (B, V, F, C, h, w) float16 and the draws (B, V, 5) that they were augmented with."""
        views, frames = samples[0].mask.shape
        latents = np.zeros((len(samples), views, frames, *self._latents[0].shape), np.float16)
        draws = np.full((len(samples), views, DRAWS), 0.5, np.float32)
        for sample in samples:
            pick, row = sample.pick, sample.row
            ours, theirs = self._views[pick.dataset]
            store = self._latents[pick.dataset]
            variant = store.variant(pick.position)
            draws[row, ours] = store.augmentation(pick.segment.episode, variant)[theirs]
            store.read(pick.segment.episode, variant, sample.steps, ours, theirs, sample.mask, latents[row])
        return torch.from_numpy(latents), torch.from_numpy(draws)


def uniform_draws(seed: int, positions: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Random numbers that belong to places in the sample order: (B, *shape) float32 in [0, 1)."""
    rows = [np.random.default_rng((seed, position)).random(shape, np.float32) for position in positions]
    return torch.from_numpy(np.stack(rows))


def _views(dataset: Store, ref: DatasetRef, config: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cameras that both have: places on the run's view axis, and on the dataset's, which ascend."""
    return view_places(dataset.spec, camera_map(dataset.spec, ref, config.cameras), config.cameras)


Lent = tuple[RawBatch, Ticket]


class _Picked(Dataset[Lent | UserError]):
    """What a DataLoader asks its workers for: whole batches by the range of their places, or why there is none.

    An error is handed over instead of raised: torch would make its one line a worker's traceback.
    """

    def __init__(self, reader: SegmentReader, sampler: MixtureSampler, buffers: Buffers) -> None:
        self._reader = reader
        self._sampler = sampler
        self._buffers = buffers

    def __getitem__(self, positions: range) -> Lent | UserError:
        try:
            pixels, ticket = self._buffers.take(self._reader.shape(len(positions)))
            return self._reader.read([self._sampler.pick(position) for position in positions], out=pixels), ticket
        except UserError as error:
            return error


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Which of several processes that train together this one is."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world} processes")


class _Places(Sampler[range]):
    """The places of each batch from `start` to `stop`: of every step's samples, the micro-batches of one process."""

    def __init__(self, start: int, stop: int, batch_size: int, shard: Shard) -> None:
        whole = batch_size * shard.world
        if (stop - start) % whole:
            raise ValueError(f"{stop - start} samples are no whole number of steps of {whole}")
        self._starts = range(start + shard.rank * batch_size, stop, whole)
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
    shard: Shard | None = None,
    workers: int = 0,
    prefetch: int = 4,
    pin: bool = False,
) -> Iterator[RawBatch]:
    """Batches of the samples at places `start` to `stop`, in order, whatever the number of workers.

    Several processes split each step's samples: the samples of a step are the same for any number of them, as long
    as the batches of all together are of one size. So a run resumes sample-exactly with other numbers of workers
    and of processes, from the place alone.

    Workers are spawned, not forked: the storage library must not be used on both sides of a fork.

    Args:
        reader: of the run's datasets.
        sampler: the run's sample order.
        start: place of the first sample of all processes.
        stop: place after the last one; a whole number of steps away from `start`.
        batch_size: B, of this process.
        shard: which process this is; the only one by default.
        workers: reading processes; 0 reads here, when a batch is asked for.
        prefetch: batches that each worker reads ahead.
        pin: whether batches lie in page-locked memory.
    """
    places = _Places(start, stop, batch_size, shard or Shard())
    if not workers:
        return _read_here(reader, sampler, places, pin)
    buffers = Buffers(workers)
    loader = DataLoader(
        _Picked(reader, sampler, buffers),
        # the sampler's items are whole batches already
        batch_size=None,
        sampler=places,
        num_workers=workers,
        prefetch_factor=prefetch,
        multiprocessing_context="spawn",
        worker_init_fn=_leave_signals_to_trainer,
        pin_memory=pin,
    )
    return _lent(loader, buffers)


def _read_here(reader: SegmentReader, sampler: MixtureSampler, positions: _Places, pin: bool) -> Iterator[RawBatch]:
    for batch_positions in positions:
        batch = reader.read([sampler.pick(position) for position in batch_positions])
        yield batch.pin_memory() if pin else batch


def _lent(loader: DataLoader[Lent | UserError], buffers: Buffers) -> Iterator[RawBatch]:
    for item in loader:
        if isinstance(item, UserError):
            raise item
        lent = buffers.lend(*item)
        del item  # a reference here would keep the buffer from its worker
        yield lent
        del lent
        buffers.give_back()


def _leave_signals_to_trainer(worker: int) -> None:
    """A signal to the whole process group asks the trainer to stop; it still needs its workers for that.

    So nothing but SIGKILL ends a worker that its trainer has left: `uwm.train.__main__.kill_loader_workers` sends it.
    """
    del worker
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

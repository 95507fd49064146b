"""Cached latents: encode a dataset version once, then train without the tokenizer.

Every variant of an episode has one crop and one colour jitter per view, drawn from the latents' seed and the
episode's id, so the observation images of a sample can be cropped like its latents, and encoding again gives the
same latents. A dataset version is covered when `encode` has finished it; new episodes cost only themselves.

Dimension letters: K variants, V views, F frames, C, h, w latent channels, height and width.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import Location
from storage_schemas.schema import SHARD_STEPS
from storage_schemas.store.dataset import Dataset, open_parts
from storage_schemas.store.latents import (
    LatentArray,
    LatentSpec,
    covered,
    held,
    latent_key,
    latent_metadata,
    latents_folder,
    load_spec,
    mark_covered,
    save_spec,
)
from storage_schemas.store.shards import PartReader
from uwm.config import DataConfig
from uwm.data.augment import augment, centre
from uwm.data.frames import decode_fitted
from uwm.data.latent_shards import ShardJob, complete_shard, known_views, shard_jobs, steps_inside
from uwm.data.mixture import Member
from uwm.device import autocast

if TYPE_CHECKING:
    from uwm.model.tokenizer import Tokenizer

_BATCH = 64
"""Frames encoded at once."""


@dataclass(frozen=True, kw_only=True)
class EncodeReport:
    """What an encoding did."""

    uri: str
    name: str
    version: int
    episodes: int
    """Episodes that the version's latents cover."""
    encoded: int
    """Latents written in this run: frames x variants."""
    present: int
    """Latents that were there already."""


class LatentStore:
    """Reads the cached latents of one dataset version. Picklable; opens nothing until it reads."""

    def __init__(self, dataset: Dataset, name: str, spec: LatentSpec, *, seed: int) -> None:
        """Use `open_latents`. `seed` is the run's: it decides which variant a sample sees."""
        self._dataset = dataset
        self._folder = latents_folder(dataset.location, name)
        self._spec = spec
        self._seed = seed
        self._reader: PartReader | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_reader": None}

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, h, w."""
        return self._spec.shape

    def variant(self, position: int) -> int:
        """The variant that the sample at a place of the run's order sees."""
        if self._spec.variants == 1:
            return 0
        return int(np.random.default_rng((self._seed, position, self._spec.variants)).integers(self._spec.variants))

    def augmentation(self, episode: int, variant: int) -> NDArray[np.float32]:
        """(V, 5) draws of the episode's variant, for the dataset's cameras in canonical order."""
        return self._spec.draws(self._dataset.episodes.episode_ids[episode], variant)

    def read(
        self,
        episode: int,
        variant: int,
        steps: NDArray[np.int64],
        ours: NDArray[np.int64],
        theirs: NDArray[np.int64],
        mask: NDArray[np.bool_],
        out: NDArray[np.float16],
    ) -> None:
        """Fill a sample's latents where there are frames.

        Args:
            episode: its row.
            variant: from `variant`.
            steps: (F,) steps of the frames, which may repeat but never descend.
            ours: places on the sample's view axis of the cameras that both have.
            theirs: the same on the dataset's, ascending.
            mask: (V, F) frames that there are.
            out: (V, F, C, h, w).

        Raises:
            DamagedError: when a latent is missing.
        """
        known = mask[ours]
        views = np.flatnonzero(known.any(axis=1))
        places = np.flatnonzero(known.any(axis=0))
        if not len(views) or not len(places):
            return
        episodes = self._dataset.episodes
        once, which = np.unique(steps[places], return_inverse=True)
        reads = self._spec.read(episodes.parts[episode], variant, episodes.starts[episode] + once, theirs[views])
        chunks = [chunk for found in self._open().stream(reads) for chunk in found]
        if any(chunk is None or len(chunk) != self._spec.chunk_bytes for chunk in chunks):
            raise DamagedError(f"a latent of episode {episodes.episode_ids[episode]} is missing in {self._folder.uri}")
        values = np.frombuffer(b"".join(c for c in chunks if c is not None), "<f2")
        values = values.reshape(len(once), len(views), *self._spec.shape)[which]  # (places, views, C, h, w)
        out[ours[views][:, None], places] = values.swapaxes(0, 1)

    def _open(self) -> PartReader:
        if self._reader is None:
            self._reader = open_parts(self._folder)
        return self._reader


def open_latents(
    member: Member, config: DataConfig, tokenizer: str, latent: tuple[int, int, int], seed: int
) -> LatentStore:
    """The latents that a run declares, if they are what it would encode itself.

    Args:
        member: dataset version and chosen episodes.
        config: with `latents`, their name.
        tokenizer: fingerprint of the run's.
        latent: C, h, w of the run's.
        seed: of the run.

    Raises:
        UserError: when there are no such latents, they were made from something else, or don't cover the version.
    """
    name, dataset = config.latents, member.dataset
    folder = latents_folder(dataset.location, name)
    spec = load_spec(folder)
    if spec is None:
        raise UserError(f"{dataset.uri} has no latents {name!r}: encode them with `uwm latents`")
    wanted = describe(dataset, config, tokenizer, latent, variance=spec.variance)
    if reason := spec.difference(wanted):
        raise UserError(f"latents {name!r} of {dataset.uri} are stale: {reason}; encode others with `uwm latents`")
    if not covered(folder, dataset.version, member.ref.collections):
        raise UserError(
            f"latents {name!r} of {dataset.uri} do not cover version {dataset.version}: run `uwm latents` again"
        )
    return LatentStore(dataset, name, spec, seed=seed)


def describe(
    dataset: Dataset,
    config: DataConfig,
    tokenizer: str,
    latent: tuple[int, int, int],
    *,
    variance: bool,
    variants: int = 1,
    seed: int = 0,
) -> LatentSpec:
    """What the latents of a dataset are made from under a run's settings.

    Raises:
        UserError: when one augmentation is shared by a batch, which can't be encoded ahead.
    """
    if config.augmentation == "batch":
        raise UserError("latents belong to samples: set data.augmentation to sample or none")
    return LatentSpec(
        table_id=dataset.table_id,
        tokenizer=tokenizer,
        cameras=dataset.spec.cameras,
        encoded=tuple(camera for camera in dataset.spec.cameras if camera in config.cameras),
        shape=latent,
        variance=variance,
        variants=variants,
        seed=seed,
        resize=config.resize,
        crop=config.crop,
        fit=config.fit,
        augmentation="none" if config.augmentation == "none" else "sample",
        jitter=config.jitter if config.augmentation == "sample" else 0.0,
        decode=config.decode,
    )


def encode(
    member: Member,
    config: DataConfig,
    tokenizer: "Tokenizer",
    *,
    variants: int = 1,
    seed: int = 0,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodeReport:
    """Encode what is not encoded yet of a dataset version; killed and started again, it goes on.

    Args:
        member: dataset version and episodes, of all splits that shall be trained on.
        config: the run's settings, with `latents`, the name.
        tokenizer: on `device`.
        variants: K.
        seed: of the variants.
        device: where to encode.
        dtype: of matrix products; bfloat16 on CUDA.
        progress: called with encoded and all latents.

    Raises:
        UserError: when there are latents of that name that were made from something else.
    """
    spec = prepare(member, config, tokenizer, variants=variants, seed=seed)
    encoded, total = encode_parts(member, spec, config, tokenizer, device=device, dtype=dtype, progress=progress)
    return finish(member, config, encoded=encoded, total=total)


def prepare(member: Member, config: DataConfig, tokenizer: "Tokenizer", *, variants: int, seed: int) -> LatentSpec:
    """Write down what the latents are made from, or see that it is the same as before. Raises as `encode`."""
    dataset, name = member.dataset, config.latents
    folder = latents_folder(dataset.location, name)
    if config.augmentation == "none" and variants > 1:
        raise UserError("without augmentation all variants are the same: encode one")
    latent = latent_shape(config, tokenizer)
    wanted = describe(
        dataset, config, tokenizer.fingerprint, latent, variance=tokenizer.variance, variants=variants, seed=seed
    )
    save_spec(folder, wanted)
    spec = load_spec(folder)
    if spec is None or spec.difference(wanted) or spec != wanted.model_copy(update={"encoded": spec.encoded}):
        reason = spec.difference(wanted) if spec else "unreadable"
        raise UserError(
            f"{dataset.uri} has other latents {name!r}: {reason or 'other variants or seed'}; choose another name"
        )
    return spec


def encode_parts(
    member: Member,
    spec: LatentSpec,
    config: DataConfig,
    tokenizer: "Tokenizer",
    parts: Collection[str] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Encode what some parts lack, all of them by default; two processes must not take the same part at once.

    Returns:
        Latents encoded now, and all of these parts.
    """
    dataset = member.dataset
    folder = latents_folder(dataset.location, config.latents)
    encoder = _Encoder(dataset, spec, config, tokenizer, device, dtype)
    jobs = list(shard_jobs(dataset, spec, member.rows, parts))
    total = sum(job.size for job in jobs)
    encoded = done = 0
    for part, job in {job.part: job for job in jobs}.items():
        for key, document in latent_metadata(spec, dataset.schema(job.rows[0]).steps).items():
            (folder / part / key).write_bytes(document)
    for job in jobs:
        encoded += encoder.run(job, folder / job.part)
        done += job.size
        progress(done, total)
    return encoded, total


def finish(member: Member, config: DataConfig, *, encoded: int, total: int) -> EncodeReport:
    """Declare the version covered, once all of its parts are encoded."""
    dataset, name = member.dataset, config.latents
    folder = latents_folder(dataset.location, name)
    mark_covered(folder, dataset.version, member.ref.collections, len(member.rows))
    return EncodeReport(
        uri=dataset.uri,
        name=name,
        version=dataset.version,
        episodes=len(member.rows),
        encoded=encoded,
        present=total - encoded,
    )


def latent_shape(config: DataConfig, tokenizer: "Tokenizer") -> tuple[int, int, int]:
    """C, h, w of the latents of a run's images. Raises UserError when the crop is not divisible."""
    height, width = config.crop
    if height % tokenizer.downsample or width % tokenizer.downsample:
        raise UserError(f"data.crop {height}x{width} is not divisible by {tokenizer.downsample}")
    return tokenizer.channels, height // tokenizer.downsample, width // tokenizer.downsample


@dataclass
class _Encoder:
    """Encodes shards."""

    dataset: Dataset
    spec: LatentSpec
    config: DataConfig
    tokenizer: "Tokenizer"
    device: torch.device
    dtype: torch.dtype

    def run(self, job: ShardJob, folder: Location) -> int:
        """Write what a shard lacks; returns the number of latents encoded."""
        spec = self.spec
        places = {name: folder / latent_key(name, job.variant, job.shard) for name in spec.arrays}
        present = np.logical_and.reduce([held(place, spec.entries) for place in places.values()])
        new: dict[LatentArray, dict[int, bytes]] = {name: {} for name in spec.arrays}
        for row in job.rows:
            steps = steps_inside(self.dataset, row, job.shard)
            first = int(self.dataset.episodes.starts[row]) - job.shard * SHARD_STEPS
            for view in known_views(self.dataset, spec, row):
                ids = (first + steps) * len(spec.cameras) + view
                lacking = ~present[ids]
                for name, chunks in self._encode(row, view, job.variant, steps[lacking]).items():
                    new[name] |= dict(zip(ids[lacking].tolist(), chunks, strict=True))
        for name, place in places.items() if new["mean"] else ():
            complete_shard(place, new[name], spec.entries)
        return len(new["mean"])

    def _encode(
        self, row: int, view: int, variant: int, steps: NDArray[np.int64]
    ) -> Mapping[LatentArray, Sequence[bytes]]:
        """Bytes of some frames' latents, a few frames at a time."""
        found: dict[LatentArray, list[bytes]] = {name: [] for name in self.spec.arrays}
        for first in range(0, len(steps), _BATCH):
            images = self._images(row, view, variant, steps[first : first + _BATCH])
            with torch.inference_mode(), autocast(self.device, self.dtype):
                mean, variance = self.tokenizer.posterior(images)
            for name in self.spec.arrays:
                values = (mean if name == "mean" else variance).to("cpu", torch.float16).numpy()
                found[name] += [value.astype("<f2").tobytes() for value in values]
        return found

    def _images(self, row: int, view: int, variant: int, steps: NDArray[np.int64]) -> Tensor:
        """Frames (n, 3, H, W) in [0, 1], cropped and coloured as the variant says."""
        height, width = self.dataset.episodes.sizes[row, view].tolist()
        chunks = self.dataset.chunks(row, steps, np.array([view]))
        pixels = torch.from_numpy(decode_fitted(self.dataset, row, chunks, (height, width), self.config))
        frames = pixels.permute(0, 3, 1, 2)[None, None]  # (1, 1, n, 3, H0, W0)
        if self.spec.augmentation == "none":
            return centre(frames, self.config, self.device)[0, 0]
        draws = torch.from_numpy(
            self.spec.draws(self.dataset.episodes.episode_ids[row], variant)[None, view : view + 1]
        )
        return augment(frames, draws, self.config, self.device)[0, 0]

"""Write the cached latents of a dataset version, as far as they are missing.

Encoding again gives the same latents, and what is there is left alone: killed and started again it goes on, and new
episodes cost only themselves. A version is covered when `finish` has said so.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.errors import UserError
from storage_schemas.location import Location
from storage_schemas.schema import SHARD_STEPS
from storage_schemas.store.dataset import Dataset
from storage_schemas.store.latents import (
    LatentArray,
    LatentSpec,
    latent_key,
    latent_metadata,
    latents_folder,
    load_spec,
    mark_covered,
    present_chunks,
    save_spec,
)
from storage_schemas.store.shards import HOLE, encode_shard, index_bytes, parse_index
from uwm.config import DataConfig
from uwm.data.augment import augment, centre
from uwm.data.frames import decode_fitted
from uwm.data.latents import describe, latent_shape
from uwm.data.mixture import Member
from uwm.device import autocast
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


def encode(
    member: Member,
    config: DataConfig,
    tokenizer: Tokenizer,
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


def prepare(member: Member, config: DataConfig, tokenizer: Tokenizer, *, variants: int, seed: int) -> LatentSpec:
    """Write down what the latents are made from, or see that it is the same as before. Raises as `encode`."""
    dataset, name = member.dataset, config.latents
    folder = latents_folder(dataset.location, name)
    if config.augmentation == "none" and variants > 1:
        raise UserError("without augmentation all variants are the same: encode one")
    latent = latent_shape(config, tokenizer)
    described = describe(
        dataset, config, tokenizer.fingerprint, latent, variance=tokenizer.variance, variants=variants, seed=seed
    )
    save_spec(folder, described)
    spec = load_spec(folder)
    if spec is None or spec.difference(described) or spec != described.model_copy(update={"encoded": spec.encoded}):
        reason = spec.difference(described) if spec else "unreadable"
        raise UserError(
            f"{dataset.uri} has other latents {name!r}: {reason or 'other variants or seed'}; choose another name"
        )
    return spec


def encode_parts(
    member: Member,
    spec: LatentSpec,
    config: DataConfig,
    tokenizer: Tokenizer,
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
    jobs = list(_jobs(dataset, spec, member.rows, parts))
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


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One shard of one variant."""

    part: str
    variant: int
    shard: int
    rows: tuple[int, ...]
    """Episodes with steps in it."""
    size: int
    """Latents of these episodes in the shard."""


def _jobs(dataset: Dataset, spec: LatentSpec, rows: NDArray[np.int64], parts: Collection[str] | None) -> Iterator[_Job]:
    """All shards of the episodes, part by part."""
    episodes = dataset.episodes
    shards: dict[tuple[str, int], list[int]] = {}
    for row in rows.tolist():
        if parts is not None and episodes.parts[row] not in parts:
            continue
        start, stop = int(episodes.starts[row]), int(episodes.starts[row] + episodes.lengths[row])
        for shard in range(start // SHARD_STEPS, (stop - 1) // SHARD_STEPS + 1):
            shards.setdefault((episodes.parts[row], shard), []).append(row)
    for (part, shard), members in sorted(shards.items()):
        size = sum(len(_steps_inside(dataset, row, shard)) * len(_views(dataset, spec, row)) for row in members)
        for variant in range(spec.variants):
            yield _Job(part=part, variant=variant, shard=shard, rows=tuple(members), size=size)


def _steps_inside(dataset: Dataset, row: int, shard: int) -> NDArray[np.int64]:
    """Steps of an episode that lie in a shard of its part."""
    start, length = int(dataset.episodes.starts[row]), int(dataset.episodes.lengths[row])
    return np.arange(max(0, shard * SHARD_STEPS - start), min(length, (shard + 1) * SHARD_STEPS - start))


def _views(dataset: Dataset, spec: LatentSpec, row: int) -> list[int]:
    """Views of an episode that are to be encoded."""
    return [
        view
        for view, camera in enumerate(spec.cameras)
        if camera in spec.encoded and dataset.episodes.sizes[row, view, 0]
    ]


def _complete(file: Location, new: Mapping[int, bytes], entries: int) -> None:
    """Replace a shard by one that also holds `new`, at once."""
    chunks: list[bytes | None] = [None] * entries
    if file.exists():
        data = file.read_bytes()
        index = parse_index(data[-index_bytes(entries) :], len(data)).tolist()
        chunks = [None if start == HOLE else data[start : start + size] for start, size in index]
    for number, chunk in new.items():
        chunks[number] = chunk
    file.write_bytes(encode_shard(chunks))


@dataclass
class _Encoder:
    """Encodes shards."""

    dataset: Dataset
    spec: LatentSpec
    config: DataConfig
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype

    def run(self, job: _Job, folder: Location) -> int:
        """Write what a shard lacks; returns the number of latents encoded."""
        spec = self.spec
        files = {name: folder / latent_key(name, job.variant, job.shard) for name in spec.arrays}
        # what one array has and the other lacks was cut off between the two writes: both are made again
        present = np.logical_and.reduce([present_chunks(file, spec.entries) for file in files.values()])
        new: dict[LatentArray, dict[int, bytes]] = {name: {} for name in spec.arrays}
        for row in job.rows:
            steps = _steps_inside(self.dataset, row, job.shard)
            first = int(self.dataset.episodes.starts[row]) - job.shard * SHARD_STEPS
            for view in _views(self.dataset, spec, row):
                ids = (first + steps) * len(spec.cameras) + view
                lacking = ~present[ids]
                for name, chunks in self._encode(row, view, job.variant, steps[lacking]).items():
                    new[name] |= dict(zip(ids[lacking].tolist(), chunks, strict=True))
        for name, file in files.items() if new["mean"] else ():
            _complete(file, new[name], spec.entries)
        return len(new["mean"])

    def _encode(
        self, row: int, view: int, variant: int, steps: NDArray[np.int64]
    ) -> Mapping[LatentArray, Sequence[bytes]]:
        """Bytes of some frames' latents, a few frames at a time."""
        encoded: dict[LatentArray, list[bytes]] = {name: [] for name in self.spec.arrays}
        for first in range(0, len(steps), _BATCH):
            images = self._images(row, view, variant, steps[first : first + _BATCH])
            with torch.inference_mode(), autocast(self.device, self.dtype):
                mean, variance = self.tokenizer.posterior(images)
            for name in self.spec.arrays:
                values = (mean if name == "mean" else variance).to("cpu", torch.float16).numpy()
                encoded[name] += [value.astype("<f2").tobytes() for value in values]
        return encoded

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

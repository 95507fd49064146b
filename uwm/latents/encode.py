"""Encode the datasets of a run ahead of its training: plan batches of parts, encode them anywhere, declare it done."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache

import torch

from storage_schemas.errors import UserError
from storage_schemas.executors import in_order
from storage_schemas.store.latents import LatentSpec
from uwm.config import RunConfig
from uwm.data.mixture import Member, open_mixture
from uwm.device import resolve_device, resolve_precision
from uwm.latents.shards import EncodeReport, encode_parts, finish, prepare
from uwm.model.tokenizer import Tokenizer, load_tokenizer
from uwm.train.resume import resolve_paths


@dataclass(frozen=True, kw_only=True)
class EncodeBatch:
    """Some parts of one dataset. Picklable, and valid wherever dataset and tokenizer can be reached."""

    config: str
    """The run's, as JSON, with its datasets pinned."""
    dataset: int
    """Its place in the run's."""
    spec: LatentSpec
    parts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """What became of a batch."""

    encoded: int
    """Latents written now: frames x variants."""
    total: int
    """Latents of the batch."""


Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A run's datasets and tokenizer in this process."""

    config: RunConfig
    members: tuple[Member, ...]
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype


def encode_run(
    config: RunConfig,
    *,
    variants: int = 1,
    seed: int = 0,
    batch_episodes: int = 64,
    executor: Executor | None = None,
    in_flight: int = 16,
    progress: Progress = lambda done, total: None,
) -> tuple[EncodeReport, ...]:
    """Encode every dataset of a run, training and held-out episodes, with the run's tokenizer and settings.

    Args:
        config: of the run.
        variants: of every frame.
        seed: of the variants.
        batch_episodes: episodes per batch, at least; a batch consists of whole parts.
        executor: who encodes the batches; this process, one after another, when None.
        in_flight: batches that the executor is given before the first of them has given its result.
        progress: called with encoded and all batches.

    Raises:
        UserError: when data or tokenizer are missing, or as `uwm.latents.shards.encode`.
    """
    if not config.data.datasets:
        raise UserError("the run names no dataset: set data.datasets.0.uri=<store>")
    if not config.data.latents:
        raise UserError("give the latents a name: data.latents=NAME")
    opened = _open(resolve_paths(config))
    specs = [prepare(m, opened.config.data, opened.tokenizer, variants=variants, seed=seed) for m in opened.members]
    batches = list(_plan(opened, specs, batch_episodes))
    encoded: Counter[int] = Counter()
    total: Counter[int] = Counter()
    results = (
        in_order(executor, encode_batch, batches, in_flight)
        if executor
        else (encode_batch(batch, opened) for batch in batches)
    )
    for number, (batch, done) in enumerate(zip(batches, results, strict=True), 1):
        encoded[batch.dataset] += done.encoded
        total[batch.dataset] += done.total
        progress(number, len(batches))
    return tuple(
        finish(member, opened.config.data, encoded=encoded[i], total=total[i])
        for i, member in enumerate(opened.members)
    )


def encode_batch(batch: EncodeBatch, opened: Opened | None = None) -> EncodedBatch:
    """Encode what a batch lacks; done again, it goes on.

    Args:
        batch: from `encode_run`.
        opened: the run; this process opens it for all of its batches when None.

    Raises:
        UserError: when data or tokenizer are missing.
    """
    opened = opened or _opened(batch.config, batch.spec.tokenizer)
    encoded, total = encode_parts(
        opened.members[batch.dataset],
        batch.spec,
        opened.config.data,
        opened.tokenizer,
        frozenset(batch.parts),
        device=opened.device,
        dtype=opened.dtype,
    )
    return EncodedBatch(encoded=encoded, total=total)


@lru_cache(maxsize=1)
def _opened(text: str, tokenizer: str) -> Opened:
    """The run with this configuration, whose datasets are pinned; `tokenizer` is the fingerprint of the one meant."""
    opened = _open(RunConfig.model_validate_json(text))
    if opened.tokenizer.fingerprint != tokenizer:
        raise UserError("this worker reads another tokenizer than the run: give its path as every machine sees it")
    return opened


def _open(config: RunConfig) -> Opened:
    if config.policy.tokenizer is None:
        raise UserError(f"policy {config.policy.kind} takes no latents: there is nothing to encode")
    device = resolve_device(config.train.device)
    return Opened(
        config=config,
        members=open_mixture(config.data, split=None),
        tokenizer=load_tokenizer(config.policy.tokenizer).to(device),
        device=device,
        dtype=resolve_precision(config.train.precision, device),
    )


def _plan(opened: Opened, specs: Sequence[LatentSpec], batch_episodes: int) -> Iterator[EncodeBatch]:
    """All parts of all datasets in batches."""
    refs = tuple(member.ref for member in opened.members)
    data = opened.config.data.model_copy(update={"datasets": refs})
    config = opened.config.model_copy(update={"data": data}).model_dump_json()
    for dataset, (member, spec) in enumerate(zip(opened.members, specs, strict=True)):
        episodes = Counter(member.dataset.episodes.parts[row] for row in member.rows.tolist())
        for parts in _cut(episodes, batch_episodes):
            yield EncodeBatch(config=config, dataset=dataset, spec=spec, parts=parts)


def _cut(episodes: Counter[str], least: int) -> Iterator[tuple[str, ...]]:
    """Parts in groups of at least `least` episodes."""
    group: list[str] = []
    count = 0
    for part, size in episodes.items():
        group.append(part)
        count += size
        if count >= least:
            yield tuple(group)
            group, count = [], 0
    if group:
        yield tuple(group)

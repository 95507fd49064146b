"""Several pinned dataset versions as one stream of samples, each with its exact share.

Dimension letters: D datasets, p a place in the run's sample order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import Dataset, open_dataset
from uwm.conditions import RunState
from uwm.config import DataConfig, DatasetRef
from uwm.data.normalize import (
    ActionNormalizer,
    ActionRange,
    NormalizerSource,
    Scale,
    StateRange,
    fit_normalizer,
)
from uwm.data.sampler import Pick, SegmentSampler
from uwm.registry import nearest
from uwm.settings import DatasetVersion, replace

_SAMPLE = 1 << 22
"""Most steps that percentiles are taken over."""


class Quotas:
    """Which dataset gives the sample at place p, and how many it gave before.

    After every multiple of the weights' common period each dataset has given exactly its share, and
    at no place is any dataset D or more samples away from it. Computed from p alone, in O(D) exact
    integers: the first dataset takes every place where floor(share * p) grows, the others divide the
    places that are left in the same way.

    Args:
        weights: relative shares, all positive.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or any(weight <= 0 for weight in weights):
            raise ValueError("a mixture has at least one dataset, and its weights are positive")
        exact = [Fraction(str(weight)) for weight in weights]
        scale = lcm(*(share.denominator for share in exact))
        self._parts = [int(share * scale) for share in exact]

    @property
    def period(self) -> int:
        """After this many samples every share is met exactly."""
        return sum(self._parts)

    def place(self, position: int) -> tuple[int, int]:
        """The dataset of the sample at `position` >= 0, and that dataset's earlier samples."""
        if position < 0:
            raise IndexError(position)
        total = self.period
        for dataset, part in enumerate(self._parts[:-1]):
            earlier = position * part // total
            if (position + 1) * part // total > earlier:
                return dataset, earlier
            position -= earlier
            total -= part
        return len(self._parts) - 1, position


class MixtureSampler:
    """The order of all samples of a run, as a function of the place.

    Args:
        samplers: one per dataset, none empty.
        weights: relative shares.
    """

    def __init__(self, samplers: Sequence[SegmentSampler], weights: Sequence[float]) -> None:
        if len(samplers) != len(weights) or not all(len(sampler) for sampler in samplers):
            raise ValueError("every dataset of a mixture has a weight and segments")
        self._samplers = tuple(samplers)
        self._quotas = Quotas(weights)

    def pick(self, position: int) -> Pick:
        """The sample at `position` >= 0."""
        dataset, draw = self._quotas.place(position)
        return Pick(position, dataset, self._samplers[dataset].draw(draw))


@dataclass(frozen=True, kw_only=True)
class Member:
    """One dataset of a mixture, opened at its pinned version."""

    ref: DatasetRef
    """The dataset as the run names it, with the version filled in."""
    dataset: Dataset
    rows: NDArray[np.int64]
    """Rows of the chosen episodes."""
    split: str | None = "train"
    """Split that the episodes were chosen from; None is all."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) steps of the chosen episodes."""
        return np.asarray(self.dataset.episodes.lengths, np.int64)[self.rows]

    @property
    def source(self) -> NormalizerSource:
        """The key of this member's statistics."""
        return NormalizerSource(
            uri=self.ref.uri, version=self.dataset.version, collections=self.ref.collections, split=self.split
        )

    def sampler(self, key: tuple[int, ...]) -> SegmentSampler:
        """The order of this member's own samples."""
        return SegmentSampler(self.rows, self.lengths, key)

    def known_actions(self, action_dim: int) -> int:
        """Steps of the chosen episodes whose action is known and used."""
        if self.dataset.spec.action_dim != action_dim:
            return 0
        return int(np.asarray(self.dataset.episodes.action_steps, np.int64)[self.rows].sum())


def open_member(ref: DatasetRef, config: DataConfig, *, split: str | None = "train") -> Member:
    """Open a dataset of a mixture and choose its episodes.

    Raises:
        UserError: when the dataset or the version is missing, and as `choose_member`.
    """
    return choose_member(open_dataset(ref.uri, ref.version), ref, config, split=split)


def choose_member(dataset: Dataset, ref: DatasetRef, config: DataConfig, *, split: str | None = "train") -> Member:
    """Choose the episodes of an opened dataset, of one split or of all.

    Raises:
        UserError: when it has none of the configured cameras, not all of the named collections, or no chosen episode
            has two steps.
    """
    name = f"{ref.uri} version {dataset.version}"
    if not set(config.cameras) & set(dataset.spec.cameras):
        raise UserError(f"{name} has none of the cameras in data.cameras: it has {', '.join(dataset.spec.cameras)}")
    known = set(dataset.episodes.collections)
    unknown = [collection for collection in ref.collections if collection not in known]
    if unknown:
        raise UserError(f"{name} has no collection {', '.join(unknown)}: it has {', '.join(sorted(known)[:20])}")
    rows = np.asarray(dataset.episodes.select(split=split, collections=ref.collections), np.int64)
    member = Member(ref=replace(ref, version=dataset.version), dataset=dataset, rows=rows, split=split)
    if not len(member.sampler((0,))):
        where = f" in collections {', '.join(ref.collections)}" if ref.collections else ""
        raise UserError(
            f"{name} has no {split or ''} episode of two or more steps{where}: ingest more or choose others"
        )
    return member


def open_mixture(config: DataConfig) -> tuple[Member, ...]:
    """Open every dataset of a run at its pinned version, or at the newest, for training.

    Raises:
        UserError: as `open_member`, and when the run names no dataset.
    """
    if not config.datasets:
        raise UserError("the run names no dataset: set data.datasets.0.uri=<store>")
    return tuple(open_member(ref, config) for ref in config.datasets)


def check_actions(members: Sequence[Member], action_dim: int) -> None:
    """Raises UserError when a dataset has known actions of another dimension than the run takes."""
    for member in members:
        own = member.dataset.spec.action_dim
        if own != action_dim and member.known_actions(own):
            raise UserError(
                f"{member.ref.uri} version {member.dataset.version} has {own}-dim actions, the run takes {action_dim}: "
                f"set data.action_dim={own}, or choose another dataset"
            )


def check_cameras(members: Sequence[Member], cameras: Sequence[str]) -> None:
    """Check that no camera of a run is misspelt: one that no dataset has, while a dataset has one that the run lacks.

    A run may have cameras that its data lacks, for what it is finetuned on later; then it takes all that there are.

    Raises:
        UserError: when there is one.
    """
    own = {camera for member in members for camera in member.dataset.spec.cameras}
    missing, unused = [name for name in cameras if name not in own], sorted(own - set(cameras))
    if missing and unused:
        raise UserError(
            f"no dataset of the run has the camera {missing[0]!r} in data.cameras{nearest(missing[0], unused)}; "
            f"there are {', '.join(sorted(own))}"
        )


def mixture_sampler(members: Sequence[Member], seed: int) -> MixtureSampler:
    """The order of all samples of a run."""
    samplers = [member.sampler((seed, number)) for number, member in enumerate(members)]
    return MixtureSampler(samplers, [member.ref.weight for member in members])


def mixture_normalizer(
    members: Sequence[Member], action_dim: int, scale: Scale = "min_max", states: Sequence[RunState] = ()
) -> ActionNormalizer:
    """The normalizer of a mixture, from the statistics of its training episodes.

    No image is read. For `quantile` the actions are, all of them or an evenly spread sample of four million steps.
    States have the bounds of all that the episodes hold, whatever the scale of the actions.
    """
    used = [member for member in members if member.known_actions(action_dim)]
    actions = [known_actions(member) for member in used] if scale == "quantile" else ()
    fitted = fit_normalizer([_action_range(member) for member in used], action_dim, scale, actions)
    return replace(fitted, states=tuple(_state_range(members, state) for state in states))


def _state_range(members: Sequence[Member], state: RunState) -> StateRange:
    """What becomes [-1, 1] of a field; the identity when no episode has it."""
    each = [member.dataset.episodes.statistics(f"state/{state.name}", member.rows) for member in members]
    known = [statistics for statistics in each if statistics.count]
    if not known:
        return StateRange.identity(state.name, state.dim)
    low, high = (
        np.min([part.min for part in known], axis=0).tolist(),
        np.max([part.max for part in known], axis=0).tolist(),
    )
    return StateRange(name=state.name, low=tuple(low), high=tuple(high))


def dataset_normalizer(
    uri: str,
    version: DatasetVersion = None,
    *,
    split: str | None = "train",
    collections: tuple[str, ...] = (),
    scale: Scale = "min_max",
) -> ActionNormalizer:
    """The normalizer of one split of one dataset version, with its key: uri, version, split, collections.

    Raises:
        UserError: when there is no such dataset or version.
    """
    dataset = open_dataset(uri, version)
    rows = np.asarray(dataset.episodes.select(split=split, collections=collections), np.int64)
    ref = DatasetRef(uri=uri, version=dataset.version, collections=collections)
    member = Member(ref=ref, dataset=dataset, rows=rows, split=split)
    return mixture_normalizer([member], dataset.spec.action_dim, scale)


def known_actions(member: Member) -> NDArray[np.float32]:
    """(n, A): every k-th known action, so that n stays within `_SAMPLE`."""
    dataset = member.dataset
    rows = [row for row in member.rows.tolist() if dataset.episodes.action_steps[row]]
    every = -(-int(dataset.episodes.action_steps[rows].sum()) // _SAMPLE)
    parts, skipped = [], 0
    for row in rows:
        action, known = dataset.actions(row, 0, int(dataset.episodes.lengths[row]))
        values = action[known & np.isfinite(action).all(axis=1)]
        parts.append(values[-skipped % every :: every].copy())
        skipped += len(values)
    return np.concatenate(parts)


def _action_range(member: Member) -> ActionRange:
    statistics = member.dataset.episodes.statistics("action", member.rows)
    return ActionRange(
        count=int(statistics.count),
        low=_floats(statistics.min),
        high=_floats(statistics.max),
        total=_floats(statistics.sum),
        squares=_floats(statistics.sumsq),
        source=member.source,
    )


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float64).tolist())

"""Several pinned dataset versions as one stream of samples, each with its exact share.

Dimension letters: D datasets, p a place in the run's sample order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import Dataset, open_dataset
from uwm.conditions import RunState
from uwm.config import DataConfig, DatasetRef
from uwm.data.action_plan import ActionPlan, action_plan
from uwm.data.cameras import Roles, camera_map, camera_roles
from uwm.data.normalize import (
    ActionNormalizer,
    ActionRange,
    NormalizerSource,
    Scale,
    StateRange,
    fit_normalizer,
)
from uwm.data.sampler import Pick, SegmentSampler
from uwm.data.state_plan import StatePlan, state_plan
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
        # as it is written: 0.1 means a tenth, not the float beside it
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
    plan: ActionPlan
    """What becomes of its actions in the run."""
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

    @property
    def recorded_actions(self) -> int:
        """Steps of the chosen episodes whose action is known, used or not."""
        return int(np.asarray(self.dataset.episodes.action_steps, np.int64)[self.rows].sum())

    @property
    def known_actions(self) -> int:
        """Steps of the chosen episodes whose action is known and used."""
        return 0 if self.plan.problem or self.plan.how == "unused" else self.recorded_actions


def open_member(ref: DatasetRef, config: DataConfig, *, split: str | None = "train") -> Member:
    """Open a dataset of a mixture and choose its episodes.

    Raises:
        UserError: when the dataset or the version is missing, and as `choose_member`.
    """
    return choose_member(open_dataset(ref.uri, ref.version), ref, config, split=split)


def choose_member(
    dataset: Dataset, ref: DatasetRef, config: DataConfig, *, split: str | None = "train", roles: Roles | None = None
) -> Member:
    """Choose the episodes of an opened dataset, of one split or of all, and the cameras that stand for the run's.

    Args:
        dataset: opened.
        ref: how the run names it.
        config: of the run.
        split: whose episodes; None takes all.
        roles: where the run's cameras look from, as all of its datasets know it; as this one does when None.

    Raises:
        UserError: when it has none of the configured cameras, not all of the named collections, or no chosen episode
            has two steps.
    """
    name = f"{ref.uri} version {dataset.version}"
    known_roles = camera_roles(config.cameras, [dataset.spec]) if roles is None else roles
    cameras = camera_map(dataset.spec, ref, config.cameras, known_roles)
    if not cameras:
        raise UserError(f"{name} has none of the cameras in data.cameras: it has {', '.join(dataset.spec.cameras)}")
    known = set(dataset.episodes.collections)
    unknown = [collection for collection in ref.collections if collection not in known]
    if unknown:
        raise UserError(f"{name} has no collection {', '.join(unknown)}: it has {', '.join(sorted(known)[:20])}")
    rows = np.asarray(dataset.episodes.select(split=split, collections=ref.collections), np.int64)
    chosen = {} if all(ours == theirs for ours, theirs in cameras.items()) and not ref.cameras else cameras
    pinned = replace(ref, version=dataset.version, cameras=chosen)
    plan = action_plan(dataset.spec, pinned, config)
    member = Member(ref=pinned, dataset=dataset, rows=rows, plan=plan, split=split)
    if not len(member.sampler((0,))):
        where = f" in collections {', '.join(ref.collections)}" if ref.collections else ""
        raise UserError(
            f"{name} has no {split or ''} episode of two or more steps{where}: ingest more or choose others"
        )
    return member


def open_mixture(config: DataConfig, *, split: str | None = "train") -> tuple[Member, ...]:
    """Open every dataset of a run at its pinned version, or at the newest, for training or with another split.

    Raises:
        UserError: as `open_member`, and when the run names no dataset.
    """
    if not config.datasets:
        raise UserError("the run names no dataset: set data.datasets.0.uri=<store>")
    datasets = [open_dataset(ref.uri, ref.version) for ref in config.datasets]
    roles = camera_roles(config.cameras, [dataset.spec for dataset in datasets])
    return tuple(
        choose_member(dataset, ref, config, split=split, roles=roles)
        for dataset, ref in zip(datasets, config.datasets, strict=True)
    )


def check_actions(members: Sequence[Member]) -> None:
    """Raises UserError when a dataset has known actions of which the run can use none; says why."""
    for member in members:
        plan, own = member.plan, member.dataset.spec.action_dim
        if plan.problem and member.recorded_actions:
            remedy = (
                "choose another dataset" if plan.target else f"set data.action_dim={own}, or choose another dataset"
            )
            raise UserError(f"{member.ref.uri} version {member.dataset.version} {plan.problem}: {remedy}")


def check_cameras(members: Sequence[Member], cameras: Sequence[str]) -> None:
    """Check that no camera of a run is misspelt: one that no dataset has, while a dataset has one that the run lacks.

    A run may have cameras that its data lacks, for what it is finetuned on later; then it takes all that there are.

    Raises:
        UserError: when there is one.
    """
    own = {camera for member in members for camera in member.dataset.spec.cameras}
    used = {camera for member in members for pair in member.ref.cameras.items() for camera in pair}
    missing, unused = [name for name in cameras if name not in own | used], sorted(own - used - set(cameras))
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
    members: Sequence[Member], scale: Scale = "min_max", states: Sequence[RunState] = ()
) -> ActionNormalizer:
    """The normalizer of a mixture, from the statistics of its training episodes; of each robot where there are several.

    No image is read. For `quantile` the actions are, all of them or an evenly spread sample of four million steps; and
    where actions are converted, all of them. States have the bounds of all that the episodes hold, whatever the scale.
    """
    used = [member for member in members if member.known_actions]
    names = dict.fromkeys(member.ref.embodiment for member in used)
    whole = _fitted(used, members[0].plan.target_dim, scale).model_copy(
        update={"states": _state_ranges(members, states)}
    )
    if len(names) < 2:
        return whole
    robots = {}
    for name in filter(None, names):
        own = [member for member in members if member.ref.embodiment == name]
        fitted = _fitted([member for member in own if member.known_actions], whole.action_dim, scale)
        robots[name] = fitted.model_copy(update={"states": _state_ranges(own, states)})
    return whole.model_copy(update={"robots": robots})


def _fitted(used: Sequence[Member], action_dim: int, scale: Scale) -> ActionNormalizer:
    actions = [known_actions(member) for member in used] if scale == "quantile" else ()
    return fit_normalizer([_action_range(member) for member in used], action_dim, scale, actions)


def _state_ranges(members: Sequence[Member], states: Sequence[RunState]) -> tuple[StateRange, ...]:
    return tuple(_state_range(members, state) for state in states)


def _state_range(members: Sequence[Member], state: RunState) -> StateRange:
    """What becomes [-1, 1] of a field; the identity when no episode has it."""
    low, high = np.full(state.dim, np.inf), np.full(state.dim, -np.inf)
    for member in members:
        for least, most in _state_bounds(member, state_plan(member.dataset.spec, member.ref, state)):
            low, high = np.minimum(low, least), np.maximum(high, most)
    low, high = (np.where(high >= low, bound, side) for bound, side in ((low, -1.0), (high, 1.0)))
    return StateRange(name=state.name, low=_floats(low), high=_floats(high))


def _state_bounds(member: Member, plan: StatePlan) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Least and most of a state (e,): of the whole member, or of each episode where its numbers are converted."""
    if not plan.field:
        return
    if plan.source is None:
        statistics = member.dataset.episodes.statistics(f"state/{plan.field}", member.rows)
        if statistics.count:
            yield statistics.min, statistics.max
        return
    for row in member.rows.tolist():
        found = member.dataset.state(row, plan.field, 0, int(member.dataset.episodes.lengths[row]))
        if found is not None:
            values, known = plan.apply(found)
            yield np.where(known, values, np.inf).min(axis=0), np.where(known, values, -np.inf).max(axis=0)


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
    own = dataset.spec.action_dim
    plan = ActionPlan(source=dataset.spec.action, target=dataset.spec.action, source_dim=own, target_dim=own)
    return mixture_normalizer([Member(ref=ref, dataset=dataset, rows=rows, plan=plan, split=split)], scale)


def known_actions(member: Member) -> NDArray[np.float32]:
    """(n, A): every k-th known action as the run has it, so that n stays within `_SAMPLE`; NaN where it has none."""
    steps = member.dataset.episodes.action_steps
    every = -(-int(steps[[row for row in member.rows.tolist() if steps[row]]].sum()) // _SAMPLE)
    parts, skipped = [], 0
    # counted over all episodes, so that short ones weigh no more than long ones
    for values in _episodes_actions(member):
        parts.append(values[-skipped % every :: every].copy())
        skipped += len(values)
    return np.concatenate(parts)


def _episodes_actions(member: Member) -> Iterator[NDArray[np.float32]]:
    """(n, A) the known actions of each chosen episode as the run has them, from every step; NaN where it has none."""
    dataset, plan = member.dataset, member.plan
    for row in member.rows.tolist():
        if not dataset.episodes.action_steps[row]:
            continue
        action, known = dataset.actions(row, 0, int(dataset.episodes.lengths[row]))
        known = known & np.isfinite(action).all(axis=1)
        if plan.is_plain:
            yield action[known]
            continue
        for first in range(plan.stride):
            steps = (len(action) - first) // plan.stride * plan.stride
            values, mask = plan.apply(action[first : first + steps], known[first : first + steps])
            yield np.where(mask, values, np.float32(np.nan))[mask.any(axis=1)]


def _action_range(member: Member) -> ActionRange:
    if not member.plan.is_plain:
        return _converted_range(member)
    statistics = member.dataset.episodes.statistics("action", member.rows)
    return ActionRange(
        count=int(statistics.count),
        low=_floats(statistics.min),
        high=_floats(statistics.max),
        total=_floats(statistics.sum),
        squares=_floats(statistics.sumsq),
        source=member.source,
    )


def _converted_range(member: Member) -> ActionRange:
    """Of the actions themselves: the statistics of episodes don't tell those of their rotations in another form."""
    known = member.plan.known
    low, high = np.where(known, np.inf, -1.0), np.where(known, -np.inf, 1.0)
    total, squares, count = np.zeros(len(known)), np.zeros(len(known)), 0
    for actions in _episodes_actions(member):
        values = np.where(known, actions, 0.0).astype(np.float64)
        if len(values):
            low = np.where(known, np.minimum(low, values.min(axis=0)), low)
            high = np.where(known, np.maximum(high, values.max(axis=0)), high)
            total, squares = total + values.sum(axis=0), squares + (values**2).sum(axis=0)
            count += len(values)
    low, high = (np.where(np.isfinite(bound), bound, 0.0) for bound in (low, high))
    bounds = {"low": low, "high": high, "total": total, "squares": squares}
    return ActionRange(
        count=count,
        known=tuple(known.tolist()),
        source=member.source,
        **{name: _floats(values) for name, values in bounds.items()},
    )


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float64).tolist())

"""What an evaluation runs on: a trained policy, held-out segments, and batches of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.episode import SegmentId
from storage_schemas.errors import UserError
from storage_schemas.store.dataset import Dataset
from uwm.checkpoint import Checkpoint, load_checkpoint, load_weights
from uwm.config import DiffusionConfig, RunConfig
from uwm.data.augment import evaluation_batch
from uwm.data.batch import Batch
from uwm.data.condition import condition_table
from uwm.data.loader import SegmentReader
from uwm.data.mixture import Member, check_actions, choose_member
from uwm.data.normalize import ActionNormalizer
from uwm.data.pinning import ref_in, robot_name, robot_of
from uwm.data.sampler import Pick
from uwm.data.states import resolve_states
from uwm.device import Precision, cast_weights, resolve_device
from uwm.eval.baselines import mean_action
from uwm.eval.options import SegmentOptions
from uwm.eval.result import Example
from uwm.language.instructions import encode_instructions, with_encoder
from uwm.policy import Mode, Policy, Sample
from uwm.settings import replace as change


@dataclass(frozen=True, kw_only=True)
class EvaluationSetup:
    """A policy in evaluation mode and the segments that it is asked about."""

    checkpoint: Checkpoint
    policy: Policy
    parameters: int
    member: Member
    segments: tuple[SegmentId, ...]
    short_episodes: int
    """Episodes without one full window."""
    mean_action: Tensor  # (A,), normalized
    units: ActionNormalizer
    """That action errors are told in: the checkpoint's own, or that of one it is compared with."""
    device: torch.device

    def batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """All segments in order: their places among `segments` (B,), and the batch."""
        data = self.checkpoint.config.data
        condition = [condition_table(self.member, data, seed=None)]
        reader = SegmentReader([self.member.dataset], data, refs=[self.member.ref], condition=condition)
        for start in range(0, len(self.segments), batch_size):
            chosen = self.segments[start : start + batch_size]
            raw = reader.read([Pick(start + index, 0, segment) for index, segment in enumerate(chosen)])
            places = np.arange(start, start + len(chosen))
            yield places, evaluation_batch(raw, data, self.checkpoint.normalizer, device=self.device)

    def example(self, index: int) -> Example:
        """Where the segment at `place` comes from."""
        segment = self.segments[index]
        row = self.member.dataset.episodes.row(segment.episode)
        return Example(
            episode_id=row.episode_id,
            source_uri=row.source_uri,
            collection=row.collection,
            step=segment.step,
            language=next((text for text in row.language if text), ""),
        )

    def physical(self, action: Tensor) -> Tensor:
        """Normalized actions (..., A) in the store's units."""
        return self.normalizer.denormalize(action)

    @property
    def normalizer(self) -> ActionNormalizer:
        """Of the robot that the evaluated data are of."""
        return normalizer_for(self.checkpoint, self.member)

    def in_units(self, action: Tensor) -> Tensor:
        """Normalized actions (..., A) in the units that errors are told in."""
        return action if self.units == self.normalizer else self.units.normalize(self.physical(action))

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the action's dimensions."""
        data = self.checkpoint.config.data
        return data.action.labels if data.action else tuple(f"action {index}" for index in range(data.action_dim))


def open_evaluation_setup(
    checkpoint: str,
    dataset: Dataset,
    options: SegmentOptions,
    *,
    units: str | None = None,
    precision: Precision = "fp32",
) -> EvaluationSetup:
    """Load a policy and choose held-out segments.

    Args:
        checkpoint: checkpoint directory or run folder.
        dataset: opened at the version that is asked for.
        options: what else is asked for.
        units: checkpoint in whose normalized units action errors are told; the same one when None.
        precision: of the policy's weights.

    Raises:
        UserError: when the checkpoint is missing, the dataset does not fit it, or no episode of the split
            has one full window.
    """
    loaded = _with_steps(load_checkpoint(checkpoint), options.steps)
    if loaded.config.stage == "tokenizer":
        raise UserError(f"{loaded.path} is a tokenizer: evaluate the checkpoint of a policy")
    ref = ref_in(loaded.config.data, dataset.uri, dataset.version, options.collections)
    member = choose_member(dataset, ref, loaded.config.data, split=options.split)
    check_actions([member])
    last = replace(loaded.config.data.segment_spec, stride=ref.stride).last
    segments = full_windows(member.rows, member.lengths, last, options.samples)
    if not segments:
        raise UserError(
            f"no {options.split} episode of {dataset.uri} has the {last + 1} steps of one segment: ingest longer ones"
        )
    device = resolve_device(options.device)
    loaded = _told(loaded, member, device)
    policy = _policy(loaded, device, precision)
    return EvaluationSetup(
        checkpoint=loaded,
        policy=policy,
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        member=member,
        segments=segments,
        short_episodes=int((member.lengths <= last).sum()),
        mean_action=mean_action(_training_member(member), normalizer_for(loaded, member)),
        units=_units(loaded, member, units),
        device=device,
    )


def _told(checkpoint: Checkpoint, member: Member, device: torch.device) -> Checkpoint:
    """The checkpoint, with the instructions of the segments encoded and its states found to be the dataset's.

    Raises:
        UserError: when the text encoder is another one, or a state is not what the policy was trained on.
    """
    data = checkpoint.config.data
    resolve_states([member], data.states)
    if not data.language.is_heard:
        return checkpoint
    language = with_encoder(data.language)
    encode_instructions(member.dataset, member.rows, language, device=device)
    return replace(checkpoint, config=change(checkpoint.config, data=change(data, language=language)))


def normalizer_for(checkpoint: Checkpoint, member: Member) -> ActionNormalizer:
    """A checkpoint's normalizer of the robot that some data are of."""
    data = checkpoint.config.data
    return checkpoint.normalizer.of(robot_name(robot_of(member.ref, member.dataset.spec, data), data))


def _units(checkpoint: Checkpoint, member: Member, other: str | None) -> ActionNormalizer:
    """The units of errors. Raises UserError when the other checkpoint has none for these actions."""
    if other is None:
        return normalizer_for(checkpoint, member)
    normalizer = normalizer_for(load_checkpoint(other), member)
    if normalizer.action_dim != checkpoint.normalizer.action_dim:
        own = checkpoint.normalizer.action_dim
        raise UserError(f"{other} has {normalizer.action_dim} action dimensions, {checkpoint.path} {own}")
    return normalizer


def _policy(checkpoint: Checkpoint, device: torch.device, precision: Precision) -> Policy:
    """The policy of a checkpoint, with its averaged weights, ready to be sampled."""
    policy = checkpoint.config.policy.build(checkpoint.config.data)
    load_weights(policy, checkpoint, ema=True)
    policy = policy.to(device).eval()
    cast_weights(policy, precision)
    return policy


def full_windows(rows: NDArray[np.int64], lengths: NDArray[np.int64], last: int, samples: int) -> tuple[SegmentId, ...]:
    """Segments that lie wholly inside their episodes, evenly spaced over all there are.

    Args:
        rows: (n,) the episodes.
        lengths: (n,) their steps.
        last: offset from the current step of the last one that a segment needs.
        samples: how many segments; fewer when there are not so many.

    Returns:
        Segments in the order of the rows; empty when every episode is too short.
    """
    counts = np.maximum(lengths - last, 0)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    places = spread(total, samples)
    episodes = np.searchsorted(ends, places, side="right")
    steps = places - (ends - counts)[episodes]
    return tuple(SegmentId(int(rows[episode]), int(step)) for episode, step in zip(episodes, steps, strict=True))


def spread(total: int, count: int) -> NDArray[np.int64]:
    """At most `count` different numbers of range(total), evenly spaced, none at the very edge by preference."""
    chosen = min(total, count)
    return (2 * np.arange(chosen, dtype=np.int64) + 1) * total // (2 * max(chosen, 1))


class ModeSampler:
    """Samples modes for one batch; what they share is encoded once.

    Args:
        policy: any policy.
        batch: see `Batch`.
        seed: of the noise, which is the same in every mode.
    """

    @torch.no_grad()
    def __init__(self, policy: Policy, batch: Batch, seed: tuple[int, ...]) -> None:
        self._policy = policy
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._encoded = policy.encode_batch(batch)

    @property
    def next_latents(self) -> Tensor | None:
        """(B, V, C, N, h, w) of the true next observation; None when the policy predicts none."""
        return self._encoded.latents

    @torch.no_grad()
    def ask(self, modes: Sequence[Mode]) -> Mapping[Mode, Sample]:
        """What the modes predict, all from the same noise.

        Raises:
            UserError: when a prediction is not finite.
        """
        samples = self._policy.sample_modes(self._encoded, modes, torch.Generator().manual_seed(self._seed))
        for mode, sample in samples.items():
            for values in (sample.action, sample.next_obs):
                if values is not None and not bool(values.isfinite().all()):
                    raise UserError(
                        f"the checkpoint predicts numbers that are not finite in mode {mode}: it has diverged"
                    )
        return samples


def _with_steps(checkpoint: Checkpoint, steps: int | None) -> Checkpoint:
    """The checkpoint with another number of sampling steps, if one is given. Raises UserError when it can't be."""
    if steps is None:
        return checkpoint
    config = checkpoint.config
    diffusion = check_steps(config, steps)
    policy = change(config.policy, diffusion=change(diffusion, sample_steps=steps))
    return replace(checkpoint, config=change(config, policy=policy))


def check_steps(config: RunConfig, steps: int) -> DiffusionConfig:
    """The diffusion of a policy that can be sampled in so many steps. Raises UserError when it can't be."""
    diffusion = config.policy.diffusion
    if diffusion is None:
        raise UserError(f"{config.name} predicts at once: policy {config.policy.kind} has no sampling steps")
    if not 0 < steps <= diffusion.train_timesteps:
        raise UserError(f"{steps} sampling steps: {config.name} takes 1 to {diffusion.train_timesteps}")
    return diffusion


def _training_member(member: Member) -> Member:
    """The training episodes beside the held-out ones; there may be none."""
    rows = member.dataset.episodes.select(split="train", collections=member.ref.collections)
    return replace(member, rows=np.asarray(rows, np.int64))

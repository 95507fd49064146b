"""Errors of a policy's predictions on held-out episodes, in all modes it has, beside two trivial baselines.

Dimension letters: B batch, V views, C latent channels, N next frames, S action steps, A action
dimensions, H and W image size, h and w latent size.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import Dataset
from uwm.checkpoint import load_checkpoint
from uwm.data.batch import Batch
from uwm.eval import metrics
from uwm.eval.baselines import COPIED, COPIED_TOKENIZED, MEAN_ACTION, copied_frames
from uwm.eval.error_accumulator import ErrorAccumulator, ExampleCollector
from uwm.eval.files import save_evaluation
from uwm.eval.options import EVAL_DEFAULTS, EvalOptions
from uwm.eval.result import Evaluation, Metric, ModeName, Settings
from uwm.eval.setup import EvaluationSetup, ModeSampler, open_evaluation_setup, spread
from uwm.policy import Mode

ORDER: tuple[Mode, ...] = (Mode.FORWARD, Mode.INVERSE, Mode.POLICY, Mode.VIDEO, Mode.JOINT)
"""The order of the tables: what the method is for comes first."""

Progress = Callable[[int, int], None]
"""Told how many segments are done, and of how many."""


@torch.no_grad()
def evaluate(
    checkpoint: str,
    dataset: Dataset,
    options: EvalOptions = EVAL_DEFAULTS,
    *,
    batch_size: int = 16,
    examples: int = 4,
    out: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a checkpoint on held-out segments of a dataset.

    Segments are whole windows, evenly spaced over the episodes of the split, so two checkpoints are
    measured on the same ones. Only known actions and frames count. Modes that take or predict actions
    leave out segments without them.

    Args:
        checkpoint: checkpoint directory or run folder.
        dataset: opened at the version that is asked for.
        options: which segments, and how they are sampled; split `train` shows how far memorizing goes.
        batch_size: segments at a time; part of what fixes the noise.
        examples: segments whose predictions are kept to look at.
        out: folder or URI to write `evaluation.json` and `examples.npz` to; None writes nothing.
        progress: called after each batch.

    Raises:
        UserError: when the checkpoint is missing, the dataset does not fit it, no episode is long enough, nothing that
            the policy predicts is known, or it predicts numbers that are not finite.
    """
    started = time.monotonic()
    setup = open_evaluation_setup(checkpoint, dataset, options, units=options.normalizer)
    errors, kept = ErrorAccumulator(), ExampleCollector(spread(len(setup.segments), examples))
    for places, batch in setup.batches(batch_size):
        sampler = ModeSampler(setup.policy, batch, (options.seed, int(places[0])))
        _measure(_compared(setup, batch, places, errors, kept), sampler)
        if progress:
            progress(int(places[-1]) + 1, len(setup.segments))
    scores = errors.scores()
    if not scores:
        predicted = ", ".join(sorted(setup.policy.modes))
        raise UserError(
            f"nothing to measure: what {setup.checkpoint.path} predicts ({predicted}) is known in none of "
            f"{len(setup.segments)} {options.split} segments of {dataset.uri}"
        )
    evaluation = Evaluation(
        settings=_settings(setup, options, batch_size),
        segments=len(setup.segments),
        episodes=len({segment.episode for segment in setup.segments}),
        short_episodes=setup.short_episodes,
        scores=scores,
        actions=errors.profiles(),
        ceiling=errors.ceiling(),
        examples=tuple(setup.example(int(index)) for index in kept.places),
        seconds=time.monotonic() - started,
    )
    if out is None:
        return evaluation
    return save_evaluation(out, evaluation, kept.arrays(setup.physical(setup.mean_action)))


@dataclass(frozen=True, kw_only=True)
class ComparedBatch:
    """A batch, what every mode is compared with, and where the comparisons go."""

    setup: EvaluationSetup
    batch: Batch
    places: NDArray[np.int64]  # (B,) among the setup's segments
    episodes: NDArray[np.int64]  # (B,)
    copied: Tensor  # (B, V, N, 3, H, W)
    frame_mask: Tensor  # (B, V, N): the truth and the copied frame are known
    mean_action: Tensor  # (B, S, A), normalized
    errors: ErrorAccumulator
    kept: ExampleCollector

    def add(self, key: tuple[ModeName, Metric, str], model: Tensor, reference: Tensor, known: Tensor) -> None:
        """Note what the model and a baseline reach (B,)."""
        self.errors.add(key, model, reference, known=known, episodes=self.episodes)

    def pixel_mse(self, images: Tensor) -> Tensor:
        """Mean squared error of images (B, V, N, 3, H, W) against the true ones, (B,)."""
        return metrics.pixel_mse(images, self.batch.next_obs, self.frame_mask)


def _compared(
    setup: EvaluationSetup, batch: Batch, places: NDArray[np.int64], errors: ErrorAccumulator, kept: ExampleCollector
) -> ComparedBatch:
    copied, frame_mask = copied_frames(batch)
    return ComparedBatch(
        setup=setup,
        batch=batch,
        places=places,
        episodes=np.array([setup.segments[index].episode for index in places]),
        copied=copied,
        frame_mask=frame_mask,
        mean_action=setup.mean_action.to(batch.action).expand_as(batch.action),
        errors=errors,
        kept=kept,
    )


def _measure(compared: ComparedBatch, sampler: ModeSampler) -> None:
    """Ask every mode about a batch and note what comes out."""
    _keep_truth(compared)
    true_latents = sampler.next_latents
    copy = None if true_latents is None else _copy_baseline(compared, true_latents)
    acts = metrics.known(compared.batch.action_mask)
    whole = compared.batch.action_mask.any(dim=2).all(dim=1)  # as much of every step as the robot has
    sees = metrics.known(compared.frame_mask)
    asked = {
        Mode.FORWARD: whole & sees,
        Mode.INVERSE: acts & sees,
        Mode.POLICY: acts,
        Mode.VIDEO: sees,
        Mode.JOINT: sees,
    }
    modes = [mode for mode in ORDER if mode in compared.setup.policy.modes and bool(asked[mode].any())]
    samples = sampler.ask(modes)
    for mode in modes:
        sample = samples[mode]
        if sample.action is not None:
            _measure_action(compared, mode, sample.action, asked[mode] & acts)
        if sample.next_obs is not None and copy is not None:
            _measure_next(compared, mode, sample.next_obs, asked[mode], copy)


def _keep_truth(compared: ComparedBatch) -> None:
    batch, kept, places = compared.batch, compared.kept, compared.places
    kept.add_frames("current", compared.copied, places)
    kept.add("current_mask", batch.obs_mask[:, :, -1], places)
    kept.add_frames("true", batch.next_obs, places)
    kept.add("true_mask", batch.next_mask[:, :, -1], places)
    kept.add("action", compared.setup.physical(batch.action).where(batch.action_mask, 0.0), places)
    kept.add("action_mask", batch.action_mask, places)


def _measure_action(compared: ComparedBatch, mode: Mode, action: Tensor, known: Tensor) -> None:
    """Compare actions (B, S, A) with the truth and with the mean action."""
    setup, mask = compared.setup, compared.batch.action_mask
    true, mean = compared.batch.action, compared.mean_action
    name: ModeName = mode.value
    for metric, error in ((Metric.ACTION_MSE, metrics.action_mse), (Metric.ACTION_L1, metrics.action_l1)):
        model, reference = (error(setup.in_units(values), setup.in_units(true), mask) for values in (action, mean))
        compared.add((name, metric, MEAN_ACTION), model, reference, known)
    physical, truth = setup.physical(action), setup.physical(true)
    model = metrics.action_profile(physical, truth, mask)
    reference = metrics.action_profile(setup.physical(mean), truth, mask)
    compared.errors.add_profile(name, model, reference, mask.any(dim=1) & known[:, None])
    compared.kept.add(f"predicted/{name}", physical, compared.places)


@dataclass(frozen=True, kw_only=True)
class CopyBaseline:
    """The next observation, and the prediction that nothing moves, as the tokenizer sees them."""

    true: Tensor  # (B, V, C, N, h, w)
    copied: Tensor  # (B, V, C, N, h, w)
    errors: Mapping[str, Tensor]  # baseline -> (B,) pixel MSE


def _copy_baseline(compared: ComparedBatch, true: Tensor) -> CopyBaseline:
    policy = compared.setup.policy
    copied = policy.encode(compared.copied[:, :, :1])  # (B, V, C, 1, h, w)
    shown = policy.decode(copied).expand_as(compared.copied)  # (B, V, N, 3, H, W)
    own = policy.decode(true)
    ceiling = metrics.psnr(compared.pixel_mse(own))
    compared.errors.add_ceiling(ceiling, known=metrics.known(compared.frame_mask), episodes=compared.episodes)
    compared.kept.add_frames("reconstruction", own, compared.places)
    errors = {COPIED: compared.pixel_mse(compared.copied), COPIED_TOKENIZED: compared.pixel_mse(shown)}
    return CopyBaseline(true=true, copied=copied.expand_as(true), errors=errors)


def _measure_next(compared: ComparedBatch, mode: Mode, latents: Tensor, known: Tensor, copy: CopyBaseline) -> None:
    """Compare latents (B, V, C, N, h, w), and what they decode to, with the truth and with stillness."""
    name: ModeName = mode.value
    model = metrics.latent_mse(latents, copy.true, compared.frame_mask)
    reference = metrics.latent_mse(copy.copied, copy.true, compared.frame_mask)
    compared.add((name, Metric.LATENT_MSE, COPIED), model, reference, known)
    images = compared.setup.policy.decode(latents)
    error = compared.pixel_mse(images)
    for baseline, copied in copy.errors.items():
        compared.add((name, Metric.PIXEL_MSE, baseline), error, copied, known)
        compared.add((name, Metric.PSNR, baseline), metrics.psnr(error), metrics.psnr(copied), known)
    compared.kept.add_frames(f"frame/{name}", images, compared.places)


def _settings(setup: EvaluationSetup, options: EvalOptions, batch_size: int) -> Settings:
    checkpoint, member = setup.checkpoint, setup.member
    config, state = checkpoint.config, checkpoint.state
    return Settings(
        checkpoint=str(checkpoint.path),
        checkpoint_identity=checkpoint.identity,
        run=state.name,
        stage=state.stage,
        step=state.step,
        weights="ema" if checkpoint.has("ema") else "raw",
        parameters=setup.parameters,
        tokenizer=state.tokenizer,
        dataset_uri=member.ref.uri,
        dataset_version=member.dataset.version,
        dataset_id=member.dataset.table_id,
        split=options.split,
        collections=member.ref.collections,
        cameras=config.data.cameras,
        action_names=setup.action_names,
        image_size=config.data.crop,
        next_start=config.data.next_start,
        next_frames=config.data.next_frames,
        fps=member.dataset.episodes.row(setup.segments[0].episode).fps,
        seed=options.seed,
        batch_size=batch_size,
        sample_steps=config.policy.diffusion.sample_steps if config.policy.diffusion else 1,
        requested=options.samples,
        normalizer=load_checkpoint(options.normalizer).identity if options.normalizer else "",
    )

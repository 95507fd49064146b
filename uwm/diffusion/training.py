"""What training makes of a modality: a noisy sample, its timestep, and what the network shall say about it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from uwm.data.batch import MicroBatch
from uwm.diffusion.rng import rand_rows, randint_rows, randn_rows
from uwm.diffusion.schedule import add_noise, target
from uwm.policies import UwmDiffusionConfig
from uwm.policy import SampleLosses


@dataclass(frozen=True, kw_only=True)
class Noised:
    """One modality of a training step."""

    noisy: Tensor  # (B, ...)
    target: Tensor  # (B, ...)
    timestep: Tensor  # (B,)
    present: Tensor  # (B,) bool: the network gets to see it
    counted: Tensor  # bool, broadcasts over the target: what counts in the loss
    known: Tensor  # bool, of the shape of `counted`: what could count
    kept: float  # part of the samples that count, on average

    def count(self, known: float) -> float:
        """How many elements count on average, of so many known ones; see `masked_mse`.

        The chance of all processes is not known to one. With an average, together they have the loss of the whole step.
        """
        return known * self.kept


def noise_modality(
    clean: Tensor,
    known: Tensor,
    *,
    generator: torch.Generator,
    config: UwmDiffusionConfig,
    alphas_cumprod: Tensor,
    micro_batch: MicroBatch,
    dropped: float = 0.0,
    given: float = 0.0,
) -> Noised:
    """Noise a modality; what is unknown becomes pure noise, and a sample that knows nothing is marked absent.

    Args:
        clean: (B, ...).
        known: bool, broadcasts over `clean`.
        generator: source of timesteps, noise and of what is dropped or given.
        config: conventions.
        alphas_cumprod: (T,) of the schedule.
        micro_batch: which part of a step the samples are.
        dropped: share of the samples that are made absent.
        given: share of the samples that the network sees clean, and marked so; there is nothing to predict in them.
    """
    drawn = randint_rows(config.train_timesteps, len(clean), generator, micro_batch).to(clean.device)
    present = known.flatten(1).any(1)
    if dropped:
        present = present & (rand_rows(len(clean), generator, micro_batch).to(clean.device) >= dropped)
    # Training marks absence with the last timestep, whatever sampling does, unless there is a marker for it.
    absent = config.absent_timestep if config.absent_embedding else config.train_timesteps - 1
    timestep = torch.where(present, drawn, absent)
    shown = counted = known & _wide(present, known)
    noisy, goal = noise_at(clean, shown, alphas_cumprod[drawn], config.prediction, generator, micro_batch)
    if given:
        bare = present & (rand_rows(len(clean), generator, micro_batch).to(clean.device) < given)
        timestep = timestep.masked_fill(bare, config.clean_timestep)
        noisy = torch.where(shown & _wide(bare, known), clean, noisy)
        counted = shown & ~_wide(bare, known)
    return Noised(
        noisy=noisy,
        target=goal,
        timestep=timestep,
        present=present,
        counted=counted,
        known=known,
        kept=(1 - dropped) * (1 - given),
    )


def noise_at(
    clean: Tensor,
    known: Tensor,
    alpha: Tensor,
    prediction: str,
    generator: torch.Generator,
    micro_batch: MicroBatch,
) -> tuple[Tensor, Tensor]:
    """One modality at given timesteps; what is unknown becomes pure noise.

    Args:
        clean: (B, ...) samples.
        known: bool, broadcasts over `clean`.
        alpha: (B,) a_t of each sample.
        prediction: what the network is to predict, see `target`.
        generator: source of the noise.
        micro_batch: which part of a step the samples are.

    Returns:
        The noisy samples and what is to be predicted, both (B, ...).
    """
    noise = randn_rows(clean, generator, micro_batch)
    noisy = torch.where(known, add_noise(clean, noise, alpha), noise)
    return noisy, target(clean, noise, alpha, prediction)


def masked_mse(output: Tensor, target: Tensor, known: Tensor, count: float) -> Tensor:
    """Mean over the known elements; 0 when there is none.

    Args:
        output: predicted.
        target: of the same shape.
        known: bool, broadcasts over the target.
        count: how many elements of `known` to divide by: those of an average micro-batch (see `MicroBatch`).
    """
    weight = known.expand_as(target)
    error = torch.where(weight, output.float() - target, 0.0).square()
    elements = count * (target.numel() / known.numel())  # a number of the host's: the device is not waited for
    return error.sum() / (elements or 1.0)


@torch.no_grad()
def sample_losses(output: Tensor, target: Tensor, known: Tensor, noise: Tensor | None) -> SampleLosses:
    """A modality's loss sample by sample, for the log.

    Args:
        output: (B, ...) predicted.
        target: of the same shape.
        known: bool, broadcasts over the target.
        noise: see `SampleLosses`.
    """
    weight = known.expand_as(target).flatten(1)
    error = (output.float() - target).flatten(1).square()
    return SampleLosses(
        error=torch.where(weight, error, 0.0).sum(1) / weight.sum(1).clamp(min=1), known=weight.any(1), noise=noise
    )


def _wide(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.view(-1, *[1] * (like.dim() - 1))

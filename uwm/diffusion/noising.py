"""What training makes of a modality: a noisy sample, its timestep, and what the network shall say about it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from uwm.config import DiffusionConfig
from uwm.diffusion.schedule import absent_timestep, add_noise, clean_timestep, target


@dataclass(frozen=True, kw_only=True)
class Noised:
    """One modality of a training step."""

    noisy: Tensor  # (B, ...)
    target: Tensor  # (B, ...)
    timestep: Tensor  # (B,)
    present: Tensor  # (B,) bool: the network gets to see it
    counted: Tensor  # bool, broadcasts over the target: what counts in the loss


def noise_modality(
    clean: Tensor,
    known: Tensor,
    *,
    generator: torch.Generator,
    config: DiffusionConfig,
    signals: Tensor,
    dropped: float = 0.0,
    given: float = 0.0,
) -> Noised:
    """Noise a modality; what is unknown becomes pure noise, and a sample that knows nothing is marked absent.

    Args:
        clean: (B, ...).
        known: bool, broadcasts over `clean`.
        generator: source of timesteps, noise and of what is dropped or given.
        config: conventions.
        signals: (T,) `signal_table`.
        dropped: share of the samples that are made absent.
        given: share of the samples that the network sees clean, and marked so; there is nothing to predict in them.
    """
    drawn = draw_timesteps(len(clean), config.train_timesteps, generator, clean.device)
    noise = randn_like(clean, generator)
    present = known.flatten(1).any(1)
    if dropped:
        present = present & (_uniform(present, generator) >= dropped)
    # Training marks absence with the last timestep, whatever sampling does, unless there is a marker for it.
    absent = absent_timestep(config) if config.absent_embedding else config.train_timesteps - 1
    timestep = torch.where(present, drawn, absent)
    shown = counted = known & _wide(present, known)
    noisy = torch.where(shown, add_noise(clean, noise, signals[drawn]), noise)
    if given:
        bare = present & (_uniform(present, generator) < given)
        timestep = timestep.masked_fill(bare, clean_timestep(config))
        noisy = torch.where(shown & _wide(bare, known), clean, noisy)
        counted = shown & ~_wide(bare, known)
    goal = target(clean, noise, signals[drawn], config.prediction)
    return Noised(noisy=noisy, target=goal, timestep=timestep, present=present, counted=counted)


def draw_timesteps(size: int, steps: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(B,) uniform integers in [0, steps)."""
    return torch.randint(steps, (size,), generator=generator, device=generator.device).to(device)


def noised(
    clean: Tensor, known: Tensor, signal: Tensor, prediction: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One modality at given timesteps; what is unknown becomes pure noise.

    Args:
        clean: (B, ...) samples.
        known: bool, broadcasts over `clean`.
        signal: (B,) a_t of each sample.
        prediction: what the network is to predict, see `target`.
        generator: source of the noise.

    Returns:
        The noisy samples and what is to be predicted, both (B, ...).
    """
    noise = randn_like(clean, generator)
    noisy = torch.where(known, add_noise(clean, noise, signal), noise)
    return noisy, target(clean, noise, signal, prediction)


def masked_mse(output: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean over the known elements; 0 when there is none. `known` broadcasts over the target."""
    weight = known.expand_as(target)
    error = torch.where(weight, output.float() - target, 0.0).square()
    return error.sum() / weight.sum().clamp(min=1)


def randn_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of a tensor's shape, type and device."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) in [0, 1)."""
    return torch.rand(len(like), generator=generator, device=generator.device).to(like.device)


def _wide(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.view(-1, *[1] * (like.dim() - 1))

"""Noise and losses over what is known. B stands for the batch; all else broadcasts."""

import torch
from torch import Tensor

from uwm.diffusion.schedule import add_noise


def randn_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of a tensor's shape, type and device, drawn where the generator lives."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def draw_timesteps(size: int, steps: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(B,) uniform integers in [0, steps)."""
    return torch.randint(steps, (size,), generator=generator, device=generator.device).to(device)


def noised(
    clean: Tensor, known: Tensor, signal: Tensor, prediction: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One modality of a diffusion step; what is unknown becomes pure noise.

    Args:
        clean: (B, ...) samples.
        known: bool, broadcasts over `clean`.
        signal: (B,) a_t of each sample.
        prediction: "epsilon" when the network is to predict the noise, "sample" for the clean sample.
        generator: source of the noise.

    Returns:
        The noisy samples and what is to be predicted, both (B, ...).
    """
    noise = randn_like(clean, generator)
    noisy = torch.where(known, add_noise(clean, noise, signal), noise)
    return noisy, noise if prediction == "epsilon" else clean


def masked_mse(output: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean over the known elements; 0 when there is none. `known` broadcasts over the target."""
    weight = known.expand_as(target)
    error = torch.where(weight, output.float() - target, 0.0).square()
    return error.sum() / weight.sum().clamp(min=1)

"""Errors of predictions, one number per sample, over what is known only.

Dimension letters: B batch, V views, N next frames, S action steps, A action dimensions, C latent
channels, H and W image size, h and w latent size. Masks are True where the truth is known. What is
masked never enters a result, whatever value it holds. A sample with nothing known gets 0: callers
leave it out with `known`.
"""

import torch
from torch import Tensor

from uwm.eval.result import PSNR_FLOOR


def known(mask: Tensor) -> Tensor:
    """Samples with anything to compare: mask (B, ...) bool -> (B,) bool."""
    return mask.flatten(1).any(dim=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Per-sample mean of the known values.

    Args:
        values: (B, ...) errors.
        mask: bool, the leading dimensions of `values`: (B,) up to all of them.

    Returns:
        (B,) in float64; 0 where nothing is known.

    Raises:
        ValueError: when the mask does not fit.
    """
    if mask.dtype != torch.bool or values.shape[: mask.ndim] != mask.shape:
        raise ValueError(f"mask {tuple(mask.shape)} {mask.dtype} does not fit values {tuple(values.shape)}")
    full = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)).expand_as(values)
    kept = torch.where(full, values.double(), 0.0).flatten(1)  # where, not *: a masked NaN must not spread
    return kept.sum(dim=1) / full.flatten(1).sum(dim=1).clamp(min=1)


def action_mse(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of actions: (B, S, A), (B, S, A), mask (B, S, A) -> (B,)."""
    return masked_mean((predicted - true).square(), mask)


def action_l1(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of actions: (B, S, A), (B, S, A), mask (B, S, A) -> (B,)."""
    return masked_mean((predicted - true).abs(), mask)


def action_profile(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Absolute error of every dimension: (B, S, A), (B, S, A), mask (B, S, A) -> (B, A), mean over the known steps."""
    per_dimension, known_steps = (predicted - true).abs().movedim(2, 1), mask.movedim(2, 1)  # (B, A, S)
    return masked_mean(per_dimension.flatten(0, 1), known_steps.flatten(0, 1)).reshape(per_dimension.shape[:2])


def latent_mse(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of latents: (B, V, C, N, h, w) twice, mask (B, V, N) -> (B,)."""
    return masked_mean((predicted - true).square().movedim(3, 2), mask)


def pixel_mse(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of images in [0, 1]: (B, V, N, 3, H, W) twice, mask (B, V, N) -> (B,)."""
    return masked_mean((predicted.clamp(0, 1) - true).square(), mask)


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1], at most 58.9 (`PSNR_FLOOR`); any shape."""
    return -10 * torch.log10(mse.clamp(min=PSNR_FLOOR))

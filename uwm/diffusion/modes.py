"""The five modes as a table, and the one sampling loop that serves them all (UWM, arXiv 2504.02792, section III).

Dimension letters: B batch, S action steps, A action dimensions, V views, C latent channels, N frames,
h and w latent height and width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from uwm.config import DiffusionConfig
from uwm.diffusion.schedule import absent_timestep, ddim_step, sampling_grid, signal_table
from uwm.policy import Mode, Sample

Denoiser = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(action, next_obs, action_t, next_obs_t) -> predictions for action and next_obs."""


class Role(StrEnum):
    """What happens to a modality while sampling."""

    DENOISE = "denoise"
    CLEAN = "clean"
    ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class ModeRoles:
    """One row of the mode table."""

    action: Role
    next_obs: Role


MODES: Mapping[Mode, ModeRoles] = MappingProxyType(
    {
        Mode.POLICY: ModeRoles(action=Role.DENOISE, next_obs=Role.ABSENT),
        Mode.FORWARD: ModeRoles(action=Role.CLEAN, next_obs=Role.DENOISE),
        Mode.INVERSE: ModeRoles(action=Role.DENOISE, next_obs=Role.CLEAN),
        Mode.VIDEO: ModeRoles(action=Role.ABSENT, next_obs=Role.DENOISE),
        Mode.JOINT: ModeRoles(action=Role.DENOISE, next_obs=Role.DENOISE),
    }
)


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What the loop needs of one modality.

    Attributes:
        noise: (B, ...) where denoising starts, and what stands in for an absent modality.
        clean: (B, ...) the condition of the modes that take it clean; pure noise where unknown.
        known: (B,) bool: some of `clean` is known; a sample that knows nothing counts as absent.
        clip: bound of the predicted clean sample.
    """

    noise: Tensor
    clean: Tensor
    known: Tensor
    clip: float | None


def run(denoiser: Denoiser, mode: Mode, action: Modality, next_obs: Modality, config: DiffusionConfig) -> Sample:
    """Sample `mode`: DDIM from noise for what it denoises, the rest held at a fixed timestep.

    Args:
        denoiser: the network, conditioned on the current observation.
        mode: a row of `MODES`.
        action: (B, S, A) tensors.
        next_obs: (B, V, C, N, h, w) tensors.
        config: grid, conventions and bounds.

    Returns:
        The denoised modalities; None for the others.
    """
    roles = MODES[mode]
    signals = signal_table(config).to(action.noise.device)
    grid = sampling_grid(config)
    x_action, x_next = _start(roles.action, action), _start(roles.next_obs, next_obs)
    for t, t_next in zip(grid, (*grid[1:], None), strict=True):
        action_t = _timesteps(roles.action, action, t, config)
        next_t = _timesteps(roles.next_obs, next_obs, t, config)
        action_out, next_out = denoiser(x_action, x_next, action_t, next_t)
        step = partial(
            ddim_step,
            signal=signals[t].view(1),
            next_signal=torch.ones_like(signals[:1]) if t_next is None else signals[t_next].view(1),
            prediction=config.prediction,
        )
        if roles.action is Role.DENOISE:
            x_action = step(x_action, action_out.float(), clip=action.clip)
        if roles.next_obs is Role.DENOISE:
            x_next = step(x_next, next_out.float(), clip=next_obs.clip)
    return Sample(
        action=x_action if roles.action is Role.DENOISE else None,
        next_obs=x_next if roles.next_obs is Role.DENOISE else None,
    )


def _start(role: Role, modality: Modality) -> Tensor:
    return modality.clean if role is Role.CLEAN else modality.noise


def _timesteps(role: Role, modality: Modality, t: int, config: DiffusionConfig) -> Tensor:
    """(B,) timesteps of a modality in the iteration at grid point `t`."""
    absent = torch.full_like(modality.known, absent_timestep(config), dtype=torch.long)
    if role is Role.CLEAN:
        return absent.masked_fill(modality.known, 0)
    return absent if role is Role.ABSENT else torch.full_like(absent, t)

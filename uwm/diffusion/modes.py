"""The five modes as a table, and the one sampling loop that serves them all (UWM, arXiv 2504.02792, section III).

Dimension letters: B batch, M modes, S action steps, A action dimensions, V views, C latent channels, N frames,
h and w latent height and width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from types import MappingProxyType

import torch
from torch import Tensor

from uwm.config import DiffusionConfig
from uwm.diffusion.samplers import make_sampler
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
        lacking: bool, broadcasts over `noise`: what the robot does not have. Training shows pure noise there, so
            sampling does, and says zero; None where it has all.
    """

    noise: Tensor
    clean: Tensor
    known: Tensor
    clip: float | None
    lacking: Tensor | None = None


def run(denoiser: Denoiser, mode: Mode, action: Modality, next_obs: Modality, config: DiffusionConfig) -> Sample:
    """Sample one mode; see `run_modes`."""
    return run_modes(denoiser, (mode,), action, next_obs, config)[mode]


def run_modes(
    denoiser: Denoiser, modes: Sequence[Mode], action: Modality, next_obs: Modality, config: DiffusionConfig
) -> dict[Mode, Sample]:
    """Sample several modes at once from the same noise: what a mode denoises moves, the rest is held and marked.

    Args:
        denoiser: the network, conditioned on the current observation; called with (M B, ...) tensors, mode by mode.
        modes: rows of `MODES`, M of them.
        action: (B, S, A) tensors.
        next_obs: (B, V, C, N, h, w) tensors.
        config: timesteps, sampler, conventions and bounds.

    Returns:
        By mode, the modalities that it denoises; None for the others.
    """
    actions = _Trajectory([MODES[mode].action for mode in modes], action, config)
    next_obses = _Trajectory([MODES[mode].next_obs for mode in modes], next_obs, config)
    for index, t in enumerate(config.sampling_timesteps):
        action_out, next_out = denoiser(actions.x, next_obses.x, actions.timesteps(t), next_obses.timesteps(t))
        actions.step(index, action_out)
        next_obses.step(index, next_out)
    return {mode: Sample(action=actions.result(row), next_obs=next_obses.result(row)) for row, mode in enumerate(modes)}


def timestep_pairs(modes: Sequence[Mode], config: DiffusionConfig) -> Tensor:
    """All pairs (K, 2) of timesteps, of action and next observation, that sampling these modes can come to."""

    def timesteps(role: Role, t: int) -> tuple[int, ...]:
        marked = {Role.DENOISE: (t,), Role.CLEAN: (config.clean_timestep, config.absent_timestep)}
        return marked.get(role, (config.absent_timestep,))

    pairs = {
        pair: None
        for t in config.sampling_timesteps
        for mode in modes
        for pair in product(timesteps(MODES[mode].action, t), timesteps(MODES[mode].next_obs, t))
    }
    return torch.tensor(list(pairs))


class _Trajectory:
    """One modality on its way from noise to a sample, in all modes."""

    def __init__(self, roles: Sequence[Role], modality: Modality, config: DiffusionConfig) -> None:
        self._roles = roles
        self.x = torch.cat([modality.clean if role is Role.CLEAN else modality.noise for role in roles])  # (M B, ...)
        self._marks = torch.cat([_marks(role, modality, config) for role in roles])  # (M B,)
        moves = torch.tensor([role is Role.DENOISE for role in roles], device=self.x.device)
        self._moves = moves.repeat_interleave(len(modality.known))  # (M B,)
        self._wide = self._moves.view(-1, *[1] * (self.x.dim() - 1))
        self._lacking = None
        if modality.lacking is not None:
            self._lacking = torch.cat([modality.lacking] * len(roles))
            self._wide = self._wide & ~self._lacking
        self._sampler = make_sampler(config, modality.clip, self.x.device)

    def timesteps(self, t: int) -> Tensor:
        """(M B,) when what is denoised is at timestep `t`."""
        return self._marks.masked_fill(self._moves, t)

    def step(self, index: int, output: Tensor) -> None:
        """Move what is denoised to the next sampling timestep."""
        if Role.DENOISE in self._roles:
            self.x = torch.where(self._wide, self._sampler.step(index, self.x, output.float()), self.x)

    def result(self, row: int) -> Tensor | None:
        """(B, ...) of the mode in this row, if it denoises this modality."""
        if self._roles[row] is not Role.DENOISE:
            return None
        result = self.x if self._lacking is None else self.x.masked_fill(self._lacking, 0.0)
        return result.chunk(len(self._roles))[row]


def _marks(role: Role, modality: Modality, config: DiffusionConfig) -> Tensor:
    """(B,) timesteps of a modality that is clean or absent; one that is denoised has the loop's instead."""
    absent = torch.full_like(modality.known, config.absent_timestep, dtype=torch.long)
    return absent.masked_fill(modality.known, config.clean_timestep) if role is Role.CLEAN else absent

"""From one sampling timestep to the next: DDIM, or DPM-Solver++ by diffusers. One sampler follows one tensor."""

import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

from uwm.config import DiffusionConfig
from uwm.diffusion.schedule import alphas_cumprod, clean_and_noise, ddim_step


class Sampler(Protocol):
    """Goes from one sampling timestep to the next; called for each in turn."""

    def step(self, index: int, noisy: Tensor, output: Tensor) -> Tensor:
        """The sample (B, ...) after the timestep at `index`, from the one at it and what the network predicts there."""
        ...


class Ddim:
    """Deterministic DDIM (Song et al. 2021, arXiv 2010.02502).

    Args:
        config: timesteps and prediction.
        clip: bound of the predicted clean sample.
        device: of the samples.
    """

    def __init__(self, config: DiffusionConfig, clip: float | None, device: torch.device) -> None:
        visited = alphas_cumprod(config)[list(config.sampling_timesteps)]
        self._alphas_cumprod = torch.cat([visited, torch.ones(1)]).to(device)  # (steps + 1,); the last one is clean
        self._prediction = config.prediction
        self._clip = clip

    def step(self, index: int, noisy: Tensor, output: Tensor) -> Tensor:
        """See `Sampler`."""
        alpha, following = self._alphas_cumprod[index : index + 1], self._alphas_cumprod[index + 1 : index + 2]
        return ddim_step(noisy, output, alpha=alpha, next_alpha=following, prediction=self._prediction, clip=self._clip)


class DpmSolver:
    """DPM-Solver++ of second order (Lu et al. 2022, arXiv 2211.01095), which remembers the step before.

    Args:
        config: timesteps and prediction.
        clip: bound of the predicted clean sample.
        device: of the samples.
    """

    def __init__(self, config: DiffusionConfig, clip: float | None, device: torch.device) -> None:
        from diffusers import DPMSolverMultistepScheduler  # costs seconds of CPU, so only when asked for

        self._timesteps = config.sampling_timesteps
        self._alphas_cumprod = alphas_cumprod(config).to(device)
        self._prediction = config.prediction
        self._clip = clip
        make: Any = DPMSolverMultistepScheduler
        self._scheduler = make(
            num_train_timesteps=config.train_timesteps,
            beta_schedule=config.beta_schedule,
            prediction_type="sample",  # ours turns every prediction into the clean sample, and bounds it
            algorithm_type="dpmsolver++",
            final_sigmas_type="zero",
        )
        with warnings.catch_warnings():  # diffusers converts tensors in a way that numpy 2 deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            self._scheduler.set_timesteps(timesteps=list(self._timesteps), device=device)

    def step(self, index: int, noisy: Tensor, output: Tensor) -> Tensor:
        """See `Sampler`."""
        t = self._timesteps[index]
        clean, _ = clean_and_noise(noisy, output, self._alphas_cumprod[t : t + 1], self._prediction)
        if self._clip is not None:
            clean = clean.clamp(-self._clip, self._clip)
        moved: Tensor = self._scheduler.step(clean, t, noisy).prev_sample
        return moved


def make_sampler(config: DiffusionConfig, clip: float | None, device: torch.device) -> Sampler:
    """The sampler that `config` names."""
    return (Ddim if config.sampler == "ddim" else DpmSolver)(config, clip, device)

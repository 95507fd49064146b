"""The noise schedule as pure functions (Ho et al. 2020, arXiv 2006.11239; Song et al. 2021, arXiv 2010.02502).

A noisy sample at timestep t is sqrt(a_t) clean + sqrt(1 - a_t) noise, where a_t (`signal`) falls from almost 1
at t = 0 to almost 0 at t = T - 1. Tensors are (B, ...); timesteps and signals are (B,).
"""

import math

import torch
from torch import Tensor

from uwm.config import DiffusionConfig

_MAX_BETA = 0.999
# Below this share of signal a noise prediction says nothing about the clean sample: its error grows by 1 / sqrt(a_t).
_LEAST_SIGNAL = 1e-3


def signal_table(config: DiffusionConfig) -> Tensor:
    """a_t for t = 0 .. T-1 as (T,) float32: squared cosine (Nichol & Dhariwal 2021, arXiv 2102.09672)."""
    steps = config.train_timesteps

    def level(t: float) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level(t + 1) / level(t), _MAX_BETA) for t in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), dim=0)


def sampling_grid(config: DiffusionConfig) -> tuple[int, ...]:
    """Timesteps of the sampling loop, falling: 99, 89 .. 9 ("trailing") or the published 90, 80 .. 0 ("leading").

    Lin et al. 2024 (arXiv 2305.08891) show why sampling must start where training's noise ends.
    """
    steps, total = config.sample_steps, config.train_timesteps
    if config.spacing == "leading":
        return tuple(i * (total // steps) for i in reversed(range(steps)))
    return tuple(round(total - i * total / steps) - 1 for i in range(steps))


def absent_timestep(config: DiffusionConfig) -> int:
    """The timestep that marks a modality as absent when sampling; training marks it with T - 1, or as here."""
    if config.absent_embedding:
        return config.train_timesteps
    return config.train_timesteps - 1 if config.absent == "last_trained" else sampling_grid(config)[0]


def clean_timestep(config: DiffusionConfig) -> int:
    """The timestep that marks a modality as clean."""
    return -1 if config.absent_embedding else 0


def add_noise(clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """The noisy sample (B, ...) of a clean one at `signal` (B,)."""
    signal = _expand(signal, clean)
    return signal.sqrt() * clean + (1 - signal).sqrt() * noise


def clean_from_noise(noisy: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """The clean sample that `add_noise` turned into `noisy` with `noise`."""
    signal = _expand(signal, noisy)
    return (noisy - (1 - signal).sqrt() * noise) / signal.sqrt()


def noise_from_clean(noisy: Tensor, clean: Tensor, signal: Tensor) -> Tensor:
    """The noise with which `add_noise` turned `clean` into `noisy`."""
    signal = _expand(signal, noisy)
    return (noisy - signal.sqrt() * clean) / (1 - signal).sqrt()


def velocity(clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """What a network of `prediction="v"` predicts (B, ...): the noisy sample's direction of change.

    Salimans & Ho 2022 (arXiv 2202.00512), appendix D.
    """
    signal = _expand(signal, clean)
    return signal.sqrt() * noise - (1 - signal).sqrt() * clean


def target(clean: Tensor, noise: Tensor, signal: Tensor, prediction: str) -> Tensor:
    """What the network shall predict (B, ...): the noise ("epsilon"), the clean sample ("sample"), or "v"."""
    if prediction == "v":
        return velocity(clean, noise, signal)
    return noise if prediction == "epsilon" else clean


def clean_and_noise(noisy: Tensor, output: Tensor, signal: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """The clean sample and the noise (B, ...) that a prediction stands for; see `target`."""
    if prediction == "v":
        wide = _expand(signal, noisy)
        kept, added = wide.sqrt(), (1 - wide).sqrt()
        return kept * noisy - added * output, added * noisy + kept * output
    if prediction == "sample":
        return output, noise_from_clean(noisy, output, signal)
    clean = clean_from_noise(noisy, output, signal)
    return torch.where(_expand(signal, noisy) < _LEAST_SIGNAL, torch.zeros_like(clean), clean), output


def ddim_step(
    noisy: Tensor, output: Tensor, *, signal: Tensor, next_signal: Tensor, prediction: str, clip: float | None
) -> Tensor:
    """One deterministic DDIM step towards less noise.

    Args:
        noisy: (B, ...) the sample at `signal`.
        output: (B, ...) what the network predicts from it.
        signal: (B,) a_t of `noisy`.
        next_signal: (B,) a_t of the result; 1 gives the clean sample.
        prediction: what `output` is, see `target`.
        clip: bound of the predicted clean sample; the noise is left as it was predicted, as diffusers does.

    Returns:
        The sample (B, ...) at `next_signal`.
    """
    clean, noise = clean_and_noise(noisy, output, signal, prediction)
    if clip is not None:
        clean = clean.clamp(-clip, clip)
    return add_noise(clean, noise, next_signal)


def _expand(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.view(-1, *[1] * (like.dim() - 1))

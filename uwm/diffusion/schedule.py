"""The noise schedule as pure functions (Ho et al. 2020, arXiv 2006.11239; Song et al. 2021, arXiv 2010.02502).

A noisy sample at timestep t is sqrt(a_t) clean + sqrt(1 - a_t) noise, where a_t, the product of all alphas up
to t (`alphas_cumprod`), falls from almost 1 at t = 0 to almost 0 at t = T - 1. Tensors are (B, ...); `alpha` is (B,),
the a_t of each sample.
"""

import math

import torch
from torch import Tensor

from uwm.config import DiffusionConfig

_MAX_BETA = 0.999
# Below this a_t a noise prediction says nothing about the clean sample: its error grows by 1 / sqrt(a_t).
_LEAST_ALPHA = 1e-3


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """a_t for t = 0 .. T-1 as (T,) float32: squared cosine (Nichol & Dhariwal 2021, arXiv 2102.09672)."""
    steps = config.train_timesteps

    def level(t: float) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level(t + 1) / level(t), _MAX_BETA) for t in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), dim=0)


def add_noise(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """The noisy sample (B, ...) of a clean one at `alpha` (B,)."""
    alpha = _expand(alpha, clean)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def clean_from_noise(noisy: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """The clean sample that `add_noise` turned into `noisy` with `noise`."""
    alpha = _expand(alpha, noisy)
    return (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()


def noise_from_clean(noisy: Tensor, clean: Tensor, alpha: Tensor) -> Tensor:
    """The noise with which `add_noise` turned `clean` into `noisy`."""
    alpha = _expand(alpha, noisy)
    return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()


def velocity(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """What a network of `prediction="v"` predicts (B, ...): the noisy sample's direction of change.

    Salimans & Ho 2022 (arXiv 2202.00512), appendix D.
    """
    alpha = _expand(alpha, clean)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def target(clean: Tensor, noise: Tensor, alpha: Tensor, prediction: str) -> Tensor:
    """What the network shall predict (B, ...): the noise ("epsilon"), the clean sample ("sample"), or "v"."""
    if prediction == "v":
        return velocity(clean, noise, alpha)
    return noise if prediction == "epsilon" else clean


def clean_and_noise(noisy: Tensor, output: Tensor, alpha: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """The clean sample and the noise (B, ...) that a prediction stands for; see `target`."""
    if prediction == "v":
        wide = _expand(alpha, noisy)
        kept, added = wide.sqrt(), (1 - wide).sqrt()
        return kept * noisy - added * output, added * noisy + kept * output
    if prediction == "sample":
        return output, noise_from_clean(noisy, output, alpha)
    clean = clean_from_noise(noisy, output, alpha)
    return torch.where(_expand(alpha, noisy) < _LEAST_ALPHA, torch.zeros_like(clean), clean), output


def ddim_step(
    noisy: Tensor, output: Tensor, *, alpha: Tensor, next_alpha: Tensor, prediction: str, clip: float | None
) -> Tensor:
    """One deterministic DDIM step towards less noise.

    Args:
        noisy: (B, ...) the sample at `alpha`.
        output: (B, ...) what the network predicts from it.
        alpha: (B,) a_t of `noisy`.
        next_alpha: (B,) a_t of the result; 1 gives the clean sample.
        prediction: what `output` is, see `target`.
        clip: bound of the predicted clean sample; the noise is left as it was predicted, as diffusers does.

    Returns:
        The sample (B, ...) at `next_alpha`.
    """
    clean, noise = clean_and_noise(noisy, output, alpha, prediction)
    if clip is not None:
        clean = clean.clamp(-clip, clip)
    return add_noise(clean, noise, next_alpha)


def _expand(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.view(-1, *[1] * (like.dim() - 1))

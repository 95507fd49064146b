"""Samplers on a distribution whose best denoiser is known, and DPM-Solver++ against diffusers' own loop."""

import pytest
import torch
from torch import Tensor

from uwm.config import DiffusionConfig
from uwm.diffusion.samplers import make_sampler
from uwm.diffusion.schedule import alphas_cumprod, clean_and_noise, target

MEAN, STD = 0.4, 0.5
CPU = torch.device("cpu")


def noise(seed: int = 0) -> Tensor:
    return torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(seed))


def best_guess(noisy: Tensor, alpha: Tensor) -> Tensor:
    """The expected clean sample of a Gaussian of MEAN and STD, given a noisy one."""
    share = alpha.sqrt() * STD**2 / (alpha * STD**2 + 1 - alpha)
    return MEAN + share * (noisy - alpha.sqrt() * MEAN)


def sample(config: DiffusionConfig, start: Tensor) -> Tensor:
    """The sampler with a perfect network of the configured prediction."""
    table, x = alphas_cumprod(config), start
    sampler = make_sampler(config, None, CPU)
    for index, t in enumerate(config.sampling_timesteps):
        alpha = table[t : t + 1]
        clean = best_guess(x, alpha)
        added = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        x = sampler.step(index, x, target(clean, added, alpha, config.prediction))
    return x


def exact(start: Tensor, alpha: Tensor) -> Tensor:
    """Where the probability flow takes `start` at `alpha`: it keeps each value's place among its quantiles."""
    spread = (alpha * STD**2 + 1 - alpha).sqrt()
    return MEAN + STD * (start - alpha.sqrt() * MEAN) / spread


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_every_sampler_comes_near_the_exact_flow(name: str, prediction: str) -> None:
    config = DiffusionConfig(sampler=name, prediction=prediction, sample_steps=50)
    truth = exact(noise(), alphas_cumprod(config)[99])
    assert (sample(config, noise()) - truth).abs().max() < 0.06


def test_dpm_solver_gets_nearer_in_few_steps() -> None:
    def error(name: str) -> float:
        config = DiffusionConfig(sampler=name, prediction="sample", sample_steps=8)
        return float((sample(config, noise()) - exact(noise(), alphas_cumprod(config)[99])).abs().mean())

    assert error("dpmsolver++") < error("ddim") / 2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
def test_dpm_solver_agrees_with_diffusers(prediction: str) -> None:
    from diffusers import DPMSolverMultistepScheduler

    config = DiffusionConfig(sampler="dpmsolver++", prediction=prediction, spacing="leading", sample_steps=5)
    kind = {"v": "v_prediction"}.get(prediction, prediction)
    reference = DPMSolverMultistepScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", prediction_type=kind
    )
    reference.set_timesteps(timesteps=list(config.sampling_timesteps))
    sampler, expected, actual = make_sampler(config, None, CPU), noise(), noise()
    for index, t in enumerate(config.sampling_timesteps):
        output = 0.3 * noise(t + 1)
        expected = reference.step(output, t, expected).prev_sample
        actual = sampler.step(index, actual, output)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_the_clean_estimate_is_bounded(name: str) -> None:
    config = DiffusionConfig(sampler=name, prediction="sample", sample_steps=3)
    sampler, x = make_sampler(config, 0.5, CPU), noise()
    for index in range(3):
        x = sampler.step(index, x, torch.full_like(x, 9.0))
    torch.testing.assert_close(x, torch.full_like(x, 0.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("t", [5, 50, 95])
def test_every_prediction_stands_for_the_same_clean_sample(prediction: str, t: int) -> None:
    alpha = alphas_cumprod(DiffusionConfig())[t : t + 1]
    clean, added = noise(1), noise(2)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * added
    found = clean_and_noise(noisy, target(clean, added, alpha, prediction), alpha, prediction)
    torch.testing.assert_close(found[0], clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], added, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_v_prediction_agrees_with_diffusers_ddim(spacing: str) -> None:
    from diffusers import DDIMScheduler

    config = DiffusionConfig(prediction="v", spacing=spacing)
    reference = DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing=spacing,
        clip_sample=False,
    )
    reference.set_timesteps(config.sample_steps)
    sampler, expected, actual = make_sampler(config, None, CPU), noise(), noise()
    for index, t in enumerate(config.sampling_timesteps):
        expected = reference.step(noise(t + 1), t, expected).prev_sample
        actual = sampler.step(index, actual, noise(t + 1))
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    velocity = reference.get_velocity(noise(1), noise(2), torch.tensor([5, 50, 95, 0]))
    ours = target(noise(1), noise(2), alphas_cumprod(config)[torch.tensor([5, 50, 95, 0])], "v")
    torch.testing.assert_close(ours, velocity, atol=1e-6, rtol=0)

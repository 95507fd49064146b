"""The schedule against diffusers, and its inverse properties."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uwm.config import DiffusionConfig
from uwm.diffusion.schedule import (
    add_noise,
    alphas_cumprod,
    clean_from_noise,
    ddim_step,
    noise_from_clean,
)
from uwm.policies import UwmDiffusionConfig

SHAPE = (3, 4, 5)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("timesteps", [10, 100, 1000])
def test_signal_agrees_with_diffusers(timesteps: int) -> None:
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(num_train_timesteps=timesteps, beta_schedule="squaredcos_cap_v2")
    table = alphas_cumprod(DiffusionConfig(train_timesteps=timesteps))
    torch.testing.assert_close(table, reference.alphas_cumprod, atol=1e-6, rtol=0)
    assert (table.diff() < 0).all()


def test_add_noise_agrees_with_diffusers() -> None:
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    timestep = torch.tensor([0, 40, 99])
    expected = reference.add_noise(noise(0), noise(1), timestep)
    actual = add_noise(noise(0), noise(1), alphas_cumprod(DiffusionConfig())[timestep])
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddim_loop_agrees_with_diffusers(prediction: str, spacing: str, clip: float | None) -> None:
    from diffusers import DDIMScheduler

    config = DiffusionConfig(spacing=spacing, prediction=prediction)
    reference = DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        timestep_spacing=spacing,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
    )
    reference.set_timesteps(config.sample_steps)
    grid, table = config.sampling_timesteps, alphas_cumprod(config)
    assert list(grid) == reference.timesteps.tolist()
    expected = actual = noise(0)
    for index, t in enumerate(grid):
        if t == 99 and prediction == "epsilon":  # here we differ on purpose, see the next test
            continue
        ahead = table[grid[index + 1]] if index + 1 < len(grid) else torch.tensor(1.0)
        expected = reference.step(noise(t), t, expected).prev_sample
        actual = ddim_step(
            actual, noise(t), alpha=table[t].view(1), next_alpha=ahead.view(1), prediction=prediction, clip=clip
        )
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_first_step_survives_an_imperfect_noise_prediction() -> None:
    """At t = 99 a noise error of 1% would become an error of 25 in the clean sample."""
    table = alphas_cumprod(DiffusionConfig())
    start = noise(0)
    predicted = start + 0.01 * noise(1)
    ahead = ddim_step(
        start, predicted, alpha=table[99].view(1), next_alpha=table[89].view(1), prediction="epsilon", clip=None
    )
    torch.testing.assert_close(ahead, start, atol=0.1, rtol=0)


@given(st.integers(0, 98), st.integers(0, 2**32 - 1))
def test_noise_and_clean_invert_add_noise(t: int, seed: int) -> None:
    clean, added = noise(seed), noise(seed + 1)
    alpha = alphas_cumprod(DiffusionConfig())[t].view(1)
    noisy = add_noise(clean, added, alpha)
    tolerance = 1e-5 / alpha.sqrt().item()
    torch.testing.assert_close(clean_from_noise(noisy, added, alpha), clean, atol=tolerance, rtol=1e-3)
    tolerance = 1e-5 / (1 - alpha).sqrt().item()
    torch.testing.assert_close(noise_from_clean(noisy, clean, alpha), added, atol=tolerance, rtol=1e-3)


@given(st.integers(2, 1000), st.data())
def test_grids_fall_and_stay_inside(timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timesteps))
    for spacing in ("trailing", "leading"):
        config = DiffusionConfig(train_timesteps=timesteps, sample_steps=steps, spacing=spacing)
        grid = config.sampling_timesteps
        assert len(grid) == steps
        assert all(a > b for a, b in pairwise(grid))
        assert 0 <= grid[-1] <= grid[0] < timesteps
    assert DiffusionConfig(train_timesteps=timesteps, sample_steps=steps).sampling_timesteps[0] == timesteps - 1


def test_conventions() -> None:
    assert UwmDiffusionConfig().absent_timestep == 99
    assert UwmDiffusionConfig.published().absent_timestep == 90

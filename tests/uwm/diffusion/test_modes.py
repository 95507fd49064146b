"""The mode table and the sampling loop, with a network that knows the answer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from uwm.config import DiffusionConfig
from uwm.diffusion.modes import MODES, Denoiser, Modality, Role, run
from uwm.diffusion.schedule import alphas_cumprod, noise_from_clean
from uwm.policies import UwmDiffusionConfig
from uwm.policy import Mode

ACTION = (2, 4, 3)
LATENT = (2, 1, 4, 2, 4, 4)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def modality(shape: tuple[int, ...], seed: int, *, known: tuple[bool, bool] = (True, True)) -> Modality:
    return Modality(noise=normal(shape, seed), clean=normal(shape, seed + 1), known=torch.tensor(known), clip=None)


def recorder(calls: list[tuple[Tensor, ...]]) -> Denoiser:
    def denoise(action: Tensor, next_obs: Tensor, action_t: Tensor, next_t: Tensor) -> tuple[Tensor, Tensor]:
        calls.append((action, next_obs, action_t, next_t))
        return torch.zeros_like(action), torch.zeros_like(next_obs)

    return denoise


def oracle(action: Tensor, next_obs: Tensor, config: DiffusionConfig) -> Denoiser:
    """The network that knows both clean samples."""

    def answer(noisy: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        return clean if config.prediction == "sample" else noise_from_clean(noisy, clean, alphas_cumprod(config)[t])

    return lambda a, o, ta, to: (answer(a, action, ta), answer(o, next_obs, to))


def test_every_mode_has_a_row() -> None:
    assert set(MODES) == set(Mode)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("make", [UwmDiffusionConfig, UwmDiffusionConfig.published])
def test_each_modality_plays_its_role(mode: Mode, make: Callable[[], DiffusionConfig]) -> None:
    config, calls = make(), list[tuple[Tensor, ...]]()
    action, next_obs = modality(ACTION, 0), modality(LATENT, 10)
    sample = run(recorder(calls), mode, action, next_obs, config)
    assert len(calls) == config.sample_steps
    rows = ((MODES[mode].action, action, sample.action, 0), (MODES[mode].next_obs, next_obs, sample.next_obs, 1))
    for role, given, result, column in rows:
        times = [call[2 + column].tolist() for call in calls]
        assert (result is not None) == (role is Role.DENOISE)
        if role is Role.DENOISE:
            assert times == [[t, t] for t in config.sampling_timesteps]
            assert torch.equal(calls[0][column], given.noise)
        else:
            fixed = 0 if role is Role.CLEAN else config.absent_timestep
            held = given.clean if role is Role.CLEAN else given.noise
            assert times == [[fixed, fixed]] * config.sample_steps
            assert all(torch.equal(call[column], held) for call in calls)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("mode", list(Mode))
def test_a_perfect_network_is_followed_to_the_answer(mode: Mode, prediction: str) -> None:
    config = DiffusionConfig(prediction=prediction)
    action, next_obs = modality(ACTION, 0), modality(LATENT, 10)
    true_action, true_next = normal(ACTION, 50), normal(LATENT, 51)
    sample = run(oracle(true_action, true_next, config), mode, action, next_obs, config)
    if sample.action is not None:
        torch.testing.assert_close(sample.action, true_action, atol=1e-4, rtol=1e-4)
    if sample.next_obs is not None:
        torch.testing.assert_close(sample.next_obs, true_next, atol=1e-4, rtol=1e-4)


def test_clip_bounds_the_result() -> None:
    config = DiffusionConfig(prediction="sample")
    action = Modality(noise=normal(ACTION, 0), clean=normal(ACTION, 1), known=torch.tensor([True, True]), clip=0.5)
    big = 9 * torch.ones(ACTION)
    sample = run(oracle(big, normal(LATENT, 1), config), Mode.POLICY, action, modality(LATENT, 10), config)
    assert sample.action is not None
    assert (sample.action == 0.5).all()


def test_a_sample_without_its_condition_counts_as_absent() -> None:
    config, calls = DiffusionConfig(), list[tuple[Tensor, ...]]()
    action = modality(ACTION, 0, known=(True, False))
    run(recorder(calls), Mode.FORWARD, action, modality(LATENT, 10), config)
    assert calls[0][2].tolist() == [0, config.absent_timestep]

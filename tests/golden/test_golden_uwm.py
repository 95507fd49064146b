"""Parity with the published UWM: the transformer's outputs and the five modes."""

from pathlib import Path

import pytest
import torch
from golden_numbers import assert_all_compared, assert_near, build, load_params, sizes, tensors
from torch import Tensor

from uwm.diffusion.modes import MODES, Modality, Role, run
from uwm.model.transformer import DiffusionTransformer
from uwm.policies import UwmConfig, UwmDiffusionConfig
from uwm.policy import Mode

pytestmark = pytest.mark.golden

TIMESTEPS = ((0, 0), (99, 3), (7, 99), (50, 50))  # of out0 .. out3, see the golden README


@pytest.fixture(scope="module")
def golden(golden_root: Path) -> dict[str, Tensor]:
    return tensors(golden_root, "uwm")


@pytest.fixture(scope="module")
def network(golden_root: Path, golden: dict[str, Tensor]) -> DiffusionTransformer:
    network = build(DiffusionTransformer, UwmConfig, sizes(golden_root, "uwm"))
    load_params(network, golden)
    return network


@pytest.mark.parametrize("index", range(len(TIMESTEPS)))
def test_outputs(network: DiffusionTransformer, golden: dict[str, Tensor], index: int) -> None:
    batch = len(golden["io_cond"])
    action_t, next_t = (torch.full((batch,), t) for t in TIMESTEPS[index])
    with torch.no_grad():
        action, next_obs = network(golden["io_cond"], golden["io_action"], golden["io_next_obs"], action_t, next_t)
    assert_near(action, golden[f"out{index}_action"])
    assert_near(next_obs, golden[f"out{index}_next_obs"])


@pytest.mark.parametrize("mode", list(Mode))
def test_modes(network: DiffusionTransformer, golden: dict[str, Tensor], mode: Mode) -> None:
    diffusion = UwmDiffusionConfig.published()
    known = torch.ones(len(golden["io_cond"]), dtype=torch.bool)
    action, next_obs = (
        Modality(noise=golden[f"io_init_{name}"], clean=golden[f"io_clean_{name}"], known=known, clip=clip)
        for name, clip in (("action", diffusion.clip_action), ("next_obs", diffusion.clip_latent))
    )
    with torch.no_grad():
        sample = run(lambda a, o, ta, to: network(golden["io_cond"], a, o, ta, to), mode, action, next_obs, diffusion)
    predicted = {"action": sample.action, "next_obs": sample.next_obs}
    expected = {name: golden.get(f"mode_{mode}_{name}") for name in predicted}
    assert any(value is not None for value in expected.values())
    for name, value in expected.items():
        actual = predicted[name]
        assert (actual is None) == (value is None)
        if actual is not None and value is not None:
            assert_near(actual, value)


def test_no_output_was_forgotten(golden: dict[str, Tensor]) -> None:
    names = ("action", "next_obs")
    modes = {
        f"mode_{mode}_{name}" for mode, roles in MODES.items() for name in names if getattr(roles, name) is Role.DENOISE
    }
    assert_all_compared(golden, {f"out{i}_{name}" for i in range(len(TIMESTEPS)) for name in names} | modes)


def test_published_conventions(golden_root: Path) -> None:
    diffusion, scheduler = UwmDiffusionConfig.published(), sizes(golden_root, "scheduler")
    assert diffusion.sampling_timesteps == scheduler["timesteps"]
    assert diffusion.absent_timestep == scheduler["timesteps"][0]
    assert diffusion.clip_latent == diffusion.clip_action == scheduler["clip_sample"]

"""Parity with the published networks: the transformer's outputs, the five modes, the ResNet encoder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from uwm.config import DiffusionConfig, ObsEncoderConfig
from uwm.diffusion.modes import Modality, run
from uwm.diffusion.schedule import absent_timestep, sampling_grid
from uwm.model.obs_encoder import ObsEncoder
from uwm.model.transformer import DiffusionTransformer
from uwm.policy import Mode

pytestmark = pytest.mark.golden

TOLERANCE = 1e-5
TIMESTEPS = ((0, 0), (99, 3), (7, 99), (50, 50))  # of out0 .. out3, see the golden README


@pytest.fixture(scope="module")
def config(golden_root: Path) -> dict[str, Any]:
    return json.loads((golden_root / "config.json").read_text())


@pytest.fixture(scope="module")
def golden(golden_root: Path) -> dict[str, Tensor]:
    return load_file(golden_root / "uwm.safetensors")


@pytest.fixture(scope="module")
def network(config: dict[str, Any], golden: dict[str, Tensor]) -> DiffusionTransformer:
    network = DiffusionTransformer(**{k: tuple(v) if isinstance(v, list) else v for k, v in config["uwm"].items()})
    network.load_state_dict({k.removeprefix("param."): v for k, v in golden.items() if k.startswith("param.")})
    return network.eval()


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


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
    diffusion = DiffusionConfig.published()
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


def test_published_conventions(config: dict[str, Any]) -> None:
    diffusion, scheduler = DiffusionConfig.published(), config["scheduler"]
    assert list(sampling_grid(diffusion)) == scheduler["timesteps"]
    assert absent_timestep(diffusion) == scheduler["timesteps"][0]
    assert diffusion.clip_latent == diffusion.clip_action == scheduler["clip_sample"]


def test_resnet18gn(config: dict[str, Any], golden_root: Path) -> None:
    facts = config["encoders"]
    views, frames, size = facts["num_views"], facts["num_frames"], facts["resnet_image"]
    encoder = ObsEncoder(
        ObsEncoderConfig(kind="resnet18gn", embed_dim=facts["embed_dim"]),
        views=views,
        frames=frames,
        image_size=(size, size),
    )
    state = encoder.state_dict()
    assert sorted(state) == facts["resnet18gn_keys"]
    encoder.load_state_dict({k: _formula(k, j, state[k]) for j, k in enumerate(sorted(state))})
    shape = (facts["batch"], views, 3, frames, size, size)
    wave = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.013 + facts["phase"]
    images = (0.5 + 0.5 * wave.sin()).float().view(shape).movedim(2, 3)
    mask = torch.ones(shape[0], views, frames, dtype=torch.bool)
    with torch.no_grad():
        features = encoder.eval()(images, mask)
    assert_near(features, load_file(golden_root / "encoders.safetensors")["resnet18gn"])


def _formula(key: str, index: int, like: Tensor) -> Tensor:
    wave = (torch.arange(like.numel(), dtype=torch.float64) * 0.7 + index).sin()
    scale_like = like.dim() == 1 and key.endswith("weight")
    return (1 + 0.1 * wave if scale_like else 0.05 * wave).float().view(like.shape)

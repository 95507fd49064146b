"""Parity with the published PAD: outputs at three timesteps, and with one sample's action masked."""

from pathlib import Path

import pytest
import torch
from golden_numbers import assert_all_compared, assert_near, build, load_params, sizes, tensors
from torch import Tensor

from uwm.baselines.pad_network import PadTransformer
from uwm.policies import PadConfig

pytestmark = pytest.mark.golden

TIMESTEPS = (0, 40, 99)  # of out0 .. out2, see the golden README
MASKED_TIMESTEP = 40


@pytest.fixture(scope="module")
def golden(golden_root: Path) -> dict[str, Tensor]:
    return tensors(golden_root, "pad")


@pytest.fixture(scope="module")
def network(golden_root: Path, golden: dict[str, Tensor]) -> PadTransformer:
    network = build(PadTransformer, PadConfig, sizes(golden_root, "pad"))
    load_params(network, golden)
    return network


def run(network: PadTransformer, golden: dict[str, Tensor], t: int, mask: Tensor | None = None) -> dict[str, Tensor]:
    timestep = torch.full((len(golden["io_action"]),), t)
    with torch.no_grad():
        action, next_obs = network(golden["io_obs"], golden["io_action"], golden["io_next_obs"], timestep, mask)
    return {"action": action, "next_obs": next_obs}


def everything(network: PadTransformer, golden: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = torch.ones(golden["io_action"].shape[:2], dtype=torch.bool)
    mask[1] = False
    found = {f"out{i}_{k}": v for i, t in enumerate(TIMESTEPS) for k, v in run(network, golden, t).items()}
    return found | {f"masked_{k}": v for k, v in run(network, golden, MASKED_TIMESTEP, mask).items()}


def test_every_output_is_reproduced(network: PadTransformer, golden: dict[str, Tensor]) -> None:
    found = everything(network, golden)
    assert_all_compared(golden, found)
    for name, value in found.items():
        assert_near(value, golden[name])


def test_the_mask_matters_and_a_mask_of_all_does_not(network: PadTransformer, golden: dict[str, Tensor]) -> None:
    plain = run(network, golden, MASKED_TIMESTEP)
    whole = run(network, golden, MASKED_TIMESTEP, torch.ones(golden["io_action"].shape[:2], dtype=torch.bool))
    for name, value in plain.items():
        assert_near(whole[name], value)
        assert_near(golden[f"masked_{name}"][0], value[0])
        assert (golden[f"masked_{name}"][1] - value[1]).abs().max() > 100 * 1e-5

"""Parity with the published Diffusion Policy transformer: outputs at three timesteps, and a sample."""

from pathlib import Path

import pytest
import torch
from golden_numbers import assert_all_compared, assert_near, build, load_params, sizes, tensors
from torch import Tensor

from uwm.baselines.diffusion_policy import sample_actions
from uwm.baselines.dp_network import DpTransformer
from uwm.policies import DpConfig, UwmDiffusionConfig

pytestmark = pytest.mark.golden

TIMESTEPS = (0, 40, 99)  # of out0 .. out2, see the golden README


@pytest.fixture(scope="module")
def golden(golden_root: Path) -> dict[str, Tensor]:
    return tensors(golden_root, "dp")


def test_every_output_is_reproduced(golden_root: Path, golden: dict[str, Tensor]) -> None:
    network = build(DpTransformer, DpConfig, sizes(golden_root, "dp"))
    load_params(network, golden)
    with torch.no_grad():
        found = {
            f"out{i}": network(golden["io_sample"], torch.full((len(golden["io_sample"]),), t), golden["io_cond"])
            for i, t in enumerate(TIMESTEPS)
        }
        sample = sample_actions(network, golden["io_init"], golden["io_cond"], UwmDiffusionConfig.published())
    assert sample.next_obs is None
    assert sample.action is not None
    found["sample"] = sample.action
    assert_all_compared(golden, found)
    for name, value in found.items():
        assert_near(value, golden[name])

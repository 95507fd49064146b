"""Parity with the published GR-1: trunk, heads and image decoder, whole and with actions masked."""

from pathlib import Path

import pytest
import torch
from golden_numbers import assert_all_compared, assert_near, load_params, sizes, tensors
from torch import Tensor

from uwm.baselines.gr1_network import Gr1Network, sinusoid_2d
from uwm.policies import Gr1Config, Gr1DecoderConfig, Gr1EncoderConfig

pytestmark = pytest.mark.golden

FINER = 1e-6  # hiding the actions moves these images by 2e-5 only


@pytest.fixture(scope="module")
def golden(golden_root: Path) -> dict[str, Tensor]:
    return tensors(golden_root, "gr1")


@pytest.fixture(scope="module")
def network(golden_root: Path, golden: dict[str, Tensor]) -> Gr1Network:
    facts = sizes(golden_root, "gr1")
    side = facts["image_size"]
    encoder = Gr1EncoderConfig(resampler_latents=facts["latents_per_image"] - 1)
    decoder = Gr1DecoderConfig(
        patch=facts["patch_size"], depth=facts["decoder_depth"], heads=facts["decoder_num_heads"]
    )
    settings = {name: facts[name] for name in ("embed_dim", "depth", "num_heads")}
    network = Gr1Network(
        Gr1Config(**settings, obs_encoder=encoder, decoder=decoder),
        image_size=(side, side),
        **{name: facts[name] for name in ("num_views", "num_frames", "action_len", "action_dim")},
    )
    load_params(network, golden)
    return network


def test_every_output_is_reproduced(network: Gr1Network, golden: dict[str, Tensor]) -> None:
    tokens = golden["io_current_tokens"]
    first_only = torch.zeros(golden["out_action"].shape[:2], dtype=torch.bool)
    first_only[0] = True
    found = {}
    with torch.no_grad():
        found["out_action"], found["out_next_obs"] = network(tokens)
        found["masked_action"], found["masked_next_obs"] = network(tokens, action_mask=first_only)
    assert_all_compared(golden, found)
    for name, value in found.items():
        assert_near(value, golden[name], FINER)
    assert (golden["masked_next_obs"][1] - golden["out_next_obs"][1]).abs().max() > 10 * FINER


def test_positions_are_computed_not_only_loaded(golden_root: Path, golden: dict[str, Tensor]) -> None:
    facts = sizes(golden_root, "gr1")
    side = facts["image_size"] // facts["patch_size"]
    assert_near(sinusoid_2d((side, side), facts["embed_dim"])[None], golden["param.decoder_pos_embed"])

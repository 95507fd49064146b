"""Parity with the published image encoders at full size, with weights by formula."""

from pathlib import Path

import pytest
import torch
from golden_numbers import assert_all_compared, assert_near, sizes, tensors
from torch import Tensor

from uwm.model.obs_encoder import ObsEncoder
from uwm.policies import ObsEncoderConfig

pytestmark = pytest.mark.golden

KINDS = {"resnet18gn": ("resnet_image", 0.0), "vit_b_32": ("vit_image", 1.0)}  # name of the side, phase to add


@pytest.mark.parametrize("kind", ["resnet18gn", pytest.param("vit_b_32", marks=pytest.mark.slow)])
def test_the_encoder_is_reproduced(golden_root: Path, kind: str) -> None:
    facts, (side_name, phase) = sizes(golden_root, "encoders"), KINDS[kind]
    views, frames, side = facts["num_views"], facts["num_frames"], facts[side_name]
    config = ObsEncoderConfig.model_validate({"kind": kind, "embed_dim": facts["embed_dim"]})
    encoder = ObsEncoder(config, views=views, frames=frames, image_size=(side, side)).eval()
    state = encoder.state_dict()
    assert sorted(state) == list(facts[f"{kind}_keys"])
    encoder.load_state_dict({key: _formula(key, j, state[key]) for j, key in enumerate(sorted(state))})
    shape = (facts["batch"], views, 3, frames, side, side)
    wave = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.013 + facts["phase"] + phase
    images = (0.5 + 0.5 * wave.sin()).float().view(shape).movedim(2, 3)
    mask = torch.ones(facts["batch"], views, frames, dtype=torch.bool)
    with torch.no_grad():
        features = encoder(images, mask)
    assert_near(features, tensors(golden_root, "encoders")[kind])


def test_no_encoder_was_forgotten(golden_root: Path) -> None:
    assert_all_compared(tensors(golden_root, "encoders"), KINDS)


def _formula(key: str, index: int, like: Tensor) -> Tensor:
    wave = (torch.arange(like.numel(), dtype=torch.float64) * 0.7 + index).sin()
    scale_like = like.dim() == 1 and key.endswith("weight")
    return (1 + 0.1 * wave if scale_like else 0.05 * wave).float().view(like.shape)

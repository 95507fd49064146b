"""Observation encoders: masks, order of features, and knowing where things are."""

import pytest
import torch

from storage_schemas.errors import UserError
from uwm.model.obs_encoder import ObsEncoder
from uwm.policies import ObsEncoderConfig

SIZE = (64, 112)


def encoder(kind: str, size: tuple[int, int] = SIZE, embed_dim: int = 8) -> ObsEncoder:
    torch.manual_seed(0)
    return ObsEncoder(ObsEncoderConfig(kind=kind, embed_dim=embed_dim), views=2, frames=2, image_size=size)


def images(size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.rand(3, 2, 2, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["small", "resnet18gn", "vit_small"])
def test_unknown_images_give_zeros_and_touch_nothing_else(kind: str) -> None:
    network, mask = encoder(kind), torch.ones(3, 2, 2, dtype=torch.bool)
    whole = network(images(), mask).view(3, 2, 2, 8)
    mask[1, 0, 1] = False
    partial = network(images(), mask).view(3, 2, 2, 8)
    assert (partial[~mask] == 0).all()
    torch.testing.assert_close(partial[mask], whole[mask], atol=1e-5, rtol=1e-5)
    assert (network(images(), torch.zeros_like(mask)) == 0).all()


def test_features_are_ordered_view_frame() -> None:
    network, mask = encoder("small"), torch.ones(3, 2, 2, dtype=torch.bool)
    features = network(images(), mask)
    alone = network(images()[1:2, 1:2, :1].expand(1, 2, 2, 3, *SIZE), mask[:1])
    torch.testing.assert_close(features.view(3, 4, 8)[1, 2], alone.view(4, 8)[0], atol=1e-5, rtol=1e-5)


def test_a_vision_transformer_needs_whole_patches() -> None:
    with pytest.raises(UserError, match=r"64x100.*patch 8"):
        encoder("vit_small", (64, 100))


@pytest.mark.parametrize("size", [(64, 112), (96, 96), (224, 392), (16, 24)])
def test_the_small_encoder_takes_any_size_and_knows_where(size: tuple[int, int]) -> None:
    """A linear readout of its random features locates a bright square; pooled features could not."""
    network = encoder("small", size, embed_dim=32)
    height, width = size
    shots, places = [], []
    for row in range(12):
        for column in range(12):
            image = torch.zeros(3, height, width)
            y, x = row * height // 14, column * width // 14
            image[:, y : y + height // 6, x : x + width // 6] = 1
            shots.append(image)
            places.append([row / 12, column / 12])
    with torch.no_grad():
        features = network.model(torch.stack(shots))
    known = torch.cat([features, torch.ones(len(features), 1)], 1)
    target = torch.tensor(places)
    residual = known @ torch.linalg.lstsq(known, target).solution - target
    assert (residual.square().mean(0) < 0.3 * target.var(0)).all()

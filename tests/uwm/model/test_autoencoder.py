"""The small autoencoder: it learns, its latents have unit scale, its masks hold."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from uwm.config import AutoencoderConfig, RunConfig
from uwm.data.batch import Batch
from uwm.model.autoencoder import Autoencoder
from uwm.policies import build
from uwm.policy import Learner
from uwm.settings import replace

MakeBatch = Callable[..., Batch]


@pytest.fixture
def autoencoder(tiny: RunConfig) -> Autoencoder:
    torch.manual_seed(0)
    network = build(replace(tiny, stage="tokenizer"))
    assert isinstance(network, Autoencoder)
    assert isinstance(network, Learner)
    return network


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_it_learns_and_its_latents_have_unit_scale(autoencoder: Autoencoder, make_batch: MakeBatch) -> None:
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=3e-3)
    draws, losses = generator(), []
    batches = [make_batch(seed=seed) for seed in range(8)]
    for step in range(120):
        optimizer.zero_grad()
        output = autoencoder.loss(batches[step % 8], draws)
        output.loss.backward()
        optimizer.step()
        losses.append(output.logs["reconstruction"])
    assert torch.stack(losses[-8:]).mean() < 0.5 * torch.stack(losses[:8]).mean()
    autoencoder.eval()
    images = make_batch().obs.flatten(0, 2)
    with torch.no_grad():
        latents = autoencoder.encode(images)
        restored = autoencoder.decode(latents)
    assert latents.shape == (len(images), 4, 2, 3)
    assert (latents.std((0, 2, 3)) > 0.5).all()
    assert (latents.std((0, 2, 3)) < 2).all()
    assert restored.shape == images.shape
    assert (restored - images).abs().mean() < 0.1


def test_only_known_frames_count(autoencoder: Autoencoder, make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch.obs_mask[:, 1] = False
    batch.next_mask[0] = False
    hidden = dataclasses.replace(
        batch,
        obs=torch.where(batch.obs_mask[..., None, None, None], batch.obs, torch.nan),
        next_obs=torch.where(batch.next_mask[..., None, None, None], batch.next_obs, torch.nan),
    )
    autoencoder.eval()
    assert torch.equal(autoencoder.loss(batch, generator()).loss, autoencoder.loss(hidden, generator()).loss)


def test_nothing_known_is_a_loss_of_zero(autoencoder: Autoencoder, make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch.obs_mask[:] = False
    batch.next_mask[:] = False
    output = autoencoder.loss(batch, generator())
    output.loss.backward()
    assert output.loss == 0
    assert autoencoder.updates == 0


def test_statistics_move_in_training_only(autoencoder: Autoencoder, make_batch: MakeBatch) -> None:
    autoencoder.eval()
    autoencoder.loss(make_batch(), generator())
    assert autoencoder.updates == 0
    autoencoder.train()
    autoencoder.loss(make_batch(), generator())
    assert autoencoder.updates == 1
    with torch.no_grad():
        batch = make_batch()
        latents = autoencoder.encode(torch.cat([batch.obs, batch.next_obs], 2).flatten(0, 2))
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("downsample", [2, 4, 16])
def test_downsampling(downsample: int) -> None:
    autoencoder = Autoencoder(AutoencoderConfig(width=4, depth=1, channels=5, downsample=downsample))
    images = torch.rand(2, 3, 32, 48)
    latents = autoencoder.encode(images)
    assert latents.shape == (2, 5, 32 // downsample, 48 // downsample)
    assert autoencoder.decode(latents).shape == images.shape

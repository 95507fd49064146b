"""A tiny run and batches for it."""

from collections.abc import Callable

import pytest
import torch
from batches import image_batch

from uwm.config import AutoencoderConfig, DataConfig, RunConfig, TokenizerConfig
from uwm.data.batch import Batch
from uwm.policies import ObsEncoderConfig, UwmConfig


@pytest.fixture
def tiny() -> RunConfig:
    """Two views of 16 x 24 pixels, identity tokenizer, 0.1 M parameters."""
    return RunConfig(
        name="tiny",
        data=DataConfig(cameras=("left", "wrist"), action_dim=3, action_horizon=4, resize=(16, 24), crop=(16, 24)),
        policy=UwmConfig(
            embed_dim=32,
            timestep_embed_dim=16,
            depth=2,
            num_heads=2,
            num_registers=2,
            patch=(2, 8, 8),
            obs_encoder=ObsEncoderConfig(kind="small", embed_dim=16),
            tokenizer=TokenizerConfig(kind="identity"),
        ),
        autoencoder=AutoencoderConfig(width=8, depth=1, downsample=8),
    )


@pytest.fixture
def make_batch(tiny: RunConfig) -> Callable[..., Batch]:
    """A function that makes a batch of smooth random images; all known."""

    def make(size: int = 4, seed: int = 0) -> Batch:
        data = tiny.data
        draw = torch.Generator().manual_seed(seed)
        views, (height, width) = len(data.cameras), data.crop

        def images(frames: int) -> torch.Tensor:
            coarse = torch.rand(size * views * frames, 3, 2, 3, generator=draw)
            fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
            return fine.view(size, views, frames, 3, height, width)

        return image_batch(
            obs=images(data.obs_frames),
            obs_mask=torch.ones(size, views, data.obs_frames, dtype=torch.bool),
            next_obs=images(data.next_frames),
            next_mask=torch.ones(size, views, data.next_frames, dtype=torch.bool),
            action=torch.rand(size, data.action_horizon, data.action_dim, generator=draw) * 2 - 1,
            action_mask=torch.ones(size, data.action_horizon, data.action_dim, dtype=torch.bool),
        )

    return make

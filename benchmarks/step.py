"""`uwm bench step`: a training step on cached latents against one that encodes its images, on the same samples.

The network is a recipe's at its own image size, by default DROID's; the VAE has SDXL's sizes and random weights,
which cost the same as trained ones.
"""

import tempfile
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.content import generate
from benchmarks.measure import Work, interleave
from storage_schemas.conventions import DROID_ACTION_DIM
from storage_schemas.episode import SegmentId
from storage_schemas.schema import DatasetSpec
from storage_schemas.store import commit, create_dataset, write_part
from uwm.config import DatasetRef, RunConfig, TokenizerConfig, replace
from uwm.data.augment import training_batch
from uwm.data.batch import RawBatch
from uwm.data.latents import encode, latent_shape, open_latents
from uwm.data.loader import SegmentReader
from uwm.data.mixture import open_member
from uwm.data.normalize import ActionNormalizer
from uwm.data.sampler import Pick
from uwm.model.uwm import UWMPolicy
from uwm.recipes import get_recipe
from uwm.train.optim import make_optimizer
from uwm.train.trainer import step_generator

_STEPS = 5
"""Of the one episode: as few as possible, for all of it is encoded first."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What `uwm bench step` found; CPU milliseconds of one whole training step, reading included."""

    recipe: str
    images: str
    batch: int
    cpu_ms: dict[str, float]
    speedup: float
    losses: dict[str, float]
    """Of the first step with the same crops and noise: they differ by the rounding of the cache to float16."""


def bench_step(recipe: str = "uwm", *, batch: int = 1, rounds: int = 2) -> StepResult:
    """Measure both kinds of step in turn.

    Args:
        recipe: with the SDXL tokenizer and DROID's cameras.
        batch: samples of a step.
        rounds: that count.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measure(_config(recipe, Path(folder)), recipe, batch, rounds)


def _config(recipe: str, root: Path) -> RunConfig:
    """The recipe on a generated store, with a VAE of SDXL's sizes."""
    from diffusers import AutoencoderKL

    blocks = 4
    vae: Any = AutoencoderKL(  # type: ignore[no-untyped-call]
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    vae.save_pretrained(root / "vae")
    found = get_recipe(recipe)
    uri = str(root / "store")
    create_dataset(uri, DatasetSpec(cameras=found.data.cameras, action_dim=DROID_ACTION_DIM, val_percent=0))
    commit(uri, write_part(uri, generate(1, _STEPS), run_id="bench"))
    data = replace(found.data, datasets=[DatasetRef(uri=uri)], latents="bench", next_start=2)  # steps 0, 1 and 3, 4
    return replace(found, data=data, tokenizer=TokenizerConfig(kind="sdxl", path=str(root / "vae")))


def _measure(config: RunConfig, recipe: str, batch: int, rounds: int) -> StepResult:
    torch.manual_seed(0)
    policy = UWMPolicy(config)
    member = open_member(config.data.datasets[0], config.data)
    encode(member, config.data, policy.tokenizer, device=torch.device("cpu"))
    shape = latent_shape(config.data, policy.tokenizer)
    latents = open_latents(member, config.data, policy.tokenizer.fingerprint, shape, seed=0)
    readers = {
        "online": SegmentReader([member.dataset], config.data),
        "latents": SegmentReader([member.dataset], config.data, [latents]),
    }
    picks = [Pick(place, 0, SegmentId(0, 1)) for place in range(batch)]
    draws = readers["latents"].read(picks).draws
    losses = {
        name: float(_loss(policy, with_fields(reader.read(picks), draws=draws), config).detach())
        for name, reader in readers.items()
    }
    optimizer = make_optimizer(policy, config.optim)
    work = {name: _step(policy, reader, picks, config, optimizer) for name, reader in readers.items()}
    costs = interleave(work, rounds=rounds)
    height, width = config.data.crop
    return StepResult(
        recipe=recipe,
        images=f"{height}x{width}",
        batch=batch,
        cpu_ms={name: round(cost.cpu_ms, 1) for name, cost in costs.items()},
        speedup=round(costs["online"].cpu_ms / costs["latents"].cpu_ms, 2),
        losses=losses,
    )


def _loss(policy: UWMPolicy, raw: RawBatch, config: RunConfig) -> torch.Tensor:
    identity, device = ActionNormalizer.identity(config.data.action_dim), torch.device("cpu")
    batch = training_batch(raw, config.data, identity, seed=0, device=device)
    return policy.loss(batch, step_generator(0, 0, device)).loss


def _step(
    policy: nn.Module, reader: SegmentReader, picks: list[Pick], config: RunConfig, optimizer: torch.optim.Optimizer
) -> Work:
    def step(piece: int) -> None:
        del piece
        assert isinstance(policy, UWMPolicy)
        _loss(policy, reader.read(picks), config).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step

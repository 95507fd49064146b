"""`uwm bench step`: a training step with this project's settings against one with the published, on the same samples.

Published: images pass the VAE in every step, AdamW's foreach implementation, and three losses copied to the host.
Ours: cached latents, fused AdamW, nothing copied. Network, image size, batch and precision are the same.
"""

import tempfile
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path
from typing import cast

import torch
from torch import nn

from storage_schemas.episode import SegmentId
from uwm.benchmarks.droid import droid_run, published_sizes
from uwm.benchmarks.measure import Work, interleave
from uwm.config import RunConfig
from uwm.data.augment import training_batch
from uwm.data.batch import RawBatch
from uwm.data.latents import latent_shape, open_latents
from uwm.data.loader import SegmentReader
from uwm.data.mixture import open_member
from uwm.data.normalize import ActionNormalizer
from uwm.data.sampler import Pick
from uwm.latents.shards import encode
from uwm.model.uwm import UWMPolicy
from uwm.policy import LossOutput
from uwm.recipes import get_recipe
from uwm.train.optim import make_optimizer, trained_parameters
from uwm.train.trainer import step_generator


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What `uwm bench step` found; milliseconds of one whole training step, reading included."""

    recipe: str
    images: str
    batch: int
    threads: int
    cpu_ms: dict[str, float]
    wall_ms: dict[str, float]
    speedup: float
    """CPU time of the published step over ours."""
    speedup_wall: float
    losses: dict[str, float]
    """Losses of the first step with the same crops and noise: they differ by the rounding of the cache to float16."""


def bench_step(recipe: str = "uwm", *, batch: int = 1, rounds: int = 1) -> StepResult:
    """Measure both kinds of step in turn.

    Args:
        recipe: with the SDXL tokenizer and DROID's cameras; `uwm` and `uwm_paper` differ in nothing but the settings
            that are measured, for the images have the published size.
        batch: samples of a step.
        rounds: that count.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measure(published_sizes(droid_run(recipe, Path(folder))), recipe, batch, rounds)


def _measure(config: RunConfig, recipe: str, batch: int, rounds: int) -> StepResult:
    torch.manual_seed(0)
    policy = cast(UWMPolicy, config.policy.build(config.data))
    member = open_member(config.data.datasets[0], config.data)
    encode(member, config.data, policy.tokenizer, device=torch.device("cpu"))
    shape = latent_shape(config.data, policy.tokenizer)
    latents = open_latents(member, config.data, policy.tokenizer.fingerprint, shape, seed=0)
    readers = {
        "published": SegmentReader([member.dataset], config.data),
        "ours": SegmentReader([member.dataset], config.data, [latents]),
    }
    settings = {"published": get_recipe("uwm_paper"), "ours": config}
    picks = [Pick(position, 0, SegmentId(0, 1)) for position in range(batch)]
    draws = readers["ours"].read(picks).draws
    with torch.no_grad():
        losses = {
            name: float(_loss(policy, with_fields(reader.read(picks), draws=draws), config).loss)
            for name, reader in readers.items()
        }
    optimizers = {name: make_optimizer(policy, each.optim) for name, each in settings.items()}
    optimizers["published"].state = optimizers["ours"].state  # two sets of moments take 6 GB
    work = {
        name: _step(policy, reader, picks, config, optimizers[name], wait=settings[name].train.sync == "step")
        for name, reader in readers.items()
    }
    work["ours"](0)  # makes the moments
    costs = interleave(work, rounds=rounds, warm=True)
    height, width = config.data.crop
    return StepResult(
        recipe=recipe,
        images=f"{height}x{width}",
        batch=batch,
        threads=torch.get_num_threads(),
        cpu_ms={name: round(cost.cpu_ms, 1) for name, cost in costs.items()},
        wall_ms={name: round(cost.wall_ms, 1) for name, cost in costs.items()},
        speedup=round(costs["published"].cpu_ms / costs["ours"].cpu_ms, 2),
        speedup_wall=round(costs["published"].wall_ms / costs["ours"].wall_ms, 2),
        losses=losses,
    )


def _loss(policy: UWMPolicy, raw: RawBatch, config: RunConfig) -> LossOutput:
    identity, device = ActionNormalizer.identity(config.data.action_dim), torch.device("cpu")
    batch = training_batch(raw, config.data, identity, device=device)
    return policy.loss(batch, step_generator(0, 0, device))


def _step(
    policy: UWMPolicy,
    reader: SegmentReader,
    picks: list[Pick],
    config: RunConfig,
    optimizer: torch.optim.Optimizer,
    *,
    wait: bool,
) -> Work:
    def step(piece: int) -> None:
        del piece
        output = _loss(policy, reader.read(picks), config)
        output.loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained_parameters(policy).values(), config.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if wait:
            for value in (output.loss, *output.logs.values()):
                value.item()

    return step

"""`uwm bench sampling`: the policy, and all modes of an evaluation, with published settings and with ours.

The policy is sampled from an encoded observation, whose own cost is `observation`; all modes include encoding.

Published: every mode encodes the observation, inverse dynamics the next one too, the truth that samples are compared
with is encoded once; every mode samples by itself and computes the whole of AdaLN in every step. Ours: the
observation's share of AdaLN once, all modes in one batch, and one encode or cached latents. The policy on action and
register tokens is another model, which has to be trained with `model.token_dropout`: it is compared with our own exact
sampling, for its ratio to the published settings is not that of the published code (decision 0008).
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path
from typing import cast

import torch

from uwm.benchmarks.droid import droid_run, published_sizes
from uwm.benchmarks.measure import Cost, Work, interleave
from uwm.config import RunConfig
from uwm.data.augment import evaluation_batch
from uwm.data.batch import Batch, RawBatch
from uwm.data.normalize import ActionNormalizer
from uwm.model.uwm import UwmObs, UWMPolicy
from uwm.policy import Mode, Sample
from uwm.settings import replace


@dataclass(frozen=True, kw_only=True)
class SamplingResult:
    """What `uwm bench sampling` found; milliseconds of one batch."""

    images: str
    batch: int
    steps: int
    threads: int
    cpu_ms: dict[str, float]
    wall_ms: dict[str, float]
    speedup: dict[str, float]
    """Over the published settings, by CPU time; on action tokens alone, over our own exact sampling."""
    speedup_wall: dict[str, float]
    largest_difference: dict[str, float]
    """Between our exact samples and the published settings', on the same noise; actions lie in [-1, 1]."""


def bench_sampling(*, batch: int = 1, rounds: int = 1, bf16: bool = False, evaluation: bool = True) -> SamplingResult:
    """Measure all ways to sample in turn.

    Args:
        batch: samples.
        rounds: of all in turn.
        bf16: also the policy with bf16 weights.
        evaluation: also all modes, which take most of the time.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measure(published_sizes(droid_run("uwm", Path(folder))), batch, rounds, bf16, evaluation)


def _measure(config: RunConfig, size: int, rounds: int, bf16: bool, evaluation: bool) -> SamplingResult:
    ours = _policy(config)
    plain = _twin(ours, diffusion=replace(ours.diffusion, precompute_modulation=False))
    dropped = _twin(ours, _token_dropout=0.5)
    images = _batch(config, size)
    seen = _seen(ours, images)
    work: dict[str, Callable[[], object]] = {
        "observation": lambda: _seen(ours, images),
        "policy, published": lambda: plain.sample_encoded(seen, Mode.POLICY, _generator()),
        "policy, exact": lambda: ours.sample_encoded(seen, Mode.POLICY, _generator()),
        "policy, action tokens": lambda: dropped.sample_encoded(seen, Mode.POLICY, _generator()),
    }
    if evaluation:
        with torch.no_grad():
            cached = with_fields(images, next_latents=ours.encode(images.next_obs).transpose(2, 3))
        work |= {
            "modes, published": lambda: _one_by_one(plain, images),
            "modes, one encode": lambda: _together(ours, images),
            "modes, cached latents": lambda: _together(ours, cached),
        }
    if bf16:
        small = _policy(config)
        for part in small.children():
            part.to(torch.bfloat16)
        small_seen = _seen(small, images)
        work["policy, bf16 weights"] = lambda: small.sample_encoded(small_seen, Mode.POLICY, _generator())
    for name in ("policy, action tokens", "policy, bf16 weights"):  # reads all weights, and is short
        work.get(name, tuple)()
    results: dict[str, object] = {}
    costs = interleave({name: _keep(results, name, call) for name, call in work.items()}, rounds=rounds, warm=True)
    height, width = config.data.crop
    return SamplingResult(
        images=f"{height}x{width}",
        batch=size,
        steps=ours.diffusion.sample_steps,
        threads=torch.get_num_threads(),
        cpu_ms={name: round(cost.cpu_ms, 1) for name, cost in costs.items()},
        wall_ms={name: round(cost.wall_ms, 1) for name, cost in costs.items()},
        speedup=_ratios(costs, lambda cost: cost.cpu_ms),
        speedup_wall=_ratios(costs, lambda cost: cost.wall_ms),
        largest_difference={
            name.split(",")[0]: _difference(results[f"{name.split(',')[0]}, published"], results[name])
            for name in ("policy, exact", "modes, one encode")
            if name in results
        },
    )


def _policy(config: RunConfig) -> UWMPolicy:
    """The network with weights off zero, for at its start AdaLN is zero and every condition is ignored."""
    torch.manual_seed(0)
    policy = cast(UWMPolicy, config.policy.build(config.data)).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "adaLN_modulation" in name:
                parameter.normal_(std=0.02)
    return policy


def _twin(policy: UWMPolicy, **settings: object) -> UWMPolicy:
    """The same network and weights under other settings of sampling."""
    twin = copy.copy(policy)
    for name, value in settings.items():
        setattr(twin, name, value)
    return twin


def _batch(config: RunConfig, size: int) -> Batch:
    data, generator = config.data, torch.Generator().manual_seed(0)
    views, (height, width) = len(data.cameras), data.crop
    frames = data.obs_frames + data.next_frames
    raw = RawBatch.of_images(
        frames=torch.randint(256, (size, views, frames, 3, height, width), dtype=torch.uint8, generator=generator),
        view_mask=torch.ones(size, views, frames, dtype=torch.bool),
        action=torch.rand(size, data.action_horizon, data.action_dim, generator=generator) * 2 - 1,
        action_mask=torch.ones(size, data.action_horizon, data.action_dim, dtype=torch.bool),
    )
    return evaluation_batch(raw, data, ActionNormalizer.identity(data.action_dim), device=torch.device("cpu"))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def _seen(policy: UWMPolicy, batch: Batch) -> UwmObs:
    """The observation alone, which is what a robot has."""
    return policy.encode_batch(batch, next_obs=False)


@torch.no_grad()
def _one_by_one(policy: UWMPolicy, batch: Batch) -> Mapping[Mode, Sample]:
    samples = {}
    for mode in Mode:
        encoded = policy.encode_batch(batch, next_obs=mode is Mode.INVERSE)
        samples[mode] = policy.sample_encoded(encoded, mode, _generator())
    policy.encode(batch.next_obs)  # the truth that the next observations are compared with
    return samples


@torch.no_grad()
def _together(policy: UWMPolicy, batch: Batch) -> Mapping[Mode, Sample]:
    return policy.sample_modes(policy.encode_batch(batch), tuple(Mode), _generator())


def _keep(results: dict[str, object], name: str, call: Callable[[], object]) -> Work:
    def work(piece: int) -> None:
        del piece
        results[name] = call()

    return work


def _ratios(costs: Mapping[str, Cost], of: Callable[[Cost], float]) -> dict[str, float]:
    ratios = {}
    for name, cost in costs.items():
        kind, _, way = name.partition(", ")
        if way not in ("", "published"):
            other = "exact" if way == "action tokens" else "published"
            ratios[f"{name} over {other}"] = round(of(costs[f"{kind}, {other}"]) / of(cost), 2)
    return ratios


def _difference(one: object, two: object) -> float:
    if isinstance(one, Sample) and isinstance(two, Sample):
        pairs = ((one.action, two.action), (one.next_obs, two.next_obs))
        return max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None)
    assert isinstance(one, Mapping)
    assert isinstance(two, Mapping)
    return max(_difference(one[mode], two[mode]) for mode in one)

"""A training step asks the device for nothing: no copy to the host, no size that depends on values."""

from typing import Any

import pytest
import torch
from batches import raw_batch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from uwm.config import DataConfig, RunConfig, TokenizerConfig
from uwm.data.augment import training_batch
from uwm.data.batch import Batch, RawBatch
from uwm.data.normalize import ActionNormalizer
from uwm.overrides import as_kind
from uwm.policies import ObsEncoderConfig, UwmConfig, build
from uwm.settings import replace
from uwm.train.optim import WeightAverage, make_optimizer, trained_parameters
from uwm.training_config import OptimConfig

OF_KIND = {
    "dp_unet": {"widths": (8, 16)},
    "gr1": {"obs_encoder": {"kind": "vit_small"}, "decoder": {"patch": 8, "heads": 2}},
}
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::is_nonzero", "aten::masked_select"}


class Waits(TorchDispatchMode):
    """Counts the operators whose result the host has to wait for on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        indexed = name in {"aten::index", "aten::index_put", "aten::index_put_"}
        if name in WAITING or (indexed and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(
        name="tiny",
        data=DataConfig(cameras=("left", "wrist"), action_dim=3, action_horizon=4, resize=(16, 24), crop=(16, 24)),
        policy=UwmConfig(
            embed_dim=32,
            timestep_embed_dim=16,
            depth=1,
            num_heads=2,
            patch=(2, 8, 8),
            obs_encoder=ObsEncoderConfig(kind="small", embed_dim=16),
            token_dropout=0.2,
            tokenizer=TokenizerConfig(kind="identity"),
        ),
        optim=OptimConfig(ema_decay=0.9),
    )


def samples(*, cached: bool) -> RawBatch:
    frames = torch.zeros(2, 2, 2 if cached else 4, 3, 16, 24, dtype=torch.uint8)
    mask = torch.ones(2, 2, 4, dtype=torch.bool)
    mask[1, 1] = False
    return raw_batch(
        frames=frames,
        view_mask=mask,
        action=torch.zeros(2, 4, 3),
        action_mask=torch.ones(2, 4, 3, dtype=torch.bool),
        latents=torch.zeros(2, 2, 4 if cached else 0, 3, 16, 24, dtype=torch.float16),
    )


def update(policy: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, average: WeightAverage) -> None:
    output = policy.loss(batch, torch.Generator().manual_seed(0))
    output.loss.backward()
    nn.utils.clip_grad_norm_(trained_parameters(policy).values(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average.update(1)


@pytest.mark.parametrize(
    ("name", "cached"),
    [("uwm", True), ("uwm", False), ("pad", True), ("pad", False), ("dp", False), ("dp_unet", False), ("gr1", False)],
)
def test_an_update_waits_for_nothing(config: RunConfig, name: str, cached: bool) -> None:
    settings = as_kind(config.policy.model_dump(), name) | OF_KIND.get(name, {})
    policy = build(replace(config, policy=settings))
    optimizer, average = make_optimizer(policy, config.optim), WeightAverage(policy, config.optim.ema_decay)
    identity = ActionNormalizer.identity(3)
    batch = training_batch(samples(cached=cached), config.data, identity, device=torch.device("cpu"))
    with Waits() as waits:
        update(policy, batch, optimizer, average)
    assert waits.found == []


def test_the_check_sees_what_waits(config: RunConfig) -> None:
    with Waits() as waits:
        values = torch.arange(3.0)
        values.sum().item()
        values[values > 1]
        values.nonzero()
    assert sorted(set(waits.found)) == ["aten::_local_scalar_dense", "aten::index", "aten::nonzero"]

"""Published and corrected settings of the optimizer, the normalizer and the precision: both do what they say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from storage_schemas.errors import UserError
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.device import set_matmul
from uwm.policies import build
from uwm.recipes import get_recipe
from uwm.train.optim import make_optimizer
from uwm.train.trainer import train
from uwm.training_config import OptimConfig

MakeRun = Callable[..., RunConfig]


def test_both_implementations_make_the_same_update() -> None:
    results = []
    for implementation in ("fused", "foreach"):
        torch.manual_seed(0)
        model = nn.Linear(7, 5)
        optimizer = make_optimizer(model, OptimConfig(lr=0.01, implementation=implementation))
        assert optimizer.defaults["fused"] == (implementation == "fused")
        for seed in range(5):
            model(torch.randn(4, 7, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(model.weight.detach().clone())
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)


def test_a_loss_scale_of_a_power_of_two_changes_no_bit() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(7, 16), nn.GELU(), nn.Linear(16, 5)), torch.randn(4, 7)
    gradients = []
    for scale in (1.0, 2.0**16):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().mean()
        (loss * scale).backward()
        gradients.append([parameter.grad / scale for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_matmul_is_a_setting() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for name, allowed in (("tf32", True), ("fp32", False)):
            set_matmul(name)
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        set_matmul("tf32" if before else "fp32")


def bounds(path: Path) -> tuple[list[float], list[float], str | None]:
    normalizer = json.loads((path / "normalizer.json").read_text())
    return normalizer["low"], normalizer["high"], normalizer["sources"][0]["split"]


def test_published_bounds_cover_held_out_actions(
    make_store: Callable[..., str], debug_run: MakeRun, make_builder: Any
) -> None:
    uri = make_store(lengths=(12, 9, 11, 10, 12, 9), val=50)
    found = {}
    for split in ("train", "all"):
        config = debug_run(uri, f"data.normalizer_split={split}", "train.steps=1", output=split)
        found[split] = bounds(train(config, build=make_builder()))
    assert (found["train"][2], found["all"][2]) == ("train", None)
    assert all(a <= b for a, b in zip(found["all"][0], found["train"][0], strict=True))
    assert found["all"][:2] != found["train"][:2]


def test_published_steps_copy_their_losses(
    make_store: Callable[..., str], debug_run: MakeRun, builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = list[int]()
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: (copied.append(1), item(self))[1])
    uri, counts = make_store(), {}
    for sync in ("report", "step"):
        config = debug_run(uri, f"train.sync={sync}", output=sync)
        copied.clear()
        train(config, build=builder)
        counts[sync] = len(copied)
    assert counts["step"] - counts["report"] == 2 * config.train.steps, "the loss and this learner's one part of it"


def test_only_a_transformer_compiles() -> None:
    with pytest.raises(UserError, match=r"train\.compile=default: UnetPolicy has no transformer"):
        build(get_recipe("debug_dp_unet")).compile_network("default")


def test_cuda_graphs_take_no_accumulated_batches(debug_run: MakeRun) -> None:
    with pytest.raises(UserError, match="overwrites the gradients"):
        debug_run("store", "train.compile=reduce-overhead", "train.accumulate=2")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore:.torch.jit:DeprecationWarning"
)
def test_compiled_and_accumulated_trains_the_same(make_store: Callable[..., str], debug_run: MakeRun) -> None:
    uri = make_store()
    plain = load_checkpoint(train(debug_run(uri, output="plain"))).tensors("model")
    halves = ("train.batch_size=2", "train.accumulate=2", "train.compile=default")
    compiled = load_checkpoint(train(debug_run(uri, *halves, output="compiled"))).tensors("model")
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=0)

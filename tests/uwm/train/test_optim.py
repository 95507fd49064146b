"""Learning rate, optimizer state and weight average."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from uwm.train.optim import (
    WeightAverage,
    learning_rate,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    trained_parameters,
)
from uwm.training_config import OptimConfig


def test_rate_rises_then_falls_to_zero() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=10)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_rate_may_stay_or_end_elsewhere() -> None:
    constant = OptimConfig(lr=1.0, warmup_steps=2, schedule="constant")
    assert [learning_rate(constant, step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    longer = OptimConfig(lr=1.0, warmup_steps=0, decay_steps=100)
    assert [learning_rate(longer, step, 4) for step in range(4)] == [learning_rate(longer, s, 50) for s in range(4)]
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=4), 9, 4) == pytest.approx(0), "warm-up as long as the run"


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    model(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_optimizer_is_fused_and_its_state_restores_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].bias.requires_grad_(False)
    config = OptimConfig(lr=0.1)
    optimizer = make_optimizer(model, config)
    assert (optimizer.defaults["fused"], optimizer.defaults["foreach"]) == (True, False)
    step(model, optimizer, 0)
    kept = {name: value.clone() for name, value in optimizer_tensors(optimizer, model).items()}
    assert set(kept) == {
        f"{name}/{kind}" for name in trained_parameters(model) for kind in ("exp_avg", "exp_avg_sq", "step")
    }

    twin = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    twin.load_state_dict(model.state_dict())
    twin[1].bias.requires_grad_(False)
    other = make_optimizer(twin, config)
    restore_optimizer(other, twin, kept)
    step(model, optimizer, 1)
    step(twin, other, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_state_of_another_network_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(KeyError):
        restore_optimizer(make_optimizer(model, OptimConfig()), model, {"other/exp_avg": torch.zeros(2)})


def test_average_follows_slowly_and_buffers_follow_at_once() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(7.0)
    average.update(1)  # decay min(0.5, 2 / 11)
    found = average.tensors(model)
    first = 1 * 2 / 11 + 3 * 9 / 11
    torch.testing.assert_close(found["weight"], torch.full((2,), first))
    assert found["running_mean"].tolist() == [7.0, 7.0]
    average.update(1000)
    torch.testing.assert_close(average.tensors(model)["weight"], torch.full((2,), (first + 3) / 2))

    twin = WeightAverage(nn.BatchNorm1d(2), 0.5)
    twin.restore(average.tensors(model))
    assert torch.equal(twin.tensors(model)["weight"], average.tensors(model)["weight"])

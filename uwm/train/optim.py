"""Optimizer, learning rate and weight average, with state that lies in flat tensors by name."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from uwm.train.parallel import shard_like
from uwm.training_config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of the update that follows `step` done updates, in a run of `steps`.

    It rises linearly to `lr` over the warm-up, then stays, or falls as a half cosine to zero.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(1, (config.decay_steps or steps) - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over all trained parameters, on any device: in one pass over the weights, or as published.

    Weight decay is on all of them, as published: at 1e-6 leaving norms and biases out changes nothing.
    """
    return torch.optim.AdamW(
        trained_parameters(model).values(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=config.implementation == "fused",
        foreach=config.implementation == "foreach",
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>/<kind>` -> tensor; rates and decays come from the configuration."""
    return {
        f"{name}/{kind}": value
        for name, parameter in trained_parameters(model).items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the state of `optimizer_tensors` back; of parameters that are shards, the part that belongs here.

    Raises:
        KeyError: when a tensor belongs to no parameter of the model.
    """
    state: dict[int, dict[str, Tensor]] = {}
    parameters = trained_parameters(model)
    numbers = {name: number for number, name in enumerate(parameters)}
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        state.setdefault(numbers[name], {})[kind] = shard_like(value, parameters[name])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class WeightAverage:
    """Exponential moving average of the trained parameters; everything else follows the model.

    The decay rises as (1 + n) / (10 + n) over the first updates, so that a short run's average forgets
    its random start.

    Args:
        model: whose weights are averaged.
        decay: upper bound of the decay.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = trained_parameters(model)
        self._average = {name: value.detach().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` >= 1 updates."""
        average = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
        average(list(self._average.values()), list(self._parameters.values()), step)

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """A state dict of the model with the averaged weights."""
        return {**model.state_dict(), **self._average}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the averages back from whole `tensors`. Raises KeyError when one is missing."""
        for name, value in self._average.items():
            value.copy_(shard_like(tensors[name], value))

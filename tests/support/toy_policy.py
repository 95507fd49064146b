"""A policy from outside of the project: one file, with its settings, its network and its recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from uwm.config import DataConfig, PolicyConfig, RunConfig
from uwm.data.batch import Batch
from uwm.policy import LossOutput, Mode, Policy, Sample
from uwm.recipes import debug, recipe, with_policy
from uwm.registry import register_policy


@register_policy
class ToyConfig(PolicyConfig):
    """Settings of the toy."""

    about: ClassVar[str] = "A toy: actions from mean colours."
    tags: ClassVar[tuple[str, ...]] = ("toy",)
    network: ClassVar[str] = "toy_policy:ToyPolicy"
    reads_next_obs: ClassVar[bool] = False

    kind: Literal["toy"] = "toy"
    embed_dim: int = Field(8, gt=0)
    gain: float = Field(1.0, gt=0)
    tokenizer: None = None
    diffusion: None = None


@dataclass(frozen=True)
class Colours:
    """What the toy sees of a batch."""

    mean: Tensor  # (B, V * O * 3)
    latents: None = None


class ToyPolicy(Policy):
    """Two linear layers on mean colours."""

    modes = frozenset({Mode.POLICY})

    def __init__(self, config: ToyConfig, data: DataConfig) -> None:
        super().__init__()
        self.shape = (data.action_horizon, data.action_dim)
        self.gain = config.gain
        inputs = len(data.cameras) * data.obs_frames * 3
        outputs = data.action_horizon * data.action_dim
        self.body = nn.Sequential(nn.Linear(inputs, config.embed_dim), nn.Tanh(), nn.Linear(config.embed_dim, outputs))

    def encode_batch(self, batch: Batch) -> Colours:
        """Mean colours."""
        return Colours(batch.obs.mean(dim=(-2, -1)).flatten(1))

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Mean squared error of the known actions."""
        error = (self._act(self.encode_batch(batch)) - batch.action).square() * batch.action_mask
        loss = error.sum() / batch.action_mask.sum().clamp(min=1)
        return LossOutput(loss=loss, logs={"action_loss": loss.detach()})

    def sample(self, batch: Batch, mode: Mode, generator: torch.Generator) -> Sample:
        """Actions."""
        self.require(mode)
        return Sample(action=self._act(self.encode_batch(batch)), next_obs=None)

    def sample_modes(
        self, encoded: Colours, modes: Sequence[Mode], generator: torch.Generator
    ) -> Mapping[Mode, Sample]:
        """Actions."""
        return {mode: Sample(action=self._act(encoded), next_obs=None) for mode in modes}

    def encode(self, images: Tensor) -> Tensor:
        """The toy has no latents."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """The toy has no latents."""
        raise NotImplementedError

    def _act(self, seen: Colours) -> Tensor:
        acted: Tensor = self.gain * self.body(seen.mean).view(-1, *self.shape)
        return acted


@recipe
def debug_toy() -> RunConfig:
    """`debug` for the toy."""
    return with_policy(debug(), "toy", name="debug-toy")

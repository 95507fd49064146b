"""What every trainable network looks like to the trainer and to the evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from storage_schemas.errors import UserError
from uwm.data.batch import Batch


class Mode(StrEnum):
    """The five questions one network answers (Zhu et al. 2025, section III)."""

    POLICY = "policy"
    FORWARD = "forward"
    INVERSE = "inverse"
    VIDEO = "video"
    JOINT = "joint"


@dataclass(frozen=True, kw_only=True)
class SampleLosses:
    """What each sample of a batch contributes to a modality's loss, and how noisy the sample was; detached."""

    error: Tensor  # (B,) mean squared error over what is known
    known: Tensor  # (B,) bool: something is
    noise: Tensor | None  # (B,) timestep as a share of the schedule, 0 clean to 1 pure noise; None: not independent


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """A scalar to minimize and detached scalars to log; nothing here has been copied to the host."""

    loss: Tensor
    logs: Mapping[str, Tensor]
    action: SampleLosses | None = None
    next_obs: SampleLosses | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a mode predicts; a modality that the mode does not predict is None."""

    action: Tensor | None  # (B, S, A), normalized
    next_obs: Tensor | None  # (B, V, C, N, h, w), latents


class Learner(nn.Module, ABC):
    """Anything the trainer trains: a network with a loss."""

    tokenizer_fingerprint: str = ""
    """Identity of the frozen tokenizer whose latents it is trained on; weights of another one's do not fit."""
    latent_shape: tuple[int, int, int, int, int] | None = None
    """V, C, N, h, w of the next observation's latents; None for networks that take no cached ones."""

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """The loss of a batch; all randomness comes from `generator`."""

    def attention_report(self) -> str:
        """The operator that attention runs at the network's sizes, with device and type, for the run log."""
        return "none"

    def compile_network(self, mode: str) -> None:
        """Compile what costs most, in place; parameters keep their names. Raises UserError when nothing gains."""
        raise UserError(f"train.compile={mode}: {type(self).__name__} has no transformer to compile")


class EncodedObs(Protocol):
    """A batch as a policy's modes share it; the rest of it is the policy's own affair."""

    @property
    def latents(self) -> Tensor | None:
        """(B, V, C, N, h, w) of the next observation, zero where unknown; None when the policy predicts none."""
        ...


class Policy(Learner):
    """A learner that can be sampled in some or all modes."""

    modes: frozenset[Mode]

    @abstractmethod
    def sample(self, batch: Batch, mode: Mode, generator: torch.Generator) -> Sample:
        """Predict what `mode` asks for; the other modality of `batch` is a condition or ignored."""

    @abstractmethod
    def encode_batch(self, batch: Batch) -> EncodedObs:
        """Encode what is known of a batch, once for all modes."""

    @abstractmethod
    def sample_modes(self, encoded: Any, modes: Sequence[Mode], generator: torch.Generator) -> Mapping[Mode, Sample]:
        """`sample` of a batch that `encode_batch` has encoded, in several modes, all from the same noise."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, V, N, 3, H, W) in [0, 1] -> latents (B, V, C, N, h, w)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, V, C, N, h, w) -> images (B, V, N, 3, H, W) in [0, 1]."""

    def require(self, mode: Mode) -> None:
        """Raise UserError when the policy has no such mode."""
        if mode not in self.modes:
            raise UserError(f"{type(self).__name__} has no mode {mode}: it has {', '.join(sorted(self.modes))}")

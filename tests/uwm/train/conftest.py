"""A network small enough that a training step costs nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uwm.config import RunConfig
from uwm.data.batch import Batch
from uwm.policy import Learner, LossOutput


class TinyLearner(Learner):
    """Predicts noised actions from the mean colour; keeps the positions' trace in what it saw."""

    tokenizer_fingerprint = "none"
    calls: Tensor

    def __init__(self, action_dim: int) -> None:
        super().__init__()
        self.body = nn.Linear(3, 8)
        self.head = nn.Linear(8, action_dim)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.seen: list[Batch] = []

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Masked squared error against noised actions."""
        self.seen.append(batch)
        self.calls += 1
        noise = torch.randn(batch.action.shape, generator=generator)
        out = self.head(torch.tanh(self.body(batch.obs.mean(dim=(1, 2, 4, 5)))))  # (B, A)
        error = (out[:, None] - batch.action - 0.1 * noise).square() * batch.action_mask
        loss = error.sum() / batch.action_mask.sum().clamp(min=1)
        return LossOutput(loss=loss, logs={"action_loss": loss.detach()})


class Builder:
    """Builds tiny learners and keeps them."""

    def __init__(self) -> None:
        self.built: list[TinyLearner] = []

    def __call__(self, config: RunConfig) -> nn.Module:
        self.built.append(TinyLearner(config.data.action_dim))
        return self.built[-1]


@pytest.fixture
def builder() -> Builder:
    """A `build` for `train`."""
    return Builder()


@pytest.fixture
def make_builder() -> Callable[[], Builder]:
    """Makes builders."""
    return Builder

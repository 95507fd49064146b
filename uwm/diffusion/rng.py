"""Random numbers of samples, the same however processes and accumulation divide a training step.

The numbers of the whole step are drawn and the rows of the batch kept: the step's generator then gives a sample the
same noise in any division of the step. What is drawn in vain is small: 75 kB of latents per sample at DROID's size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from uwm.data.batch import MicroBatch


def randn_rows(like: Tensor, generator: torch.Generator, micro_batch: MicroBatch | None = None) -> Tensor:
    """Standard normal numbers of the shape, type and place of `like` (B, ...)."""

    def draw(rows: int) -> Tensor:
        return torch.randn((rows, *like.shape[1:]), generator=generator, device=generator.device)

    return _rows(draw, len(like), micro_batch).to(like)


def randint_rows(high: int, rows: int, generator: torch.Generator, micro_batch: MicroBatch | None = None) -> Tensor:
    """Integers (B,) in [0, high), on the generator's device; `rows` is B."""

    def draw(count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator, device=generator.device)

    return _rows(draw, rows, micro_batch)


def rand_rows(rows: int, generator: torch.Generator, micro_batch: MicroBatch | None = None) -> Tensor:
    """Numbers (B,) uniform in [0, 1), on the generator's device; `rows` is B."""

    def draw(count: int) -> Tensor:
        return torch.rand(count, generator=generator, device=generator.device)

    return _rows(draw, rows, micro_batch)


def _rows(draw: Callable[[int], Tensor], rows: int, micro_batch: MicroBatch | None) -> Tensor:
    return draw(rows) if micro_batch is None else draw(micro_batch.samples)[micro_batch.first :][:rows]

"""What flows from the loader to the loss.

Dimension letters: B batch, V views, F = O + N frames (O observation, N next), S action steps, A action
dimensions, H0 and W0 the loader's image size, H and W the model's.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Samples as the loader collates them: bytes and physical units, on the CPU."""

    frames: Tensor  # (B, V, F, 3, H0, W0) uint8, channels last in memory as decoders write; zero where masked
    view_mask: Tensor  # (B, V, F) bool
    action: Tensor  # (B, S, A) float32, in the store's units; zero where unknown
    action_mask: Tensor  # (B, S) bool
    dataset: Tensor  # (B,) int64, index into the mixture
    episode: Tensor  # (B,) int64, row in that dataset's version
    step: Tensor  # (B,) int64, current step
    position: Tensor  # (B,) int64, place in the run's sample order; it seeds the sample's augmentation
    latents: Tensor | None = None
    """(B, V, F, C, h, w) float16, cached; zero where masked. `frames` then holds the observation frames only."""
    draws: Tensor | None = None
    """(B, V, 5) in [0, 1): the augmentation that the latents were made with, instead of one by `position`."""

    def to(self, device: torch.device) -> "RawBatch":
        """The batch on `device`; from pinned memory the copy does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "RawBatch":
        """The batch in page-locked memory (called by torch's DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "RawBatch":
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in held.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples as a policy takes them: augmented, cropped and normalized, on the policy's device."""

    obs: Tensor  # (B, V, O, 3, H, W) float32 in [0, 1]; zero where masked
    obs_mask: Tensor  # (B, V, O) bool
    next_obs: Tensor  # (B, V, N, 3, H, W) float32 in [0, 1]; zero where masked
    next_mask: Tensor  # (B, V, N) bool: known, and inside the episode
    action: Tensor  # (B, S, A) float32, normalized to [-1, 1]; zero where unknown
    action_mask: Tensor  # (B, S) bool
    obs_latents: Tensor | None = None  # (B, V, O, C, h, w) float32, cached; zero where masked
    next_latents: Tensor | None = None  # (B, V, N, C, h, w); next_obs then holds no frames
    view_mask: Tensor | None = None  # (B, V, O + N) bool: both masks on the host, so that nothing waits for the device

    def __len__(self) -> int:
        return len(self.action)

    def known_places(self) -> tuple[Tensor, Tensor]:
        """(M,) int64 of the known frames in the flattened obs and next_obs, on the batch's device."""
        if self.view_mask is None:
            return known_index(self.obs_mask), known_index(self.next_mask)
        seen, device = self.obs_mask.shape[2], self.obs_mask.device
        host = (self.view_mask[:, :, :seen].numpy(), self.view_mask[:, :, seen:].numpy())
        obs, following = (torch.from_numpy(np.flatnonzero(mask)).to(device, non_blocking=True) for mask in host)
        return obs, following


def known_index(mask: Tensor) -> Tensor:
    """(M,) int64: places of what is known, in the flattened mask; on a GPU this waits for all work before it."""
    return mask.flatten().nonzero().squeeze(1)

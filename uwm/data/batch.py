"""What flows from the loader to the loss.

Dimension letters: B batch, V views, F = O + N frames (O observation, N next), S action steps, A action
dimensions, D numbers of the observed states, E features of an instruction, H0 and W0 the loader's image size, H and W
the model's, C latent channels, h and w latent size.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from storage_schemas.store.latents import DRAWS


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Samples as the loader collates them: bytes and physical units, on the CPU."""

    frames: Tensor  # (B, V, F, 3, H0, W0) uint8, channels last in memory as decoders write; zero where masked
    view_mask: Tensor  # (B, V, F) bool
    action: Tensor  # (B, S, A) float32, in the store's units; zero where unknown
    action_mask: Tensor  # (B, S, A) bool: this number of this step is known
    dataset: Tensor  # (B,) int64, index into the mixture
    episode: Tensor  # (B,) int64, row in that dataset's version
    step: Tensor  # (B,) int64, current step
    position: Tensor  # (B,) int64, place in the run's sample order
    draws: Tensor  # (B, V, 5) in [0, 1): row, column, brightness, contrast, saturation of the view's augmentation
    latents: Tensor  # (B, V, F, C, h, w) float16, zero where masked: cached, with O frames in `frames`; or F = 0
    state: Tensor  # (B, O, D) float64, in the store's units at the observation's steps; zero where unknown
    state_mask: Tensor  # (B, O, D) bool
    language: Tensor  # (B, E) float32 features of the sample's instruction, zero where there is none
    language_mask: Tensor  # (B,) bool
    embodiment: Tensor  # (B,) int64, id of the robot in the run; 0 is none

    def __len__(self) -> int:
        return len(self.action)

    @classmethod
    def of_images(
        cls, frames: Tensor, view_mask: Tensor, action: Tensor, action_mask: Tensor, robot: int = 0
    ) -> "RawBatch":
        """Samples of no dataset, with central crops, without cached latents; nothing is observed or heard beside.

        Args:
            frames: as the field; so are the next three.
            view_mask: as the field.
            action: as the field.
            action_mask: as the field.
            robot: id of the embodiment of all of them.
        """
        samples, views = view_mask.shape[:2]
        nowhere = torch.zeros(samples, dtype=torch.int64)
        return cls(
            frames=frames,
            view_mask=view_mask,
            action=action,
            action_mask=action_mask,
            dataset=nowhere,
            episode=nowhere,
            step=nowhere,
            position=nowhere,
            draws=torch.full((samples, views, DRAWS), 0.5),
            latents=torch.zeros(samples, views, 0, 0, 0, 0, dtype=torch.float16),
            state=torch.zeros(samples, 1, 0, dtype=torch.float64),
            state_mask=torch.zeros(samples, 1, 0, dtype=torch.bool),
            language=torch.zeros(samples, 0),
            language_mask=torch.zeros(samples, dtype=torch.bool),
            embodiment=torch.full((samples,), robot),
        )

    def pin_memory(self) -> "RawBatch":
        """The batch in page-locked memory (called by torch's DataLoader)."""
        return replace(self, **{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Which part of an optimizer step's samples a batch holds: all of them, or one of several parts of equal size.

    Processes and gradient accumulation divide a step. Its loss is the mean of its micro-batches' losses, so a mean over
    what is known must be over the known elements of an average one: then all together give the mean over the whole
    step, however unevenly the known elements are spread. Noise is drawn for the whole step, and each takes its rows.
    """

    first: int
    """Place of the batch's first sample in the step."""
    samples: int
    """Number of samples of the whole step."""
    known_actions: float
    """Known numbers of actions (steps x dimensions) of an average micro-batch."""
    known_frames: float
    """Known next-observation frames of an average micro-batch, over all views."""


def whole_step(raw: RawBatch, obs_frames: int) -> MicroBatch:
    """A batch that is a step by itself."""
    actions, frames = known_counts(raw, obs_frames)
    return MicroBatch(first=0, samples=len(raw), known_actions=actions, known_frames=frames)


def known_counts(raw: RawBatch, obs_frames: int) -> tuple[int, int]:
    """Known numbers of actions (steps x dimensions) and known next-observation frames of a batch."""
    return int(raw.action_mask.sum()), int(raw.view_mask[:, :, obs_frames:].sum())


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples as a policy takes them: augmented, cropped and normalized, on the policy's device."""

    obs: Tensor  # (B, V, O, 3, H, W) float32 in [0, 1]; zero where masked
    obs_mask: Tensor  # (B, V, O) bool
    next_obs: Tensor  # (B, V, N, 3, H, W) float32 in [0, 1], zero where masked; N = 0 when nobody looks at images
    next_mask: Tensor  # (B, V, N) bool: known, and inside the episode
    action: Tensor  # (B, S, A) float32, normalized to [-1, 1]; zero where unknown
    action_mask: Tensor  # (B, S, A) bool: dimension by dimension, for robots differ in what they have
    obs_latents: Tensor  # (B, V, O, C, h, w) float32, zero where masked: cached; or O = 0
    next_latents: Tensor  # (B, V, N, C, h, w) float32, zero where masked: cached; or N = 0
    state: Tensor  # (B, O, D) float32, normalized to [-1, 1]; zero where unknown
    state_mask: Tensor  # (B, O, D) bool
    language: Tensor  # (B, E) float32 features of an instruction, zero where there is none
    language_mask: Tensor  # (B,) bool
    view_mask: Tensor  # (B, V, O + N) bool: both masks on the host, so that nothing waits for the device
    dataset: Tensor  # (B,) int64 on the host, as in `RawBatch`; so are the next three
    episode: Tensor
    step: Tensor
    position: Tensor
    embodiment: Tensor  # (B,) int64 on the policy's device, as in `RawBatch`
    micro_batch: MicroBatch

    def __len__(self) -> int:
        return len(self.action)

    def known_places(self) -> tuple[Tensor, Tensor]:
        """(M,) int64 of the known frames in the flattened obs and next_obs, on the batch's device."""
        seen, device = self.obs_mask.shape[2], self.obs_mask.device
        masks = (self.view_mask[:, :, :seen].numpy(), self.view_mask[:, :, seen:].numpy())
        obs, following = (torch.from_numpy(np.flatnonzero(mask)).to(device, non_blocking=True) for mask in masks)
        return obs, following


def known_index(mask: Tensor) -> Tensor:
    """(M,) int64: places of what is known, in the flattened mask; on a GPU this waits for all work before it."""
    return mask.flatten().nonzero().squeeze(1)

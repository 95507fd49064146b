"""Batches that come from no dataset, each a step by itself."""

from typing import Any

import torch
from torch import Tensor

from uwm.data.batch import Batch, MicroBatch, RawBatch


def raw_batch(**given: Tensor) -> RawBatch:
    """A batch of `frames`, `view_mask`, `action` and `action_mask`; the rest is there and says nothing."""
    size, views = given["view_mask"].shape[:2]
    none = torch.zeros(size, dtype=torch.int64)
    fields = {
        **dict.fromkeys(("dataset", "episode", "step"), none),
        "position": torch.arange(size),
        "draws": torch.full((size, views, 5), 0.5),
        "latents": torch.zeros(size, views, 0, 0, 0, 0),
        **_untold(size),
        "embodiment": none,
    }
    return RawBatch(**fields | given)


def _untold(size: int) -> dict[str, Tensor]:
    """What batches hold of states and instructions when there are none."""
    return {
        "state": torch.zeros(size, 1, 0, dtype=torch.float64),
        "state_mask": torch.zeros(size, 1, 0, dtype=torch.bool),
        "language": torch.zeros(size, 0),
        "language_mask": torch.zeros(size, dtype=torch.bool),
    }


def image_batch(**given: Any) -> Batch:
    """A batch of images and actions with their masks; the rest follows from them."""
    obs_mask, next_mask, action_mask = (given[name] for name in ("obs_mask", "next_mask", "action_mask"))
    size, views = obs_mask.shape[:2]
    none = torch.zeros(size, dtype=torch.int64)
    fields = {
        **dict.fromkeys(("dataset", "episode", "step", "position"), none),
        **dict.fromkeys(("obs_latents", "next_latents"), torch.zeros(size, views, 0, 0, 0, 0)),
        **_untold(size),
        "embodiment": none.to(action_mask.device),
        "view_mask": torch.cat([obs_mask, next_mask], dim=2).cpu(),
        "micro_batch": MicroBatch(
            first=0, samples=size, known_actions=int(action_mask.sum()), known_frames=int(next_mask.sum())
        ),
    }
    return Batch(**fields | given)


def with_masks(batch: Batch, **masks: Tensor) -> Batch:
    """The same images and actions of which something else is known."""
    names = ("obs", "obs_mask", "next_obs", "next_mask", "action", "action_mask", *_untold(0))
    return image_batch(**{name: getattr(batch, name) for name in names} | masks)

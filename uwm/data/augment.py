"""From raw samples to what a policy takes: crop, colour jitter, normalized actions.

The loader draws a sample's random numbers from the run's seed and the sample's place in the run's order, so they are
the same in any batch, on any device and after any resume.

Dimension letters: B batch, V views, F = O + N frames, H0 and W0 the loader's image size, H and W the
model's.
"""

import torch
from torch import Tensor

from uwm.config import DataConfig
from uwm.data.batch import Batch, MicroBatch, RawBatch, whole_step
from uwm.data.normalize import ActionNormalizer

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness that the eye sees (ITU-R BT.601)."""


def training_batch(
    raw: RawBatch,
    config: DataConfig,
    normalizer: ActionNormalizer,
    *,
    device: torch.device,
    micro_batch: MicroBatch | None = None,
) -> Batch:
    """Augment and normalize a batch for training.

    Each sample and view has one random crop and one colour jitter for all of its frames. With
    `augmentation="batch"` (published) the whole batch shares those of its first sample and view; with
    `"none"` training sees what evaluation sees.

    Args:
        raw: samples on the CPU.
        config: crop, jitter and what is random.
        normalizer: of the actions.
        device: where the batch shall lie.
        micro_batch: which part of its step the batch is; all of it by default.
    """
    part = micro_batch or whole_step(raw, config.obs_frames)
    if config.augmentation == "none":
        return _batch(raw, centre(raw.frames, config, device), config, normalizer, part)
    draws = raw.draws[:1, :1].expand_as(raw.draws) if config.augmentation == "batch" else raw.draws
    return _batch(raw, augment(raw.frames, draws, config, device), config, normalizer, part)


def evaluation_batch(raw: RawBatch, config: DataConfig, normalizer: ActionNormalizer, *, device: torch.device) -> Batch:
    """A batch that is measured, without randomness: centre crop, colours as they are."""
    images = centre(raw.frames, config, device)
    return _batch(raw, images, config, normalizer, whole_step(raw, config.obs_frames))


def augment(frames: Tensor, draws: Tensor, config: DataConfig, device: torch.device) -> Tensor:
    """Crop and jitter frames.

    Args:
        frames: (B, V, F, 3, H0, W0) uint8.
        draws: (B, V, 5) uniform in [0, 1) on the CPU: row, column, brightness, contrast, saturation.
        config: size of the crop, strength of the jitter.
        device: where to work.

    Returns:
        (B, V, F, 3, H, W) float32 in [0, 1].
    """
    images = _crop(frames.to(device, non_blocking=True), _offsets(draws[..., :2], frames, config.crop))
    if not config.jitter:
        return images
    factors = 1 + config.jitter * (2 * draws[..., 2:] - 1)
    return jitter_colours(images, factors.to(device, non_blocking=True))


def centre(frames: Tensor, config: DataConfig, device: torch.device) -> Tensor:
    """Centre crops of frames (B, V, F, 3, H0, W0) uint8: (B, V, F, 3, H, W) float32 in [0, 1]."""
    middle = torch.full((*frames.shape[:2], 2), 0.5)
    return _crop(frames.to(device, non_blocking=True), _offsets(middle, frames, config.crop))


def jitter_colours(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, as one affine map of the colours of each frame.

    Contrast pulls towards the frame's own mean brightness, saturation towards each pixel's. Values
    are cut to [0, 1] once, at the end.

    Args:
        images: (B, V, F, 3, H, W) float32 in [0, 1].
        factors: (B, V, 3) brightness, contrast, saturation; 1 changes nothing.

    Returns:
        (B, V, F, 3, H, W) in [0, 1].
    """
    brightness, contrast, saturation = factors[:, :, None].unbind(-1)  # 3 x (B, V, 1)
    luma = images.new_tensor(_LUMA)
    gray = images.mean(dim=(-2, -1)) @ luma  # (B, V, F)
    shift = brightness * (1 - contrast) * gray  # (B, V, F)
    amount = saturation[..., None, None]
    colours = amount * torch.eye(3, device=images.device) + (1 - amount) * luma.expand(3, 3)  # (B, V, 1, 3, 3)
    colours = (brightness * contrast)[..., None, None] * colours
    mapped = (colours @ images.flatten(-2)).view_as(images)  # (B, V, F, 3, H, W)
    return mapped.add_(shift[..., None, None, None]).clamp_(0, 1)


def _offsets(draws: Tensor, frames: Tensor, crop: tuple[int, int]) -> list[list[list[int]]]:
    """Uniform (B, V, 2) in [0, 1) -> top and left of every crop, each possible one equally likely."""
    room = torch.tensor([frames.shape[-2] - crop[0] + 1, frames.shape[-1] - crop[1] + 1])
    corners: list[list[list[int]]] = (draws * room).long().clamp(max=room - 1).tolist()
    return [[[*corner, *crop] for corner in row] for row in corners]


def _crop(frames: Tensor, boxes: list[list[list[int]]]) -> Tensor:
    """(B, V, F, 3, H0, W0) uint8 -> (B, V, F, 3, H, W) float32 in [0, 1].

    Slices copy whole rows of bytes; indexing all boxes at once would need an index tensor eight times
    the size of the images.
    """
    height, width = boxes[0][0][2:]
    images = torch.empty(*frames.shape[:4], height, width, device=frames.device)
    for sample, row, target in zip(frames, boxes, images, strict=True):
        for view, (y, x, h, w), out in zip(sample, row, target, strict=True):
            out.copy_(view[..., y : y + h, x : x + w])
    return images.div_(255)


def _batch(
    raw: RawBatch, images: Tensor, config: DataConfig, normalizer: ActionNormalizer, micro_batch: MicroBatch
) -> Batch:
    device = images.device
    view_mask = raw.view_mask.to(device, non_blocking=True)
    images = images.mul_(view_mask[:, :, : images.shape[2], None, None, None])  # contrast may have lit what is masked
    action = normalizer.normalize(raw.action, raw.embodiment, config.robots)  # small: on the CPU it waits for nothing
    action = action.where(raw.action_mask, 0.0)
    state = normalizer.normalize_states(raw.state, raw.embodiment, config.robots).where(raw.state_mask, 0.0).float()
    seen = config.obs_frames
    latents = raw.latents.to(device, non_blocking=True).float()
    return Batch(
        obs=images[:, :, :seen],
        obs_mask=view_mask[:, :, :seen],
        next_obs=images[:, :, seen:],
        next_mask=view_mask[:, :, seen:],
        action=action.to(device, non_blocking=True),
        action_mask=raw.action_mask.to(device, non_blocking=True),
        obs_latents=latents[:, :, :seen],
        next_latents=latents[:, :, seen:],
        state=state.to(device, non_blocking=True),
        state_mask=raw.state_mask.to(device, non_blocking=True),
        language=raw.language.to(device, non_blocking=True),
        language_mask=raw.language_mask.to(device, non_blocking=True),
        view_mask=raw.view_mask,
        dataset=raw.dataset,
        episode=raw.episode,
        step=raw.step,
        position=raw.position,
        embodiment=raw.embodiment.to(device, non_blocking=True),
        micro_batch=micro_batch,
    )

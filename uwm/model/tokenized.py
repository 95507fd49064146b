"""What all policies share: a frozen tokenizer beside the network, and modes that share one encoding.

Dimension letters: B batch, V views, N frames, H and W image height and width, C latent channels, h and w latent
height and width, O current frames.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from storage_schemas.errors import UserError
from uwm.config import DataConfig
from uwm.data.batch import Batch
from uwm.diffusion.modes import MODES, Role
from uwm.model.tokenizer import Tokenizer
from uwm.policies import LatentDiffusionConfig, Patch
from uwm.policy import EncodedObs, Mode, Policy, Sample


class _Frozen:
    """Keeps a network out of its owner's parameters and state; copies of the owner share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class TokenizedPolicy(Policy):
    """A policy that holds its tokenizer, which is not part of its state.

    Args:
        tokenizer: what turns images into what the network predicts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._frozen = _Frozen(tokenizer)
        self.tokenizer_fingerprint = tokenizer.fingerprint

    @abstractmethod
    def encode_batch(self, batch: Batch, *, next_obs: bool = True) -> EncodedObs:
        """Encode what is known of a batch, once for all modes; without `next_obs` that counts as unknown."""

    @abstractmethod
    def sample_encoded(self, encoded: Any, mode: Mode, generator: torch.Generator) -> Sample:
        """`sample` of a batch that is already encoded."""

    def sample_modes(self, encoded: Any, modes: Sequence[Mode], generator: torch.Generator) -> Mapping[Mode, Sample]:
        """Several modes, each as `sample_encoded` gives it with a generator in the same state."""
        state, samples = generator.get_state(), {}
        for mode in modes:
            generator.set_state(state)
            samples[mode] = self.sample_encoded(encoded, mode, generator)
        return samples

    def sample(self, batch: Batch, mode: Mode, generator: torch.Generator) -> Sample:
        """Predict what `mode` asks for, from noise drawn from `generator`.

        Raises:
            UserError: when the policy has no such mode.
        """
        with torch.no_grad():
            encoded = self.encode_batch(batch, next_obs=MODES[mode].next_obs is Role.CLEAN)
        return self.sample_encoded(encoded, mode, generator)

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer."""
        return self._frozen.tokenizer

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, V, N, 3, H, W) in [0, 1] -> latents (B, V, C, N, h, w)."""
        latents = self.tokenizer.encode(images.flatten(0, 2)).float()  # (B V N, C, h, w)
        return latents.view(*images.shape[:3], *latents.shape[1:]).transpose(2, 3)  # (B, V, C, N, h, w)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, V, C, N, h, w) -> images (B, V, N, 3, H, W) in [0, 1]."""
        by_frame = latents.transpose(2, 3)  # (B, V, N, C, h, w)
        images = self.tokenizer.decode(by_frame.flatten(0, 2)).float()  # (B V N, 3, H, W)
        return images.view(*by_frame.shape[:3], *images.shape[1:])  # (B, V, N, 3, H, W)

    def encode_known(self, images: Tensor, mask: Tensor, places: Tensor | None, cached: Tensor | None = None) -> Tensor:
        """Latents of what is known.

        Args:
            images: (B, V, N, 3, H, W).
            mask: (B, V, N) bool: known.
            places: (M,) those of the known images, so that absent views cost nothing; None asks for zeros.
            cached: (B, V, N, C, h, w) latents, with which the images are not looked at; none where N is 0.

        Returns:
            (B, V, C, N, h, w), zero where unknown.
        """
        if cached is not None and cached.shape[2] and places is not None:
            return torch.where(mask[..., None, None, None], cached, 0.0).transpose(2, 3)
        height, width = (side // self.tokenizer.downsample for side in images.shape[-2:])
        flat = images.new_zeros(mask.numel(), self.tokenizer.channels, height, width)
        if places is not None and len(places):
            flat[places] = self.tokenizer.encode(images.flatten(0, 2)[places]).float()
        return flat.view(*mask.shape, *flat.shape[1:]).transpose(2, 3)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Take the tokenizer along to another device or type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tokenizer._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def latent_size(data: DataConfig, patch: Patch, downsample: int) -> tuple[int, int, int]:
    """(N, h, w) of the latents.

    Raises:
        UserError: when the image is not divisible by the tokenizer's downsampling, or the latents by the patch.
    """
    (height, width), frames = data.crop, data.next_frames
    size = (frames, height // downsample, width // downsample)
    if height % downsample or width % downsample:
        raise UserError(f"data.crop {height}x{width} is not divisible by the tokenizer's downsampling of {downsample}")
    if any(latent % p for latent, p in zip(size, patch, strict=True)):
        raise UserError(
            f"latents of {size[0]} frames x {size[1]} x {size[2]} (data.next_frames {frames}, data.crop "
            f"{height}x{width}, downsampling {downsample}) are not divisible by policy.patch {patch}"
        )
    return size


def latent_reference(current: Tensor, config: LatentDiffusionConfig) -> Tensor:
    """What diffused latents are relative to: the last current frame's (B, V, C, 1, h, w), or zero."""
    last = current[:, :, :, -1:]  # (B, V, C, 1, h, w)
    return last if config.latent_target == "change" else torch.zeros_like(last)


def same_frames(data: DataConfig, reason: str) -> None:
    """Raise UserError when current and next frames differ in number."""
    if data.obs_frames != data.next_frames:
        raise UserError(f"{reason}: data.obs_frames {data.obs_frames} must equal data.next_frames {data.next_frames}")

"""Next-observation images as latents: three tokenizers, all frozen.

Dimension letters: M images, H and W image height and width, C latent channels, h and w latent height and width.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from storage_schemas.documents import read_document
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.store.latents import NO_VARIANCE
from uwm.config import RunConfig, TokenizerConfig
from uwm.model.autoencoder import Autoencoder

_SDXL_CHUNK = 16


class Tokenizer(nn.Module, ABC):
    """Frozen: no gradient, always in evaluation mode.

    Attributes:
        channels: C.
        downsample: image pixels per latent pixel along each axis.
        fingerprint: changes with everything that changes a latent.
        variance: whether an image's latents have a variance.
    """

    channels: int
    downsample: int
    fingerprint: str
    variance: bool = False

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (M, 3, H, W) in [0, 1] -> latents (M, C, h, w) float32 of about unit scale."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (M, C, h, w) -> images (M, 3, H, W) float32 in [0, 1]."""

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, which is what `encode` gives, and log-variance of the latents (M, C, h, w) of images."""
        mean = self.encode(images)
        return mean, torch.full_like(mean, NO_VARIANCE)

    def train(self, mode: bool = True) -> Self:
        """A frozen network has no training mode; the call is ignored."""
        return super().train(False)

    def _freeze(self) -> None:
        self.eval()
        self.requires_grad_(False)


class IdentityTokenizer(Tokenizer):
    """Pixels scaled to [-1, 1]: for tests and very small images."""

    channels = 3
    downsample = 1
    fingerprint = "identity"

    def encode(self, images: Tensor) -> Tensor:
        """Images (M, 3, H, W) in [0, 1] -> (M, 3, H, W) in [-1, 1]."""
        return images * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (M, 3, H, W) -> images (M, 3, H, W) in [0, 1]."""
        return (latents * 0.5 + 0.5).clamp(0, 1)


class AutoencoderTokenizer(Tokenizer):
    """The project's own autoencoder, from the checkpoint of a tokenizer run."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.channels = autoencoder.channels
        self.downsample = autoencoder.downsample
        self.fingerprint = f"autoencoder-{fingerprint_weights(autoencoder)}"
        self._freeze()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (M, 3, H, W) in [0, 1] -> latents (M, C, h, w) of about unit scale."""
        return self.autoencoder.encode(images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (M, C, h, w) -> images (M, 3, H, W) in [0, 1]."""
        return self.autoencoder.decode(latents)


class SdxlTokenizer(Tokenizer):
    """SDXL's VAE by diffusers (Podell et al. 2023, arXiv 2307.01952): the published choice.

    Encodes to the posterior's mean, a few images at a time. Runs in the precision of its weights: the original
    weights overflow in fp16 (use `madebyollin/sdxl-vae-fp16-fix` there), and are safe in fp32 and bf16.

    Args:
        vae: a `diffusers.AutoencoderKL`.
        latent_scale: divides the latents after the VAE's own factor; the published 3 keeps most of them within 1,
            where published sampling clips.
    """

    variance = True

    def __init__(self, vae: Any, latent_scale: float = 1.0) -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor) / latent_scale
        self.channels = int(vae.config.latent_channels)
        self.downsample = 2 ** (len(vae.config.block_out_channels) - 1)
        self.fingerprint = f"sdxl-{fingerprint_weights(vae)}-{self.scale:g}"
        self._freeze()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (M, 3, H, W) in [0, 1] -> latents (M, C, h, w) of about unit scale."""
        return self.posterior(images)[0]

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (M, 3, H, W) in [0, 1] -> mean and log-variance (M, C, h, w), both of the scaled latents."""
        chunks = torch.chunk((images * 2 - 1).to(self.vae.dtype), _chunks(images))
        posteriors = [self.vae.encode(chunk).latent_dist for chunk in chunks]
        mean = torch.cat([posterior.mean for posterior in posteriors]).float() * self.scale
        logvar = torch.cat([posterior.logvar for posterior in posteriors]).float() + 2 * math.log(self.scale)
        return mean, logvar

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (M, C, h, w) -> images (M, 3, H, W) in [0, 1]."""
        chunks = torch.chunk((latents / self.scale).to(self.vae.dtype), _chunks(latents))
        images = torch.cat([self.vae.decode(chunk).sample for chunk in chunks])
        return (images.float() * 0.5 + 0.5).clamp(0, 1)


def load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that `config` names.

    Raises:
        UserError: when its weights are missing or unreadable.
    """
    if config.kind == "identity":
        return IdentityTokenizer()
    if not config.path:
        raise UserError(f"policy.tokenizer.path is empty: the {config.kind} tokenizer needs the place of its weights")
    with torch.device("cpu"):  # also while a network around it is only laid out
        if config.kind == "sdxl":
            return SdxlTokenizer(load_vae(config.path), config.latent_scale)
        return AutoencoderTokenizer(_load_autoencoder(Path(config.path)))


def fingerprint_weights(module: nn.Module) -> str:
    """16 hexadecimal digits over the names, types and bytes of a network's state."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _chunks(images: Tensor) -> int:
    return -(-len(images) // _SDXL_CHUNK)


def _load_autoencoder(folder: Path) -> Autoencoder:
    from pydantic import ValidationError
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = read_document(locate(folder / "config.json"), RunConfig)
        autoencoder = Autoencoder(config.autoencoder)
        autoencoder.load_state_dict(load_file(folder / "model.safetensors"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no tokenizer checkpoint: it lacks config.json or model.safetensors") from error
    except (ValidationError, SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} can't be read as a tokenizer checkpoint: {reason}") from error
    return autoencoder


def load_vae(path: str) -> Any:
    """SDXL's `AutoencoderKL` from a folder or the hub. Raises UserError when it can't be loaded."""
    from diffusers import AutoencoderKL

    hub_id = path.count("/") == 1 and not Path(path).exists()
    load: Callable[..., Any] = AutoencoderKL.from_pretrained
    try:
        return load(path, local_files_only=not hub_id, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the SDXL VAE can't be loaded from {path}: {reason}") from error

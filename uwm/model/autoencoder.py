"""The small autoencoder that the project trains on its own frames, so that no download is needed.

Dimension letters: B batch, V views, M images, H and W image height and width, C latent channels,
h and w latent height and width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uwm.config import AutoencoderConfig
from uwm.data.batch import Batch
from uwm.policy import Learner, LossOutput

_BOUND = 3.0
_NOISE = 0.05
_MIN_UPDATE = 0.01
_MIN_STD = 1e-3


class Autoencoder(Learner):
    """Images to a few latent channels and back; latents have unit scale by stored statistics.

    The finest features live at half resolution (pixels are folded into channels), which makes it several times
    cheaper than features at full resolution. Latents are bounded smoothly, and the decoder learns from slightly
    noisy ones, so that it forgives the errors of a diffusion model.

    Args:
        config: sizes; `width` features at half resolution, doubled at every further halving.
    """

    latent_mean: Tensor  # (C, 1, 1)
    latent_std: Tensor  # (C, 1, 1)
    updates: Tensor  # () int64

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(config.downsample.bit_length() - 1)]
        self.channels = config.channels
        self.downsample = config.downsample
        self.encoder = _encoder(widths, config.depth, config.channels)
        self.decoder = _decoder(widths, config.depth, config.channels)
        self.register_buffer("latent_mean", torch.zeros(config.channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.channels, 1, 1))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def encode(self, images: Tensor) -> Tensor:
        """Images (M, 3, H, W) in [0, 1] -> latents (M, C, h, w) of about unit scale."""
        return (self._raw_latents(images) - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (M, C, h, w) -> images (M, 3, H, W) in [0, 1]."""
        return self._reconstruct(latents * self.latent_std + self.latent_mean).clamp(0, 1)

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Mean absolute error of every known frame, current or next.

        In training the latent statistics move along, as a running average.

        Args:
            batch: frames and masks; actions are ignored.
            generator: source of the latent noise.
        """
        # Selecting known frames waits for the device once, and saves the work on absent views.
        images = torch.cat([batch.obs[batch.obs_mask], batch.next_obs[batch.next_mask]])  # (M, 3, H, W)
        if not len(images):
            zero = sum((p.sum() * 0 for p in self.parameters()), images.new_zeros(()))
            return LossOutput(loss=zero, logs={"reconstruction": zero.detach(), "psnr": zero.detach()})
        latents = self._raw_latents(images)
        if self.training:
            self._update_statistics(latents.detach())
        noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents.device)
        restored = self._reconstruct(latents + _NOISE * self.latent_std * noise)
        loss = F.l1_loss(restored, images)
        psnr = -10 * F.mse_loss(restored.detach(), images).log10()
        return LossOutput(loss=loss, logs={"reconstruction": loss.detach(), "psnr": psnr})

    def _raw_latents(self, images: Tensor) -> Tensor:
        return _BOUND * torch.tanh(self.encoder(images * 2 - 1).float() / _BOUND)

    def _reconstruct(self, raw_latents: Tensor) -> Tensor:
        restored: Tensor = self.decoder(raw_latents)
        return restored.float() * 0.5 + 0.5

    @torch.no_grad()
    def _update_statistics(self, latents: Tensor) -> None:
        """Average over the first batches, then an exponential average; no value leaves the device."""
        std, mean = torch.std_mean(latents, dim=(0, 2, 3), correction=0)
        self.updates += 1
        share = (1 / self.updates).clamp(min=_MIN_UPDATE)
        self.latent_mean.lerp_(mean.view(-1, 1, 1), share)
        self.latent_std.lerp_(std.clamp(min=_MIN_STD).view(-1, 1, 1), share)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose result is added; the second starts at zero, so the block starts as identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(M, width, h, w) -> (M, width, h, w)."""
        out: Tensor = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        return out


def _encoder(widths: list[int], depth: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), _conv(12, widths[0])]
    for level, width in enumerate(widths):
        if level:
            layers.append(_conv(widths[level - 1], width, stride=2))
        layers += [ResidualBlock(width) for _ in range(depth)]
    return nn.Sequential(*layers, nn.SiLU(), _conv(widths[-1], channels))


def _decoder(widths: list[int], depth: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(channels, widths[-1])]
    for level in reversed(range(len(widths))):
        layers += [ResidualBlock(widths[level]) for _ in range(depth)]
        if level:
            layers += [nn.Upsample(scale_factor=2), _conv(widths[level], widths[level - 1])]
    return nn.Sequential(*layers, nn.SiLU(), _conv(widths[0], 12), nn.PixelShuffle(2))


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1)
    nn.init.normal_(conv.weight, std=1 / math.sqrt(9 * inputs))
    return conv

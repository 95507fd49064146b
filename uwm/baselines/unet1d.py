"""The 1-D U-Net of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137), under its published parameter names.

Dimension letters: B batch, S action steps, A action dimensions, C channels, T length at some level, G condition
features.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from uwm.baselines.dp_network import TimestepEncoder
from uwm.policies import DpUnetConfig


class Conv1dBlock(nn.Module):
    """Convolution, GroupNorm, Mish."""

    def __init__(self, inputs: int, outputs: int, *, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel_size, padding=kernel_size // 2), nn.GroupNorm(groups, outputs), nn.Mish()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, outputs, T)."""
        out: Tensor = self.block(x)
        return out


class ConditionalResidualBlock1d(nn.Module):
    """Two convolution blocks beside a skip connection; between them the condition scales and shifts the channels.

    That is FiLM (Perez et al. 2018, arXiv 1709.07871).
    """

    def __init__(self, inputs: int, outputs: int, cond_dim: int, *, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                Conv1dBlock(inputs, outputs, kernel_size=kernel_size, groups=groups),
                Conv1dBlock(outputs, outputs, kernel_size=kernel_size, groups=groups),
            ]
        )
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * outputs))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """(B, C, T), (B, G) -> (B, outputs, T)."""
        scale, shift = self.cond_encoder(cond).unsqueeze(-1).chunk(2, dim=1)  # 2 x (B, outputs, 1)
        hidden = scale * self.blocks[0](x) + shift  # (B, outputs, T)
        out: Tensor = self.blocks[1](hidden) + self.residual_conv(x)
        return out


class Downsample1d(nn.Module):
    """Half the length."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T/2)."""
        out: Tensor = self.conv(x)
        return out


class Upsample1d(nn.Module):
    """Twice the length."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, 2 T)."""
        out: Tensor = self.conv(x)
        return out


class ConditionalUnet1d(nn.Module):
    """Denoises an action chunk by convolutions along time; FiLM by [timestep embedding, condition] in every block.

    Args:
        config: channels at each level, where the length halves from one to the next, and sizes.
        input_len: S, divisible by 2 to the number of widths less one.
        input_dim: A.
        global_cond_dim: G.

    Raises:
        ValueError: when the length can't be halved that often.
    """

    def __init__(self, config: DpUnetConfig, *, input_len: int, input_dim: int, global_cond_dim: int) -> None:
        super().__init__()
        widths, kernel_size, groups = config.widths, config.kernel_size, config.groups
        halvings = len(widths) - 1
        if input_len % 2**halvings:
            raise ValueError(f"{input_len} action steps can't be halved {halvings} times")
        cond_dim = config.timestep_embed_dim + global_cond_dim

        def residual(inputs: int, outputs: int) -> ConditionalResidualBlock1d:
            return ConditionalResidualBlock1d(inputs, outputs, cond_dim, kernel_size=kernel_size, groups=groups)

        self.diffusion_step_encoder = TimestepEncoder(config.timestep_embed_dim)
        self.down_modules = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(pairwise((input_dim, *widths))):
            last = nn.Identity() if level == halvings else Downsample1d(outputs)
            self.down_modules.append(nn.ModuleList([residual(inputs, outputs), residual(outputs, outputs), last]))
        self.mid_modules = nn.ModuleList([residual(widths[-1], widths[-1]), residual(widths[-1], widths[-1])])
        self.up_modules = nn.ModuleList(
            nn.ModuleList([residual(2 * inputs, outputs), residual(outputs, outputs), Upsample1d(outputs)])
            for inputs, outputs in pairwise(reversed(widths))
        )
        self.final_conv = nn.Sequential(
            Conv1dBlock(widths[0], widths[0], kernel_size=kernel_size, groups=groups),
            nn.Conv1d(widths[0], input_dim, 1),
        )

    def forward(self, action: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Noisy actions (B, S, A), integers (B,), condition (B, G) -> predicted noise or clean actions (B, S, A)."""
        cond = torch.cat([self.diffusion_step_encoder(timestep), cond], dim=1)
        x, skips = action.transpose(1, 2).to(cond.dtype), []  # (B, A, S)
        for level in self.down_modules:
            first, second, down = cast(nn.ModuleList, level)
            x = second(first(x, cond), cond)
            skips.append(x)
            x = down(x)
        for block in self.mid_modules:
            x = block(x, cond)  # (B, C, S / 2^halvings)
        for level in self.up_modules:
            first, second, up = cast(nn.ModuleList, level)
            x = up(second(first(torch.cat([x, skips.pop()], dim=1), cond), cond))
        out: Tensor = self.final_conv(x).transpose(1, 2)  # (B, S, A)
        return out

"""Building blocks of the diffusion transformer, under the parameter names of the published networks.

Dimension letters: B batch, L tokens, D features, G features of the conditioning vector, K timesteps per sample.
Peebles & Xie 2023 (DiT, arXiv 2212.09748) introduce the AdaLN-Zero block; UWM (arXiv 2504.02792) uses it
with the observation's features and both timesteps as the condition.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from uwm.model.attention import Attention

_MAX_PERIOD = 10_000.0
_NORM_EPS = 1e-6


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift of normalized tokens (B, L, D) by one vector (B, D) per sample."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Sines and cosines of timesteps (...,) at `dim / 2` geometric frequencies -> (..., dim)."""
    half = dim // 2
    rate = torch.arange(half, device=timestep.device, dtype=torch.float32) * (-math.log(_MAX_PERIOD) / (half - 1))
    angle = timestep.float().unsqueeze(-1) * rate.exp()  # (..., dim / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def mish_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, Mish, Linear: the shape of every input, output and timestep network."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Mish(), nn.Linear(hidden, outputs))


def silu_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """The same with SiLU, as PAD has it."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class TimestepEmbedding(nn.Module):
    """Several diffusion timesteps of a sample as one vector.

    Args:
        dim: features of each timestep's sinusoid, and of the result.
        count: K, timesteps per sample.
        mlp: makes the network behind the sinusoids, from its input, hidden and output features.
    """

    def __init__(self, dim: int, count: int, mlp: Callable[[int, int, int], nn.Sequential] = mish_mlp) -> None:
        super().__init__()
        self.dim = dim
        self.proj = mlp(count * dim, 4 * dim, dim)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B, K) integers -> (B, dim)."""
        out: Tensor = self.proj(sinusoid(timesteps, self.dim).flatten(1))
        return out


class Mlp(nn.Module):
    """The transformer's feed-forward network: Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class AdaLNBlock(nn.Module):
    """Attention and feed-forward network, each normalized, shifted, scaled and gated by the condition.

    Args:
        dim: D.
        cond_dim: G.
        num_heads: attention heads.
        mlp_ratio: hidden features of the feed-forward network per feature.
        qkv_bias: see `Attention`.
    """

    def __init__(self, dim: int, cond_dim: int, *, num_heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=_NORM_EPS)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 6 * dim))

    def forward(self, x: Tensor, cond: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, L, D), (B, G) and what may be attended to, (B, L) bool -> (B, L, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(cond).chunk(6, dim=1)  # 6 x (B, D)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1), keys)
        out: Tensor = x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return out  # (B, L, D)


class AdaLNHead(nn.Module):
    """The last normalization, shifted and scaled by the condition, and a projection."""

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=_NORM_EPS)
        self.linear = nn.Linear(dim, dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 2 * dim))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """(B, L, D), (B, G) -> (B, L, D)."""
        shift, scale = self.adaLN_modulation(cond).chunk(2, dim=1)  # 2 x (B, D)
        out: Tensor = self.linear(modulate(self.norm(x), shift, scale))  # (B, L, D)
        return out


def init_weights(module: nn.Module) -> None:
    """Truncated normal weights of deviation 0.02, zero biases, and zero modulation: every block starts as identity.

    Apply to a whole network with `network.apply(init_weights)`.
    """
    if isinstance(module, nn.Linear | nn.Conv3d | nn.ConvTranspose3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, AdaLNBlock | AdaLNHead):  # apply() visits children first, so this has the last word
        modulation = module.adaLN_modulation[1]
        for parameter in modulation.parameters():
            nn.init.zeros_(parameter)

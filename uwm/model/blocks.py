"""Building blocks of the diffusion transformer, under the parameter names of the published networks.

Dimension letters: B batch, L tokens, D features, G features of the conditioning vector, K timesteps per sample.
Peebles & Xie 2023 (DiT, arXiv 2212.09748) introduce the AdaLN-Zero block; UWM (arXiv 2504.02792) uses it
with the observation's features and both timesteps as the condition.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uwm.model.attention import Attention
from uwm.policies import AdaLNConfig

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
        marked_steps: timesteps of the schedule, when those outside of it have learned features of their own: below 0
            marks a clean modality, from `marked_steps` on an absent one. 0 (published) marks both by timesteps inside.
        mlp: makes the network behind the sinusoids, from its input, hidden and output features.
    """

    def __init__(
        self,
        dim: int,
        count: int,
        *,
        marked_steps: int = 0,
        mlp: Callable[[int, int, int], nn.Sequential] = mish_mlp,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.marked_steps = marked_steps
        self.proj = mlp(count * dim, 4 * dim, dim)
        if marked_steps:
            self.markers = nn.Parameter(torch.zeros(count, 3, dim))  # noised, clean, absent

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B, K) integers -> (B, dim)."""
        if self.marked_steps:
            state = (timesteps < 0) + 2 * (timesteps >= self.marked_steps)  # (B, K)
            marker = self.markers[torch.arange(state.shape[1], device=state.device), state]  # (B, K, dim)
            features = sinusoid(timesteps.clamp(0, self.marked_steps - 1), self.dim) + marker
        else:
            features = sinusoid(timesteps, self.dim)  # (B, K, dim)
        out: Tensor = self.proj(features.flatten(1).to(next(self.parameters()).dtype))
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


@dataclass(frozen=True, kw_only=True)
class Precomputed:
    """What a modulation's first linear map makes of condition and timesteps."""

    total: Tensor  # (B, outputs of that map)


class Modulation(nn.Sequential):
    """Shifts, scales and gates from [condition, timesteps]: SiLU and a linear map, or two through a low rank.

    Args:
        cond_dim: G, features of condition and timesteps together.
        outputs: features of the result.
        rank: of the map; 0 is a full one, as published.
    """

    def __init__(self, cond_dim: int, outputs: int, *, rank: int = 0) -> None:
        full, narrow = (cond_dim, outputs), (cond_dim, rank)
        maps = [nn.Linear(*narrow, bias=False), nn.Linear(rank, outputs)] if rank else [nn.Linear(*full)]
        super().__init__(nn.SiLU(), *maps)

    def precompute(self, cond: Tensor) -> Tensor:
        """What the leading inputs (B, less than G) add: W silu([g, t]) is a sum over g and t."""
        return F.linear(F.silu(cond), self._first.weight[:, : cond.shape[1]], self._first.bias)

    def precompute_timesteps(self, timesteps: Tensor) -> Tensor:
        """What the trailing inputs (K, the rest of G) add."""
        return F.linear(F.silu(timesteps), self._first.weight[:, -timesteps.shape[1] :])

    def forward(self, cond: Tensor | Precomputed) -> Tensor:
        """(B, G) or what was made of it ahead -> (B, outputs)."""
        out = cond.total if isinstance(cond, Precomputed) else self._first(F.silu(cond))
        return out if self[-1] is self._first else self[-1](out)

    @property
    def _first(self) -> nn.Linear:
        return cast(nn.Linear, self[1])


class Offset(nn.Module):
    """What a block adds to the modulation that all blocks share (PixArt-alpha, Chen et al. 2023, arXiv 2310.00426)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(outputs))

    def forward(self, shared: Tensor) -> Tensor:
        """(B, outputs) -> (B, outputs)."""
        return shared + self.offset


class AdaLNBlock(nn.Module):
    """Attention and feed-forward network, each normalized, shifted, scaled and gated by the condition.

    Args:
        config: D, heads, kernel and sizes.
        cond_dim: G.
        modulation: maps what `forward` gets as its condition to (B, 6 D); a full `Modulation` by default.
    """

    def __init__(self, config: AdaLNConfig, cond_dim: int, modulation: nn.Module | None = None) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=_NORM_EPS)
        self.attn = Attention(dim, config.num_heads, qkv_bias=config.qkv_bias, kernel=config.attention)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.adaLN_modulation = modulation or Modulation(cond_dim, 6 * dim)

    def forward(self, x: Tensor, cond: Tensor | Precomputed, keys: Tensor | None = None) -> Tensor:
        """(B, L, D), (B, G), the (B, L) tokens that may be looked at -> (B, L, D)."""
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
        self.adaLN_modulation = Modulation(cond_dim, 2 * dim)

    def forward(self, x: Tensor, cond: Tensor | Precomputed) -> Tensor:
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
    if isinstance(module, Modulation):  # apply() visits children first, so this has the last word
        for parameter in module[-1].parameters():
            nn.init.zeros_(parameter)

"""The transformer of Diffusion Policy, as UWM's implementation has it: AdaLN blocks over action tokens.

Dimension letters: B batch, S action steps, A action dimensions, D features, G condition features.
"""

import torch
from torch import Tensor, nn

from uwm.model.blocks import AdaLNBlock, AdaLNHead, init_weights, mish_mlp, sinusoid
from uwm.policies import DpConfig


class TimestepEncoder(nn.Sequential):
    """Sinusoids and a network: timesteps (B,) -> (B, dim). Its layers are numbered from 1, as published."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Identity(), *mish_mlp(dim, 4 * dim, dim))
        self.dim = dim

    def forward(self, timestep: Tensor) -> Tensor:
        """(B,) -> (B, dim)."""
        features = sinusoid(timestep, self.dim).to(next(self.parameters()).dtype)
        out: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        return out


class DpTransformer(nn.Module):
    """Denoises an action chunk; every block is modulated by [condition, timestep embedding].

    Args:
        config: sizes.
        input_len: S.
        input_dim: A.
        global_cond_dim: G.
    """

    def __init__(self, config: DpConfig, *, input_len: int, input_dim: int, global_cond_dim: int) -> None:
        super().__init__()
        embed_dim = config.embed_dim
        hidden = int(max(input_dim, embed_dim) * config.mlp_ratio)
        cond_dim = global_cond_dim + config.timestep_embed_dim
        self.input_encoder = mish_mlp(input_dim, hidden, embed_dim)
        self.output_decoder = mish_mlp(embed_dim, hidden, input_dim)
        self.timestep_encoder = TimestepEncoder(config.timestep_embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, input_len, embed_dim))
        self.blocks = nn.ModuleList(AdaLNBlock(config, cond_dim) for _ in range(config.depth))
        self.head = AdaLNHead(embed_dim, cond_dim)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, action: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Noisy actions (B, S, A), integers (B,), condition (B, G) -> predicted noise or clean actions (B, S, A)."""
        x = self.input_encoder(action.to(self.pos_embed.dtype)) + self.pos_embed  # (B, S, D)
        cond = torch.cat([cond, self.timestep_encoder(timestep)], dim=1)  # (B, G + timestep features)
        for block in self.blocks:
            x = block(x, cond)
        out: Tensor = self.output_decoder(self.head(x, cond))  # (B, S, A)
        return out

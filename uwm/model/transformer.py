"""The diffusion transformer over actions and next observations.

Dimension letters: B batch, S action steps, A action dimensions, V views, C latent channels, F latent frames,
H and W latent height and width, P patch tokens, R registers, L = S + P + R tokens, D features, G condition features.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from uwm.model.blocks import (
    AdaLNBlock,
    AdaLNHead,
    Modulation,
    Offset,
    Precomputed,
    TimestepEmbedding,
    init_weights,
    mish_mlp,
)
from uwm.model.patchify import Patchifier
from uwm.policies import UwmConfig


@dataclass(frozen=True, kw_only=True)
class PrecomputedModulation:
    """The first linear map of every modulation, for a loop in which only the timesteps change."""

    times: Tensor  # (K, 2) timesteps of action and next observation that can occur
    conditions: tuple[Tensor, ...]  # (B, ...) what the condition adds, for every modulation
    tables: tuple[Tensor, ...]  # (K + 1, ...) of `times`; the last row is NaN, for timesteps that are none of them

    def repeat(self, count: int) -> "PrecomputedModulation":
        """For the same batch so many times over."""
        return replace(self, conditions=tuple(part.repeat(count, 1) for part in self.conditions))

    def at(self, timesteps: Tensor) -> list[Precomputed]:
        """What the modulations of a step need; `timesteps` is (B, 2)."""
        match = (timesteps[:, None] == self.times).all(dim=2)  # (B, K)
        row = torch.where(match.any(dim=1), match.int().argmax(dim=1), len(self.times))
        pairs = zip(self.conditions, self.tables, strict=True)
        return [Precomputed(total=part + table[row]) for part, table in pairs]


class DiffusionTransformer(nn.Module):
    """UWM's network (Zhu et al. 2025, arXiv 2504.02792), with the published parameter names.

    One sequence [action tokens, patch tokens, registers] with learned positions; every block is modulated by
    [condition, embedding of the action's and the next observation's timestep].

    Args:
        config: sizes, modulation and conventions.
        global_cond_dim: G, features of the condition (the observation's).
        image_shape: (F, H, W) of the next observation's latents.
        num_chans: C.
        num_views: V.
        action_len: S.
        action_dim: A.

    Raises:
        ValueError: when the patch does not divide the latents.
    """

    def __init__(
        self,
        config: UwmConfig,
        *,
        global_cond_dim: int,
        image_shape: tuple[int, int, int],
        num_chans: int,
        num_views: int,
        action_len: int,
        action_dim: int,
    ) -> None:
        super().__init__()
        embed_dim, diffusion = config.embed_dim, config.diffusion
        hidden = int(embed_dim * config.mlp_ratio)
        cond_dim = global_cond_dim + config.timestep_embed_dim
        self.action_len = action_len
        self.action_encoder = mish_mlp(action_dim, hidden, embed_dim)
        self.action_decoder = mish_mlp(embed_dim, hidden, action_dim)
        self.obs_patchifier = Patchifier(
            image_shape=image_shape,
            patch_shape=config.patch,
            num_chans=num_chans,
            num_views=num_views,
            embed_dim=embed_dim,
            extra_chans=num_chans if config.current_latents else 0,
        )
        marked_steps = diffusion.train_timesteps if diffusion.absent_embedding else 0
        self.timestep_embedding = TimestepEmbedding(config.timestep_embed_dim, count=2, marked_steps=marked_steps)
        self.registers = nn.Parameter(torch.empty(1, config.num_registers, embed_dim))
        self.num_tokens = action_len + self.obs_patchifier.num_patches + config.num_registers
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_tokens, embed_dim))
        shared, rank = config.adaln == "shared", config.adaln_rank if config.adaln == "low_rank" else 0
        outputs = 6 * embed_dim
        self.shared_modulation = Modulation(cond_dim, outputs) if shared else None
        self.blocks = nn.ModuleList(
            AdaLNBlock(config, cond_dim, Offset(outputs) if shared else Modulation(cond_dim, outputs, rank=rank))
            for _ in range(config.depth)
        )
        self.head = AdaLNHead(embed_dim, cond_dim)
        self.apply(init_weights)
        for tokens in (self.registers, self.pos_embed):
            nn.init.trunc_normal_(tokens, std=0.02)

    def forward(
        self,
        cond: Tensor | PrecomputedModulation,
        action: Tensor,
        next_obs: Tensor | None,
        action_t: Tensor,
        next_obs_t: Tensor,
        context: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the noise (or the clean sample, or v) of both modalities.

        Args:
            cond: (B, G) features of the current observation, or what `precompute` made of them.
            action: (B, S, A) noisy actions.
            next_obs: (B, V, C, F, H, W) noisy latents; None leaves their tokens out of the sequence.
            action_t: (B,) integer timesteps of the actions.
            next_obs_t: (B,) integer timesteps of the latents.
            context: (B, V, C, F, H, W) known latents, with `current_latents`.
            keys: (B, L) bool, the tokens that may be looked at; None is all.

        Returns:
            Predictions (B, S, A) and (B, V, C, F, H, W), or None without their tokens.
        """
        x = self._embed(action, next_obs, context)  # (B, L, D)
        *conds, last = self._conditions(cond, torch.stack([action_t, next_obs_t], dim=1))
        for block, block_cond in zip(self.blocks, conds, strict=True):
            x = block(x, block_cond, keys)
        x = self.head(x, last)  # (B, L, D)
        action_out = self.action_decoder(x[:, : self.action_len])
        if next_obs is None:
            return action_out, None
        patches = x[:, self.action_len : self.action_len + self.obs_patchifier.num_patches]
        return action_out, self.obs_patchifier.decode(patches)

    def precompute(self, cond: Tensor, times: Tensor) -> PrecomputedModulation:
        """Compute ahead what modulates a batch with the condition (B, G) at timesteps `times` (K, 2).

        At other timesteps the network answers NaN.
        """
        embedded = self.timestep_embedding(times)  # (K, timestep features)
        tables = [modulation.precompute_timesteps(embedded) for modulation in self._modulations()]
        return PrecomputedModulation(
            times=times,
            conditions=tuple(modulation.precompute(cond) for modulation in self._modulations()),
            tables=tuple(torch.cat([table, torch.full_like(table[:1], torch.nan)]) for table in tables),
        )

    def _embed(self, action: Tensor, next_obs: Tensor | None, context: Tensor | None) -> Tensor:
        """[action tokens, patch tokens if there are latents, registers] with their positions, (B, L, D)."""
        dtype, until = self.pos_embed.dtype, self.action_len + self.obs_patchifier.num_patches
        start, middle, end = self.pos_embed.tensor_split([self.action_len, until], dim=1)
        parts = [self.action_encoder(action.to(dtype)) + start]
        if next_obs is not None:
            seen = next_obs if context is None else torch.cat([next_obs, context], dim=2)
            parts.append(self.obs_patchifier.encode(seen.to(dtype)) + middle)
        parts.append((self.registers + end).expand(len(action), -1, -1))
        return torch.cat(parts, dim=1)

    def _modulations(self) -> list[Modulation]:
        """Those that see the condition."""
        shared = self.shared_modulation
        blocks = [block.adaLN_modulation for block in self.blocks] if shared is None else [shared]
        return [*blocks, self.head.adaLN_modulation]

    def _conditions(self, cond: Tensor | PrecomputedModulation, timesteps: Tensor) -> list[Tensor | Precomputed]:
        """What each block and the head are conditioned on."""
        each: list[Tensor | Precomputed]
        if isinstance(cond, PrecomputedModulation):
            each = [*cond.at(timesteps)]
        else:
            joined = torch.cat([cond, self.timestep_embedding(timesteps)], dim=1)  # (B, G + timestep features)
            each = [joined] * len(self._modulations())
        *blocks, head = each
        if self.shared_modulation is not None:
            blocks = [self.shared_modulation(blocks[0])] * len(self.blocks)  # (B, 6 D)
        return [*blocks, head]

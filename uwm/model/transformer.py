"""The diffusion transformer over actions and next observations.

Dimension letters: B batch, S action steps, A action dimensions, V views, C latent channels, F latent frames,
H and W latent height and width, P patch tokens, R registers, L = S + P + R tokens, D features, G condition features.
"""

import torch
from torch import Tensor, nn

from uwm.model.blocks import AdaLNBlock, AdaLNHead, TimestepEmbedding, init_weights, mish_mlp
from uwm.model.patchify import Patchifier


class DiffusionTransformer(nn.Module):
    """UWM's network (Zhu et al. 2025, arXiv 2504.02792), with the published parameter names and argument names.

    One sequence [action tokens, patch tokens, registers] with learned positions; every block is modulated by
    [condition, embedding of the action's and the next observation's timestep].

    Args:
        global_cond_dim: G, features of the condition (the observation's).
        image_shape: (F, H, W) of the next observation's latents.
        patch_shape: (frames, height, width) of a patch; must divide `image_shape`.
        num_chans: C.
        num_views: V.
        action_len: S.
        action_dim: A.
        embed_dim: D.
        timestep_embed_dim: features of the timestep embedding.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden features of the feed-forward networks per feature.
        qkv_bias: whether the attention projection has a bias.
        num_registers: R (Darcet et al. 2024, arXiv 2309.16588).
        context_chans: channels of known latents that are joined to the noisy ones, as PAD does (Guo et al. 2024,
            arXiv 2411.18179); 0 is published UWM.

    Raises:
        ValueError: when the patch does not divide the latents.
    """

    def __init__(
        self,
        *,
        global_cond_dim: int,
        image_shape: tuple[int, int, int],
        patch_shape: tuple[int, int, int],
        num_chans: int,
        num_views: int,
        action_len: int,
        action_dim: int,
        embed_dim: int,
        timestep_embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        num_registers: int,
        context_chans: int = 0,
    ) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        cond_dim = global_cond_dim + timestep_embed_dim
        self.action_len = action_len
        self.num_heads = num_heads
        self.action_encoder = mish_mlp(action_dim, hidden, embed_dim)
        self.action_decoder = mish_mlp(embed_dim, hidden, action_dim)
        self.obs_patchifier = Patchifier(
            image_shape=image_shape,
            patch_shape=patch_shape,
            num_chans=num_chans,
            num_views=num_views,
            embed_dim=embed_dim,
            extra_chans=context_chans,
        )
        self.timestep_embedding = TimestepEmbedding(timestep_embed_dim, count=2)
        self.registers = nn.Parameter(torch.empty(1, num_registers, embed_dim))
        self.num_tokens = action_len + self.obs_patchifier.num_patches + num_registers
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_tokens, embed_dim))
        self.blocks = nn.ModuleList(
            AdaLNBlock(embed_dim, cond_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias)
            for _ in range(depth)
        )
        self.head = AdaLNHead(embed_dim, cond_dim)
        self.apply(init_weights)
        for tokens in (self.registers, self.pos_embed):
            nn.init.trunc_normal_(tokens, std=0.02)

    def forward(
        self,
        cond: Tensor,
        action: Tensor,
        next_obs: Tensor,
        action_t: Tensor,
        next_obs_t: Tensor,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict the noise (or the clean sample) of both modalities.

        Args:
            cond: (B, G) features of the current observation.
            action: (B, S, A) noisy actions.
            next_obs: (B, V, C, F, H, W) noisy latents.
            action_t: (B,) integer timesteps of the actions.
            next_obs_t: (B,) integer timesteps of the latents.
            context: (B, V, context_chans, F, H, W) known latents; None without such channels.

        Returns:
            Predictions (B, S, A) and (B, V, C, F, H, W).
        """
        seen = next_obs if context is None else torch.cat([next_obs, context], dim=2)
        registers = self.registers.expand(len(action), -1, -1)
        x = torch.cat([self.action_encoder(action), self.obs_patchifier.encode(seen), registers], dim=1)
        x = x + self.pos_embed  # (B, L, D)
        timesteps = self.timestep_embedding(torch.stack([action_t, next_obs_t], dim=1))
        cond = torch.cat([cond, timesteps], dim=1)  # (B, G + timestep features)
        for block in self.blocks:
            x = block(x, cond)
        x = self.head(x, cond)  # (B, L, D)
        patches = x[:, self.action_len : self.action_len + self.obs_patchifier.num_patches]
        return self.action_decoder(x[:, : self.action_len]), self.obs_patchifier.decode(patches)

"""The network of PAD (Guo et al. 2024, arXiv 2411.18179), under the parameter names of UWM's implementation.

Dimension letters: B batch, S action steps, A action dimensions, V views, C latent channels, F latent frames,
H and W latent height and width, P patch tokens, L = S + P tokens, D features, G condition features.
"""

import torch
from torch import Tensor, nn

from uwm.model.blocks import AdaLNBlock, AdaLNHead, TimestepEmbedding, init_weights, silu_mlp
from uwm.model.patchify import Patchifier
from uwm.policies import PadConfig


class PadPatchifier(Patchifier):
    """Tokens from current and noisy latents joined by channel; only the noisy ones are decoded, by a convolution.

    Args:
        image_shape: (F, H, W) of the latents.
        patch_shape: (frames, height, width) of a patch; must divide `image_shape`.
        num_chans: C.
        num_views: V.
        embed_dim: D.

    Raises:
        ValueError: when the patch does not divide the latents.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        patch_shape: tuple[int, int, int],
        num_chans: int,
        num_views: int,
        embed_dim: int,
    ) -> None:
        super().__init__(
            image_shape=image_shape,
            patch_shape=patch_shape,
            num_chans=num_chans,
            num_views=num_views,
            embed_dim=embed_dim,
            extra_chans=num_chans,
        )
        self.patch_decoder = nn.ConvTranspose3d(embed_dim, num_chans, kernel_size=patch_shape, stride=patch_shape)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, P, D) -> latents (B, V, C, F, H, W)."""
        grid = tokens.reshape(-1, *self.grid[1:], tokens.shape[-1]).permute(0, 4, 1, 2, 3)  # (B V, D, F/f, H/h, W/w)
        latents: Tensor = self.patch_decoder(grid)  # (B V, C, F, H, W)
        return latents.view(len(tokens), -1, *latents.shape[1:])  # (B, V, C, F, H, W)


class PadTransformer(nn.Module):
    """Denoises actions and next latents together, at one timestep; it sees the current latents.

    One sequence [action tokens, patch tokens] with learned positions; every block is modulated by the embedding
    of the timestep, after the condition when there is one (published: none). An action step that is not known becomes
    a token of its own that no token attends to.

    Args:
        config: sizes.
        image_shape: (F, H, W) of the latents.
        num_chans: C.
        num_views: V.
        action_len: S.
        action_dim: A.
        global_cond_dim: G, features of states and instruction.

    Raises:
        ValueError: when the patch does not divide the latents.
    """

    def __init__(
        self,
        config: PadConfig,
        *,
        image_shape: tuple[int, int, int],
        num_chans: int,
        num_views: int,
        action_len: int,
        action_dim: int,
        global_cond_dim: int = 0,
    ) -> None:
        super().__init__()
        embed_dim, timestep_embed_dim = config.embed_dim, config.timestep_embed_dim
        cond_dim = global_cond_dim + timestep_embed_dim
        hidden = int(max(action_dim, embed_dim) * config.mlp_ratio)
        self.action_len = action_len
        self.obs_patchifier = PadPatchifier(
            image_shape=image_shape,
            patch_shape=config.patch,
            num_chans=num_chans,
            num_views=num_views,
            embed_dim=embed_dim,
        )
        self.action_encoder = silu_mlp(action_dim, hidden, embed_dim)
        self.action_decoder = silu_mlp(embed_dim, hidden, action_dim)
        self.timestep_embedding = TimestepEmbedding(timestep_embed_dim, count=1, mlp=silu_mlp)
        self.pos_embed = nn.Parameter(torch.empty(1, action_len + self.obs_patchifier.num_patches, embed_dim))
        # Nothing attends to them and no loss reaches them, as published: they keep their first values.
        self.pad_tokens = nn.Parameter(torch.empty(1, action_len, embed_dim), requires_grad=False)
        self.blocks = nn.ModuleList(AdaLNBlock(config, cond_dim) for _ in range(config.depth))
        self.head = AdaLNHead(embed_dim, cond_dim)
        self.apply(init_weights)
        for tokens in (self.pos_embed, self.pad_tokens):
            nn.init.trunc_normal_(tokens, std=0.02)

    def forward(
        self,
        obs: Tensor,
        action: Tensor,
        next_obs: Tensor,
        timestep: Tensor,
        action_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict the noise (or the clean sample) of both modalities.

        Args:
            obs: (B, V, C, F, H, W) latents of the current observation.
            action: (B, S, A) noisy actions.
            next_obs: (B, V, C, F, H, W) noisy latents.
            timestep: (B,) integers.
            action_mask: (B, S) bool: steps of whose action something is known or is being sampled; None is all of them.
            condition: (B, G) features of states and instruction; None when there are none.

        Returns:
            Predictions (B, S, A) and (B, V, C, F, H, W).
        """
        dtype = self.pos_embed.dtype
        tokens, keys = self.action_encoder(action.to(dtype)), None  # (B, S, D)
        patches = self.obs_patchifier.encode(torch.cat([obs, next_obs], dim=2).to(dtype))  # (B, P, D)
        if action_mask is not None:
            tokens = torch.where(action_mask[..., None], tokens, self.pad_tokens.to(tokens.dtype))
            keys = torch.cat([action_mask, action_mask.new_ones(patches.shape[:2])], dim=1)  # (B, L)
        x = torch.cat([tokens, patches], dim=1) + self.pos_embed  # (B, L, D)
        cond = self.timestep_embedding(timestep[:, None])
        if condition is not None:
            cond = torch.cat([condition.to(cond), cond], dim=1)  # (B, G + timestep features)
        for block in self.blocks:
            x = block(x, cond, keys)
        x = self.head(x, cond)  # (B, L, D)
        return self.action_decoder(x[:, : self.action_len]), self.obs_patchifier.decode(x[:, self.action_len :])

"""The trunk, heads and image decoder of GR-1 (Wu et al. 2023, arXiv 2312.13139), under published parameter names.

Dimension letters: B batch, S action steps, A action dimensions, V views, F frames, H and W image height and width,
N latents per image, O = V F N observation tokens, C >= O known tokens, L = C + S + O tokens, P patches of an image,
D features.
"""

import torch
from torch import Tensor, nn

from uwm.model.attention import Attention
from uwm.model.blocks import Mlp
from uwm.policies import Gr1Config, Kernel

_CHANNELS = 3
_MAX_PERIOD = 10_000.0


class AttentionBlock(nn.Module):
    """Attention and feed-forward network, each behind a layer norm and beside a skip connection."""

    def __init__(self, dim: int, *, num_heads: int, mlp_ratio: float = 4.0, kernel: Kernel = "auto") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, kernel=kernel)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, L, D) and what may be attended to, (B, L) bool -> (B, L, D)."""
        x = x + self.attn(self.norm1(x), keys)
        out: Tensor = x + self.mlp(self.norm2(x))  # (B, L, D)
        return out


class Gr1Network(nn.Module):
    """Tokens of the current observation and learned queries in; actions and next images out.

    One sequence [current tokens, action queries, observation queries]; every image is decoded on its own from its N
    tokens and one query per patch.

    Args:
        config: sizes.
        image_size: (H, W), divisible by the decoder's patch.
        num_views: V.
        num_frames: F.
        action_len: S.
        action_dim: A.

    Raises:
        ValueError: when the patch does not divide the image.
    """

    decoder_pos_embed: Tensor  # (1, P, D)

    def __init__(
        self,
        config: Gr1Config,
        *,
        image_size: tuple[int, int],
        num_views: int,
        num_frames: int,
        action_len: int,
        action_dim: int,
    ) -> None:
        super().__init__()
        embed_dim, patch_size, kernel = config.embed_dim, config.decoder.patch, config.attention
        latents_per_image = config.obs_encoder.latents_per_image
        if any(side % patch_size for side in image_size):
            raise ValueError(f"images {image_size} are not divisible by the patch {patch_size}")
        self.action_len = action_len
        self.images = (num_views, num_frames)
        self.latents_per_image = latents_per_image
        self.patch_size = patch_size
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        half = embed_dim // 2
        self.action_queries = nn.Parameter(torch.empty(1, action_len, embed_dim))
        self.obs_queries = nn.Parameter(torch.empty(1, num_views * num_frames * latents_per_image, embed_dim))
        self.transformer = nn.ModuleList(
            AttentionBlock(embed_dim, num_heads=config.num_heads, kernel=kernel) for _ in range(config.depth)
        )
        self.action_head = nn.Sequential(
            nn.Linear(embed_dim, half), nn.SiLU(), nn.Linear(half, half), nn.SiLU(), nn.Linear(half, action_dim)
        )
        self.decoder_query_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_buffer("decoder_pos_embed", sinusoid_2d(self.grid, embed_dim)[None])
        self.decoder_proj = nn.Linear(embed_dim, embed_dim)
        self.decoder_blocks = nn.ModuleList(
            AttentionBlock(embed_dim, num_heads=config.decoder.heads, kernel=kernel)
            for _ in range(config.decoder.depth)
        )
        self.decoder_head = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, _CHANNELS * patch_size * patch_size)
        )
        for tokens in (self.action_queries, self.obs_queries, self.decoder_query_token):
            nn.init.trunc_normal_(tokens, std=0.02)

    def forward(
        self, current: Tensor, current_mask: Tensor | None = None, action_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict actions and next images.

        Args:
            current: (B, C, D) tokens of the current observation: of its images (O), ordered (view, frame, latent), and
                whatever else there is to know.
            current_mask: (B, C) bool: tokens of what is known; None is all of them.
            action_mask: (B, S) bool: steps whose query may be attended to; None is all of them.

        Returns:
            Actions (B, S, A) and images (B, V, 3, F, H, W).
        """
        (size, known_len), obs_len = current.shape[:2], self.obs_queries.shape[1]
        queries = torch.cat([self.action_queries, self.obs_queries], dim=1).expand(size, -1, -1)
        x = torch.cat([current, queries.to(current.dtype)], dim=1)  # (B, L, D)
        keys = self._keys(x, known_len, current_mask, action_mask)
        for block in self.transformer:
            x = block(x, keys)
        return self.action_head(x[:, known_len:-obs_len]), self.decode_images(x[:, -obs_len:])

    def decode_images(self, tokens: Tensor) -> Tensor:
        """(B, O, D) -> (B, V, 3, F, H, W)."""
        seen = self.decoder_proj(tokens).view(-1, self.latents_per_image, tokens.shape[-1])  # (B V F, N, D)
        queries = (self.decoder_query_token + self.decoder_pos_embed).expand(len(seen), -1, -1)
        x = torch.cat([seen, queries.to(seen.dtype)], dim=1)  # (B V F, N + P, D)
        for block in self.decoder_blocks:
            x = block(x)
        patches = self.decoder_head(x[:, self.latents_per_image :])  # (B V F, P, 3 p p)
        patches = patches.view(-1, *self.images, *self.grid, _CHANNELS, self.patch_size, self.patch_size)
        patches = patches.permute(0, 1, 5, 2, 3, 6, 4, 7)  # (B, V, 3, F, H/p, p, W/p, p)
        out: Tensor = patches.flatten(6).flatten(4, 5)  # (B, V, 3, F, H, W)
        return out

    def _keys(
        self, x: Tensor, known_len: int, current_mask: Tensor | None, action_mask: Tensor | None
    ) -> Tensor | None:
        """(B, L) bool: what may be attended to, or None for everything."""
        if current_mask is None and action_mask is None:
            return None
        keys = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if current_mask is not None:
            keys[:, :known_len] = current_mask
        if action_mask is not None:
            keys[:, known_len : known_len + self.action_len] = action_mask
        return keys


def sinusoid_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed positions of a (rows, columns) grid -> (rows x columns, dim): a half each for row and column."""
    half = -(-dim // 4) * 2
    rate = _MAX_PERIOD ** -(torch.arange(half // 2, dtype=torch.float64) / (half // 2))
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid))  # (rows x columns, 2)
    angle = places.unsqueeze(-1) * rate  # (rows x columns, 2, half / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim].float()

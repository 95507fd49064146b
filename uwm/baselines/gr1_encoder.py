"""How GR-1 sees: a vision transformer's tokens, resampled to a few per image.

Dimension letters: B batch, V views, F frames, H and W image height and width, M images, L tokens of an image, n latents
of the resampler, N = 1 + n latents per image, D features, K = heads x head_dim.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uwm.data.batch import known_index
from uwm.model.vit import VisionTransformer
from uwm.policies import Gr1EncoderConfig

_FF_MULT = 4


class PerceiverAttention(nn.Module):
    """Latents attend to an image's tokens and to themselves."""

    def __init__(self, dim: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        """(M, L, D), (M, n, D) -> (M, n, D)."""
        media, latents = self.norm_media(media), self.norm_latents(latents)
        key, value = self.to_kv(torch.cat([media, latents], dim=1)).chunk(2, dim=-1)  # 2 x (M, L + n, K)
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(latents), key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # (M, heads, n, head_dim)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))  # (M, n, D)
        return out


class PerceiverResampler(nn.Module):
    """Learned latents read an image's tokens (Alayrac et al. 2022, arXiv 2204.14198).

    Parameter names are those of the implementation that GR-1 uses, flamingo-pytorch.

    Args:
        dim: D.
        depth: layers.
        heads: attention heads.
        head_dim: features of a head.
        num_latents: n.
    """

    def __init__(self, dim: int, *, depth: int, heads: int, head_dim: int, num_latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(num_latents, dim).normal_())
        self.media_pos_emb = nn.Parameter(torch.empty(1, 1, dim).normal_())
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, heads=heads, head_dim=head_dim), _feed_forward(dim)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, media: Tensor) -> Tensor:
        """(M, L, D) -> (M, n, D)."""
        media = media + self.media_pos_emb
        latents = self.latents.expand(len(media), -1, -1).to(media.dtype)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            latents = latents + attention(media, latents)
            latents = latents + feed_forward(latents)
        out: Tensor = self.norm(latents)
        return out


class Gr1ImageEncoder(nn.Module):
    """Tokens of every known image: one from the class token, the others resampled; scaled and shifted by place.

    Args:
        config: kind of vision transformer, and the resampler's sizes.
        image_size: (H, W).
        views: V.
        frames: F.
        embed_dim: D.

    Raises:
        UserError: when the transformer's patch does not divide the image.
    """

    def __init__(
        self, config: Gr1EncoderConfig, *, image_size: tuple[int, int], views: int, frames: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.latents_per_image = config.latents_per_image
        self.model = VisionTransformer(config.kind, image_size, embed_dim=None)
        width = self.model.width
        self.perceiver_resampler = PerceiverResampler(
            width,
            depth=config.resampler_depth,
            heads=config.resampler_heads,
            head_dim=config.resampler_head_dim,
            num_latents=config.resampler_latents,
        )
        self.pos_shift = nn.Parameter(torch.zeros(1, views * frames, 1, embed_dim))
        self.pos_scale = nn.Parameter(torch.zeros(1, views * frames, 1, embed_dim))
        self.feat_head = nn.Linear(width, embed_dim)
        self.patch_head = nn.Linear(width, embed_dim)

    def forward(self, images: Tensor, mask: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode the known images only.

        Args:
            images: (B, V, F, 3, H, W), normalized.
            mask: (B, V, F) bool: known.
            index: (M,) `known_index` of the mask; without it, finding it waits for the device.

        Returns:
            Tokens (B, V F N, D), ordered (view, frame, latent), and which belong to known images (B, V F N) bool.
        """
        places = known_index(mask) if index is None else index
        known = images.flatten(0, 2)[places].to(self.pos_shift.dtype)  # (M, 3, H, W)
        # Also when no image is known: processes that train together must all run the same layers.
        seen = self._tokens(known)  # (M, N, D)
        tokens = seen.new_zeros(mask.numel(), *seen.shape[1:]).index_copy(0, places, seen)
        tokens = tokens.view(len(mask), -1, *seen.shape[1:]) * (1 + self.pos_scale) + self.pos_shift  # (B, V F, N, D)
        keys = mask.flatten(1).repeat_interleave(self.latents_per_image, dim=1)  # (B, V F N)
        return tokens.flatten(1, 2), keys

    def _tokens(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) -> (M, N, D)."""
        seen = self.model.tokens(images)  # (M, L, width)
        first = self.feat_head(seen[:, :1])
        return torch.cat([first, self.patch_head(self.perceiver_resampler(seen))], dim=1)


def _feed_forward(dim: int) -> nn.Sequential:
    hidden = _FF_MULT * dim
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False)
    )

"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929), under torchvision's parameter names.

Dimension letters: M images, H and W image height and width, P patches, L = 1 + P tokens, D features of a token,
E features of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from storage_schemas.errors import UserError

_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class VitSize:
    """Sizes of a vision transformer."""

    width: int
    """D."""
    depth: int
    num_heads: int
    patch: int
    """Pixels along each side of a patch."""


VIT_SIZES: Mapping[str, VitSize] = MappingProxyType(
    {
        "vit_b_32": VitSize(width=768, depth=12, num_heads=12, patch=32),
        "vit_small": VitSize(width=64, depth=2, num_heads=2, patch=8),
    }
)


class VisionTransformer(nn.Module):
    """A class token and patches with learned positions through pre-norm blocks.

    Weights of torchvision's `vit_b_32` at 224 x 224 load by name; positions belong to one image size.

    Args:
        kind: a key of `VIT_SIZES`.
        image_size: (H, W), divisible by the patch.
        embed_dim: E, features of the linear head; None builds no head, for networks that take all tokens.

    Raises:
        UserError: when the patch does not divide the image.
    """

    def __init__(self, kind: str, image_size: tuple[int, int], *, embed_dim: int | None) -> None:
        super().__init__()
        size = VIT_SIZES[kind]
        height, width = image_size
        if height % size.patch or width % size.patch:
            raise UserError(f"images of {height}x{width} (data.crop) are not divisible by {kind}'s patch {size.patch}")
        self.width = size.width
        self.class_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.conv_proj = nn.Conv2d(3, size.width, kernel_size=size.patch, stride=size.patch)
        self.encoder = _Encoder(size, tokens=1 + height * width // size.patch**2)
        self.heads = nn.Identity() if embed_dim is None else nn.Linear(size.width, embed_dim)
        nn.init.trunc_normal_(self.conv_proj.weight, std=self.conv_proj.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]

    def tokens(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) -> (M, L, D), the class token first."""
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)  # (M, P, D)
        first = self.class_token.expand(len(patches), -1, -1).to(patches.dtype)
        out: Tensor = self.encoder(torch.cat([first, patches], dim=1))  # (M, L, D)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) -> (M, E)."""
        out: Tensor = self.heads(self.tokens(images)[:, 0])
        return out


class _Encoder(nn.Module):
    """Positions, blocks and the last norm."""

    def __init__(self, size: VitSize, *, tokens: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, size.width).normal_(std=0.02))
        self.layers = nn.Sequential()
        for index in range(size.depth):
            self.layers.add_module(f"encoder_layer_{index}", _Block(size.width, size.num_heads))
        self.ln = nn.LayerNorm(size.width, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ln(self.layers(x + self.pos_embedding))
        return out


class _Block(nn.Module):
    """torch's own attention, whose parameter names torchvision has."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.self_attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=_NORM_EPS)
        # The places of dropout, 2 and 4, stay empty: the weights are named 0 and 3.
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width), nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.self_attention(normed, normed, normed, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

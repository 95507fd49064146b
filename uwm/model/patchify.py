"""Latent videos as tokens, and back.

Dimension letters: B batch, V views, C channels, F frames, H and W latent height and width, P tokens, D features.
"""

from torch import Tensor, nn


class Patchifier(nn.Module):
    """One token per (frames, height, width) patch of each view, ordered (view, frame, height, width).

    Args:
        image_shape: (F, H, W) of the latents.
        patch_shape: (f, h, w) of a patch; must divide `image_shape`.
        num_chans: C.
        num_views: V.
        embed_dim: D.
        extra_chans: further channels that tokens are made from, but which are not decoded.

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
        extra_chans: int = 0,
    ) -> None:
        super().__init__()
        if any(size % patch for size, patch in zip(image_shape, patch_shape, strict=True)):
            raise ValueError(f"latents {image_shape} are not divisible by the patch {patch_shape}")
        frames, height, width = (size // patch for size, patch in zip(image_shape, patch_shape, strict=True))
        self.grid = (num_views, frames, height, width)
        self.patch_shape = patch_shape
        self.num_chans = num_chans
        self.num_patches = num_views * frames * height * width
        volume = num_chans * patch_shape[0] * patch_shape[1] * patch_shape[2]
        self.patch_encoder = nn.Conv3d(num_chans + extra_chans, embed_dim, kernel_size=patch_shape, stride=patch_shape)
        self.patch_decoder: nn.Module = nn.Linear(embed_dim, volume)

    def encode(self, latents: Tensor) -> Tensor:
        """(B, V, C + extra, F, H, W) -> tokens (B, P, D)."""
        tokens: Tensor = self.patch_encoder(latents.flatten(0, 1))  # (B V, D, F/f, H/h, W/w)
        tokens = tokens.flatten(2).transpose(1, 2)  # (B V, P / V, D)
        return tokens.reshape(len(latents), self.num_patches, -1)  # (B, P, D)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, P, D) -> latents (B, V, C, F, H, W)."""
        patches = self.patch_decoder(tokens)  # (B, P, C f h w)
        patches = patches.view(-1, *self.grid, self.num_chans, *self.patch_shape)
        patches = patches.permute(0, 1, 5, 2, 6, 3, 7, 4, 8)  # (B, V, C, F/f, f, H/h, h, W/w, w)
        out: Tensor = patches.flatten(7, 8).flatten(5, 6).flatten(3, 4)  # (B, V, C, F, H, W)
        return out

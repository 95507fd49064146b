"""Tokens of latents: order, locality, errors."""

import pytest
import torch

from uwm.model.patchify import Patchifier


def make(embed_dim: int) -> Patchifier:
    return Patchifier(image_shape=(2, 6, 8), patch_shape=(2, 3, 4), num_chans=3, num_views=2, embed_dim=embed_dim)


def inverse_pair() -> Patchifier:
    """A patchifier whose encoder only reorders values and whose decoder undoes it."""
    volume = 3 * 2 * 3 * 4
    patchifier = make(volume)
    with torch.no_grad():
        for weight, bias in (
            (patchifier.patch_encoder.weight, patchifier.patch_encoder.bias),
            (patchifier.patch_decoder.weight, patchifier.patch_decoder.bias),
        ):
            assert bias is not None
            weight.copy_(torch.eye(volume).view_as(weight))
            bias.zero_()
    return patchifier


def test_decode_inverts_encode() -> None:
    patchifier = inverse_pair()
    latents = torch.randn(4, 2, 3, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(patchifier.decode(patchifier.encode(latents)), latents)


def test_tokens_are_ordered_view_frame_height_width() -> None:
    patchifier = inverse_pair()
    for view in range(2):
        for row in range(2):
            for column in range(2):
                latents = torch.zeros(1, 2, 3, 2, 6, 8)
                latents[0, view, :, :, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4] = 1
                lit = patchifier.encode(latents)[0].sum(-1).nonzero().flatten().tolist()
                assert lit == [view * 4 + row * 2 + column]


def test_a_patch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 6, 9\).*\(2, 3, 4\)"):
        Patchifier(image_shape=(2, 6, 9), patch_shape=(2, 3, 4), num_chans=3, num_views=2, embed_dim=8)

"""How GR-1 sees: the resampler against a plain reference, unknown images, order of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from uwm.baselines.gr1_encoder import Gr1ImageEncoder, PerceiverResampler
from uwm.policies import Gr1EncoderConfig

DIM, HEADS, HEAD_DIM = 16, 2, 4
CONFIG = Gr1EncoderConfig(
    kind="vit_small", resampler_latents=3, resampler_depth=2, resampler_heads=HEADS, resampler_head_dim=HEAD_DIM
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(state: dict[str, Tensor], media: Tensor) -> Tensor:
    """Flamingo's resampler for one image (L, D), head by head."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"])

    media, latents = media + state["media_pos_emb"][0], state["latents"]
    for depth in range(2):
        at = f"layers.{depth}.0"
        seen, asked = norm(media, f"{at}.norm_media"), norm(latents, f"{at}.norm_latents")
        keys, values = (torch.cat([seen, asked]) @ state[f"{at}.to_kv.weight"].T).chunk(2, dim=1)
        queries, heads = asked @ state[f"{at}.to_q.weight"].T, []
        for head in range(HEADS):
            part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            weights = (queries[:, part] @ keys[:, part].T / HEAD_DIM**0.5).softmax(1)
            heads.append(weights @ values[:, part])
        latents = latents + torch.cat(heads, 1) @ state[f"{at}.to_out.weight"].T
        at = f"layers.{depth}.1"
        hidden = F.gelu(norm(latents, f"{at}.0") @ state[f"{at}.1.weight"].T)
        latents = latents + hidden @ state[f"{at}.3.weight"].T
    return norm(latents, "norm")


def test_the_resampler_equals_a_plain_reference() -> None:
    torch.manual_seed(0)
    resampler, media = PerceiverResampler(DIM, depth=2, heads=HEADS, head_dim=HEAD_DIM, num_latents=3), draw(5, 7, DIM)
    with torch.no_grad():
        found = resampler(media)
        expected = torch.stack([reference(resampler.state_dict(), one) for one in media])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def encoder() -> Gr1ImageEncoder:
    torch.manual_seed(0)
    network = Gr1ImageEncoder(CONFIG, image_size=(16, 24), views=2, frames=2, embed_dim=DIM)
    with torch.no_grad():
        network.pos_shift.copy_(draw(*network.pos_shift.shape))
        network.pos_scale.copy_(draw(*network.pos_scale.shape, seed=1))
    return network


def test_tokens_are_ordered_view_frame_latent_and_known_apart() -> None:
    network, images = encoder(), draw(3, 2, 2, 3, 16, 24)
    mask = torch.ones(3, 2, 2, dtype=torch.bool)
    with torch.no_grad():
        whole, keys = network(images, mask)
        assert whole.shape == (3, 2 * 2 * 4, DIM)
        assert keys.all()
        mask[1, 0, 1] = False
        images[1, 0, 1] = torch.nan
        part, keys = network(images, mask)
        assert torch.equal(keys.view(3, 2, 2, 4), mask[..., None].expand(3, 2, 2, 4))
        torch.testing.assert_close(part[keys], whole[keys], atol=1e-5, rtol=1e-5)
        assert part.isfinite().all()
        nothing, keys = network(images, torch.zeros_like(mask))
        assert nothing.shape == whole.shape
        assert not keys.any()
    swapped, _ = network(images.flip(1), mask.flip(1))
    one, two = swapped[2].view(2, 2, 4, DIM)[0, 0], whole[2].view(2, 2, 4, DIM)[1, 0]
    scale, shift = (values.detach().view(2, 2, 1, DIM) for values in (network.pos_scale, network.pos_shift))
    torch.testing.assert_close((one - shift[0, 0]) / (1 + scale[0, 0]), (two - shift[1, 0]) / (1 + scale[1, 0]))

"""Modulations of three sizes, and their share that does not depend on the timestep."""

import pytest
import torch
from torch import Tensor

from uwm.config import RunConfig
from uwm.model.blocks import Modulation, Precomputed
from uwm.model.transformer import DiffusionTransformer
from uwm.model.uwm import UWMPolicy
from uwm.policies import UwmConfig
from uwm.settings import replace

SIZES = ("full", "low_rank", "shared")


def wake(network: torch.nn.Module) -> None:
    """Move zero-initialized weights off zero, so that modulation matters."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))


def network(adaln: str) -> DiffusionTransformer:
    torch.manual_seed(0)
    config = UwmConfig(
        embed_dim=48,
        timestep_embed_dim=32,
        depth=3,
        num_heads=4,
        mlp_ratio=2.0,
        num_registers=3,
        adaln=adaln,
        adaln_rank=4,
    )
    shapes = {"image_shape": (2, 8, 8), "num_chans": 4, "num_views": 2, "action_len": 4, "action_dim": 5}
    made = DiffusionTransformer(config, global_cond_dim=24, **shapes)
    wake(made)
    return made.eval()


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 24, generator=draw),
        torch.randn(batch, 4, 5, generator=draw),
        torch.randn(batch, 2, 4, 2, 8, 8, generator=draw),
        torch.randint(100, (batch,), generator=draw),
        torch.randint(100, (batch,), generator=draw),
    )


@pytest.mark.parametrize("rank", [0, 3])
def test_a_precomputed_modulation_is_the_same_sum(rank: int) -> None:
    torch.manual_seed(0)
    modulation, cond, timesteps = Modulation(32, 12, rank=rank), torch.randn(5, 24), torch.randn(5, 8)
    precomputed = modulation(
        Precomputed(total=modulation.precompute(cond) + modulation.precompute_timesteps(timesteps))
    )
    torch.testing.assert_close(precomputed, modulation(torch.cat([cond, timesteps], dim=1)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("adaln", SIZES)
@torch.no_grad()
def test_precomputing_changes_no_output(adaln: str) -> None:
    made, (cond, *rest) = network(adaln), inputs()
    times = torch.stack(rest[-2:], dim=1)
    plain, precomputed = made(cond, *rest), made(made.precompute(cond, times.flip(0)), *rest)
    for a, b in zip(plain, precomputed, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)
    foreign = made(made.precompute(cond, times[:1]), *rest)[0]
    assert foreign[0].isfinite().all()
    assert foreign[1:].isnan().all(), "timesteps that were not announced can't pass unnoticed"


@pytest.mark.parametrize("adaln", SIZES)
def test_condition_and_timesteps_reach_every_block(adaln: str) -> None:
    made, (cond, action, latents, action_t, next_t) = network(adaln), inputs()
    action_out, next_out = made(cond, action, latents, action_t, next_t)
    (action_out.sum() + next_out.sum()).backward()
    for block in made.blocks:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.adaLN_modulation.parameters())
    assert not torch.allclose(made(cond, action, latents, (action_t + 50) % 100, next_t)[0], action_out, atol=1e-4)
    assert not torch.allclose(made(cond + 1, action, latents, action_t, next_t)[0], action_out, atol=1e-4)


@pytest.mark.parametrize("adaln", SIZES)
def test_every_block_starts_as_identity(tiny: RunConfig, adaln: str) -> None:
    policy = UWMPolicy(replace(tiny.policy, adaln=adaln), tiny.data)
    cond = torch.randn(2, policy.obs_encoder.out_dim + tiny.policy.timestep_embed_dim)
    shared, block = policy.transformer.shared_modulation, policy.transformer.blocks[0]
    x = torch.randn(2, 5, tiny.policy.embed_dim)
    assert torch.equal(block(x, cond if shared is None else shared(cond)), x)


def test_sizes_at_published_scale() -> None:
    """AdaLN is 76% of the published transformer's 384.9 M parameters, and a few per cent of the others'."""
    published = UwmConfig()
    inputs, outputs = 6 * published.obs_encoder.embed_dim + published.timestep_embed_dim, 6 * published.embed_dim
    with torch.device("meta"):
        counts = {
            adaln: sum(
                parameter.numel()
                for parameter in DiffusionTransformer(
                    replace(published, adaln=adaln),
                    global_cond_dim=inputs - published.timestep_embed_dim,
                    image_shape=(2, 28, 28),
                    num_chans=4,
                    num_views=3,
                    action_len=16,
                    action_dim=10,
                ).parameters()
            )
            for adaln in SIZES
        }
    assert counts["full"] == pytest.approx(384.9e6, rel=1e-3)
    saved = published.depth * (inputs + 1) * outputs
    assert counts["full"] - counts["shared"] == saved - (inputs + 1) * outputs - published.depth * outputs
    rank = published.adaln_rank
    assert counts["full"] - counts["low_rank"] == saved - published.depth * (inputs * rank + (rank + 1) * outputs)

"""The 1-D U-Net: its blocks against diffusers', the whole against a plain reference."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uwm.baselines.unet1d import ConditionalResidualBlock1d, ConditionalUnet1d, Downsample1d, Upsample1d
from uwm.policies import DpUnetConfig

CONFIG = DpUnetConfig(timestep_embed_dim=8, widths=(16, 32, 48))
SIZES = {"input_len": 8, "input_dim": 3, "global_cond_dim": 6}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def unet() -> ConditionalUnet1d:
    torch.manual_seed(0)
    return ConditionalUnet1d(CONFIG, **SIZES).eval()


@pytest.mark.parametrize("inputs", [16, 24])
def test_a_block_that_does_not_scale_is_diffusers_block(inputs: int) -> None:
    """Diffusers' block adds the condition; ours does when its scale is set to one."""
    from diffusers.models.resnet import ResidualTemporalBlock1D

    torch.manual_seed(0)
    ours = ConditionalResidualBlock1d(inputs, 16, 12, kernel_size=5, groups=8)
    theirs = ResidualTemporalBlock1D(inputs, 16, embed_dim=12, kernel_size=5, activation="mish")
    linear = ours.cond_encoder[1]
    with torch.no_grad():
        linear.weight[:16], linear.bias[:16] = 0.0, 1.0
        theirs.time_emb.weight.copy_(linear.weight[16:])
        theirs.time_emb.bias.copy_(linear.bias[16:])
        for mine, other in zip(ours.blocks, (theirs.conv_in, theirs.conv_out), strict=True):
            other.conv1d.load_state_dict(mine.block[0].state_dict())
            other.group_norm.load_state_dict(mine.block[1].state_dict())
        if inputs != 16:
            theirs.residual_conv.load_state_dict(ours.residual_conv.state_dict())
        x, cond = draw(2, inputs, 8), draw(2, 12, seed=1)
        torch.testing.assert_close(ours(x, cond), theirs(x, cond), atol=1e-6, rtol=1e-5)


def test_down_and_up_are_diffusers(unet: ConditionalUnet1d) -> None:
    from diffusers.models.resnet import Downsample1D, Upsample1D

    del unet
    torch.manual_seed(0)
    down, up = Downsample1d(16), Upsample1d(16)
    x = draw(2, 16, 8)
    for ours, theirs in ((down, Downsample1D(16, use_conv=True)), (up, Upsample1D(16, use_conv_transpose=True))):
        theirs.conv.load_state_dict(ours.conv.state_dict())
        assert torch.equal(ours(x), theirs(x))
    assert up(down(x)).shape == x.shape


def reference(state: dict[str, Tensor], action: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
    """The published network, spelled out for three levels over its state dict."""

    def conv_block(x: Tensor, name: str) -> Tensor:
        x = F.conv1d(x, state[f"{name}.block.0.weight"], state[f"{name}.block.0.bias"], padding=2)
        return F.mish(F.group_norm(x, 8, state[f"{name}.block.1.weight"], state[f"{name}.block.1.bias"]))

    def residual(x: Tensor, name: str) -> Tensor:
        film = F.linear(F.mish(features), state[f"{name}.cond_encoder.1.weight"], state[f"{name}.cond_encoder.1.bias"])
        half = film.shape[1] // 2
        y = conv_block(x, f"{name}.blocks.0")
        y = conv_block(film[:, :half, None] * y + film[:, half:, None], f"{name}.blocks.1")
        weight = state.get(f"{name}.residual_conv.weight")
        return y + (x if weight is None else F.conv1d(x, weight, state[f"{name}.residual_conv.bias"]))

    def level(x: Tensor, name: str) -> Tensor:
        return residual(residual(x, f"{name}.0"), f"{name}.1")

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    rates = torch.tensor([10_000 ** (-i / 3) for i in range(4)])
    angles = timestep[:, None] * rates
    embedded = F.mish(F.linear(torch.cat([angles.sin(), angles.cos()], 1), *weights("diffusion_step_encoder.1")))
    features = torch.cat([F.linear(embedded, *weights("diffusion_step_encoder.3")), cond], 1)
    fine = level(action.mT, "down_modules.0")
    middle = level(F.conv1d(fine, *weights("down_modules.0.2.conv"), stride=2, padding=1), "down_modules.1")
    coarse = level(F.conv1d(middle, *weights("down_modules.1.2.conv"), stride=2, padding=1), "down_modules.2")
    x = residual(residual(coarse, "mid_modules.0"), "mid_modules.1")
    x = level(torch.cat([x, coarse], 1), "up_modules.0")
    x = F.conv_transpose1d(x, *weights("up_modules.0.2.conv"), stride=2, padding=1)
    x = level(torch.cat([x, middle], 1), "up_modules.1")
    x = F.conv_transpose1d(x, *weights("up_modules.1.2.conv"), stride=2, padding=1)
    return F.conv1d(conv_block(x, "final_conv.0"), *weights("final_conv.1")).mT


def test_the_whole_equals_a_plain_reference(unet: ConditionalUnet1d) -> None:
    action, timestep, cond = draw(2, 8, 3), torch.tensor([3, 77]), draw(2, 6, seed=1)
    with torch.no_grad():
        found = unet(action, timestep, cond)
        assert found.shape == action.shape
        torch.testing.assert_close(found, reference(unet.state_dict(), action, timestep, cond), atol=1e-5, rtol=1e-5)


def test_samples_are_apart_and_every_input_matters(unet: ConditionalUnet1d) -> None:
    action, timestep, cond = draw(2, 8, 3), torch.tensor([3, 77]), draw(2, 6, seed=1)
    with torch.no_grad():
        found = unet(action, timestep, cond)
        torch.testing.assert_close(unet(action[1:], timestep[1:], cond[1:]), found[1:], atol=1e-6, rtol=1e-5)
        for other in ((action + 1, timestep, cond), (action, timestep + 5, cond), (action, timestep, cond + 1)):
            assert (unet(*other) - found).abs().amax(dim=(1, 2)).min() > 1e-4


def test_lengths_that_do_not_halve_are_named() -> None:
    with pytest.raises(ValueError, match="6 action steps can't be halved 2 times"):
        ConditionalUnet1d(CONFIG, **SIZES | {"input_len": 6})

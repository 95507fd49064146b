"""The policy: what counts in its loss, what it samples, what it saves."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from batches import with_masks

from storage_schemas.errors import UserError
from uwm.config import DataConfig, RunConfig
from uwm.data.batch import Batch
from uwm.diffusion.modes import MODES, Role
from uwm.model.uwm import UWMPolicy
from uwm.policies import UwmConfig, UwmDiffusionConfig, build
from uwm.policy import Mode, Policy
from uwm.settings import replace

MakeBatch = Callable[..., Batch]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_diffusion(config: RunConfig, diffusion: UwmDiffusionConfig) -> UWMPolicy:
    return UWMPolicy(replace(config.policy, diffusion=diffusion), config.data)


def wake(policy: UWMPolicy) -> UWMPolicy:
    """Move zero-initialized weights off zero, so that conditions and tokens matter."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(parameter.numel())))
    return policy


@pytest.fixture
def seeing(tiny: RunConfig) -> RunConfig:
    """The variant that sees the current latents and diffuses their change."""
    diffusion = UwmDiffusionConfig(latent_target="change", prediction="sample")
    return replace(tiny, policy=replace(tiny.policy, current_latents=True, diffusion=diffusion))


@pytest.fixture(params=["tiny", "seeing"])
def policy(request: pytest.FixtureRequest) -> UWMPolicy:
    torch.manual_seed(0)
    return wake(build(request.getfixturevalue(request.param)))


@pytest.fixture
def partly_known(make_batch: MakeBatch) -> Batch:
    """0 whole, 1 without actions, 2 with half a chunk of two numbers and without its last frame, 3 with one view."""
    batch = make_batch()
    batch.action_mask[1] = False
    batch.action_mask[2, 2:] = False
    batch.action_mask[2, :, 1] = False
    batch.next_mask[2, :, 1] = False
    batch.obs_mask[3, 1] = False
    batch.next_mask[3, 1] = False
    return with_masks(batch)


def scramble_unknown(batch: Batch) -> Batch:
    """Other values, not a number among them, wherever the masks say unknown."""

    def scramble(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        wide = mask.view(*mask.shape, *[1] * (values.dim() - mask.dim()))
        return torch.where(wide, values, torch.nan)

    return dataclasses.replace(
        batch,
        obs=scramble(batch.obs, batch.obs_mask),
        next_obs=scramble(batch.next_obs, batch.next_mask),
        action=scramble(batch.action, batch.action_mask),
    )


def test_it_is_a_policy(tiny: RunConfig) -> None:
    policy = build(tiny)
    assert isinstance(policy, Policy)
    assert policy.modes == frozenset(Mode)


def test_loss_and_gradient_ignore_what_is_unknown(policy: UWMPolicy, partly_known: Batch) -> None:
    results = []
    for batch in (partly_known, scramble_unknown(partly_known)):
        policy.zero_grad()
        loss = policy.loss(batch, generator()).loss
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]))
    (loss, gradients), (other_loss, other_gradients) = results
    assert torch.isfinite(loss)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))


@pytest.mark.parametrize("mode", list(Mode))
def test_samples_ignore_what_is_unknown(policy: UWMPolicy, partly_known: Batch, mode: Mode) -> None:
    sample = policy.sample(partly_known, mode, generator())
    other = policy.sample(scramble_unknown(partly_known), mode, generator())
    for a, b in ((sample.action, other.action), (sample.next_obs, other.next_obs)):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def test_action_free_video_gives_no_action_loss_and_no_gradient(policy: UWMPolicy, make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch.action_mask[:] = False
    output = policy.loss(batch, generator())
    output.loss.backward()
    assert output.logs["action_loss"] == 0
    assert output.logs["next_obs_loss"] > 0
    assert all((p.grad == 0).all() for p in policy.transformer.action_decoder.parameters() if p.grad is not None)


def test_published_action_loss_averages_over_action_free_samples(tiny: RunConfig, make_batch: MakeBatch) -> None:
    policy = with_diffusion(tiny, UwmDiffusionConfig.published())
    batch = make_batch()
    batch.action_mask[:] = False
    assert policy.loss(batch, generator()).logs["action_loss"] > 0


def test_a_batch_that_knows_nothing_has_loss_zero(policy: UWMPolicy, make_batch: MakeBatch) -> None:
    batch = make_batch()
    for mask in (batch.obs_mask, batch.next_mask, batch.action_mask):
        mask[:] = False
    output = policy.loss(batch, generator())
    output.loss.backward()
    assert output.loss == 0


def test_all_randomness_comes_from_the_generator(policy: UWMPolicy, make_batch: MakeBatch) -> None:
    batch = make_batch()
    losses = []
    for global_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(global_seed)
        losses.append(policy.loss(batch, generator(seed)).loss)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[1], losses[2])
    first, again, other = (policy.sample(batch, Mode.JOINT, generator(seed)).action for seed in (5, 5, 6))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("mode", list(Mode))
def test_sample_shapes_and_conditions(tiny: RunConfig, make_batch: MakeBatch, mode: Mode, prediction: str) -> None:
    policy = wake(with_diffusion(tiny, UwmDiffusionConfig(prediction=prediction, clip_latent=3.0)))
    batch, other = make_batch(), make_batch(seed=9)
    sample = policy.sample(batch, mode, generator())
    roles = MODES[mode]
    assert (sample.action is not None) == (roles.action is Role.DENOISE)
    assert (sample.next_obs is not None) == (roles.next_obs is Role.DENOISE)
    if sample.action is not None:
        assert sample.action.shape == batch.action.shape
        assert sample.action.abs().max() <= 1
    if sample.next_obs is not None:
        assert policy.decode(sample.next_obs).shape == batch.next_obs.shape
    for name, role in (("action", roles.action), ("next_obs", roles.next_obs)):
        changed = policy.sample(dataclasses.replace(batch, **{name: getattr(other, name)}), mode, generator())
        same = all(
            a is None or (b is not None and torch.equal(a, b))
            for a, b in ((sample.action, changed.action), (sample.next_obs, changed.next_obs))
        )
        assert same == (role is not Role.CLEAN), f"{mode} must depend on {name} exactly when it takes it clean"


def test_encode_and_decode_invert(policy: UWMPolicy, make_batch: MakeBatch) -> None:
    images = make_batch().next_obs
    latents = policy.encode(images)
    assert latents.shape == (4, 2, 3, 2, 16, 24)
    torch.testing.assert_close(policy.decode(latents), images, atol=1e-6, rtol=0)


def test_it_runs_in_bf16_autocast(policy: UWMPolicy, make_batch: MakeBatch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = policy.loss(make_batch(), generator())
        sample = policy.sample(make_batch(), Mode.JOINT, generator())
        report = policy.attention_report()
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert sample.action is not None
    assert sample.action.dtype == torch.float32
    assert "bfloat16" in report


def test_state_holds_no_tokenizer_and_moves_to_a_copy(tiny: RunConfig, make_batch: MakeBatch) -> None:
    torch.manual_seed(0)
    policy = build(tiny)
    assert {key.split(".")[0] for key in policy.state_dict()} == {"obs_encoder", "transformer"}
    average = copy.deepcopy(policy)
    assert average.tokenizer is policy.tokenizer
    other = build(tiny)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.loss(make_batch(), generator()).loss, policy.loss(make_batch(), generator()).loss)


def test_attention_report_names_operator_device_and_type(policy: UWMPolicy) -> None:
    assert policy.attention_report() == "aten::_scaled_dot_product_flash_attention_for_cpu on cpu, float32"


@pytest.mark.parametrize(
    ("data", "model", "said"),
    [
        ({"resize": (20, 24), "crop": (20, 24)}, {}, ("20x24", "(2, 8, 8)")),
        ({"next_frames": 3}, {}, ("3 frames", "(2, 8, 8)")),
        ({}, {"patch": (2, 5, 8)}, ("16x24", "(2, 5, 8)")),
    ],
)
def test_sizes_that_do_not_divide_are_named(
    tiny: RunConfig, data: dict[str, object], model: dict[str, object], said: tuple[str, ...]
) -> None:
    config = replace(tiny, data=replace(tiny.data, **data), policy=replace(tiny.policy, **model))
    with pytest.raises(UserError) as caught:
        build(config)
    assert all(number in str(caught.value) for number in said)


def test_it_learns_a_batch(tiny: RunConfig, make_batch: MakeBatch) -> None:
    """From scratch, the default initialization must let both losses fall quickly."""
    torch.manual_seed(0)
    policy = with_diffusion(tiny, UwmDiffusionConfig(prediction="sample"))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    batch, draws, losses = make_batch(), generator(), []
    for _ in range(150):
        optimizer.zero_grad()
        output = policy.loss(batch, draws)
        output.loss.backward()
        optimizer.step()
        losses.append(torch.stack([output.logs["action_loss"], output.logs["next_obs_loss"]]))
    start, end = torch.stack(losses[:10]).mean(0), torch.stack(losses[-10:]).mean(0)
    assert (end < 0.5 * start).all(), f"{start} -> {end}"


def test_published_sizes_build_the_published_network() -> None:
    """171 tokens and 384.9 M parameters with the published DROID settings, built without memory."""
    from uwm.model.transformer import DiffusionTransformer

    data, model = DataConfig(), UwmConfig()
    with torch.device("meta"):
        network = DiffusionTransformer(
            model,
            global_cond_dim=len(data.cameras) * data.obs_frames * model.obs_encoder.embed_dim,
            image_shape=(2, 28, 28),
            num_chans=4,
            num_views=len(data.cameras),
            action_len=data.action_horizon,
            action_dim=data.action_dim,
        )
    assert network.num_tokens == 171
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(384.9e6, rel=1e-3)


def test_change_is_relative_to_the_last_current_frame(seeing: RunConfig, make_batch: MakeBatch) -> None:
    """An untrained head predicts a change of zero, which is a copy of the current frame."""
    policy = with_diffusion(seeing, replace(seeing.policy.diffusion, sample_steps=1))
    torch.nn.init.zeros_(policy.transformer.obs_patchifier.patch_decoder.weight)
    batch = make_batch()
    predicted = policy.sample(batch, Mode.VIDEO, generator()).next_obs
    current = policy.encode(batch.obs)[:, :, :, -1:]
    assert predicted is not None
    torch.testing.assert_close(predicted, current.expand_as(predicted))


def test_current_latents_need_as_many_frames_as_are_predicted(seeing: RunConfig) -> None:
    data = replace(seeing.data, obs_frames=3)
    with pytest.raises(UserError, match="current_latents"):
        build(replace(seeing, data=data))

"""Modes in one batch, precomputed modulation, sampling without next-observation tokens, bf16 weights."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from uwm.config import RunConfig
from uwm.data.batch import Batch
from uwm.model.uwm import UWMPolicy
from uwm.policies import UwmDiffusionConfig
from uwm.policy import Mode, Sample
from uwm.settings import replace

MakeBatch = Callable[..., Batch]
VARIANTS = {
    "published": ({}, UwmDiffusionConfig.published()),
    "corrected": ({}, UwmDiffusionConfig()),
    "seeing": ({"current_latents": True}, UwmDiffusionConfig(latent_target="change", prediction="sample")),
    "dropout": ({"token_dropout": 0.3, "adaln": "shared"}, UwmDiffusionConfig(prediction="v")),
    "marked": ({"adaln": "low_rank", "adaln_rank": 4}, UwmDiffusionConfig(absent_embedding=True)),
    "solver": ({}, UwmDiffusionConfig(sampler="dpmsolver++", sample_steps=4)),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def variant(tiny: RunConfig, name: str, **diffusion: object) -> UWMPolicy:
    """A woken policy of one of VARIANTS at the tiny size."""
    settings, conventions = VARIANTS[name]
    torch.manual_seed(0)
    policy = UWMPolicy(replace(tiny.policy, **settings, diffusion=replace(conventions, **diffusion)), tiny.data)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(parameter.numel())))
    return policy.eval()


def near(one: Sample, two: Sample, tolerance: float = 1e-5) -> None:
    for a, b in ((one.action, two.action), (one.next_obs, two.next_obs)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.fixture
def batch(make_batch: MakeBatch) -> Batch:
    """Three samples: all known, no action, one view."""
    made = make_batch(3)
    made.action_mask[1] = False
    made.obs_mask[2, 1] = False
    made.next_mask[2, 1] = False
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_modes_in_one_batch_are_those_one_by_one(tiny: RunConfig, batch: Batch, name: str) -> None:
    policy = variant(tiny, name)
    with torch.no_grad():
        encoded = policy.encode_batch(batch)
    together = policy.sample_modes(encoded, tuple(Mode), generator())
    assert list(together) == list(Mode)
    for mode in Mode:
        near(together[mode], policy.sample_encoded(encoded, mode, generator()))


@pytest.mark.parametrize("name", VARIANTS)
def test_precomputed_modulation_samples_the_same(tiny: RunConfig, batch: Batch, name: str) -> None:
    precomputed, plain = (variant(tiny, name, precompute_modulation=precompute) for precompute in (True, False))
    for mode in (Mode.POLICY, Mode.JOINT):
        near(precomputed.sample(batch, mode, generator()), plain.sample(batch, mode, generator()))


def test_five_modes_call_the_network_once_per_step(tiny: RunConfig, batch: Batch) -> None:
    policy, sizes = variant(tiny, "corrected"), list[int]()
    policy.transformer.register_forward_hook(lambda module, args, out: sizes.append(len(args[1])))
    with torch.no_grad():
        policy.sample_modes(policy.encode_batch(batch), tuple(Mode), generator())
    assert sizes == [len(Mode) * len(batch)] * policy.diffusion.sample_steps


def test_policy_without_next_tokens_is_policy_with_them_masked(tiny: RunConfig, batch: Batch) -> None:
    policy = variant(tiny, "dropout")
    transformer, size = policy.transformer, len(batch)
    action = torch.randn(size, 4, 3, generator=generator())
    latents = torch.randn(size, *policy.latent_shape, generator=generator())
    times = torch.full((size,), 40), torch.full((size,), 99)
    with torch.no_grad():
        encoded = policy.encode_batch(batch)
        keys = policy._keys(encoded.views, torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool))
        masked = transformer(encoded.cond, action, latents, *times, None, keys)[0]
        short, nothing = transformer(encoded.cond, action, None, *times)
    assert nothing is None
    torch.testing.assert_close(short, masked, atol=1e-6, rtol=1e-5)


def test_only_a_policy_with_token_dropout_leaves_tokens_out(tiny: RunConfig, batch: Batch) -> None:
    for name, short in (("dropout", True), ("corrected", False)):
        policy, seen = variant(tiny, name), list[bool]()
        policy.transformer.register_forward_hook(lambda module, args, out, seen=seen: seen.append(args[2] is None))
        policy.sample(batch, Mode.POLICY, generator())
        policy.sample(batch, Mode.FORWARD, generator())
        steps = policy.diffusion.sample_steps
        assert seen == [short] * steps + [False] * steps


def test_masked_tokens_of_an_absent_view_change_nothing(tiny: RunConfig, batch: Batch) -> None:
    policy = variant(tiny, "dropout")
    with torch.no_grad():
        encoded = policy.encode_batch(batch)
    assert encoded.views.tolist() == [[True, True], [True, True], [True, False]]
    present = torch.ones(3, dtype=torch.bool)
    keys = policy._keys(encoded.views, present, present)
    assert keys is not None
    patches = policy.transformer.obs_patchifier.num_patches
    assert keys.sum(1).tolist() == [keys.shape[1], keys.shape[1], keys.shape[1] - patches // 2]
    none = torch.zeros(3, dtype=torch.bool)
    assert policy._keys(encoded.views, none, none) is not None


def test_a_sample_that_would_see_nothing_sees_everything(tiny: RunConfig, make_batch: MakeBatch) -> None:
    config = replace(tiny.policy, token_dropout=0.9, num_registers=0)
    policy, batch = UWMPolicy(config, tiny.data), make_batch()
    for mask in (batch.obs_mask, batch.next_mask, batch.action_mask):
        mask[:2] = False
    output = policy.loss(batch, generator())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in policy.parameters())


def test_dropout_hides_next_observations_from_training(tiny: RunConfig, make_batch: MakeBatch) -> None:
    policy, calls = variant(tiny, "dropout"), list[tuple[Tensor, Tensor]]()
    policy.transformer.register_forward_pre_hook(lambda module, args: calls.append((args[4], args[6])))
    batch = make_batch(64)
    policy.loss(batch, generator())
    ((next_t, keys),) = calls
    patches = keys[:, 4 : 4 + policy.transformer.obs_patchifier.num_patches]
    hidden = ~patches.any(dim=1)
    assert torch.equal(patches.all(dim=1), ~hidden)
    assert 8 <= int(hidden.sum()) <= 32  # 30% of 64
    assert (next_t[hidden] == policy.diffusion.train_timesteps - 1).all()
    assert (next_t[~hidden] < policy.diffusion.train_timesteps - 1).any()
    other = dataclasses.replace(batch, next_obs=batch.next_obs.clone())
    other.next_obs[hidden] = 0.0
    assert torch.equal(policy.loss(other, generator()).loss, policy.loss(batch, generator()).loss)


def test_learned_markers_are_trained(tiny: RunConfig, make_batch: MakeBatch) -> None:
    policy, calls = variant(tiny, "marked"), list[tuple[Tensor, Tensor]]()
    policy.transformer.register_forward_pre_hook(lambda module, args: calls.append((args[3], args[4])))
    policy.loss(make_batch(64), generator()).loss.backward()
    steps = policy.diffusion.train_timesteps
    for timesteps in calls[0]:
        assert {-1, steps} <= set(timesteps.tolist())
        assert ((timesteps >= 0) & (timesteps < steps)).sum() > 40
    grad = policy.transformer.timestep_embedding.markers.grad
    assert grad is not None
    assert (grad.abs().sum(-1) > 0).all(), "clean, absent and noised, of both modalities"


@pytest.mark.parametrize("mode", list(Mode))
def test_learned_markers_are_asked_when_sampling(tiny: RunConfig, batch: Batch, mode: Mode) -> None:
    policy, calls = variant(tiny, "marked"), list[Tensor]()
    policy.transformer.register_forward_pre_hook(lambda module, args: calls.append(torch.stack(args[3:5])))
    policy.sample(batch, mode, generator())
    seen = set(calls[0][:, 0].tolist())
    expected = {Mode.POLICY: {99, 100}, Mode.FORWARD: {-1, 99}, Mode.INVERSE: {99, -1}, Mode.VIDEO: {100, 99}}
    assert seen == expected.get(mode, {99})


@pytest.mark.parametrize("name", VARIANTS)
def test_bf16_weights_sample_nearly_the_same(tiny: RunConfig, batch: Batch, name: str) -> None:
    exact, small = variant(tiny, name), variant(tiny, name)
    for part in small.children():
        part.to(torch.bfloat16)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    for mode in Mode:
        near(small.sample(batch, mode, generator()), exact.sample(batch, mode, generator()), tolerance=0.1)

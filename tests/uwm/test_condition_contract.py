"""Every policy hears instructions and feels states: both matter, the unknown never does, and old ones stay the same."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from batches import image_batch
from torch import Tensor

from uwm.config import RunConfig
from uwm.data.batch import Batch
from uwm.policies import build
from uwm.policy import Mode, Policy

NAMES = ("uwm", "pad", "dp", "dp_unet", "gr1")
FEATURES = 6
HEARS = f'data.language={{"kind":"minilm","identity":"minilm-0-0","features":{FEATURES}}}'
FEELS = "data.states=joints:3,gripper:1"

pytestmark = pytest.mark.parametrize("name", NAMES)
Configure = Callable[..., RunConfig]


@pytest.fixture
def awake(name: str, debug_run: Configure) -> Policy:
    """The policy with no weight at zero, so that every input matters."""
    return wake(debug_run("nowhere", HEARS, FEELS, policy=name))


def wake(config: RunConfig) -> Policy:
    torch.manual_seed(0)
    policy = build(config)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    assert isinstance(policy, Policy)
    return policy


@pytest.fixture
def batch(name: str, debug_run: Configure) -> Batch:
    """Four samples: 0 with everything, 1 without an instruction, 2 without the arm's state, 3 with neither."""
    data, draws = debug_run("nowhere", policy=name).data, torch.Generator().manual_seed(2)
    views, image = len(data.cameras), (3, *data.crop)
    state_mask = torch.ones(4, data.obs_frames, 4, dtype=torch.bool)
    state_mask[2, :, :3] = state_mask[3] = False
    heard = torch.tensor([True, False, True, False])
    return image_batch(
        obs=torch.rand(4, views, data.obs_frames, *image, generator=draws),
        obs_mask=torch.ones(4, views, data.obs_frames, dtype=torch.bool),
        next_obs=torch.rand(4, views, data.next_frames, *image, generator=draws),
        next_mask=torch.ones(4, views, data.next_frames, dtype=torch.bool),
        action=torch.rand(4, data.action_horizon, data.action_dim, generator=draws) * 2 - 1,
        action_mask=torch.ones(4, data.action_horizon, data.action_dim, dtype=torch.bool),
        state=torch.randn(state_mask.shape, generator=draws) * state_mask,
        state_mask=state_mask,
        language=torch.randn(4, FEATURES, generator=draws) * heard[:, None],
        language_mask=heard,
    )


def gradients(policy: Policy, batch: Batch) -> dict[str, Tensor]:
    policy.zero_grad()
    loss = policy.loss(batch, torch.Generator().manual_seed(3)).loss
    loss.backward()
    return {"loss": loss.detach()} | {key: p.grad.clone() for key, p in policy.named_parameters() if p.grad is not None}


def sampled(policy: Policy, batch: Batch) -> Tensor:
    action = policy.sample(batch, Mode.POLICY, torch.Generator().manual_seed(4)).action
    assert action is not None
    return action


@pytest.mark.parametrize("value", [1e3, torch.nan])
def test_flipping_what_is_masked_changes_nothing_to_the_bit(
    name: str, awake: Policy, batch: Batch, value: float
) -> None:
    other = replace(
        batch,
        state=batch.state.where(batch.state_mask, value),
        language=batch.language.where(batch.language_mask[:, None], value),
    )
    one, two = gradients(awake, batch), gradients(awake, other)
    assert one.keys() == two.keys()
    assert all(torch.equal(found, two[key]) for key, found in one.items())
    assert torch.equal(sampled(awake, batch), sampled(awake, other))


def test_what_is_known_matters(name: str, awake: Policy, batch: Batch) -> None:
    plain = sampled(awake, batch)
    felt = sampled(awake, replace(batch, state=-batch.state))
    heard = sampled(awake, replace(batch, language=-batch.language))
    deaf = sampled(awake, replace(batch, language_mask=torch.zeros(4, dtype=torch.bool)))
    changed = [(plain != other).flatten(1).any(1).tolist() for other in (felt, heard, deaf)]
    assert changed == [[True, True, True, False], [True, False, True, False], [True, False, True, False]]


def test_a_learned_vector_stands_where_nothing_is_said(name: str, awake: Policy, batch: Batch) -> None:
    plain = sampled(awake, batch)
    with torch.no_grad():
        awake.condition.absent.add_(1.0)
    assert (plain != sampled(awake, batch)).flatten(1).any(1).tolist() == [False, True, False, True]


def test_every_parameter_is_trained(name: str, awake: Policy, batch: Batch) -> None:
    found = gradients(awake, batch)
    assert {key for key, value in found.items() if value.any()} - {"loss"} == {
        key for key, parameter in awake.named_parameters() if parameter.requires_grad
    }


def test_bf16_weights_take_them_too(name: str, awake: Policy, batch: Batch) -> None:
    exact = sampled(awake, batch)
    for part in awake.children():
        part.to(torch.bfloat16)
    found = sampled(awake, batch)
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() < 0.1


def test_a_run_without_them_has_the_weights_that_it_had(name: str, debug_run: Configure) -> None:
    plain, told = (wake(debug_run("nowhere", *pairs, policy=name)).state_dict() for pairs in ((), (HEARS, FEELS)))
    more = {key for key in told if key not in plain}
    assert not any(key.startswith("condition") for key in plain)
    assert {key.split(".")[0] for key in more} <= {"condition", "condition_token"}
    assert {"condition.absent", "condition.head.weight", "condition.head.bias"} <= more

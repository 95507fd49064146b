"""What the method is for, on a world whose structure is known: see `ring_world`.

The networks are trained by the real trainer from real stores, in the published form but for one declared setting:
they predict v (`diffusion.prediction`). With noise prediction, forward and inverse dynamics are still at chance after
1200 steps; docs/log.md has the figures, and why so narrow a network learns slowly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from uwm.policy import Mode, Policy, Sample
from uwm.recipes import get_recipe
from uwm.train.trainer import train

pytestmark = pytest.mark.slow

STEPS = 900
SEED = 5


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A trained policy and held-out segments."""

    policy: Policy
    batch: Batch

    def sample(self, mode: Mode, **changes: Tensor) -> Sample:
        """What a mode predicts of the batch, or of one with some fields changed."""
        return self.policy.sample(replace(self.batch, **changes), mode, torch.Generator().manual_seed(SEED))

    @torch.no_grad()
    def video_loss(self) -> float:
        """The denoising loss of the next frames, with the actions marked as absent."""
        film = replace(self.batch, action_mask=torch.zeros_like(self.batch.action_mask))
        losses = [self.policy.loss(film, torch.Generator().manual_seed(seed)) for seed in range(8)]
        return sum(float(output.logs["next_obs_loss"]) for output in losses) / len(losses)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Nights with actions, and days without."""
    folder = tmp_path_factory.mktemp("ring")
    return {
        "robot": ring_world.write_store(folder / "robot", seed=1),
        "video": ring_world.write_store(folder / "video", seed=2, day=True, actions=False),
    }


@pytest.fixture(scope="module")
def robot_only(stores: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a policy trained on nights."""
    return _train(tmp_path_factory.mktemp("robot-only"), f"data.datasets.0.uri={stores['robot']}")


@pytest.fixture(scope="module")
def cotrained(stores: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that saw in every step the same nights, and as many samples of the days' video."""
    return _train(
        tmp_path_factory.mktemp("cotrained"),
        f"data.datasets.0.uri={stores['robot']}",
        f"data.datasets.1.uri={stores['video']}",
        "train.batch_size=64",
    )


@pytest.fixture(scope="module")
def asked(robot_only: Path, stores: Mapping[str, str]) -> Asked:
    """The policy of nights about held-out nights."""
    return _ask(robot_only, stores["robot"])


def test_the_policy_covers_both_modes(asked: Asked) -> None:
    action = _action(asked.sample(Mode.POLICY))
    mode = asked.batch.action.abs().mean()

    assert ((action.abs() - mode).abs() < 0.2).float().mean() > 0.9
    assert 0.3 < (action > 0).float().mean() < 0.7


def test_forward_dynamics_follows_the_action(asked: Asked) -> None:
    told = _error(asked, asked.sample(Mode.FORWARD))
    contradicted = _error(asked, asked.sample(Mode.FORWARD, action=-asked.batch.action))

    assert 5 * told < contradicted
    assert 5 * told < _mse(asked.policy.encode(asked.batch.obs), asked.policy.encode(asked.batch.next_obs))


def test_inverse_dynamics_recovers_the_action(asked: Asked) -> None:
    action = _action(asked.sample(Mode.INVERSE))

    assert _agreement(action, asked.batch.action[:, 0, 0]) > 0.95


def test_video_prediction_covers_both_futures(asked: Asked) -> None:
    side, sharp = _moved(asked, asked.sample(Mode.VIDEO))

    assert sharp.float().mean() > 0.9
    assert 0.3 < (side[sharp] > 0).float().mean() < 0.7


def test_a_joint_sample_agrees_with_itself(asked: Asked) -> None:
    sample = asked.sample(Mode.JOINT)
    side, sharp = _moved(asked, sample)

    assert sharp.float().mean() > 0.9
    assert _agreement(_action(sample)[sharp], side[sharp]) > 0.9


def test_cotraining_on_video_lowers_held_out_video_loss(
    robot_only: Path, cotrained: Path, stores: Mapping[str, str]
) -> None:
    """What is gained is what the days look like and how the marker moves in them; the robot has seen nights only."""
    alone, together = (_ask(path, stores["video"]) for path in (robot_only, cotrained))
    side, sharp = _moved(together, together.sample(Mode.VIDEO))

    assert together.video_loss() < 0.25 * alone.video_loss()
    assert sharp.float().mean() > 0.9
    assert 0.3 < (side[sharp] > 0).float().mean() < 0.7


def test_cotraining_keeps_what_the_robot_taught(cotrained: Path, stores: Mapping[str, str]) -> None:
    asked = _ask(cotrained, stores["robot"])
    told = _error(asked, asked.sample(Mode.FORWARD))
    contradicted = _error(asked, asked.sample(Mode.FORWARD, action=-asked.batch.action))

    assert _agreement(_action(asked.sample(Mode.INVERSE)), asked.batch.action[:, 0, 0]) > 0.95
    assert 5 * told < contradicted


def _train(folder: Path, *settings: str) -> Path:
    pairs = (*ring_world.SETTINGS, "data.augmentation=none", f"train.steps={STEPS}", f"output={folder}", *settings)
    return train(apply_overrides(get_recipe("debug"), pairs))


def _ask(checkpoint: Path, store: str) -> Asked:
    options = EvalOptions(samples=128, device="cpu")
    setup = open_evaluation_setup(str(checkpoint), open_dataset(store), options)
    ((_, batch),) = setup.batches(128)
    return Asked(policy=setup.policy, batch=batch)


def _action(sample: Sample) -> Tensor:
    """(B,) of the one step and dimension."""
    assert sample.action is not None
    return sample.action[:, 0, 0]


def _error(asked: Asked, sample: Sample) -> float:
    assert sample.next_obs is not None
    return _mse(sample.next_obs, asked.policy.encode(asked.batch.next_obs))


def _mse(left: Tensor, right: Tensor) -> float:
    return float((left - right).square().mean())


def _agreement(left: Tensor, right: Tensor) -> float:
    return float((left.sign() == right.sign()).float().mean())


def _moved(asked: Asked, sample: Sample) -> tuple[Tensor, Tensor]:
    """Where a predicted frame has the marker relative to the current one: (B,) +1 or -1, and (B,) whether it is there.

    It is there when the frame is nearer to one of the two futures than a quarter of what separates them.
    """
    assert sample.next_obs is not None
    now = asked.policy.encode(asked.batch.obs)
    stripe = ring_world.SIZE[1] // ring_world.PLACES
    futures = torch.stack([now.roll(side * stripe, dims=-1) for side in (-1, 1)])  # (2, B, V, C, N, h, w)
    distance = (futures - sample.next_obs).flatten(2).square().mean(2)  # (2, B)
    apart = (futures[0] - futures[1]).flatten(1).square().mean(1)  # (B,)
    return (distance.argmin(0) * 2 - 1).float(), distance.amin(0) < apart / 4

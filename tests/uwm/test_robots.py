"""A run of different robots, from its first step to commands in the robot's own space."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from robots import DELTAS, MakeEpisode, write_robot

from storage_schemas.conventions import DROID_ACTION, DROID_CAMERAS, DROID_ROBOT, droid_action_inverse
from storage_schemas.conversions import convert
from storage_schemas.episode import SegmentId
from storage_schemas.errors import UserError
from storage_schemas.spaces import Part, Space
from storage_schemas.store.dataset import open_dataset
from uwm.auto import AutoPolicy
from uwm.bundle import CARD_FILE, export
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.data.augment import training_batch
from uwm.data.loader import SegmentReader, batches
from uwm.data.mixture import mixture_sampler
from uwm.data.sampler import Pick
from uwm.eval.offline import evaluate
from uwm.eval.options import EvalOptions
from uwm.events import TrainEvent, TrainStarted, read_events
from uwm.overrides import apply_overrides
from uwm.policies import build
from uwm.policy import Mode, Policy
from uwm.preflight import check_run
from uwm.recipes import get_recipe
from uwm.train.distributed import World
from uwm.train.setup import prepare
from uwm.train.trainer import train

NAMES = ("droid", "deltas", "joints", "film")
RECIPES = ("debug", "debug_pad", "debug_dp", "debug_dp_unet", "debug_gr1")


@pytest.fixture
def configure(tmp_path: Path, make_episode: MakeEpisode) -> Callable[..., RunConfig]:
    """A function that makes the run of a recipe over all robots."""

    def make(recipe: str = "debug", *pairs: str, names: tuple[str, ...] = NAMES) -> RunConfig:
        for name in names:
            if not (tmp_path / name).exists():
                write_robot(tmp_path, name, make_episode)
        settings = [
            *(f"data.datasets.{number}.uri={tmp_path / name}" for number, name in enumerate(names)),
            f"data.cameras={','.join(DROID_CAMERAS)}",
            *("data.action_horizon=4", "data.next_start=3", "data.resize=20,28", "data.crop=16,24"),
            *("train.steps=2", "train.batch_size=4", "train.save_every=2", "train.threads=1"),
            f"output={tmp_path / 'run'}",
        ]
        return apply_overrides(get_recipe(recipe), [*settings, *pairs])

    return make


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_masked_value_changes_the_loss_of_a_mixture(configure: Callable[..., RunConfig], recipe: str) -> None:
    run = prepare(configure(recipe), None, build, World())
    reader = SegmentReader([m.dataset for m in run.members], run.config.data, refs=[m.ref for m in run.members])
    source = batches(reader, mixture_sampler(run.members, 0), start=0, stop=8, batch_size=8)
    raw = next(iter(source))
    assert set(raw.embodiment.tolist()) == {0, 1, 2, 3}
    known = raw.action_mask.any(1)
    assert not known.all()
    other = replace(raw, action=torch.where(raw.action_mask, raw.action, torch.randn_like(raw.action)))
    losses = []
    for shown in (raw, other):
        batch = training_batch(shown, run.config.data, run.normalizer, device=torch.device("cpu"))
        scrambled = torch.where(batch.action_mask, batch.action, torch.nan)
        losses += [
            run.model.loss(replace(batch, action=values), torch.Generator().manual_seed(0)).loss
            for values in (batch.action, scrambled)
        ]
    assert losses[0].isfinite()
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_a_run_says_what_it_makes_of_its_data_and_goes_on(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    config = configure("debug_dp")
    check_run(config)
    train(config, on_event=events.append)
    plans = next(event.plans for event in events if isinstance(event, TrainStarted))
    assert [Path(plan.uri).name for plan in plans] == list(NAMES)
    assert plans[2].dropped == ("joints",)
    with (tmp_path / "run" / "metrics.jsonl").open() as lines:
        told = next(event for event in read_events(lines) if isinstance(event, TrainStarted))
    assert told.plans == plans, "as JSON too"
    text = (tmp_path / "run" / "data.txt").read_text()
    for plan in plans:
        assert all(fact in text for fact in plan.facts.values())
    path = train(configure("debug_dp", "train.steps=3"))
    saved = load_checkpoint(path)
    assert saved.state.step == 3
    assert saved.config.data.action == DROID_ACTION
    assert saved.config.data.robots == ("droid", "deltas", "joints")
    assert set(saved.normalizer.robots) == {"droid", "deltas", "joints"}


def test_another_space_or_robot_is_another_run(configure: Callable[..., RunConfig]) -> None:
    train(configure("debug_dp"))
    for pair, message in (
        ("data.action=droid_robot", "data.action"),
        ("data.datasets.1.embodiment=mine", "embodiment"),
        ("data.datasets.1.stride=2", "stride"),
    ):
        with pytest.raises(UserError, match=f"holds another run, which differs in .*{message}"):
            train(configure("debug_dp", "train.steps=3", pair))


def test_a_robot_that_comes_later_has_a_normalizer_of_its_own(
    configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    parent = load_checkpoint(train(configure("debug_dp", names=("droid",))))
    task = configure(
        *("debug_dp", "stage=finetune", f"init_from={parent.path}", f"output={tmp_path / 'task'}"), names=("deltas",)
    )
    check_run(task)
    child = load_checkpoint(train(task))
    assert child.config.data.action == DROID_ACTION
    assert child.config.data.robots == ("droid", "deltas")
    assert child.normalizer.of("droid").high == parent.normalizer.high
    assert child.normalizer.of("deltas").high != parent.normalizer.high


def test_actions_are_told_as_the_robot_takes_them(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    export(train(configure("debug_dp", names=("droid", "deltas"))), tmp_path / "bundle")
    card = (tmp_path / "bundle" / CARD_FILE).read_text()
    for line in (*DROID_ACTION.lines, *DELTAS.lines):
        assert line in card
    assert "actions of `deltas`: min_max bounds" in card
    policy = AutoPolicy.load(tmp_path / "bundle", device="cpu")
    frames = {DROID_CAMERAS[0]: np.full((20, 28, 3), 90, np.uint8)}
    own = policy.act(frames, embodiment="droid")
    assert own.shape == (4, 10)
    policy.config = policy.config.model_copy(
        update={"data": policy.config.data.model_copy(update={"embodiments": policy.config.data.embodiments[:1]})}
    )
    assert np.array_equal(policy.act(frames), own), "the only robot acts by default"
    velocity, gripper = droid_action_inverse(own)
    told = policy.act(frames, space=DROID_ROBOT)
    np.testing.assert_allclose(told, np.concatenate([velocity, gripper], axis=1), atol=1e-6)


def test_each_robot_is_told_in_its_own_space(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    policy = AutoPolicy.load(train(configure("debug_dp")), device="cpu")
    frames = {DROID_CAMERAS[0]: np.full((20, 28, 3), 90, np.uint8)}
    told = policy.act(frames, embodiment="deltas")
    assert told.shape == (4, 7)
    run_actions = policy.predict("policy", frames, embodiment="deltas").action
    assert run_actions is not None
    for part, source in zip(DROID_ACTION.parts, DELTAS.parts, strict=True):
        values = convert(run_actions[:, DROID_ACTION.place(part.name)], part, source)
        np.testing.assert_allclose(told[:, DELTAS.place(source.name)], values, atol=1e-6)
    with pytest.raises(UserError, match=r"can't be told in this space: the run's actions do not say joints"):
        policy.act(frames, embodiment="joints")
    with pytest.raises(UserError, match="unknown robot 'delta': did you mean 'deltas'"):
        policy.act(frames, embodiment="delta")
    effort = Space(parts=(Part(name="effort", quantity="joint_effort", dim=7, unit="Nm"),))
    with pytest.raises(UserError, match="do not say effort"):
        policy.act(frames, space=effort)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_network_can_be_told_which_robot_acts(configure: Callable[..., RunConfig], recipe: str) -> None:
    plain = prepare(configure(recipe), None, build, World())
    told = prepare(configure(recipe, "data.robot_embedding=true"), None, build, World())
    more = set(told.model.state_dict()) - set(plain.model.state_dict())
    assert "condition.robot.weight" in more
    assert all("condition" in name for name in more)
    for parameter in told.model.parameters():  # fresh modulations are zero: then no condition matters
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    reader = SegmentReader([m.dataset for m in told.members], told.config.data, refs=[m.ref for m in told.members])
    raw = reader.read([Pick(0, 0, SegmentId(0, 1))])
    batch = training_batch(raw, told.config.data, told.normalizer, device=torch.device("cpu"))
    losses = [
        told.model.loss(replace(batch, embodiment=torch.tensor([robot])), torch.Generator().manual_seed(0)).loss
        for robot in (1, 2)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("recipe", ["debug", "debug_pad", "debug_dp", "debug_dp_unet"])
def test_what_a_robot_lacks_stays_noise_while_sampling(configure: Callable[..., RunConfig], recipe: str) -> None:
    """As in training, where the network has seen nothing else there; and nothing is said of it."""
    run = prepare(configure(recipe), None, build, World())
    policy = run.model.eval()
    assert isinstance(policy, Policy)
    reader = SegmentReader([m.dataset for m in run.members], run.config.data, refs=[m.ref for m in run.members])
    raw = reader.read([Pick(0, 2, SegmentId(0, 1)), Pick(1, 0, SegmentId(0, 1))])
    batch = training_batch(raw, run.config.data, run.normalizer, device=torch.device("cpu"))
    seen: list[torch.Tensor] = []
    network = policy.unet if recipe == "debug_dp_unet" else policy.transformer
    place = {"debug": 1, "debug_pad": 1, "debug_dp": 0, "debug_dp_unet": 0}[recipe]
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[place].clone()))
    action = policy.sample(batch, Mode.POLICY, torch.Generator().manual_seed(0)).action
    assert action is not None
    assert len(seen) > 1
    assert all(torch.equal(shown[0, :, :9], seen[0][0, :, :9]) for shown in seen)
    assert not torch.equal(seen[-1][0, :, 9], seen[0][0, :, 9])
    assert not torch.equal(seen[-1][1], seen[0][1])
    assert not action[0, :, :9].any()
    assert action[1].any()


def test_an_evaluation_counts_what_the_robot_has(
    configure: Callable[..., RunConfig], tmp_path: Path, make_episode: MakeEpisode
) -> None:
    path = train(configure("debug_dp"))
    options = EvalOptions(samples=3, device="cpu", split="train")
    found = evaluate(str(path), open_dataset(tmp_path / "joints"), options)
    (profile,) = found.actions
    assert [value is not None for value in profile.model] == [False] * 9 + [True]
    assert found.settings.action_names == DROID_ACTION.labels
    assert type(found).model_validate_json(found.to_json()) == found
    with pytest.raises(UserError, match="does not say what its actions mean"):
        evaluate(str(path), open_dataset(write_robot(tmp_path, "undeclared", make_episode)), options)

"""Runs that observe states and hear instructions, from the store to the robot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm.auto import AutoPolicy
from uwm.bundle import CARD_FILE, export
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.eval.offline import evaluate
from uwm.eval.options import EvalOptions
from uwm.events import Encoding, TrainEvent
from uwm.preflight import check_evaluation, check_run
from uwm.train.trainer import train

STATE = "observation/position"
IMAGES = {"left": np.full((24, 32, 3), 90, np.uint8)}


@pytest.fixture
def told(
    make_store: Callable[..., str], debug_run: Callable[..., RunConfig], clip_folder: Path
) -> Callable[..., RunConfig]:
    """A function that makes a run on robot episodes and video; neither states nor language are filled in."""
    stores = make_store("robot", (12, 9, 7), val=40), make_store("video", (12, 9), known=False)

    def make(*pairs: str, output: str = "run", policy: str = "dp") -> RunConfig:
        settings = (
            f"data.datasets.1.uri={stores[1]}",
            f"data.states={STATE}",
            "data.language.kind=clip",
            f"data.language.path={clip_folder}",
            "data.language.dropout=0.3",
            "train.steps=3",
        )
        return debug_run(stores[0], *settings, *pairs, output=output, policy=policy)

    return make


def test_what_was_open_is_filled_in_and_the_encoding_told(told: Callable[..., RunConfig]) -> None:
    events: list[TrainEvent] = []
    checkpoint = load_checkpoint(train(told(), on_event=events.append))
    data, (bounds,) = checkpoint.config.data, checkpoint.normalizer.states
    assert [(state.name, state.dim) for state in data.states] == [(STATE, 2)]
    assert data.language.features == 6
    assert data.language.identity is not None
    assert data.language.identity.startswith("clip-")
    assert bounds.name == STATE
    assert bounds.low < bounds.high
    encodings = [(event.done, event.total) for event in events if isinstance(event, Encoding)]
    assert encodings == [(0, 1), (1, 1)] * 2
    assert not any(isinstance(event, Encoding) for event in events[len(encodings) :])


@pytest.mark.parametrize("policy", ["uwm", "gr1"])
def test_a_resumed_run_is_identical_to_the_bit(told: Callable[..., RunConfig], policy: str) -> None:
    straight = load_checkpoint(train(told(output="straight", policy=policy)))
    train(told("train.steps=2", output="halved", policy=policy))
    resumed = load_checkpoint(train(told(output="halved", policy=policy)))
    first, second = straight.tensors("model"), resumed.tensors("model")
    assert all(np.array_equal(value, second[key]) for key, value in first.items())
    with pytest.raises(UserError, match=r"differs in data.language.dropout: 0\.3 -> 0\.4"):
        train(told("data.language.dropout=0.4", output="halved", policy=policy))
    with pytest.raises(UserError, match=r"differs in data.states.0.name"):
        train(told("data.states=", output="halved", policy=policy))


def test_it_acts_on_what_it_feels_and_hears(told: Callable[..., RunConfig], tmp_path: Path) -> None:
    path, bundle = train(told("optim.lr=1e-2")), tmp_path / "bundle"
    export(path, bundle)
    own, policy = AutoPolicy.load(path, device="cpu"), AutoPolicy.load(bundle, device="cpu")
    plain = policy.act(IMAGES)
    felt = policy.act(IMAGES, states={STATE: [0.1, 0.2]})
    heard = policy.act(IMAGES, instruction="do it")
    assert len({values.tobytes() for values in (plain, felt, heard, policy.act(IMAGES, instruction="lift"))}) == 4
    np.testing.assert_array_equal(policy.act(IMAGES, instruction="  "), plain)
    np.testing.assert_array_equal(policy.act(IMAGES, states={STATE: [[0.1, 0.2]] * 2}), felt)
    both = {"states": {STATE: np.float32([1, 2])}, "instruction": "do it"}
    np.testing.assert_array_equal(own.act(IMAGES, **both), policy.act(IMAGES, **both))
    card = (bundle / CARD_FILE).read_text()
    assert f'states={{"{STATE}": numbers}}, instruction="..."' in card
    assert "by the text encoder" in card
    assert "no instructions" not in card


def test_what_it_can_not_take_is_refused(told: Callable[..., RunConfig], tmp_path: Path) -> None:
    policy = AutoPolicy.load(train(told("train.steps=1")), device="cpu")
    for states, message in (
        ({"joints": [0.0]}, f"unknown state 'joints': this policy observes {STATE}"),
        ({STATE: [0.0]}, r"has the shape \(1,\), not \(2, 2\) or \(2,\)"),
        ({STATE: [0.0, np.nan]}, "is not finite"),
        ({STATE: ["a", "b"]}, "no array of numbers"),
    ):
        with pytest.raises(UserError, match=message):
            policy.act(IMAGES, states=states)
    deaf = AutoPolicy.load(
        train(told("data.states=", 'data.language={"kind":"none"}', "train.steps=1", output="deaf")), device="cpu"
    )
    with pytest.raises(UserError, match="hears no instructions"):
        deaf.act(IMAGES, instruction="do it")
    with pytest.raises(UserError, match="observes none"):
        deaf.act(IMAGES, states={STATE: [0.0, 0.0]})
    with pytest.raises(UserError, match="can't be loaded from"):
        AutoPolicy.load(policy.config.folder, device="cpu", encoder=str(tmp_path)).act(IMAGES, instruction="do it")


def test_it_is_checked_beforehand_and_evaluated(told: Callable[..., RunConfig]) -> None:
    config = told(policy="uwm")
    check_run(config)
    check_evaluation(config, config.data.datasets[0].uri, EvalOptions(samples=2), ("policy", "action_mse"))
    after = told("stage=finetune", output="task", policy="uwm")
    check_run(after, after=config)
    found = evaluate(str(train(config)), open_dataset(config.data.datasets[0].uri), EvalOptions(samples=4))
    assert {score.mode for score in found.scores} == {"policy", "forward", "inverse", "video", "joint"}


def test_weights_that_felt_something_else_are_refused(told: Callable[..., RunConfig]) -> None:
    parent = train(told("train.steps=1"))
    config = told(f"init_from={parent}", "stage=finetune", "data.states=other:2", output="task")
    with pytest.raises(UserError, match=r"was trained with data.states=observation/position, the run has other"):
        check_run(config)

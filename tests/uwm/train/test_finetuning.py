"""A run that starts from a parent means what the parent meant, or says that it does not."""

import dataclasses
from collections.abc import Callable

import pytest

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.parts import write_part
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.events import TrainEvent, TrainStarted
from uwm.train.trainer import train

Finetune = Callable[..., TrainStarted]
STEPS = 60


@pytest.fixture
def scaled_store(tmp_path_factory: pytest.TempPathFactory, make_episode: Callable[..., Episode]) -> Callable[..., str]:
    """A function that writes a store whose actions are in units so many times smaller, and returns its uri."""

    def make(scale: float = 1.0, outliers: int = 0, seed: int = 0) -> str:
        uri = str(tmp_path_factory.mktemp("store") / "robot")
        create_dataset(uri, DatasetSpec(cameras=("left", "wrist"), action_dim=3, val_percent=0))
        episode = make_episode(f"e{seed}", length=STEPS, action_dim=3, seed=seed)
        action = episode.action * scale
        action[:outliers, 1] = 5 * scale
        commit(uri, write_part(uri, [dataclasses.replace(episode, action=action)], run_id="test"))
        return uri

    return make


@pytest.fixture
def parent(scaled_store: Callable[..., str], debug_run: Callable[..., RunConfig]) -> str:
    """A run of one step, which later ones start from."""
    return str(train(debug_run(scaled_store(), "train.steps=1", output="parent")))


@pytest.fixture
def finetune(parent: str, debug_run: Callable[..., RunConfig]) -> Finetune:
    """A function that trains one step from the parent on a store and returns how the run started."""

    def run(store: str, *pairs: str) -> TrainStarted:
        events: list[TrainEvent] = []
        train(
            debug_run(store, "stage=finetune", f"init_from={parent}", "train.steps=1", *pairs, output="child"),
            on_event=events.append,
        )
        return next(event for event in events if isinstance(event, TrainStarted))

    return run


def test_the_same_data_lies_within_reach(finetune: Finetune, scaled_store: Callable[..., str]) -> None:
    assert finetune(scaled_store()).share_beyond == 0


def test_a_few_actions_beyond_reach_are_told(finetune: Finetune, scaled_store: Callable[..., str]) -> None:
    assert finetune(scaled_store(outliers=3)).share_beyond == pytest.approx(3 / STEPS)


@pytest.mark.parametrize(("scale", "said"), [(1000.0, "beyond the parent's range"), (0.001, "of the parent's range")])
def test_other_units_are_refused(finetune: Finetune, scaled_store: Callable[..., str], scale: float, said: str) -> None:
    with pytest.raises(UserError, match=f"{said}.*init_changes=normalizer"):
        finetune(scaled_store(scale))


def test_a_declared_normalizer_is_fitted(
    finetune: Finetune, scaled_store: Callable[..., str], parent: str, debug_run: Callable[..., RunConfig]
) -> None:
    finetune(scaled_store(1000.0), "init_changes=normalizer", "data.action_scale=quantile")
    child = load_checkpoint(debug_run("", output="child").folder)
    assert child.normalizer.scale == "quantile"
    assert max(child.normalizer.high) > 100 * max(load_checkpoint(parent).normalizer.high)


def test_an_action_scale_that_is_not_applied_is_refused(finetune: Finetune, scaled_store: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"action_scale=quantile would not be applied.*min_max"):
        finetune(scaled_store(), "data.action_scale=quantile")


@pytest.mark.parametrize(
    "setting",
    [
        "data.cameras=wrist,left",
        "data.cameras=left,front",
        "data.next_start=4",
        "policy.diffusion.prediction=sample",
        "policy.diffusion.train_timesteps=50",
        "policy.diffusion.latent_target=change",
    ],
)
def test_another_meaning_is_refused_unless_it_is_declared(
    finetune: Finetune, scaled_store: Callable[..., str], setting: str
) -> None:
    name, store = setting.partition("=")[0], scaled_store()
    with pytest.raises(UserError, match=f"was trained with {name}=.* declare the change with init_changes={name}"):
        finetune(store, setting)
    finetune(store, setting, f"init_changes={name}")


@pytest.mark.parametrize("setting", ["policy.diffusion.sample_steps=3", "policy.diffusion.spacing=leading"])
def test_how_it_is_sampled_is_free(finetune: Finetune, scaled_store: Callable[..., str], setting: str) -> None:
    finetune(scaled_store(), setting)

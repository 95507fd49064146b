"""The chain without Prefect: real stores, training processes, evaluations and decisions."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli.jobs import LocalJobs
from flows.deploy.forms import Settings
from flows.jobs.chain import Chain, plan_chain, run_chain
from flows.jobs.evaluate import Evaluated
from flows.jobs.ingest import pin_dataset
from flows.jobs.promotion import Track
from flows.jobs.train import Trained, make_config, run_training
from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.rows import split_of
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.lineage.records import lineage_root
from storage_schemas.store.parts import write_part
from uwm.config import DatasetRef, RunConfig
from uwm.eval.options import EVAL_DEFAULTS, EvalOptions

CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")


class Counted(LocalJobs):
    """The jobs, counted."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.done: list[str] = []

    def train(self, config: RunConfig) -> Trained:
        result = super().train(config)
        self.done.append("reused" if result.reused else "trained")
        return result

    def evaluate(self, checkpoint: str, store: str, options: EvalOptions = EVAL_DEFAULTS) -> Evaluated:
        self.done.append("evaluated")
        return super().evaluate(checkpoint, store, options)


class Killed(Counted):
    """The jobs, of which evaluation is killed."""

    def evaluate(self, checkpoint: str, store: str, options: EvalOptions = EVAL_DEFAULTS) -> Evaluated:
        raise KeyboardInterrupt


def chain(store: Path, **options: Any) -> Chain:
    given = {"overrides": [f"data.datasets.0.uri={store}", "train.steps=1"], "samples": 2, "metric": "video/latent_mse"}
    return Chain(track="policy", dataset=str(store), recipe="debug", **(given | options))


@pytest.fixture
def grow(store: Path, make_episode: Callable[..., Episode]) -> Callable[[str], None]:
    def add(name: str) -> None:
        episode = make_episode(name, cameras=CAMERAS, size=(36, 64), action_dim=10)
        commit(str(store), write_part(str(store), [episode], run_id="test"))

    return add


def test_a_dry_run_says_what_it_would_train_and_trains_nothing(store: Path) -> None:
    counted = Counted()
    result = run_chain(counted, chain(store), dry_run=True)
    assert result.decision is None
    assert result.plan[0].startswith("train debug ")
    assert f"{store}@{pin_dataset(str(store)).version}" in result.plan[0]
    assert counted.done == []
    assert not Path("runs").exists()
    assert Track(lineage_root(str(store)), "policy").decisions() == []


@pytest.mark.slow
def test_every_version_is_trained_on_once_and_compared_on_the_same_data(
    store: Path, grow: Callable[[str], None]
) -> None:
    counted = Counted()
    first = run_chain(counted, chain(store))
    assert first.decision is not None
    assert first.decision.promoted
    assert counted.done == ["trained", "evaluated"]
    again = run_chain(counted, chain(store))
    assert again.reused
    assert again.decision == first.decision
    assert counted.done == ["trained", "evaluated"]

    grow("g")
    second = run_chain(counted, chain(store))
    assert second.decision is not None
    assert counted.done[2:] == ["trained", "evaluated", "evaluated"], "the best so far is measured on the new version"
    assert second.decision.number == 2
    assert second.decision.best is not None
    assert second.decision.best.identity == first.decision.candidate.identity
    assert second.decision.best.evaluation != first.decision.candidate.evaluation
    assert second.decision.candidate.uri != first.decision.candidate.uri


@pytest.mark.slow
def test_a_chain_that_was_killed_before_its_decision_trains_nothing_again(store: Path) -> None:
    counted = Counted()

    killed = Killed()
    with pytest.raises(KeyboardInterrupt):
        run_chain(killed, chain(store))
    assert run_chain(counted, chain(store)).decision
    assert killed.done + counted.done == ["trained", "reused", "evaluated"]


@pytest.mark.slow
def test_finetuning_starts_from_the_best_so_far(store: Path, grow: Callable[[str], None]) -> None:
    counted = Counted()
    first = run_chain(counted, chain(store, from_best=True))
    assert first.decision is not None
    assert "starting from" not in first.plan[0]
    grow("g")
    plan = plan_chain(chain(store, from_best=True))
    assert plan.config.init_from == first.decision.candidate.uri


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "inverse/luck"}, "no measure"),
        ({"metric": "policy/psnr"}, "choose one of .*policy/action_mse"),
        ({"overrides": ["data.datasets.0.uri=elsewhere"]}, "does not train on"),
        ({"overrides": ["train.stepz=1"]}, "stepz"),
        ({"evaluate_on": "nowhere"}, "nowhere"),
    ],
)
def test_a_mistake_shows_before_anything_is_trained(store: Path, options: dict[str, Any], message: str) -> None:
    counted = Counted()
    with pytest.raises(UserError, match=message):
        run_chain(counted, chain(store, **options))
    assert counted.done == []


def test_a_form_says_the_same_as_key_value_pairs() -> None:
    form = Settings(
        data=(
            DatasetRef(uri="s3://b/droid", version=3, weight=4),
            DatasetRef(uri="stores/video", collections=("kitchen",)),
        ),
        name="mine",
        steps=10,
        batch_size=2,
        lr=1e-3,
        seed=7,
        save_every=5,
        init_from="runs/uwm",
        output="runs/x",
    )
    config = form.applied_to(make_config("uwm_finetune"))
    assert [(ref.uri, ref.version, ref.weight) for ref in config.data.datasets] == [
        ("s3://b/droid", 3, 4),
        ("stores/video", None, 1),
    ]
    assert config.data.datasets[1].collections == ("kitchen",)
    assert (config.name, config.folder, config.init_from) == ("mine", "runs/x", "runs/uwm")
    assert (config.train.steps, config.train.batch_size, config.train.seed, config.train.save_every) == (10, 2, 7, 5)
    assert config.optim.lr == 1e-3


def test_an_empty_form_changes_nothing() -> None:
    assert Settings().applied_to(make_config("uwm")) == make_config("uwm")


@pytest.mark.slow
def test_one_outlier_in_a_new_version_promotes_nothing(store: Path, make_episode: Callable[..., Episode]) -> None:
    usual = [f"data.datasets.0.uri={store}", "train.steps=1"]
    first = run_chain(Counted(), chain(store, metric="inverse/action_mse", overrides=usual))
    assert first.decision is not None
    name = next(letter for letter in "ghijkl" if split_of(f"episode-{letter}", 50) == "train")
    episode = make_episode(name, cameras=CAMERAS, size=(36, 64), action_dim=10)
    outlier = dataclasses.replace(episode, action=episode.action * 1000)
    commit(str(store), write_part(str(store), [outlier], run_id="test"))
    second = run_chain(Counted(), chain(store, metric="inverse/action_mse", overrides=usual))
    assert second.decision is not None
    assert not second.decision.promoted
    assert second.decision.candidate.value.mean > 100 * second.decision.best.value.mean, "in the units of the best"


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["deleted", "replaced"])
def test_a_best_that_is_gone_is_named_before_the_training_and_replaced_after_it(
    store: Path, grow: Callable[[str], None], harm: str
) -> None:
    first = run_chain(Counted(), chain(store))
    assert first.decision is not None
    folder = Path(first.decision.candidate.uri)
    shutil.rmtree(folder.parents[1])
    if harm == "replaced":
        other = run_training(make_config("debug", (f"data.datasets.0.uri={store}", "train.steps=1", "train.seed=9")))
        shutil.copytree(other.path, folder)
    grow("g")
    planned = run_chain(Counted(), chain(store, from_best=True), dry_run=True)
    assert f"{first.decision.candidate.checkpoint}, the best so far, is gone" in planned.plan[2]
    assert "starting from" not in planned.plan[0]
    second = run_chain(Counted(), chain(store, from_best=True))
    assert second.decision is not None
    assert second.decision.promoted
    assert "is gone" in second.decision.reason


def test_a_store_is_known_however_its_place_is_spelt(store: Path) -> None:
    Path("elsewhere").symlink_to(store.parent)
    overrides = [f"data.datasets.0.uri=elsewhere/{store.name}", "train.steps=1"]
    plan = plan_chain(chain(store, overrides=overrides))
    assert plan.config.data.datasets[0].version == plan.dataset.version

"""A mistake in any stage shows before anything is trained."""

from pathlib import Path
from typing import Any, NoReturn

import pytest

from flows.jobs.chain import Chain, run_chain
from flows.jobs.pipeline import pretrain_then_finetune
from flows.jobs.train import make_config
from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.parts import write_part
from uwm.eval.options import EvalOptions

CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")


class Spent(Exception):  # noqa: N818 - what no test may come to
    """Training was begun."""


class Watched:
    """Jobs that may not be begun."""

    def ingest(self, *_: Any) -> NoReturn:
        raise Spent

    def train(self, *_: Any) -> NoReturn:
        raise Spent

    def evaluate(self, *_: Any) -> NoReturn:
        raise Spent


@pytest.fixture
def stores(store: Path, make_episode: Any) -> Path:
    """Beside `data/droid`: one without actions, one without held-out episodes, one of 5-dim actions, one of clips."""
    others = {
        "silent": (10, 50, {"known": False}),
        "all": (10, 0, {}),
        "five": (5, 50, {}),
        "short": (10, 50, {"length": 6}),
    }
    for name, (action_dim, percent, given) in others.items():
        uri = str(store.parent / name)
        create_dataset(uri, DatasetSpec(cameras=CAMERAS, action_dim=action_dim, val_percent=percent))
        episodes = [make_episode(n, cameras=CAMERAS, size=(36, 64), action_dim=action_dim, **given) for n in "abcdef"]
        commit(uri, write_part(uri, episodes, run_id="test"))
    return store.parent


def pipeline(stores: Path, *finetune: str, on: str = "droid", **options: Any) -> None:
    """Pretrain and finetune the debug recipe on `data/droid`, evaluate on `data/<on>`."""
    pairs = (f"data.datasets.0.uri={stores / 'droid'}", "train.steps=1")
    second = make_config("debug", (*pairs, "stage=finetune", "name=tuned", *finetune))
    evaluate_on = (str(stores / on),)
    pretrain_then_finetune(
        Watched(), make_config("debug", pairs), second, evaluate_on=evaluate_on, options=EvalOptions(**options)
    )


def test_what_fits_is_begun(stores: Path) -> None:
    with pytest.raises(Spent):
        pipeline(stores)


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ("data.datasets.0.uri=nowhere", "nowhere does not exist"),
        ("data.datasets.0.version=9", "no version 9"),
        ("data.datasets.0.collections=kitchen", "kitchen"),
        ("data.datasets.0.uri=data/five", "5-dim actions, the run takes 10"),
        ("data.cameras=left", "left"),
        ("policy.depth=3", "the weights of debug do not fit tuned"),
        ("data.action_horizon=8", "the weights of debug do not fit tuned"),
        ("train.device=cuda:77", "cuda:77"),
        ("stage=tokenizer", "from scratch"),
        ("data.action_scale=quantile", "would not be applied"),
        ("data.next_start=14", "init_changes"),
        ("policy.diffusion.prediction=sample", "init_changes"),
        ("policy.tokenizer.kind=autoencoder policy.tokenizer.path=nowhere", "nowhere"),
    ],
)
def test_the_second_run_is_checked_before_the_first(stores: Path, finetune: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline(stores, *finetune.split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on": "nowhere"}, "does not exist"),
        ({"on": "all"}, "has no val episode"),
        ({"on": "short"}, "steps of one segment"),
        ({"on": "five"}, "5-dim actions, the run takes 10"),
        ({"version": "first"}, "no version or tag 'first'"),
        ({"collections": ("kitchen",)}, "kitchen"),
        ({"steps": 1000}, "1000 sampling steps"),
        ({"device": "cuda:77"}, "cuda:77"),
    ],
)
def test_the_evaluations_are_checked_before_the_runs(stores: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline(stores, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"evaluate_on": "data/silent", "metric": "inverse/action_mse"}, "no val episode .* has known actions"),
        ({"evaluate_on": "data/all"}, "has no val episode"),
        ({"recipe": "dp", "metric": "video/psnr"}, "policy dp has no mode video"),
        ({"collections": ["kitchen"]}, "kitchen"),
        ({"overrides": ["data.datasets.0.uri=data/droid", "data.cameras=left"]}, "left"),
    ],
)
def test_a_chain_is_checked_before_it_trains(stores: Path, given: dict[str, Any], message: str) -> None:
    usual = {"track": "t", "dataset": "data/droid", "recipe": "debug", "overrides": ["data.datasets.0.uri=data/droid"]}
    for dry_run in (True, False):
        with pytest.raises(UserError, match=message):
            run_chain(Watched(), Chain(**(usual | given)), dry_run=dry_run)

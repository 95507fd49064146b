"""Named runs and their settings on the command line."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_schemas.errors import UserError
from uwm.config import DatasetRef, RunConfig
from uwm.overrides import apply_overrides
from uwm.recipes import RECIPES, get_recipe
from uwm.settings import replace


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_survives_json(name: str) -> None:
    config = get_recipe(name)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert get_recipe(name.replace("_", "-")) == config
    assert RECIPES[name].__doc__


def test_published_behaviours_are_settings() -> None:
    paper, ours = get_recipe("uwm_paper"), get_recipe("uwm")
    assert (paper.data.next_start, paper.data.fit, paper.data.augmentation) == (16, "stretch", "batch")
    theirs = paper.policy.diffusion
    assert (theirs.spacing, theirs.action_loss, theirs.clip_latent) == ("leading", "all", 1)
    assert (paper.train.steps, paper.train.batch_size, paper.optim.lr, paper.optim.weight_decay) == (
        100_000,
        36,
        1e-4,
        1e-6,
    )
    assert (ours.data.next_start, ours.data.fit, ours.data.augmentation) == (15, "cover", "sample")
    assert (paper.data.normalizer_split, ours.data.normalizer_split) == ("all", "train")
    assert (paper.optim.implementation, ours.optim.implementation) == ("foreach", "fused")
    assert (paper.optim.ema_decay, paper.optim.warmup_steps) == (0, 0)
    assert (paper.train.sync, paper.train.matmul) == ("step", "fp32")
    assert (theirs.precompute_modulation, ours.policy.diffusion.precompute_modulation) == (False, True)
    assert replace(paper.policy, diffusion=ours.policy.diffusion, tokenizer=ours.policy.tokenizer) == ours.policy


def test_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'debug'"):
        get_recipe("debgu")


def change(*pairs: str) -> RunConfig:
    return apply_overrides(get_recipe("debug"), pairs)


def test_settings_take_the_type_of_their_field() -> None:
    config = change(
        "train.steps=100",
        "optim.lr=3e-4",
        "optim.betas=0.9,0.95",
        "policy.qkv_bias=false",
        "data.crop=[16, 24]",
        "data.cameras=left",
        "name=123",
        "data.datasets.0.version=7",
        "data.datasets.0.collections=",
        "data.datasets.1.uri=b=c.d",
        "data.datasets.1.weight=2",
        "policy.diffusion.clip_action=null",
    )
    assert (config.train.steps, config.optim.lr, config.optim.betas) == (100, 3e-4, (0.9, 0.95))
    assert (config.policy.qkv_bias, config.data.crop, config.data.cameras) == (False, (16, 24), ("left",))
    assert (config.name, config.policy.diffusion.clip_action) == ("123", None)
    assert config.data.datasets == (
        DatasetRef(uri="data/droid", version=7),
        DatasetRef(uri="b=c.d", weight=2),
    )
    assert change("data.datasets.0.version=7", "data.datasets.0.version=null").data.datasets[0].version is None
    assert change('data.datasets=[{"uri": "x"}]').data.datasets == (DatasetRef(uri="x"),)
    assert change() == get_recipe("debug")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("train.steps", "write name=value"),
        ("train.stpes=3", "did you mean 'steps'"),
        ("trian.steps=3", "did you mean 'train'"),
        ("train.steps=many", "train.steps"),
        ("train.steps=-1", "greater than 0"),
        ("train.steps.more=1", "no parts|no setting"),
        ("stage=training", "pretrain"),
        ("data.crop=9999,9999", "larger than resize"),
        ("data.crop=[1,", "no JSON"),
        ("data.datasets.5.uri=a", "no place in a list of 1"),
        ("data.datasets.x.uri=a", "no place in a list"),
        ("data.datasets.1.weight=2", "uri"),
        ("name=", "name"),
        ("=3", "."),
    ],
)
def test_bad_settings_end_in_one_line(pair: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        change(pair)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_setting_or_a_user_error(pair: str) -> None:
    with contextlib.suppress(UserError):
        assert change(pair) != get_recipe("debug")

"""Settings are bounded where they are declared: a wrong one is a line, never a traceback and never garbage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage_schemas.errors import UserError
from uwm.auto import AutoPolicy
from uwm.config import RunConfig
from uwm.overrides import apply_overrides
from uwm.recipes import get_recipe
from uwm.train.trainer import train


@pytest.mark.parametrize(
    "pair",
    [
        "policy.diffusion.sample_steps=101",
        "policy.diffusion.train_timesteps=5",
        "policy.diffusion.clip_action=-1",
        "policy.diffusion.clip_latent=0",
        "policy.diffusion.clip_action=nan",
        "policy.patch=2,0,8",
        "policy.timestep_embed_dim=2",
        "policy.timestep_embed_dim=33",
        "policy.adaln_rank=0",
        "optim.betas=0.9,1",
        "optim.betas=-0.1,0.9",
        "optim.eps=0",
        "optim.eps=inf",
        "optim.clip_norm=-1",
        "optim.lr=inf",
        "optim.warmup_steps=5",
        "train.steps=0",
        "train.seed=-1",
        "train.seed=9223372036854775808",
        "data.crop=0,0",
        "data.resize=-8,64",
        "data.datasets.0.weight=inf",
        "autoencoder.downsample=6",
        "autoencoder.downsample=0",
        "autoencoder.downsample=1",
    ],
)
def test_a_value_out_of_bounds_is_one_line(pair: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides(get_recipe("debug"), [pair])
    assert "\n" not in str(caught.value)
    assert pair.partition("=")[0].rpartition(".")[2] in str(caught.value)


def test_a_warm_up_longer_than_the_run_is_refused_but_such_a_run_of_before_opens() -> None:
    values = get_recipe("debug").model_dump()
    values["optim"]["warmup_steps"] = 9
    earlier = RunConfig.model_validate(values)
    with pytest.raises(UserError, match="warm-up of 9 steps"):
        train(earlier)


@pytest.mark.parametrize("text", ["a,b", '["a", "b"]'])
def test_lists_of_an_appended_dataset(text: str) -> None:
    config = apply_overrides(
        get_recipe("debug"), [f"data.datasets.1.collections={text}", "data.datasets.1.uri=data/video"]
    )
    assert config.data.datasets[1].collections == ("a", "b")


@pytest.fixture
def policy(make_store: Callable[..., str], debug_run: Callable[..., RunConfig]) -> AutoPolicy:
    """A policy of one step."""
    return AutoPolicy.load(train(debug_run(make_store(), "train.steps=1")), device="cpu")


def test_seeds_of_numpy_are_seeds(policy: AutoPolicy) -> None:
    image = {"left": np.full((24, 32, 3), 90, np.uint8)}
    for seed in (np.int64(3), np.uint8(3), np.int32(3)):
        np.testing.assert_array_equal(policy.act(image, seed=seed), policy.act(image, seed=3))


@pytest.mark.parametrize("seed", [-1, 1 << 63, 0.5, "3", None])
def test_what_is_no_seed_is_said(policy: AutoPolicy, seed: object) -> None:
    with pytest.raises(UserError, match="seed"):
        policy.act({"left": np.full((24, 32, 3), 90, np.uint8)}, seed=seed)


@pytest.mark.parametrize("shape", [(0, 32, 3), (24, 0, 3), (2, 0, 0, 3)])
def test_images_without_pixels_are_refused(policy: AutoPolicy, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="left has no pixels"):
        policy.act({"left": np.zeros(shape, np.uint8)})


def test_an_image_that_may_not_be_written_is_taken(policy: AutoPolicy, tmp_path: Path) -> None:
    """Warnings are errors here, and torch warns of such memory."""
    image = np.full((24, 32, 3), 90, np.uint8)
    frozen = np.broadcast_to(image, (2, 24, 32, 3))
    np.testing.assert_array_equal(policy.act({"left": frozen}), policy.act({"left": image}))

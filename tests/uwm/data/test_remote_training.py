"""A run whose dataset and cached latents lie on an object store."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from s3_server import FaultProxy, Rule

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.parts import write_part
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.latents.encode import encode_run
from uwm.train.trainer import train

URI = "s3://bucket/robot"


def fill(uri: str, make: Callable[..., Episode], *names: str) -> None:
    create_dataset(uri, DatasetSpec(cameras=("left", "wrist"), action_dim=3, val_percent=0))
    commit(uri, write_part(uri, [make(name, length=12) for name in names], run_id="test"))


@pytest.fixture
def run(debug_run: Callable[..., RunConfig]) -> RunConfig:
    return debug_run(URI, "data.latents=k", "train.steps=3", output="remote")


def test_latents_on_s3_are_encoded_once_and_trained_on_like_local_ones(
    s3: FaultProxy,
    run: RunConfig,
    debug_run: Callable[..., RunConfig],
    make_episode: Callable[..., Episode],
    tmp_path: Path,
) -> None:
    local = str(tmp_path / "robot")
    for uri in (URI, local):
        fill(uri, make_episode, "a")
    first = encode_run(run)[0]
    assert (first.encoded, first.present) == (2 * 12, 0)
    for uri in (URI, local):
        fill(uri, make_episode, "b")
    s3.reset(Rule("error", ("GET",), every=5), Rule("error", ("PUT",), times=1))
    assert encode_run(run)[0].encoded == 2 * 12, "only what is new"
    assert s3.spoiled > 3, "through failures"
    s3.reset(Rule("error", ("GET",), every=5))
    remote = load_checkpoint(train(run)).tensors("model")
    here = debug_run(local, "data.latents=k", "train.steps=3", output="local")
    encode_run(here)
    expected = load_checkpoint(train(here)).tensors("model")
    assert remote.keys() == expected.keys()
    assert all(torch.equal(remote[name], expected[name]) for name in expected)


def test_states_and_instructions_on_s3_train_like_local_ones(
    s3: FaultProxy,
    debug_run: Callable[..., RunConfig],
    make_episode: Callable[..., Episode],
    clip_folder: Path,
    tmp_path: Path,
) -> None:
    told = ("data.states=observation/position", "data.language.kind=clip", f"data.language.path={clip_folder}")
    weights = []
    for uri, name in ((URI, "remote"), (str(tmp_path / "robot"), "local")):
        fill(uri, make_episode, "a", "b")
        s3.reset(Rule("error", ("GET",), every=5))
        run = debug_run(uri, *told, "train.steps=2", output=name, policy="dp")
        weights.append(load_checkpoint(train(run)).tensors("model"))
    remote, expected = weights
    assert remote.keys() == expected.keys()
    assert all(torch.equal(remote[name], expected[name]) for name in expected)

"""A policy of another package is one file and one recipe: everything works with it, and no product file knows it."""

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm import registry
from uwm.auto import AutoPolicy
from uwm.bundle import CARD_FILE, export
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig
from uwm.eval.offline import evaluate
from uwm.eval.options import EvalOptions
from uwm.overrides import apply_overrides
from uwm.recipes import RECIPES, get_recipe
from uwm.registry import policy_settings
from uwm.train.trainer import train

ROOT = Path(__file__).resolve().parents[2]
IMAGE = np.full((24, 32, 3), 90, np.uint8)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy as an installed package has it: an entry point, whose module is imported when its kind is asked for."""
    point = EntryPoint(name="toy", value="toy_policy", group=registry.POLICY_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])


@pytest.fixture
def run(make_store: Callable[..., str], debug_run: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """A function that makes the toy's run."""
    store = make_store("robot", (12, 9), val=50)
    policy_settings("toy")
    return lambda *pairs, output="run": debug_run(store, *pairs, output=output, policy="toy")


def test_no_product_file_knows_it() -> None:
    product = (
        path for room in ("storage_schemas", "pipelines", "uwm", "flows") for path in (ROOT / room).rglob("*.py")
    )
    assert not [path for path in product if "toy" in path.read_text().lower().replace("history", "")]


def test_it_trains_resumes_is_evaluated_sampled_and_exported(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    straight = load_checkpoint(train(run("train.steps=4", output="straight")))
    train(run("train.steps=2", output="halved"))
    path = train(run("train.steps=4", output="halved"))
    resumed = load_checkpoint(path)
    assert resumed.config.policy.kind == "toy"
    assert all((value == resumed.tensors("model")[name]).all() for name, value in straight.tensors("model").items())

    held_out = open_dataset(resumed.config.data.datasets[0].uri)
    found = evaluate(str(path), held_out, EvalOptions(samples=4), examples=1, out=str(tmp_path / "eval"))
    assert {score.mode for score in found.scores} == {"policy"}
    assert found.settings.sample_steps == 1

    export(path, tmp_path / "bundle")
    one, two = (AutoPolicy.load(place, device="cpu").act({"left": IMAGE}) for place in (path, tmp_path / "bundle"))
    np.testing.assert_array_equal(one, two)
    card = (tmp_path / "bundle" / CARD_FILE).read_text()
    assert "A toy: actions from mean colours." in card
    assert '"toy"' in card


def test_the_command_samples_it(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run("train.steps=1")
    path = train(config)
    out = str(tmp_path / "sample")
    command = ["sample", str(path), config.data.datasets[0].uri, "--mode", "policy", "--output", out, "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)


def test_its_settings_are_checked_like_any(run: Callable[..., RunConfig]) -> None:
    assert run("policy.gain=2").policy.model_dump()["gain"] == 2.0
    with pytest.raises(UserError, match=r"policy\.gain: Input should be greater than 0"):
        run("policy.gain=0")
    with pytest.raises(UserError, match="did you mean 'gain'"):
        run("policy.gian=1")


def test_policy_equals_toy_on_any_recipe_keeps_what_both_have() -> None:
    policy = apply_overrides(get_recipe("demo_pretrain"), ["policy=toy"]).policy
    assert policy.model_dump() == {"kind": "toy", "embed_dim": 128, "gain": 1.0, "tokenizer": None, "diffusion": None}


def test_an_unknown_kind_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown policy 'toi': did you mean 'toy'"):
        apply_overrides(get_recipe("debug"), ["policy=toi"])


def test_a_checkpoint_never_imports_what_it_names() -> None:
    values = get_recipe("debug").model_dump() | {"policy": {"kind": "os:system", "network": "os:system"}}
    with pytest.raises(ValueError, match="unknown policy 'os:system'"):
        RunConfig.model_validate(values)
    values = get_recipe("debug").model_dump()
    values["policy"]["network"] = "os:system"
    with pytest.raises(ValueError, match=r"policy\.network"):
        RunConfig.model_validate(values)


def test_its_recipe_is_known() -> None:
    policy_settings("toy")
    assert "debug_toy" in RECIPES

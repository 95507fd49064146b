"""What was written before the policies owned their settings opens, and gives the numbers that the code of then gave.

`tests/data/earlier_files.tar.xz` was made by the code of commit fa96813: a store, a run folder of two steps with its
optimizer, and a bundle of each policy. The weights are rounded to three values each, so that they compress.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage_schemas.errors import UserError
from uwm.auto import AutoPolicy
from uwm.checkpoint import load_checkpoint
from uwm.config import RunConfig, TokenizerConfig
from uwm.overrides import apply_overrides
from uwm.policies import UwmConfig, UwmDiffusionConfig
from uwm.recipes import get_recipe
from uwm.settings import replace
from uwm.train.trainer import train

DATA = Path(__file__).resolve().parents[1] / "data"
KINDS = ("uwm", "pad", "dp", "dp_unet", "gr1")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def numbers() -> dict[str, Any]:
    """What the code of then computed."""
    found: dict[str, Any] = json.loads((DATA / "earlier_files.json").read_text())
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files, in the working directory, where the run's paths lead."""
    with tarfile.open(DATA / "earlier_files.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_gives_the_same_numbers(kind: str, folder: Path, numbers: dict[str, Any]) -> None:
    policy = AutoPolicy.load(folder / f"bundle-{kind}", device="cpu")
    assert policy.config.policy.kind == kind
    cameras = enumerate(("left", "wrist"))
    images = {
        camera: np.random.default_rng(i).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8) for i, camera in cameras
    }
    expected = numbers["policies"][kind]
    np.testing.assert_allclose(policy.act(images, seed=3), expected["action"], **TOLERANCE)
    given = {"forward": {"action": np.full((4, 3), 0.1, np.float32)}, "inverse": {"next_images": images}}
    for mode in sorted(policy.policy.modes):
        made = policy.predict(mode, images, seed=4, **given.get(mode, {}))
        action, frames = expected[mode]
        assert (made.action is None, made.frames is None) == (action is None, frames is None)
        if made.action is not None:
            assert np.abs(made.action).mean() == pytest.approx(action, rel=1e-4)
        if made.frames is not None:
            assert np.mean([f.astype(float).mean() for f in made.frames.values()]) == pytest.approx(frames, abs=0.05)


def test_a_run_goes_on(folder: Path, numbers: dict[str, Any]) -> None:
    config = load_checkpoint(folder / "run").config
    train(replace(config, train=replace(config.train, steps=4)))
    checkpoint, expected = load_checkpoint(folder / "run"), numbers["resumed"]
    assert checkpoint.state.step == expected["step"]
    for name, value in expected["metrics"].items():
        assert checkpoint.state.metrics[name] == pytest.approx(value, rel=1e-4), name
    weights = {name: float(value.abs().mean()) for name, value in checkpoint.tensors("model").items()}
    assert weights == pytest.approx(expected["weights"], rel=1e-4)


def test_settings_of_then_are_those_of_now() -> None:
    """A demo run as it was written, with the settings of every policy, of which it keeps its own."""
    then = {
        "name": "demo",
        "policy": "uwm",
        "model": {"embed_dim": 128, "num_heads": 4, "current_latents": True, "unet": {"widths": [8, 16]}, "gr1": {}},
        "tokenizer": {"path": "runs/demo/tokenizer"},
        "diffusion": {"prediction": "sample", "hoist": False, "sample_steps": 2},
    }
    now = RunConfig.model_validate(then)
    assert now.policy == UwmConfig(
        embed_dim=128,
        num_heads=4,
        current_latents=True,
        tokenizer=TokenizerConfig(path="runs/demo/tokenizer"),
        diffusion=UwmDiffusionConfig(prediction="sample", precompute_modulation=False, sample_steps=2),
    )
    assert RunConfig.model_validate_json(now.model_dump_json()) == now


@pytest.mark.parametrize(
    ("setting", "now"),
    [
        ("model.depth", "policy.depth"),
        ("model.unet.widths", "policy.widths"),
        ("model.gr1.patch", "policy.decoder.patch"),
        ("tokenizer.path", "policy.tokenizer.path"),
        ("diffusion.hoist", "policy.diffusion.precompute_modulation"),
    ],
)
def test_a_setting_of_then_is_answered_by_its_name_now(setting: str, now: str) -> None:
    with pytest.raises(UserError, match=f"there is no setting {setting}: it is called {now} now"):
        apply_overrides(get_recipe("debug"), [f"{setting}=1"])

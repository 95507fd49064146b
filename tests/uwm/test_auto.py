"""Bundles and `AutoPolicy`: the checkpoint's own answers, in one folder, and damage in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from storage_schemas.errors import UserError
from uwm.auto import AutoPolicy
from uwm.bundle import CARD_FILE, MANIFEST_FILE, export, load_bundle
from uwm.checkpoint import CheckpointState, save_checkpoint
from uwm.config import RunConfig, TokenizerConfig
from uwm.data.normalize import ActionNormalizer
from uwm.eval.files import save_evaluation
from uwm.eval.result import Evaluation
from uwm.model.autoencoder import Autoencoder
from uwm.policies import build
from uwm.settings import replace

NORMALIZER = ActionNormalizer(low=(-2.0, 0.0, 1.0), high=(2.0, 4.0, 1.0), mean=(0.0, 2.0, 1.0), count=9)


def state(name: str, stage: str, tokenizer: str = "identity") -> CheckpointState:
    return CheckpointState(name=name, stage=stage, step=4, position=0, seed=0, datasets=(), tokenizer=tokenizer)


@pytest.fixture
def checkpoint(debug_run: Callable[..., RunConfig], tmp_path: Path) -> Path:
    """A policy on the latents of an own autoencoder, with averaged weights that differ from the last ones."""
    torch.manual_seed(0)
    base = debug_run("nowhere")
    autoencoder = replace(base.autoencoder, width=8, depth=1, downsample=2)
    tokenizer = save_checkpoint(
        tmp_path / "tokenizer-run",
        config=replace(base, name="tok", stage="tokenizer", autoencoder=autoencoder),
        normalizer=ActionNormalizer.identity(3),
        state=state("tok", "tokenizer"),
        tensors={"model": Autoencoder(autoencoder).state_dict()},
        keep=1,
    )
    config = replace(
        base,
        policy=replace(base.policy, tokenizer=TokenizerConfig(path=str(tokenizer)), patch=(2, 4, 4)),
        autoencoder=autoencoder,
    )
    policy = build(config)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    weights = policy.state_dict()
    return save_checkpoint(
        tmp_path / "run",
        config=config,
        normalizer=NORMALIZER,
        state=state("debug", "pretrain", policy.tokenizer_fingerprint),
        tensors={"model": {name: torch.zeros_like(value) for name, value in weights.items()}, "ema": weights},
        keep=1,
    )


@pytest.fixture
def frames() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)


def test_a_bundle_answers_as_its_checkpoint_does(checkpoint: Path, frames: NDArray[np.uint8], tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "bundle")
    own = AutoPolicy.load(checkpoint)
    (tmp_path / "tokenizer-run").rename(tmp_path / "gone")
    bundled = AutoPolicy.load(tmp_path / "bundle")
    images = {"left": frames, "wrist": frames[:, ::-1]}
    actions = own.act(images)
    assert actions.shape == own.action_shape == (4, 3)
    assert actions.dtype == np.float32
    assert (np.abs(actions - [0, 2, 1]) <= [2, 2, 1]).all(), "clipped to the bounds, in the data's units"
    np.testing.assert_array_equal(bundled.act(images), actions)
    assert not np.array_equal(bundled.act(images, seed=1), actions)
    assert not np.array_equal(bundled.act({"left": frames}), actions)
    np.testing.assert_array_equal(bundled.act({"left": frames[0]}), bundled.act({"left": frames[[0, 0]]}))
    assert not list((tmp_path / "bundle").rglob("*.pt*"))
    assert "optim" not in str(sorted(path.name for path in (tmp_path / "bundle").rglob("*")))


def test_every_mode(checkpoint: Path, frames: NDArray[np.uint8]) -> None:
    policy = AutoPolicy.load(checkpoint)
    images = {"left": frames}
    forward = policy.predict("forward", images, action=np.ones((4, 3), np.float32))
    assert forward.action is None
    assert forward.frames is not None
    assert {camera: value.shape for camera, value in forward.frames.items()} == {
        "left": (2, 16, 24, 3),
        "wrist": (2, 16, 24, 3),
    }
    assert forward.frames["left"].dtype == np.uint8
    other = policy.predict("forward", images, action=-np.ones((4, 3), np.float32))
    assert other.frames is not None
    assert not np.array_equal(other.frames["left"], forward.frames["left"])
    inverse = policy.predict("inverse", images, next_images=images)
    assert inverse.frames is None
    assert inverse.action is not None
    joint = policy.predict("joint", images)
    assert joint.action is not None
    assert joint.frames is not None


def test_bf16_weights_are_near(checkpoint: Path, frames: NDArray[np.uint8], tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "bundle", dtype="bf16")
    small = AutoPolicy.load(tmp_path / "bundle", dtype="bf16")
    assert {parameter.dtype for parameter in small.policy.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    exact = AutoPolicy.load(checkpoint).act({"left": frames})
    np.testing.assert_allclose(small.act({"left": frames}), exact, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "dance"}, "unknown mode"),
        ({"images": {}}, "no camera is given"),
        ({"images": {"front": np.zeros((2, 8, 8, 3), np.uint8)}}, "unknown camera 'front': there are left, wrist"),
        ({"images": {"left": np.zeros((3, 8, 8, 3), np.uint8)}}, r"uint8 \(2, height, width, 3\)"),
        ({"images": {"left": np.zeros((2, 8, 8, 3), np.float32)}}, "left is float32"),
        ({"mode": "forward"}, "needs action"),
        ({"mode": "forward", "action": np.zeros((4, 9))}, r"shape \(4, 9\), not \(4, 3\)"),
        ({"mode": "forward", "action": np.full((4, 3), np.nan)}, "not finite"),
        ({"mode": "inverse"}, "needs next_images"),
    ],
)
def test_what_it_can_not_take(checkpoint: Path, arguments: dict[str, object], message: str) -> None:
    given = {"mode": "policy", "images": {"left": np.zeros((2, 8, 8, 3), np.uint8)}} | arguments
    with pytest.raises(UserError, match=message):
        AutoPolicy.load(checkpoint).predict(**given)  # type: ignore[arg-type]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_cut, _flip, _remove])
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "normalizer.json", "tokenizer/model.safetensors", "tokenizer/config.json"],
)
def test_a_damaged_bundle_is_one_clear_line(
    checkpoint: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    export(checkpoint, tmp_path / "bundle")
    damage(tmp_path / "bundle" / name)
    with pytest.raises(UserError, match=f"is damaged: {name} is") as caught:
        AutoPolicy.load(tmp_path / "bundle")
    assert "\n" not in str(caught.value)


def test_a_damaged_manifest_is_one_clear_line(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "bundle")
    manifest = tmp_path / "bundle" / MANIFEST_FILE
    whole = manifest.read_text()
    for length in range(0, len(whole) - 2, 50):
        manifest.write_text(whole[:length])
        with pytest.raises(UserError, match="damaged or of another version"):
            load_bundle(tmp_path / "bundle")
    for name in ("../secret", str(tmp_path / "secret"), "other.json"):
        manifest.write_text(whole.replace("config.json", name))
        with pytest.raises(UserError, match=r"is damaged: manifest\.json is not the file"):
            load_bundle(tmp_path / "bundle")


def test_a_manifest_can_not_name_files_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    made = export(checkpoint, tmp_path / "bundle")
    (tmp_path / "secret").write_text("x")
    for name in ("../secret", str(tmp_path / "secret")):
        hostile = made.model_copy(update={"files": {**made.files, name: "0"}}).sealed()
        (tmp_path / "bundle" / MANIFEST_FILE).write_text(hostile.model_dump_json())
        with pytest.raises(UserError, match="is missing"):
            load_bundle(tmp_path / "bundle")


def test_the_card_may_be_edited(checkpoint: Path, tmp_path: Path, evaluation: Evaluation) -> None:
    save_evaluation(str(tmp_path / "result"), evaluation)
    export(checkpoint, tmp_path / "bundle", licence="Apache-2.0", evaluations=[str(tmp_path / "result")])
    card = (tmp_path / "bundle" / CARD_FILE).read_text()
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert 'license: "Apache-2.0"' in front
    assert 'pipeline_tag: "robotics"' in front
    assert "AutoPolicy.load" in body
    assert "12 segments of 3 episodes" in body
    assert "of another checkpoint" in body
    (tmp_path / "bundle" / CARD_FILE).write_text("mine")
    load_bundle(tmp_path / "bundle")


def test_what_can_not_be_exported(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a tokenizer"):
        export(tmp_path / "tokenizer-run", tmp_path / "bundle")
    (tmp_path / "bundle").mkdir()
    with pytest.raises(UserError, match="exists"):
        export(checkpoint, tmp_path / "bundle")
    with pytest.raises(UserError, match="dtype 'int8' is none of"):
        AutoPolicy.load(checkpoint, dtype="int8")
    with pytest.raises(UserError, match="is a tokenizer: give the checkpoint of a policy"):
        AutoPolicy.load(tmp_path / "tokenizer-run")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]

"""Checkpoints: whole or absent, and damage is said in one line."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from storage_schemas.errors import UserError
from uwm import checkpoint as module
from uwm.checkpoint import (
    STATE_FILE,
    CheckpointState,
    latest_checkpoint,
    load_checkpoint,
    load_policy,
    origin,
    resolve_checkpoint,
    save_checkpoint,
)
from uwm.config import RunConfig
from uwm.data.normalize import ActionNormalizer
from uwm.policies import build
from uwm.recipes import get_recipe

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def save(folder: Path, step: int, *, keep: int = 2, config: RunConfig | None = None) -> Path:
    return save_checkpoint(
        folder,
        config=config or get_recipe("debug"),
        normalizer=ActionNormalizer.identity(3),
        state=CheckpointState(name="debug", stage="pretrain", step=step, position=step * 4, seed=0, datasets=()),
        tensors={"model": WEIGHTS, "optim": {"a.bias/step": torch.tensor(step)}},
        keep=keep,
    )


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    found = load_checkpoint(path)
    assert path.name == "step-00000003"
    assert found.config == get_recipe("debug")
    assert found.normalizer == ActionNormalizer.identity(3)
    assert (found.state.step, found.state.position) == (3, 12)
    assert (found.has("model"), found.has("ema")) == (True, False)
    assert all(torch.equal(found.tensors("model")[name], value) for name, value in WEIGHTS.items())
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}, "never a pickle"
    with pytest.raises(UserError, match="holds no ema"):
        found.tensors("ema")


def test_a_run_folder_stands_for_its_latest_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    paths = [save(tmp_path, step) for step in (1, 2, 10)]
    assert resolve_checkpoint(tmp_path) == latest_checkpoint(tmp_path) == paths[-1]
    assert resolve_checkpoint(tmp_path / "checkpoints" / "latest") == paths[-1]
    assert resolve_checkpoint(paths[0]) == paths[0]
    assert load_checkpoint(tmp_path).state.step == 10


def test_old_checkpoints_go(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [f"step-0000000{n}" for n in (3, 4, 5)]


def test_a_folder_that_is_no_whole_checkpoint_gives_way(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    (second / STATE_FILE).unlink()
    assert latest_checkpoint(tmp_path) == first
    assert load_checkpoint(save(tmp_path, 2)).path == second


def test_identity_is_of_the_content(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a", 1), save(tmp_path / "b", 1)
    assert origin(one).identity == origin(two).identity == load_checkpoint(one).identity
    assert origin(save(tmp_path / "c", 2)).identity != origin(one).identity


@pytest.mark.parametrize("moment", ["save_file", "sha256_file", "_sync"])
def test_a_crash_while_saving_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    first = save(tmp_path, 1)

    def crash(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, moment, crash)
        with pytest.raises(UserError, match=r"can't write checkpoint .*step-00000002: No space left on device;"):
            save(tmp_path, 2)
    assert [path.name for path in first.parent.iterdir()] == [first.name], "nothing is left half made"
    assert latest_checkpoint(tmp_path) == first
    assert load_checkpoint(first).state.step == 1
    assert load_checkpoint(save(tmp_path, 2)).state.step == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


def test_a_crash_before_the_rename_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(tmp_path, 1)

    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == first


def change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "changed": change_byte,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "absent": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optim.safetensors", "config.json", "normalizer.json", STATE_FILE]
)
def test_damage_is_one_clear_line(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path, 1)
    DAMAGE[damage](path / name)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    if (name, damage) != (STATE_FILE, "absent"):
        assert name in message
        assert "damaged" in message


@pytest.mark.parametrize("text", ["[]", "null", '{"digest": 1}', "{", '"digest"', "\x00"])
def test_a_state_that_is_none(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1)
    (path / STATE_FILE).write_text(text)
    with pytest.raises(UserError, match=r"state\.json is (damaged|not)"):
        load_checkpoint(path)


def test_state_says_nothing_unnoticed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    state = json.loads((path / STATE_FILE).read_text())
    (path / STATE_FILE).write_text(json.dumps(state | {"position": 0}))
    with pytest.raises(UserError, match="not the file that was saved"):
        load_checkpoint(path)


def test_files_outside_the_checkpoint_are_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    body = json.loads((path / STATE_FILE).read_text())
    body.pop("digest")
    body["files"]["../../secret"] = "0" * 64
    (path / STATE_FILE).write_text(json.dumps({"digest": module._digest(body), **body}))
    (tmp_path / "secret").write_text("x")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_what_is_no_checkpoint(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "run")
    with pytest.raises(UserError, match="give the folder of a run"):
        load_checkpoint(tmp_path / "run")


def test_policies_load_with_averaged_or_raw_weights(tmp_path: Path) -> None:
    config = get_recipe("debug")
    policy = build(config)
    raw = policy.state_dict()
    average = {name: value + 1 if value.is_floating_point() else value for name, value in raw.items()}
    path = save_checkpoint(
        tmp_path,
        config=config,
        normalizer=ActionNormalizer.identity(10),
        state=CheckpointState(name="debug", stage="pretrain", step=1, position=4, seed=0, datasets=()),
        tensors={"model": raw, "ema": average},
        keep=1,
    )
    for ema, expected in ((True, average), (False, raw)):
        loaded, found, normalizer = load_policy(path, "cpu", ema=ema)
        assert (found, normalizer.action_dim, loaded.training) == (config, 10, False)
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not fit this network") as caught:
        load_policy(save(tmp_path, 1), "cpu")
    assert "\n" not in str(caught.value)

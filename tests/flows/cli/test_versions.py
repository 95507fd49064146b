"""A tag stands for a version in every command that takes one."""

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli import app, run
from flows.jobs.train import make_config, run_training
from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.versions import drop_tag, set_tag
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.store.parts import write_part
from uwm.train.resume import resolve_paths

CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
LINES = {
    "inspect": "inspect data/droid --version {}",
    "verify": "verify data/droid --version {}",
    "diff": "diff data/droid {} 0",
    "browse": "browse data/droid pages --version {}",
    "export-dataset": "export-dataset data/droid lerobot --version {}",
    "tag": "tag data/droid another --version {}",
    "scale": "scale data/droid --version {}",
    "doctor": "doctor data/droid --version {}",
    "evaluate": "evaluate runs/debug data/droid --samples 1 --version {}",
    "sample": "sample runs/debug data/droid --mode inverse --samples 1 -o out --version {}",
}
"""For every command that takes a version, a call of it."""
CHANGING = {"seconds", "created"}


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in app.registered_commands:
        assert command.callback
        yield command.name or "", command.callback


def takes_a_version(command: Callable[..., Any]) -> bool:
    return any(
        "NUMBER|TAG" in str(parameter.annotation) or parameter.name in ("version", "before", "after")
        for parameter in inspect.signature(command).parameters.values()
    )


@pytest.fixture
def tagged(store: Path, make_episode: Callable[..., Episode]) -> Path:
    """A store at version 2, whose version 1 is called `first`."""
    episode = make_episode("g", cameras=CAMERAS, size=(36, 64), action_dim=10)
    commit(str(store), write_part(str(store), [episode], run_id="test"))
    set_tag(str(store), "first", 1)
    return store


def said(line: str, capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    code = run([*line.split(), "--json"])
    assert code in (0, 1), capsys.readouterr().err
    return json.loads(capsys.readouterr().out, object_hook=lambda d: {k: v for k, v in d.items() if k not in CHANGING})


def forget_what_was_written() -> None:
    """For commands that write into a new folder only."""
    for folder in ("lerobot", "pages"):
        shutil.rmtree(folder, ignore_errors=True)


def test_no_command_with_a_version_is_forgotten() -> None:
    assert {name for name, command in commands() if takes_a_version(command)} == set(LINES)


@pytest.mark.parametrize("name", LINES)
def test_a_tag_is_as_good_as_the_number(name: str, tagged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "runs/debug" in LINES[name]:
        run_training(make_config("debug", (f"data.datasets.0.uri={tagged}", "train.steps=1")))
    by_tag = said(LINES[name].format("first"), capsys)
    forget_what_was_written()
    assert by_tag == said(LINES[name].format("1"), capsys)
    capsys.readouterr()
    forget_what_was_written()
    assert run(LINES[name].format("nonsense").split()) == 2
    assert "no version or tag 'nonsense'" in capsys.readouterr().err


def test_a_run_is_pinned_to_the_number_that_the_tag_has_at_its_start(tagged: Path) -> None:
    pairs = (f"data.datasets.0.uri={tagged}", "train.steps=1")
    tag = make_config("debug", (*pairs, "data.datasets.0.version=first"))
    assert resolve_paths(tag) == resolve_paths(make_config("debug", (*pairs, "data.datasets.0.version=1")))
    trained = run_training(tag)
    assert trained.record.upstream == ("dataset/droid@1",)
    assert run_training(tag).reused
    set_tag(str(tagged), "first", 2, move=True)
    with pytest.raises(UserError, match=r"data.datasets.0.version: 1 -> 2"):
        run_training(tag)
    drop_tag(str(tagged), "first")
    with pytest.raises(UserError, match="no version or tag 'first'"):
        run_training(tag)

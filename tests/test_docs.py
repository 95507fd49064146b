"""The commands that README and docs print exist, with their options; every command is printed somewhere."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from flows.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LOG = ROOT / "docs" / "log.md"
"""What was run in the past may be gone."""


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))  # type: ignore[arg-type]


def printed() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command line in a code block."""
    for page in PAGES:
        for block in re.findall(r"^ *```\w*\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("uwm ") and page != LOG:
                    yield page.name, shlex.split(line, comments=True)[1:]


LINES = [pytest.param(words, id=f"{page}: {' '.join(words)}") for page, words in printed()]


@pytest.mark.parametrize("words", LINES)
def test_printed_command_exists_with_its_options(words: list[str]) -> None:
    name = next((name for name in COMMANDS if tuple(words[: len(name)]) == name), None)
    assert name, f"no such command: uwm {' '.join(words)}"
    options = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
    assert given <= {*options, "--help", "-h"}


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_has_its_line_in_the_list_of_commands(name: tuple[str, ...]) -> None:
    assert f"\nuwm {' '.join(name)}" in (ROOT / "docs" / "commands.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "tour.md").read_text())


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_tour_names_what_exists(file: str, name: str) -> None:
    assert name in {getattr(node, "name", "") for node in ast.parse((ROOT / file).read_text()).body}


def test_the_tour_has_the_eight_commands_of_the_demo() -> None:
    steps = ("ingest", "train", "evaluate")
    assert sum(page == "tour.md" and words[0] in steps for page, words in printed()) == 8

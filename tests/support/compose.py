"""Reads docker-compose.yml as Docker Compose does: anchors, merge keys and `${...}`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PATTERN = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<kind>:?[-?])(?P<rest>[^}]*))?\}|(?P<plain>\w+))")


class MissingVariableError(KeyError):
    """A variable that the file demands is not set."""


@dataclass(frozen=True)
class Reference:
    """One `${NAME...}` of the file."""

    name: str
    kind: str
    """How it is written: `:-` with a default, `:?` or `?` demanded, empty neither."""
    rest: str


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """`text` with its variables replaced."""

    def replace(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name, kind = match["name"] or match["plain"], match["kind"] or ""
        value = variables.get(name, "")
        if value or (kind in ("-", "?") and name in variables):
            return value
        if "?" in kind:
            raise MissingVariableError(f"{name}: {match['rest']}")
        return match["rest"] or ""

    return PATTERN.sub(replace, text)


def references(node: Any) -> Iterator[Reference]:
    """Every variable that a part of the file refers to."""
    for text in strings(node):
        for match in PATTERN.finditer(text):
            if not match["escaped"]:
                yield Reference(match["name"] or match["plain"], match["kind"] or "", match["rest"] or "")


def strings(node: Any) -> Iterator[str]:
    """Every string value below a node, keys excluded."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


def load(path: Path, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file as plain data; with its variables replaced when `variables` is given."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document if variables is None else _filled(document, variables)


def _filled(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, str):
        return interpolated(node, variables)
    if isinstance(node, Mapping):
        return {key: _filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    return node


def in_order(services: Mapping[str, Any]) -> list[str]:
    """Names of the services, each after those that it depends on."""
    ordered: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"{' -> '.join([*above, name])} depend on each other"
        for needed in services[name].get("depends_on", {}):
            visit(needed, (*above, name))
        if name not in ordered:
            ordered.append(name)

    for name in services:
        visit(name, ())
    return ordered

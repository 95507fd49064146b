"""Settings as the command line writes them: `dotted.name=value` pairs that change single ones of a run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from storage_schemas.errors import UserError, first_problem
from uwm.config import RunConfig
from uwm.earlier_configs import todays_name
from uwm.registry import nearest, policy_settings


def apply_overrides(config: RunConfig, pairs: Sequence[str]) -> RunConfig:
    """A checked copy of `config` with settings changed by `dotted.name=value` pairs.

    Lists take commas or JSON (`data.crop=64,112`), `null` clears an optional setting, and the number
    after the last list entry appends one (`data.datasets.1.uri=...`). `policy=dp` changes the kind of policy: what
    both kinds have stays, the rest becomes the new kind's defaults.

    Raises:
        UserError: when a name is unknown (it suggests the nearest) or a value does not fit.
    """
    values: dict[str, Any] = config.model_dump(mode="json")
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"{pair!r} is no setting: write name=value, for example train.steps=100")
        if name in ("policy", "policy.kind"):
            values["policy"] = as_kind(values["policy"], text)
        else:
            _put(values, name, text)
    try:
        changed = RunConfig.model_validate(values)
    except ValidationError as error:
        name, reason = first_problem(error)
        nearest = _nearest_field(config, name) if error.errors()[0]["type"] == "extra_forbidden" else ""
        raise UserError(f"{name}: {reason}{nearest}" if name else reason) from error
    changed.check_warmup()
    return changed


def as_kind(policy: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A policy's settings as those of another kind: what both have stays, the rest is the new kind's default.

    Raises:
        UserError: when there is no such kind.
    """
    return _overlaid(policy_settings(kind)().model_dump(mode="json"), policy) | {"kind": kind}


def _overlaid(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `others` of the same name; parts are taken one by one, and only where both are parts."""
    overlaid = dict(values)
    for name, value in values.items():
        other = others.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            overlaid[name] = _overlaid(value, other)
        elif name in others and not isinstance(value, dict) and not isinstance(other, dict):
            overlaid[name] = other
    return overlaid


def _put(values: dict[str, Any], name: str, text: str) -> None:
    """Set one entry of nested dicts and lists."""
    if now := todays_name(name):
        raise UserError(f"there is no setting {name}: it is called {now} now")
    *path, last = name.split(".")
    here: object = values
    for depth, key in enumerate(path):
        here = _child(here, key, ".".join(path[: depth + 1]))
    if isinstance(here, list):
        index = _index(here, last, name)
        here[index : index + 1] = [_parse(text, None)]
    elif isinstance(here, dict):
        here[last] = _parse(text, here.get(last))
    else:
        raise UserError(f"{name}: {'.'.join(path)} has no parts")


def _child(here: object, key: str, name: str) -> object:
    if isinstance(here, list):
        index = _index(here, key, name)
        if index == len(here):
            here.append({"collections": []})  # a dataset: nothing else comes in a list of parts
        return here[index]
    if isinstance(here, dict):
        if key not in here:
            raise UserError(f"there is no setting {name}{nearest(key, here)}")
        return here[key]
    raise UserError(f"there is no setting {name}")


def _index(here: Sequence[object], key: str, name: str) -> int:
    if not key.isdecimal() or int(key) > len(here):
        raise UserError(f"{name}: {key!r} is no place in a list of {len(here)}: use 0 to {len(here)}")
    return int(key)


def _parse(text: str, current: object) -> object:
    """Text to what pydantic checks and converts; only lists and null need help."""
    if text == "null":
        return None
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{text!r} is no JSON: {error.msg}") from error
    if isinstance(current, list):
        return [item.strip() for item in text.split(",")] if text else []
    return text


def _nearest_field(config: RunConfig, name: str) -> str:
    values: object = config.model_dump(mode="json")
    *path, last = name.split(".")
    for key in path:
        values = values[int(key)] if isinstance(values, list) else values.get(key) if isinstance(values, dict) else None
    return nearest(last, values) if isinstance(values, dict) else ""

"""The kinds of policy there are: those of this project, of the running code, and of installed packages."""

import difflib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from pydantic import BaseModel

from storage_schemas.errors import UserError

POLICY_GROUP = "uwm.policies"
"""Entry points of other packages: each names a module that registers policies when it is imported."""
_BUILT_IN = EntryPoint(name="built-in", value="uwm.policies", group=POLICY_GROUP)
_POLICIES: dict[str, type[Any]] = {}

P = TypeVar("P", bound=BaseModel)


def register_policy(settings: type[P]) -> type[P]:
    """Make a kind of policy known by the default of its field `kind`."""
    _POLICIES[settings.model_fields["kind"].default] = settings
    return settings


def policy_settings(kind: str) -> type[Any]:
    """The settings of a kind of policy, a `uwm.config.PolicyConfig`.

    Raises:
        UserError: when there is no such policy; it suggests the nearest.
    """
    _BUILT_IN.load()
    if kind not in _POLICIES:
        for point in entry_points(group=POLICY_GROUP):
            point.load()
    if kind not in _POLICIES:
        raise UserError(f"unknown policy {kind!r}{nearest(kind, _POLICIES)}; there are {', '.join(_POLICIES)}")
    return _POLICIES[kind]


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error about an unknown name: the most similar of those there are, if one is similar."""
    similar = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f": did you mean {similar[0]!r}?" if similar else ""

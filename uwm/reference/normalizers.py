"""The normalizers of published checkpoints: numbers that are `normalized * scale + offset`."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor

from storage_schemas.errors import UserError
from uwm.conditions import RunState
from uwm.data.normalize import ActionNormalizer, NormalizerSource, StateRange
from uwm.reference.torchfile import NumpyValue


def action_normalizer(
    normalizer: object, action_dim: int, source: str, states: Sequence[StateRange] = ()
) -> ActionNormalizer:
    """The normalizer of actions, with that of states; none means actions as they are.

    It does not say from how many steps it was made, nor their mean: the count is 1, so that finetuning keeps
    the bounds, and the mean is the middle of the range.

    Raises:
        UserError: when it holds no usable numbers.
    """
    scale, offset = [1.0] * action_dim, [0.0] * action_dim
    if normalizer is not None:
        scale, offset = _scale_and_offset(normalizer, action_dim, "the action normalizer")
    low, high = _bounds(scale, offset)
    return ActionNormalizer(
        low=low,
        high=high,
        mean=tuple(offset),
        count=1,
        sources=(NormalizerSource(uri=source, version=0, split=None),),
        states=tuple(states),
    )


def state_ranges(normalizer: object, states: Sequence[RunState]) -> tuple[StateRange, ...]:
    """What becomes [-1, 1] of each state of a run, whose fields are those of the file in its order.

    Raises:
        UserError: when the normalizer holds no usable numbers for one of them.
    """
    parts = list(_fields(normalizer).items())
    if not parts:
        return tuple(StateRange.identity(state.name, state.dim) for state in states)
    ranges = []
    for state, (name, part) in zip(states, parts, strict=True):
        low, high = _bounds(*_scale_and_offset(part, state.dim, f"the normalizer of {name}"))
        ranges.append(StateRange(name=state.name, low=low, high=high))
    return tuple(ranges)


def state_dims(normalizer: object) -> dict[str, int]:
    """The fields of the state that a checkpoint's normalizer knows, sorted as the network takes them."""
    return {name: len(_array(part, "scale", f"the normalizer of {name}")) for name, part in _fields(normalizer).items()}


def _fields(normalizer: object) -> dict[str, object]:
    """A normalizer of several fields taken apart."""
    if not isinstance(normalizer, Mapping):
        return {}
    names = {str(key): key for key in normalizer}
    return {name: normalizer[names[name]] for name in sorted(names)}


def _bounds(scale: Sequence[float], offset: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What becomes -1 and 1."""
    pairs = list(zip(scale, offset, strict=True))
    return tuple(o - s for s, o in pairs), tuple(o + s for s, o in pairs)


def _scale_and_offset(normalizer: object, count: int, what: str) -> tuple[list[float], list[float]]:
    scale, offset = (_array(normalizer, name, what) for name in ("scale", "offset"))
    for name, numbers in (("scale", scale), ("offset", offset)):
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise UserError(f"{what}'s {name} is not {count} finite numbers")
    if min(scale) < 0:
        raise UserError(f"{what} has a negative scale")
    return scale, offset


def _array(normalizer: object, name: str, what: str) -> list[float]:
    """An array of a normalizer's state."""
    state = vars(normalizer) if isinstance(normalizer, OrderedDict) else normalizer  # see `Foreign`
    value = state.get(name) if isinstance(state, dict) else None
    if isinstance(value, NumpyValue):
        flat = value.array().astype(float).reshape(-1)
    elif isinstance(value, Tensor):
        flat = value.detach().double().reshape(-1).numpy()
    else:
        raise UserError(f"{what} holds no array {name!r}")
    numbers: list[float] = flat.tolist()
    return numbers

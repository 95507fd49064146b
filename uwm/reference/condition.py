"""What a published condition holds beside the images' features, told by its size: states and language."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from storage_schemas.errors import UserError
from uwm.config import RunConfig
from uwm.reference.normalizers import state_dims

HEAD_WEIGHT = "condition.head.weight"


def told(
    weights: Mapping[str, Tensor], state_normalizer: object, condition: int, features: int, base: RunConfig
) -> dict[str, object]:
    """The settings of states and language, by dotted name.

    Args:
        weights: under this house's names.
        state_normalizer: of the file; it names the fields and their numbers.
        condition: features of the condition.
        features: of an image.
        base: says frames and cameras, and may name the states.

    Raises:
        UserError: when the parts don't make up the condition; says which settings to give.
    """
    frames, cameras = base.data.obs_frames, len(base.data.cameras)
    head = weights.get(HEAD_WEIGHT)
    if head is not None and (head.dim() != 2 or head.shape[0] != features):
        raise UserError(f"its map of language gives {head.shape[0]} features, not {features} as an image has")
    if head is None and base.data.language.is_heard:
        raise UserError("it hears no language: leave data.language.kind as it is")
    left = condition - features * frames * cameras - (0 if head is None else features)
    states = _states(left, state_dims(state_normalizer), base)
    numbers = sum(dim for _, dim in states)
    if left != frames * numbers:
        language = "" if head is None else f" and {features} of the instruction"
        raise UserError(
            f"its condition has {condition} features, {features} for each image: with data.obs_frames={frames}, "
            f"{cameras} cameras{language} they leave {left} for {numbers} numbers of states in each frame. Set "
            "data.obs_frames and data.cameras=a,b, and data.states=name:numbers,... in the order of its training"
        )
    settings: dict[str, object] = {"data.states": [f"{name}:{dim}" for name, dim in states]}
    if head is not None:
        settings["data.language.kind"] = "clip"
        settings["data.language.features"] = head.shape[1]
    return settings


def _states(left: int, known: Mapping[str, int], base: RunConfig) -> Sequence[tuple[str, int]]:
    """Names and numbers of the states: as they were asked for, else as the file's normalizer has them."""
    asked, dims = base.data.states, list(known.values())
    if left <= 0 and not asked:
        return []
    if not asked:
        return list(known.items())
    if len(asked) == len(dims):
        return [(state.name, dim) for state, dim in zip(asked, dims, strict=True)]
    each = left // base.data.obs_frames
    return [(state.name, state.space.dim if state.space else each) for state in asked]

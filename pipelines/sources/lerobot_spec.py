"""What the numbers and cameras of LeRobot datasets are, as a store declares it.

`info.json` names numbers and says nothing of their meaning, so they are `other` under those names; `meta/uwm.json` may
say more. A camera that is called wrist or exterior is one.
"""

import re
from collections.abc import Sequence

from pipelines.sources.lerobot_set import LeRobotSet
from storage_schemas.conventions import DROID_ACTION_DIM
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Camera, Part, Role, Space, StateField, undeclared

_ROLES: tuple[Role, ...] = ("wrist", "exterior")


def spec_of(sets: Sequence[LeRobotSet], dataset: DatasetSpec | None) -> DatasetSpec:
    """The spec of a store that takes the episodes of these datasets.

    Args:
        sets: at least one.
        dataset: the store's, for datasets without an action.

    Raises:
        UserError: when there is no camera, or their actions differ.
    """
    cameras = tuple(dict.fromkeys(camera for one in sets for camera in one.cameras.values()))
    if not cameras:
        raise UserError(f"{sets[0].root} declares no camera (a feature of dtype video or image): nothing to look at")
    spaces = {one.root: _action(one) for one in sets}
    actions = [space for space in spaces.values() if space is not None]
    for root, space in spaces.items():
        if space is not None and space != actions[0]:
            raise UserError(f"{root} has other actions than {next(iter(spaces))}: ingest them one by one")
    action = actions[0] if actions else None
    unknown = DROID_ACTION_DIM if dataset is None else dataset.action_dim
    states: dict[str, list[StateField]] = {}
    for one in sets:
        for field in _states(one):
            states.setdefault(field.name, []).append(field)
    return DatasetSpec(
        cameras=cameras,
        action_dim=unknown if action is None else action.dim,
        action=action,
        states=tuple(fields[0] for fields in states.values() if all(field == fields[0] for field in fields)),
        views=tuple({view.name: view for one in sets for view in _views(one)}.values()),
    )


def _action(one: LeRobotSet) -> Space | None:
    """What the action is; None when there is none."""
    features = [one.info.numbers[name] for name in one.info.actions]
    if not features:
        return None
    said = one.extra.action
    if said is not None and said.dim == sum(feature.dim for feature in features):
        return said
    parts = (Part(name=f.name, quantity="other", dim=f.dim, axes=f.axes) for f in features)
    return Space(parts=tuple(parts), rate=one.info.fps)


def _states(one: LeRobotSet) -> list[StateField]:
    said = {field.name: field for field in one.extra.states}
    found = []
    for feature in one.states:
        name = one.extra.fields.get(feature.name, feature.name)
        field = said.get(name)
        if field is not None and field.space.dim == feature.dim:
            found.append(field)
        elif feature.name not in one.extra.fields:  # else a store had it and declared nothing
            space = undeclared(feature.name, feature.dim, feature.axes, one.info.fps)
            found.append(StateField(name=name, space=space))
    return found


def _views(one: LeRobotSet) -> list[Camera]:
    """What is said of the cameras, or what their names say."""
    said = {view.name: view for view in one.extra.views}
    found = []
    for camera in one.cameras.values():
        words = re.split(r"[^a-z]+", camera.lower())
        role = next((role for role in _ROLES if role in words), None)
        if camera in said:
            found.append(said[camera])
        elif role is not None and not one.extra.cameras:
            found.append(Camera(name=camera, role=role))
    return found

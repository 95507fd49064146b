"""Which camera of a dataset stands for which of the run's."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.conventions import DROID_VIEWS
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Role
from uwm.config import DatasetRef
from uwm.registry import nearest

Roles = Mapping[str, Role]
"""Camera of the run -> where it looks from."""


def camera_roles(cameras: Sequence[str], specs: Sequence[DatasetSpec]) -> Roles:
    """Where the run's cameras look from: as the first dataset with a camera of that name declares it, else as DROID."""
    roles: dict[str, Role] = {view.name: view.role for view in DROID_VIEWS}
    for spec in reversed(specs):
        roles |= {view.name: view.role for view in spec.views if view.role != "unknown"}
    return {camera: roles.get(camera, "unknown") for camera in cameras}


def camera_map(
    spec: DatasetSpec, ref: DatasetRef, cameras: Sequence[str], roles: Roles = MappingProxyType({})
) -> dict[str, str]:
    """Camera of the run -> camera of the dataset, for those that there are.

    What the run declares for the dataset counts, all of it and nothing else. Else cameras of equal names go together,
    then those that are left by their declared roles: exterior ones in order, the wrist's.

    Raises:
        UserError: when a declared camera does not exist, or stands for two.
    """
    if ref.cameras:
        _check(spec, ref, cameras)
        return {camera: ref.cameras[camera] for camera in cameras if camera in ref.cameras}
    chosen = {camera: camera for camera in cameras if camera in spec.cameras}
    free = [camera for camera in spec.cameras if camera not in chosen and camera not in cameras]
    for camera in cameras:
        role = roles.get(camera, "unknown")
        if camera in chosen or role == "unknown":
            continue
        alike = [other for other in free if spec.role(other) == role]
        if alike:
            chosen[camera] = alike[0]
            free.remove(alike[0])
    return {camera: chosen[camera] for camera in cameras if camera in chosen}


def view_places(
    spec: DatasetSpec, mapping: Mapping[str, str], cameras: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cameras that both have: places on the run's view axis, and on the dataset's, which ascend."""
    places = sorted((spec.cameras.index(theirs), cameras.index(ours)) for ours, theirs in mapping.items())
    return np.array([ours for _, ours in places], np.int64), np.array([theirs for theirs, _ in places], np.int64)


def fill_views(arrays: Sequence[NDArray[Any]], positions: Sequence[int], seed: int, *, shuffled: bool) -> None:
    """Let the views that a sample lacks show one that it has, in place; a sample that has none stays as it is.

    Args:
        arrays: (B, V, ...) with the mask of what is known first.
        positions: (B,) places of the samples in the run's order.
        seed: of the run.
        shuffled: whether each missing view shows any of those that there are; else all show the first.
    """
    for row, position in enumerate(positions):
        known = np.logical_or.reduce(arrays[0][row], axis=1)  # (V,)
        there, missing = np.flatnonzero(known), np.flatnonzero(~known)
        if not (len(there) and len(missing)):
            continue
        chosen = there[:1].repeat(len(missing))
        if shuffled:
            chosen = there[np.random.default_rng((seed, position, len(known))).integers(len(there), size=len(missing))]
        for values in arrays:
            values[row, missing] = values[row, chosen]


def _check(spec: DatasetSpec, ref: DatasetRef, cameras: Sequence[str]) -> None:
    for ours, theirs in ref.cameras.items():
        if ours not in cameras:
            raise UserError(f"{ref.uri}: the run has no camera {ours!r}{nearest(ours, cameras)}")
        if theirs not in spec.cameras:
            raise UserError(
                f"{ref.uri} has no camera {theirs!r}{nearest(theirs, spec.cameras)}: it has {', '.join(spec.cameras)}"
            )
    if len(set(ref.cameras.values())) < len(ref.cameras):
        raise UserError(f"{ref.uri}: one camera stands for two of the run's in cameras")

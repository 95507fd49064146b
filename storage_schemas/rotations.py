"""Rotations in all representations that robot data comes in.

Letters: T steps. Rotations act on column vectors, angles are in radians. Euler angles are extrinsic (`euler_xyz`,
DROID's own) or intrinsic (`euler_XYZ`); `6d` is the first two rows of the matrix (Zhou et al. 2019, arXiv 1812.07035).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage_schemas.spaces import WIDTHS, Angles, Representation


def to_matrix(values: ArrayLike, representation: Representation) -> NDArray[np.float64]:
    """Rotation matrices (T, 3, 3) of values (T, D).

    Raises:
        ValueError: for a width that is not the representation's, or a quaternion of zero norm.
    """
    from scipy.spatial.transform import Rotation

    array = np.asarray(values, np.float64)
    if representation not in WIDTHS or array.ndim != 2 or array.shape[1] != WIDTHS[representation]:
        raise ValueError(f"{representation} is not written as {array.shape}")
    if representation == "6d":
        return _six_to_matrix(array)
    if not len(array):
        return np.zeros((0, 3, 3))
    made: Any
    if representation == "axis_angle":
        made = Rotation.from_rotvec(array)
    elif representation in ("quaternion_xyzw", "quaternion_wxyz"):
        made = Rotation.from_quat(array, scalar_first=representation == "quaternion_wxyz")
    else:
        made = Rotation.from_euler(representation.removeprefix("euler_"), array)
    return np.asarray(made.as_matrix(), np.float64)


def from_matrix(matrices: ArrayLike, representation: Representation) -> NDArray[np.float64]:
    """The inverse of `to_matrix`: (T, 3, 3) -> (T, D).

    Euler angles lie in [-pi, pi], the middle one in [-pi/2, pi/2]; a quaternion's real part is not negative.
    """
    from scipy.spatial.transform import Rotation

    array = np.asarray(matrices, np.float64)
    if representation == "6d":
        return array[:, :2].reshape(-1, 6)
    if representation not in WIDTHS:
        raise ValueError(f"a rotation is not written as {representation}")
    if not len(array):
        return np.zeros((0, WIDTHS[representation]))
    made = Rotation.from_matrix(array)
    if representation == "axis_angle":
        written = made.as_rotvec()
    elif representation in ("quaternion_xyzw", "quaternion_wxyz"):
        written = made.as_quat(canonical=True, scalar_first=representation == "quaternion_wxyz")
    else:
        written = made.as_euler(representation.removeprefix("euler_"))
    return np.asarray(written, np.float64)


def scaled(matrices: NDArray[np.float64], factor: float, angles: Angles) -> NDArray[np.float64]:
    """Rotations (T, 3, 3) whose angles, in one of their representations, are multiplied by `factor`."""
    return matrices if factor == 1 else to_matrix(from_matrix(matrices, angles) * factor, angles)


def _six_to_matrix(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation matrix nearest in Gram-Schmidt's sense, for predictions need not be orthonormal."""
    rows = rotation.reshape(-1, 2, 3)
    first = rows[:, 0] / np.linalg.norm(rows[:, 0], axis=-1, keepdims=True)
    second = rows[:, 1] - np.sum(first * rows[:, 1], axis=-1, keepdims=True) * first
    second /= np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=1)

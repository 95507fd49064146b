"""What robot numbers mean: rotations, action spaces, gripper sign. Ingestion and serving share it.

Letters: T steps. Rotations act on column vectors; Euler angles are in radians, extrinsic x, y, z (scipy's "xyz"),
which is what DROID's own controller code uses.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

DROID_CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
"""DROID's views in canonical order, under the names of its RLDS release."""

DROID_ACTION_DIM = 10
"""xyz velocity (3), 6D rotation of the angular velocity's Euler angles (6), gripper position (1)."""

DROID_FPS = 15.0
"""DROID's control rate in Hz; its RLDS records carry no time."""

DROID_MAX_STEP = np.array([0.075, 0.075, 0.075, 0.15, 0.15, 0.15], np.float32)
"""Metres and radians that a velocity of 1 moves in one control step (DROID's IK solver)."""


def euler_to_rotation_6d(angles: ArrayLike) -> NDArray[np.float32]:
    """The first two rows of the rotation matrix (Zhou et al. 2019, arXiv 1812.07035).

    Args:
        angles: (T, 3) extrinsic xyz Euler angles, radians.

    Returns:
        (T, 6), first row then second row.
    """
    from scipy.spatial.transform import Rotation

    values = np.asarray(angles, np.float64).reshape(-1, 3)
    if not len(values):
        return np.zeros((0, 6), np.float32)
    matrices = np.asarray(Rotation.from_euler("xyz", values).as_matrix(), np.float32)  # (T, 3, 3)
    return matrices[:, :2].reshape(-1, 6)


def rotation_6d_to_matrix(rotation: ArrayLike) -> NDArray[np.float64]:
    """The rotation matrix nearest in Gram-Schmidt's sense: predictions need not be orthonormal.

    Args:
        rotation: (T, 6), first row then second row; neither zero nor parallel.

    Returns:
        (T, 3, 3)
    """
    rows = np.asarray(rotation, np.float64).reshape(-1, 2, 3)
    first = rows[:, 0] / np.linalg.norm(rows[:, 0], axis=-1, keepdims=True)
    second = rows[:, 1] - np.sum(first * rows[:, 1], axis=-1, keepdims=True) * first
    second /= np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=1)  # (T, 3, 3)


def rotation_6d_to_euler(rotation: ArrayLike) -> NDArray[np.float32]:
    """Inverse of `euler_to_rotation_6d`; angles in [-pi, pi], the middle one in [-pi/2, pi/2].

    Args:
        rotation: (T, 6)

    Returns:
        (T, 3) radians.
    """
    from scipy.spatial.transform import Rotation

    matrices = rotation_6d_to_matrix(rotation)
    if not len(matrices):
        return np.zeros((0, 3), np.float32)
    return np.asarray(Rotation.from_matrix(matrices).as_euler("xyz"), np.float32)


def droid_action(velocity: ArrayLike, gripper: ArrayLike) -> NDArray[np.float32]:
    """The 10-dim action of the UWM paper (arXiv 2504.02792) for DROID.

    Args:
        velocity: (T, 6) `action_dict/cartesian_velocity`: xyz and Euler angles, unitless in [-1, 1].
        gripper: (T, 1) `action_dict/gripper_position`: 0 open, 1 closed.

    Returns:
        (T, 10): xyz, 6D rotation, gripper; the velocity keeps its unit.
    """
    moves = np.asarray(velocity, np.float32).reshape(-1, 6)
    grip = np.asarray(gripper, np.float32).reshape(-1, 1)
    return np.concatenate([moves[:, :3], euler_to_rotation_6d(moves[:, 3:]), grip], axis=1)


def droid_action_inverse(action: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The robot command behind a 10-dim action: velocity (T, 6) and gripper position (T, 1)."""
    values = np.asarray(action, np.float32).reshape(-1, DROID_ACTION_DIM)
    return np.concatenate([values[:, :3], rotation_6d_to_euler(values[:, 3:9])], axis=1), values[:, 9:]


def droid_velocity_to_step(velocity: ArrayLike) -> NDArray[np.float32]:
    """Metres and radians that one control step moves: (T, 6) unitless to (T, 6)."""
    return np.asarray(velocity, np.float32) * DROID_MAX_STEP

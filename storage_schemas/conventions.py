"""What DROID's numbers mean. Ingestion and serving share it.

Letters: T steps. Euler angles are extrinsic x, y, z, which is what DROID's own controller code uses.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage_schemas.rotations import from_matrix, to_matrix
from storage_schemas.spaces import Camera, Part, Space, StateField

DROID_CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
"""DROID's views in canonical order, under the names of its RLDS release."""

DROID_ACTION_DIM = 10
"""xyz velocity (3), 6D rotation of the angular velocity's Euler angles (6), gripper position (1)."""

DROID_FPS = 15.0
"""DROID's control rate in Hz; its RLDS records carry no time."""

DROID_MAX_STEP = np.array([0.075, 0.075, 0.075, 0.15, 0.15, 0.15], np.float32)
"""Metres and radians that a velocity of 1 moves in one control step (DROID's IK solver)."""


_VELOCITY = Part(
    name="cartesian_velocity",
    quantity="linear_velocity",
    dim=3,
    unit="m/step",
    scale=0.075,
    frame="base",
    axes=("x", "y", "z"),
)
_GRIPPER = Part(name="gripper_position", quantity="gripper_position", dim=1, unit="1", open=0.0, closed=1.0)

DROID_ACTION = Space(
    parts=(
        _VELOCITY,
        Part(
            name="angular_velocity",
            quantity="angular_velocity",
            dim=6,
            representation="6d",
            unit="rad/step",
            scale=0.15,
            scaled="euler_xyz",
            frame="base",
            axes=tuple(f"rot {index}" for index in range(1, 7)),
        ),
        _GRIPPER,
    ),
    rate=DROID_FPS,
)
"""The action of the UWM paper for DROID: the rotation is that of the unscaled Euler angles of the velocity."""

DROID_ROBOT = Space(
    parts=(
        _VELOCITY,
        Part(
            name="angular_velocity",
            quantity="angular_velocity",
            dim=3,
            representation="euler_xyz",
            unit="rad/step",
            scale=0.15,
            frame="base",
            axes=("roll", "pitch", "yaw"),
        ),
        _GRIPPER,
    ),
    rate=DROID_FPS,
)
"""What DROID's environment takes: `cartesian_velocity` (6) in [-1, 1] and the gripper's position."""

DROID_STATES = (
    StateField(
        name="observation/cartesian_position",
        space=Space(
            parts=(
                Part(name="position", quantity="position", dim=3, unit="m", frame="base", axes=("x", "y", "z")),
                Part(
                    name="rotation",
                    quantity="rotation",
                    dim=3,
                    representation="euler_xyz",
                    unit="rad",
                    frame="base",
                    axes=("roll", "pitch", "yaw"),
                ),
            )
        ),
    ),
    StateField(
        name="observation/joint_position",
        space=Space(parts=(Part(name="joint_position", quantity="joint_position", dim=7, unit="rad"),)),
    ),
    StateField(
        name="observation/gripper_position",
        space=Space(parts=(_GRIPPER,)),
    ),
)
"""What DROID's robot measures of itself."""

DROID_VIEWS = (
    Camera(name=DROID_CAMERAS[0], role="exterior"),
    Camera(name=DROID_CAMERAS[1], role="exterior"),
    Camera(name=DROID_CAMERAS[2], role="wrist"),
)


def euler_to_rotation_6d(angles: ArrayLike) -> NDArray[np.float32]:
    """The 6D rotations (T, 6) of extrinsic xyz Euler angles (T, 3), radians."""
    matrices = to_matrix(np.asarray(angles, np.float64).reshape(-1, 3), "euler_xyz")
    return from_matrix(matrices.astype(np.float32), "6d").astype(np.float32)


def rotation_6d_to_euler(rotation: ArrayLike) -> NDArray[np.float32]:
    """The inverse of `euler_to_rotation_6d`, (T, 6) -> (T, 3); predictions need not be orthonormal."""
    values = np.asarray(rotation, np.float64).reshape(-1, 6)
    return from_matrix(to_matrix(values, "6d"), "euler_xyz").astype(np.float32)


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

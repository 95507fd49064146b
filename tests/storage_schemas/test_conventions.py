"""Rotations and actions go there and back, and mean what scipy says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from storage_schemas.conventions import (
    DROID_ACTION_DIM,
    droid_action,
    droid_action_inverse,
    droid_velocity_to_step,
    euler_to_rotation_6d,
    rotation_6d_to_euler,
)
from storage_schemas.rotations import to_matrix

ANGLE = st.floats(-3.125, 3.125, width=32)
TILT = st.floats(-1.5, 1.5, width=32)  # away from the gimbal lock at pi/2, where Euler angles are not unique
EULER = st.lists(st.tuples(ANGLE, TILT, ANGLE), min_size=1, max_size=8)
UNIT = st.floats(-1, 1, width=32)


@given(EULER)
def test_angles_go_there_and_back(angles: list[tuple[float, float, float]]) -> None:
    np.testing.assert_allclose(rotation_6d_to_euler(euler_to_rotation_6d(angles)), angles, atol=2e-5)


@given(EULER)
def test_matrix_is_scipys_extrinsic_xyz(angles: list[tuple[float, float, float]]) -> None:
    expected = Rotation.from_euler("xyz", np.asarray(angles)).as_matrix()
    np.testing.assert_allclose(to_matrix(euler_to_rotation_6d(angles), "6d"), expected, atol=1e-6)


def test_first_two_rows_by_hand() -> None:
    quarter_about_z = euler_to_rotation_6d([[0, 0, np.pi / 2]])  # x goes to y: the matrix is [[0,-1,0],[1,0,0],[0,0,1]]
    np.testing.assert_allclose(quarter_about_z, [[0, -1, 0, 1, 0, 0]], atol=1e-7)


@given(st.lists(st.lists(st.floats(-2, 2), min_size=6, max_size=6), min_size=1, max_size=5))
def test_any_prediction_becomes_a_rotation(rows: list[list[float]]) -> None:
    values = np.asarray(rows) + np.array([3, 0, 0, 0, 3, 0])  # neither zero nor parallel
    matrices = to_matrix(values, "6d")
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.tile(np.eye(3), (len(rows), 1, 1)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-9)


@given(st.lists(st.tuples(*[UNIT] * 7), min_size=1, max_size=8))
def test_action_goes_there_and_back(rows: list[tuple[float, ...]]) -> None:
    values = np.asarray(rows, np.float32)
    action = droid_action(values[:, :6], values[:, 6:])
    assert action.shape == (len(rows), DROID_ACTION_DIM)
    assert action.dtype == np.float32
    velocity, gripper = droid_action_inverse(action)
    np.testing.assert_allclose(velocity, values[:, :6], atol=1e-5)
    np.testing.assert_array_equal(gripper, values[:, 6:])


@pytest.mark.parametrize("shape", [(0, 6), (0,)])
def test_no_steps(shape: tuple[int, ...]) -> None:
    assert droid_action(np.zeros(shape), np.zeros((0, 1))).shape == (0, DROID_ACTION_DIM)
    assert rotation_6d_to_euler(np.zeros((0, 6))).shape == (0, 3)


def test_step_of_a_full_velocity() -> None:
    np.testing.assert_allclose(droid_velocity_to_step(np.ones((1, 6))), [[0.075] * 3 + [0.15] * 3])

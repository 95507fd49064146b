"""Several steps of a robot as one."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from storage_schemas.conventions import DROID_ACTION, DROID_ROBOT
from storage_schemas.conversions import convert
from storage_schemas.spaces import Part, Space
from storage_schemas.strides import stride_steps, strided

RNG = np.random.default_rng(0)


def space(**part: object) -> Space:
    return Space(parts=(Part.model_validate({"name": "it", **part}),), rate=30.0)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"quantity": "gripper_position", "dim": 1, "unit": "1"}, [2.0, 5.0]),
        ({"quantity": "joint_position", "dim": 1, "unit": "rad"}, [2.0, 5.0]),
        ({"quantity": "joint_delta", "dim": 1, "unit": "rad/step"}, [3.0, 12.0]),
        ({"quantity": "gripper_delta", "dim": 1, "unit": "1"}, [3.0, 12.0]),
        ({"quantity": "joint_velocity", "dim": 1, "unit": "rad/s"}, [1.0, 4.0]),
    ],
)
def test_the_last_the_sum_and_the_mean(part: dict[str, object], expected: list[float]) -> None:
    values, known = np.arange(6, dtype=np.float32)[:, None], np.ones(6, np.bool_)
    found, whole = stride_steps(values, known, space(**part), 3)
    assert found[:, 0].tolist() == expected
    assert whole.all()


def test_a_stride_of_which_a_step_is_unknown_is_unknown() -> None:
    values, known = np.ones((6, 1), np.float32), np.arange(6) != 4
    found, whole = stride_steps(values, known, space(quantity="joint_delta", dim=1, unit="rad/step"), 3)
    assert whole.tolist() == [True, False]
    assert found[:, 0].tolist() == [3.0, 0.0]


@pytest.mark.parametrize("frame", ["base", "tool"])
def test_turns_are_composed_in_their_frame(frame: str) -> None:
    vectors = RNG.normal(size=(4, 3)) * 0.3
    turning = space(
        quantity="rotation_delta", dim=3, representation="axis_angle", unit="rad/step", scale=0.5, frame=frame
    )
    found, _ = stride_steps((vectors / 0.5).astype(np.float32), np.ones(4, np.bool_), turning, 4)
    whole = Rotation.identity()
    for turn in Rotation.from_rotvec(vectors):
        whole = turn * whole if frame == "base" else whole * turn
    np.testing.assert_allclose(found[0] * 0.5, whole.as_rotvec(), atol=1e-6)


def test_droids_6d_turns_as_far_as_its_angles_do() -> None:
    """Its 6D rotation is that of the unscaled angles: as they stand, they turn almost seven times too far."""
    source, target = DROID_ROBOT.parts[1], DROID_ACTION.parts[1]
    angles = RNG.uniform(-1, 1, size=(4, 3)).astype(np.float32)
    both = [Space(parts=(part,), rate=15.0) for part in (source, target)]
    known = np.ones(4, np.bool_)
    plain, _ = stride_steps(angles, known, both[0], 4)
    six, _ = stride_steps(convert(angles, source, target), known, both[1], 4)
    np.testing.assert_allclose(convert(six, target, source), plain, atol=1e-4)


def test_numbers_without_a_sum_refuse() -> None:
    known = np.ones(2, np.bool_)
    for part in (
        {"quantity": "other", "dim": 1},
        {"quantity": "joint_effort", "dim": 1, "unit": "Nm"},
        {"quantity": "rotation_delta", "dim": 3, "representation": "axis_angle", "unit": "rad/step"},
        {"quantity": "joint_velocity", "dim": 1},
    ):
        with pytest.raises(ValueError, match="it "):
            stride_steps(np.zeros((2, int(str(part["dim"]))), np.float32), known, space(**part), 2)


def test_the_rate_falls() -> None:
    assert strided(DROID_ACTION, 3).rate == 5.0
    assert strided(DROID_ACTION, 1) is DROID_ACTION

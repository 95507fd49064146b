"""Spaces say what their numbers mean, and convert where the same thing is only written in another way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from storage_schemas.conventions import DROID_ACTION, DROID_ROBOT, droid_action, droid_velocity_to_step
from storage_schemas.conversions import convert, converts, dropped, moves, positions, rotations, routes, turns, union
from storage_schemas.rotations import from_matrix, to_matrix
from storage_schemas.spaces import WIDTHS, Part, Space, undeclared

SEEDS = st.integers(0, 2**32 - 1)
FORMS = sorted(WIDTHS)


def turned(seed: int, steps: int = 5, most: float = 1.4) -> NDArray[np.float64]:
    """Rotations by up to `most` radians, away from the gimbal lock."""
    generator = np.random.default_rng(seed)
    axes = generator.standard_normal((steps, 3))
    angles = generator.uniform(0.01, most, (steps, 1))
    return to_matrix(axes / np.linalg.norm(axes, axis=1, keepdims=True) * angles, "axis_angle")


def turn(form: str, **more: object) -> Part:
    values = {"name": "r", "quantity": "rotation_delta", "dim": WIDTHS[form], "representation": form} | more
    return Part.model_validate(values | {"unit": "rad/step", "frame": "base"})


@pytest.mark.parametrize("form", FORMS)
@given(seed=SEEDS)
def test_every_representation_goes_there_and_back(form: str, seed: int) -> None:
    matrices = turned(seed)
    np.testing.assert_allclose(to_matrix(from_matrix(matrices, form), form), matrices, atol=1e-9)  # type: ignore[arg-type]


@given(seed=SEEDS, one=st.sampled_from(FORMS), other=st.sampled_from(FORMS), scale=st.sampled_from([1.0, 0.15, 0.5]))
def test_rotations_convert_there_and_back(seed: int, one: str, other: str, scale: float) -> None:
    source, target = turn(one), turn(other, scale=scale)
    values = from_matrix(turned(seed, most=0.4 * scale), one).astype(np.float32)  # type: ignore[arg-type]
    back = convert(convert(values, source, target), target, source)
    np.testing.assert_allclose(back, values, atol=2e-5)


@given(seed=SEEDS)
def test_droids_published_action_is_the_robots_command(seed: int) -> None:
    """The 10 numbers of the paper, told as the 7 that DROID's environment takes, and in metres and radians a step."""
    generator = np.random.default_rng(seed)
    velocity, gripper = generator.uniform(-1, 1, (6, 6)), generator.uniform(0, 1, (6, 1))
    action, robot = droid_action(velocity, gripper), np.zeros((6, 7), np.float32)
    for route in routes(DROID_ACTION, DROID_ROBOT):
        assert route.source is not None
        robot[:, route.place] = convert(action[:, route.origin], route.source, route.target)
    np.testing.assert_allclose(robot, np.concatenate([velocity, gripper], axis=1), atol=1e-5)
    metric = turn("euler_xyz").model_copy(update={"quantity": "angular_velocity"})
    told = convert(action[:, 3:9], DROID_ACTION.part("angular_velocity"), metric)
    np.testing.assert_allclose(told, droid_velocity_to_step(velocity)[:, 3:], atol=1e-5)


def test_a_gripper_keeps_how_far_it_is_closed() -> None:
    droid = Part(name="g", quantity="gripper_position", dim=1, unit="1", open=0, closed=1)
    libero = Part(name="g", quantity="gripper_position", dim=1, unit="1", open=-1, closed=1)
    width = Part(name="g", quantity="gripper_position", dim=1, unit="m", open=0.08, closed=0)
    values = np.array([[0.0], [0.25], [1.0]], np.float32)
    assert convert(values, droid, libero).ravel().tolist() == [-1, -0.5, 1]
    np.testing.assert_allclose(convert(values, droid, width).ravel(), [0.08, 0.06, 0])
    np.testing.assert_allclose(convert(convert(values, droid, width), width, droid), values, atol=1e-6)


def test_velocities_become_moves_by_the_rate() -> None:
    velocity = Part(name="v", quantity="linear_velocity", dim=3, unit="m/s", frame="base")
    move = Part(name="d", quantity="position_delta", dim=3, unit="m/step", scale=0.05, frame="base")
    assert not converts(velocity, move)
    told = convert([[1.0, 0, -2]], velocity, move, rates=(20.0, None))
    np.testing.assert_allclose(told, [[1.0, 0, -2]])  # 1 m/s for 1/20 s is one unit of 0.05 m


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"quantity": "position", "unit": "m"}, {"quantity": "position_delta", "unit": "m/step"}),
        ({"frame": "tool"}, {"frame": "base"}),
        ({"unit": "unknown"}, {}),
        ({"quantity": "other"}, {"quantity": "position", "unit": "m"}),
        ({"quantity": "joint_position", "unit": "rad"}, {"quantity": "joint_position", "unit": "m"}),
        ({"quantity": "joint_position", "dim": 7, "unit": "rad"}, {"quantity": "joint_position", "unit": "rad"}),
    ],
)
def test_what_is_not_the_same_thing_does_not_convert(one: dict[str, object], other: dict[str, object]) -> None:
    common = {"name": "p", "quantity": "position_delta", "dim": 3, "unit": "m/step", "frame": "base"}
    source, target = Part.model_validate(common | one), Part.model_validate(common | other)
    assert not converts(source, target)
    with pytest.raises(ValueError, match="can't be told as"):
        convert(np.zeros((2, source.dim)), source, target)


@given(seed=SEEDS, frame=st.sampled_from(["base", "tool"]))
def test_poses_become_moves_and_poses_again(seed: int, frame: str) -> None:
    generator = np.random.default_rng(seed)
    places, poses = generator.standard_normal((6, 3)), turned(seed, 6, 3.0)
    np.testing.assert_allclose(positions(places[0], moves(places)), places, atol=1e-12)
    np.testing.assert_allclose(rotations(poses[0], turns(poses, frame), frame), poses, atol=1e-9)  # type: ignore[arg-type]


def test_nothing_is_dropped_or_doubled_without_a_word() -> None:
    arms = [Part(name=f"{side}_arm", quantity="joint_position", dim=6, unit="rad") for side in ("left", "right")]
    one_arm = Space(parts=(Part(name="arm", quantity="joint_position", dim=6, unit="rad"),))
    two_arms = Space(parts=tuple(arms))
    chosen = routes(two_arms, one_arm)
    assert [route.how for route in chosen] == ["missing"]  # which of the two is meant, nobody says
    assert dropped(two_arms, chosen) == two_arms.parts
    same = routes(two_arms, two_arms)
    assert [route.how for route in same] == ["same", "same"]
    assert not dropped(two_arms, same)


@pytest.mark.parametrize(
    "wrong",
    [
        {"quantity": "rotation", "dim": 3},
        {"quantity": "rotation", "dim": 3, "representation": "6d"},
        {"quantity": "position", "dim": 7},
        {"quantity": "position", "dim": 3, "unit": "rad"},
        {"quantity": "other", "dim": 1, "open": 0.0, "closed": 1.0},
        {"quantity": "gripper_position", "dim": 1, "open": 0.0},
        {"quantity": "gripper_position", "dim": 1, "open": 1.0, "closed": 1.0},
        {"quantity": "other", "dim": 2, "axes": ("x",)},
        {"quantity": "other", "dim": 0},
        {"quantity": "other", "dim": 1, "scale": float("nan")},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Part.model_validate({"name": "p"} | wrong)


def test_what_nobody_declares_has_names_and_no_meaning() -> None:
    space = undeclared("action", 7, [f"motor_{index}" for index in range(7)])
    assert space.labels[:2] == ("motor_0", "motor_1")
    assert [route.how for route in routes(space, DROID_ROBOT)] == ["missing"] * 3
    assert [route.how for route in routes(space, space)] == ["same"]


def test_a_union_loses_nothing() -> None:
    arm = Space(parts=(Part(name="arm", quantity="joint_position", dim=6, unit="rad"),), rate=50.0)
    own = undeclared("action", 7)
    whole = union([DROID_ACTION, DROID_ROBOT, arm, own])
    assert whole.parts == (*DROID_ACTION.parts, *arm.parts, *own.parts)  # what DROID's robot takes is told already
    assert whole.rate == DROID_ACTION.rate
    for space in (DROID_ROBOT, arm, own):
        assert not dropped(space, routes(space, whole))
    with pytest.raises(ValueError, match="action means different things"):
        union([own, undeclared("action", 8)])
    with pytest.raises(ValueError, match="no space"):
        union([])

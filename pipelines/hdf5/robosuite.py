"""What robosuite's simulators and controllers mean by their numbers, and under which names robomimic keeps them."""

import re
from collections.abc import Mapping
from typing import Any

from storage_schemas.spaces import Part, Role, Space, StateField, undeclared

CONTROL_RATE = 20.0
"""Steps per second of robosuite unless an environment says otherwise."""
_EXTERIOR = frozenset(("agentview", "frontview", "birdview", "sideview", "shouldercamera0", "shouldercamera1"))
"""robosuite's cameras that stand beside the robot."""
_ROBOT = re.compile(r"robot\d+_(.+)")
_GRIPPER = Part(name="gripper_position", quantity="gripper_position", dim=1, unit="1", open=-1.0, closed=1.0)
POSITION = Part(name="position", quantity="position", dim=3, unit="m", frame="world", axes=("x", "y", "z"))
AXIS_ANGLE = Part(name="rotation", quantity="rotation", dim=3, representation="axis_angle", unit="rad", frame="world")
QUATERNION = Part(
    name="rotation", quantity="rotation", dim=4, representation="quaternion_xyzw", unit="rad", frame="world"
)


def joints(dim: int, unit: str = "rad") -> Part:
    """The positions of some joints; a gripper's fingers slide, in metres."""
    return Part.model_validate({"name": "joint_position", "quantity": "joint_position", "dim": dim, "unit": unit})


def camera_role(name: str) -> Role:
    """Where robosuite mounts a camera, by the name of its images."""
    stem = re.sub(r"_(image|rgb)$", "", name)
    if "eye_in_hand" in stem:
        return "wrist"
    return "exterior" if stem in _EXTERIOR else "unknown"


def observed(name: str, dim: int) -> StateField | None:
    """What one of robomimic's observations is; None for those that mean nothing in general, such as objects."""
    match = _ROBOT.fullmatch(name.removeprefix("obs/"))
    kind = match[1] if match else ""
    part: Part | None = None
    if kind == "eef_pos" and dim == 3:
        part = POSITION
    elif kind == "eef_quat" and dim == 4:
        part = QUATERNION
    elif kind in ("joint_pos", "gripper_qpos"):
        part = joints(dim, "rad" if kind == "joint_pos" else "m")
    elif kind == "joint_vel":
        part = Part(name="joint_velocity", quantity="joint_velocity", dim=dim, unit="rad/s")
    return StateField(name=name, space=Space(parts=(part,))) if part else None


def control_rate(env: Mapping[str, Any]) -> float:
    """Steps per second."""
    rate = _mapping(env.get("env_kwargs")).get("control_freq")
    return float(rate) if isinstance(rate, int | float) and 0 < rate < 1e4 else CONTROL_RATE


def action_space(env: Mapping[str, Any], dim: int) -> Space:
    """What an action means, as far as the arguments of the environment say which controller takes it.

    robosuite's OSC_POSE scales inputs of -1 to 1 to moves of the goal from the current pose: metres along the axes
    of the robot's base (which stands unturned in the world), and axis times angle about them. Its two-fingered
    grippers open at -1 and close at 1.

    Args:
        env: `env_args` of the file, parsed; empty when there are none.
        dim: numbers of an action.
    """
    rate = control_rate(env)
    unknown = undeclared("actions", dim, rate=rate)
    config = _controller(env)
    if config.get("type") != "OSC_POSE" or config.get("impedance_mode", "fixed") != "fixed" or dim != 7:
        return unknown
    frame = config.get("input_ref_frame", "")
    if not config.get("control_delta", True) or config.get("input_type", "delta") != "delta":
        if frame == "base":
            return unknown
        position = POSITION.model_copy(update={"frame": "world"})
        return Space(parts=(position, AXIS_ANGLE, _GRIPPER), rate=rate)
    scales = _scales(config)
    if scales is None or frame not in ("", "base", "world"):
        return unknown
    move = Part(
        name="position_delta",
        quantity="position_delta",
        dim=3,
        unit="m/step",
        scale=scales[0],
        frame="base",
        axes=("x", "y", "z"),
    )
    turn = Part(
        name="rotation_delta",
        quantity="rotation_delta",
        dim=3,
        representation="axis_angle",
        unit="rad/step",
        scale=scales[1],
        frame="base",
    )
    return Space(parts=(move, turn, _GRIPPER), rate=rate)


def _controller(env: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the one arm's controller, as robosuite 1.4 and, nested, 1.5 write them."""
    kwargs = _mapping(env.get("env_kwargs"))
    robots = kwargs.get("robots")
    if isinstance(robots, list) and len(robots) != 1:
        return {}
    config = kwargs.get("controller_configs")
    if isinstance(config, list):
        config = config[0] if len(config) == 1 else None
    parts = _mapping(_mapping(config).get("body_parts"))
    arms = _mapping(parts.get("arms")) or parts
    return _mapping(arms.get("right")) if parts else _mapping(config)


def _scales(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """Metres and radians of an input of 1; None when the axes differ, or inputs are not -1 to 1."""
    if (config.get("input_min"), config.get("input_max")) != (-1, 1):
        return None
    high, low = config.get("output_max"), config.get("output_min")
    if not (isinstance(high, list) and isinstance(low, list) and len(high) == len(low) == 6):
        return None
    if not all(isinstance(value, int | float) for value in (*high, *low)):
        return None
    move, turn = float(high[0]), float(high[3])
    if high != [high[0]] * 3 + [high[3]] * 3 or low != [-value for value in high] or not (move > 0 and turn > 0):
        return None
    return move, turn


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

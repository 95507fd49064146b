"""Small stores of robots that differ in what their numbers mean, and in how their cameras are called."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.conventions import DROID_ACTION, DROID_CAMERAS, DROID_VIEWS, droid_action
from storage_schemas.episode import Episode
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Camera, Part, Space, undeclared
from storage_schemas.store.parts import write_part

MakeEpisode = Callable[..., Episode]

DELTAS = Space(
    parts=(
        Part(name="move", quantity="position_delta", dim=3, unit="m/step", scale=0.05, frame="base"),
        Part(
            name="turn",
            quantity="rotation_delta",
            dim=3,
            representation="axis_angle",
            unit="rad/step",
            scale=0.5,
            frame="base",
        ),
        Part(name="hand", quantity="gripper_position", dim=1, unit="1", open=1.0, closed=-1.0),
    ),
    rate=20.0,
)
"""Deltas as LIBERO's controller takes them: everything of DROID's can be told from them."""

JOINTS = Space(
    parts=(
        Part(name="joints", quantity="joint_position", dim=6, unit="rad"),
        Part(name="gripper", quantity="gripper_position", dim=1, unit="1", open=0.0, closed=1.0),
    ),
    rate=50.0,
)
"""Joints of another arm: DROID's actions have only the gripper of them."""

ROBOTS: Mapping[str, DatasetSpec] = {
    "droid": DatasetSpec(cameras=DROID_CAMERAS, action_dim=10, val_percent=0, action=DROID_ACTION, views=DROID_VIEWS),
    "deltas": DatasetSpec(
        cameras=("front", "hand", "depth"),
        action_dim=7,
        val_percent=0,
        action=DELTAS,
        views=(Camera(name="front", role="exterior"), Camera(name="hand", role="wrist")),
    ),
    "joints": DatasetSpec(
        cameras=("wrist_image_left",),
        action_dim=7,
        val_percent=0,
        action=JOINTS,
        views=(Camera(name="wrist_image_left", role="wrist"),),
    ),
    "unknown": DatasetSpec(cameras=("wrist_image_left",), action_dim=4, val_percent=0, action=undeclared("action", 4)),
    "film": DatasetSpec(cameras=("exterior_image_1_left",), action_dim=1, val_percent=0),
    "undeclared": DatasetSpec(cameras=DROID_CAMERAS, action_dim=10, val_percent=0),
}


def write_robot(folder: Path, name: str, make_episode: MakeEpisode, lengths: tuple[int, ...] = (14, 11)) -> str:
    """A store of a robot of `ROBOTS`; returns its uri."""
    uri, spec = str(folder / name), ROBOTS[name]
    create_dataset(uri, spec)
    episodes = [
        make_episode(
            f"{name}-{number}",
            length=length,
            cameras=spec.cameras,
            action_dim=spec.action_dim,
            known=name != "film",
            seed=number,
        )
        for number, length in enumerate(lengths)
    ]
    commit(uri, write_part(uri, [_real(episode, spec) for episode in episodes], run_id="test"))
    return uri


def _real(episode: Episode, spec: DatasetSpec) -> Episode:
    """With 6D rotations that are some."""
    if spec.action != DROID_ACTION:
        return episode
    from dataclasses import replace

    action = droid_action(episode.action[:, :6], np.abs(episode.action[:, 9:]))
    return replace(episode, action=action)

"""robomimic and LIBERO: order, orientation, alignment, controllers, and what makes a demonstration bad."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_maker import OSC_POSE, environment, pictures, write_demos

from pipelines.hdf5.robosuite import action_space
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from pipelines.source import SourceRef
from pipelines.sources.registry import detect, open_source
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.frames import decode_frames


def episodes(source: Path, **options: Any) -> list[Episode]:
    reader = open_source(str(source), IngestOptions(**options))
    refs = [ref for ref in reader.refs() if isinstance(ref, SourceRef)]
    return [item for ref in refs for item in reader.read(ref) if isinstance(item, Episode)]


def reasons(source: Path, store: Path, **options: Any) -> list[str]:
    return [rejection.reason for rejection in ingest(str(source), str(store), IngestOptions(**options)).quarantined]


def pixels(episode: Episode, camera: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    frames = episode.frames[camera]
    assert isinstance(frames, EncodedFrames)
    out = np.empty((len(frames), frames.height, frames.width, 3), np.uint8)
    decode_frames(frames.jpegs, "jpeg", out)
    return out


def test_demonstrations_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"demo_{number}" for number in range(12)]
    write_demos(tmp_path / "a.hdf5", range(3, 15), names=names)
    assert [len(episode) for episode in episodes(tmp_path)] == list(range(3, 15))


@pytest.mark.parametrize("libero", [False, True])
def test_images_are_upright_and_actions_belong_to_them(tmp_path: Path, libero: bool) -> None:
    path = write_demos(tmp_path / "a.hdf5", [6], libero=libero)
    (episode,) = episodes(path)
    truth = pictures(0, 7)[1:] if libero else pictures(0, 7)[:-1]
    (camera,) = episode.frames
    assert np.abs(pixels(episode, camera).astype(int) - truth).mean() < 3
    with h5py.File(path) as file:
        actions, joints = file["data/demo_0/actions"][:], file["data/demo_0/states"][:, 1:]
    seen = episode.state["obs/joint_states" if libero else "obs/robot0_joint_pos"]
    for step in range(6 - libero):
        before = step + libero  # the recorded action whose state before it is what is seen
        np.testing.assert_array_equal(seen[step], joints[before].astype(np.float32))
        np.testing.assert_array_equal(episode.action[step], actions[before].astype(np.float32))
    assert episode.action_mask.tolist() == [True] * (6 - libero) + [False] * libero


@pytest.mark.parametrize("libero", [False, True])
def test_a_demonstration_can_be_replayed(tmp_path: Path, libero: bool) -> None:
    path = write_demos(tmp_path / "a.hdf5", [5], libero=libero)
    (episode,) = episodes(path)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(episode.state["simulator"], file["data/demo_0/states"])
        np.testing.assert_array_equal(episode.state["simulator_action"], file["data/demo_0/actions"])
    assert episode.state["simulator"].dtype == episode.state["simulator_action"].dtype == np.float64


def test_images_of_the_other_convention_are_not_turned(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.hdf5", [4], libero=True)
    with h5py.File(path, "a") as file:
        file["data"].attrs["macros_image_convention"] = "opencv"
    (episode,) = episodes(path)
    stored = pictures(0, 5)[1:, ::-1]
    assert np.abs(pixels(episode, "agentview_rgb").astype(int) - stored).mean() < 3


def test_a_file_that_is_not_whole_says_so_when_no_format_is_named(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.hdf5", [4])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"known format.*\(truncated"):
        detect(str(path))


def test_each_format_refuses_the_other(tmp_path: Path) -> None:
    write_demos(tmp_path / "b/robomimic.hdf5", [4])
    write_demos(tmp_path / "b/libero.hdf5", [4], libero=True)
    for name in ("robomimic", "libero"):
        assert detect(str(tmp_path / f"b/{name}.hdf5")) == name
        assert reasons(tmp_path / "b", tmp_path / name, format=name) == ["other_format"]


def test_a_file_for_another_controller_is_turned_away(tmp_path: Path) -> None:
    """Most files decide, so that one whose attributes are damaged turns away none but itself."""
    write_demos(tmp_path / "b/1.hdf5", [4, 5], controller=OSC_POSE | {"type": "JOINT_VELOCITY"})
    for number in (2, 3):
        write_demos(tmp_path / f"b/{number}.hdf5", [6], seed=number)
    assert reasons(tmp_path / "b", tmp_path / "store") == ["other_action"] * 2
    assert open_dataset(str(tmp_path / "store")).episodes.lengths.tolist() == [6, 6]
    assert reasons(tmp_path / "b/1.hdf5", tmp_path / "other") == []


BODY_PARTS = {"type": "BASIC", "body_parts": {"right": OSC_POSE | {"input_type": "delta", "input_ref_frame": "base"}}}


@pytest.mark.parametrize(
    ("controller", "quantities"),
    [
        (OSC_POSE, ["position_delta", "rotation_delta", "gripper_position"]),
        (BODY_PARTS, ["position_delta", "rotation_delta", "gripper_position"]),
        (OSC_POSE | {"control_delta": False}, ["position", "rotation", "gripper_position"]),
        (OSC_POSE | {"type": "JOINT_VELOCITY"}, ["other"]),
        (OSC_POSE | {"impedance_mode": "variable"}, ["other"]),
        (OSC_POSE | {"output_max": [0.05, 0.1, 0.05, 0.5, 0.5, 0.5]}, ["other"]),
        (OSC_POSE | {"output_min": None}, ["other"]),
        (None, ["other"]),
        ("x", ["other"]),
    ],
)
def test_an_action_means_what_the_controller_takes(controller: object, quantities: list[str]) -> None:
    space = action_space(json.loads(environment(controller, rate=15)), 7)
    assert [part.quantity for part in space.parts] == quantities
    assert (space.dim, space.rate) == (7, 15)
    if quantities[0] == "position_delta":
        assert [part.scale for part in space.parts] == [0.05, 0.5, 1.0]
        assert (space.parts[2].open, space.parts[2].closed) == (-1.0, 1.0)


def test_an_action_of_another_width_is_not_guessed() -> None:
    assert action_space(json.loads(environment()), 8).parts[0].quantity == "other"
    assert action_space({}, 7).parts[0].quantity == "other"


def _without_actions(group: h5py.Group) -> None:
    del group["actions"]


def _without_images(group: h5py.Group) -> None:
    del group["obs/agentview_image"]


def _with_link(group: h5py.Group) -> None:
    group["obs/more"] = h5py.ExternalLink("/etc/passwd", "/")


def _with_more_samples(group: h5py.Group) -> None:
    group.attrs["num_samples"] = 99


def _with_unwritten(group: h5py.Group) -> None:
    group.create_dataset("obs/more", (5, 2), "f4", chunks=(1, 2))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_without_actions, "missing_field"),
        (_without_images, "no_camera"),
        (_with_link, "link"),
        (_with_more_samples, "length_mismatch"),
        (_with_unwritten, "incomplete"),
    ],
)
def test_a_bad_demonstration_costs_only_itself(
    tmp_path: Path, damage: Callable[[h5py.Group], None], reason: str
) -> None:
    path = write_demos(tmp_path / "a.hdf5", [4, 5, 6])
    with h5py.File(path, "a") as file:
        damage(file["data/demo_1"])
    assert reasons(path, tmp_path / "store") == [reason]
    assert sorted(open_dataset(str(tmp_path / "store")).episodes.lengths) == [4, 6]


def test_a_state_that_is_not_as_declared_does_not_fit(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.hdf5", [4, 5])
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/robot0_joint_pos"]
        file["data/demo_1/obs/robot0_joint_pos"] = np.zeros((5, 6))
    assert reasons(path, tmp_path / "store") == ["misfit"]


def test_demonstrations_that_the_file_counts_and_does_not_have(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.hdf5", [4, 5])
    with h5py.File(path, "a") as file:
        del file["data/demo_1"]
    assert reasons(path, tmp_path / "store") == ["count_mismatch"]
    assert open_dataset(str(tmp_path / "store")).episodes.lengths.tolist() == [4]


def test_appending_a_demonstration_adds_one(tmp_path: Path) -> None:
    path, store = write_demos(tmp_path / "a.hdf5", [4, 5]), str(tmp_path / "store")
    ingest(str(path), store)
    write_demos(path, [4, 5, 6])
    report = ingest(str(path), store)
    assert (report.added, report.replaced, report.present) == (1, 0, 2)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.hdf5", [4])
    with h5py.File(path, "a") as file:
        file.create_dataset("data/demo_0/obs/depth", data=np.zeros((4, 8, 8, 1), np.float32))
        file.create_dataset("data/demo_0/note", data="hello")
    said = " ".join(item.what for item in ingest(str(path), str(tmp_path / "store")).left_out)
    assert all(word in said for word in ("next_obs", "mask/train", "obs/depth", "note"))

"""ACT and ALOHA: colours, padding, the order of the cameras, what the joints are called."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_maker import pictures, write_aloha, write_demos

from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from pipelines.sources.registry import detect
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.store.dataset import open_dataset


@pytest.mark.parametrize("jpeg", [False, True])
def test_what_the_cameras_saw(tmp_path: Path, jpeg: bool) -> None:
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")  # compress_len has this order, HDF5 another
    path = write_aloha(tmp_path / "episode_0.hdf5", 5, cameras=cameras, jpeg=jpeg)
    assert detect(str(path)) == "aloha"
    dataset = open_dataset(ingest(str(path), str(tmp_path / "store")).store_uri)
    assert dataset.spec.cameras == tuple(sorted(cameras))
    assert {camera: dataset.spec.role(camera) for camera in cameras} == {
        "cam_high": "exterior", "cam_low": "exterior", "cam_left_wrist": "wrist", "cam_right_wrist": "wrist",
    }  # fmt: skip
    for number, camera in enumerate(cameras):
        stored = dataset.frames(0, camera, range(5)).astype(int)
        assert np.abs(stored - pictures(number, 5)).mean() < 4, camera


def test_what_the_arms_did(tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "episode_0.hdf5", 5)
    dataset = open_dataset(ingest(str(path), str(tmp_path / "store")).store_uri)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(dataset.array(0, "action"), file["action"][:])
        for name in ("qpos", "qvel", "effort"):
            stored = dataset.array(0, f"state/observations/{name}")
            np.testing.assert_array_equal(stored, file[f"observations/{name}"][:])
    space = dataset.spec.action
    assert space is not None
    assert [part.quantity for part in space.parts] == ["joint_position", "gripper_position"] * 2
    assert space.labels[7] == "right_waist"
    assert space.rate == dataset.episodes.column("fps")[0] == 50
    assert dataset.episodes.column("language")[0] in ([], ())
    assert dataset.array(0, "mask/action").all()


def test_arms_of_another_kind_are_not_guessed(tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "episode_0.hdf5", 5, arms=16)
    dataset = open_dataset(ingest(str(path), str(tmp_path / "store")).store_uri)
    assert dataset.spec.action is not None
    assert [part.quantity for part in dataset.spec.action.parts] == ["other"]


def _shorter(file: h5py.File) -> None:
    values = file["observations/qpos"][:-1]
    del file["observations/qpos"]
    file["observations/qpos"] = values


def _cut_image(file: h5py.File) -> None:
    file["observations/images/cam_low"][2, 300:] = 0


def _flat(file: h5py.File) -> None:
    del file["action"]
    file["action"] = np.zeros(5)


def _blind(file: h5py.File) -> None:
    del file["observations/images"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(_shorter, "length_mismatch"), (_cut_image, "truncated_jpeg"), (_flat, "bad_shape"), (_blind, "no_camera")],
)
def test_a_bad_episode_has_its_reason(tmp_path: Path, damage: Any, reason: str) -> None:
    write_aloha(tmp_path / "task/episode_0.hdf5", 5, jpeg=True)
    path = write_aloha(tmp_path / "task/episode_1.hdf5", 5, jpeg=True, seed=1)
    with h5py.File(path, "a") as file:
        damage(file)
    report = ingest(str(tmp_path / "task"), str(tmp_path / "store"))
    assert report.added == 1
    assert [row.reason for row in quarantined(str(tmp_path / "store"))] == [reason]


def test_a_file_of_another_layout_is_turned_away(tmp_path: Path) -> None:
    write_aloha(tmp_path / "task/episode_0.hdf5", 5)
    write_demos(tmp_path / "task/demo.hdf5", [4])
    report = ingest(str(tmp_path / "task"), str(tmp_path / "store"), IngestOptions(format="aloha"))
    assert [rejection.reason for rejection in report.quarantined] == ["other_format"]

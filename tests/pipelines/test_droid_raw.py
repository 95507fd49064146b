"""DROID as its robots recorded it: cameras by serial, steps without a command, videos that do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hdf5_maker import SERIALS, write_droid

from pipelines.files import SourceFile
from pipelines.ingest import ingest
from pipelines.source import SourceRef, Timed
from pipelines.sources.registry import open_source
from pipelines.video.isolation import decoding
from storage_schemas.conventions import DROID_CAMERAS
from storage_schemas.episode import Episode
from storage_schemas.store.dataset import Dataset, open_dataset

Make = Callable[..., Any]
PLACE = "LAB/success/day/time"


def ingested(source: Path, tmp_path: Path) -> tuple[Dataset, list[str]]:
    report = ingest(str(source), str(tmp_path / "store"))
    return open_dataset(str(tmp_path / "store")), [item.what for item in report.left_out]


def reasons(source: Path, tmp_path: Path) -> list[str]:
    return [rejection.reason for rejection in ingest(str(source), str(tmp_path / "store")).quarantined]


def test_cameras_are_known_by_type_and_serial(tmp_path: Path, write_video: Make) -> None:
    """The wrist is of type 0; of the others the one with the lesser serial is exterior 1."""
    folder = write_droid(tmp_path / "raw" / PLACE, 5, write_video)
    dataset, _ = ingested(tmp_path / "raw", tmp_path)
    for camera, serial in zip(DROID_CAMERAS, (PLACES[place] for place in sorted(PLACES)), strict=True):
        video = folder / f"recordings/MP4/{serial}.mp4"
        with decoding(SourceFile(str(video), "file", video.stat().st_size), fps=None, short_side=180) as (_, frames, _):
            shown = np.stack(list(frames)).astype(int)
        assert np.abs(dataset.frames(0, camera, range(5)) - shown).mean() < 3, camera
    extrinsics = {place: dataset.array(0, f"state/observation/camera_extrinsics/{place}_left") for place in PLACES}
    with h5py.File(folder / "trajectory.h5") as file:
        for place, serial in PLACES.items():
            raw = file[f"observation/camera_extrinsics/{serial}_left"][:]
            np.testing.assert_array_equal(extrinsics[place], raw.astype(np.float32))
    received = dataset.array(0, "state/observation/timestamp/cameras/wrist_frame_received")
    assert received.dtype == np.int64
    assert received[0] == 1 << 40


PLACES = dict(zip(("wrist", "exterior_2", "exterior_1"), SERIALS, strict=True))


def test_a_step_in_which_the_robot_waited_has_no_action(tmp_path: Path, write_video: Make) -> None:
    write_droid(tmp_path / "raw" / PLACE, 6, write_video, waited=2)
    dataset, said = ingested(tmp_path / "raw", tmp_path)
    assert dataset.array(0, "mask/action").tolist() == [False] * 2 + [True] * 4
    assert not dataset.array(0, "action")[:2].any()
    assert any("2 steps in which the robot waited" in what for what in said)


def test_a_video_may_be_a_frame_short_but_not_two(tmp_path: Path, write_video: Make) -> None:
    write_droid(tmp_path / "raw" / PLACE, 6, write_video, short=SERIALS[1])
    dataset, said = ingested(tmp_path / "raw", tmp_path)
    frames = dataset.frames(0, DROID_CAMERAS[1], range(6))
    np.testing.assert_array_equal(frames[4], frames[5])
    assert any("exterior_image_2_left ends a frame early" in what for what in said)
    for count in (4, 9):
        write_video(tmp_path / "raw" / PLACE / f"recordings/MP4/{SERIALS[1]}.mp4", frames=count, rate=60)
        assert reasons(tmp_path / "raw", tmp_path) == ["length_mismatch"]


def test_a_missing_video_and_an_unclear_wrist_are_reasons(tmp_path: Path, write_video: Make) -> None:
    folder = write_droid(tmp_path / "raw" / PLACE, 5, write_video)
    (folder / f"recordings/MP4/{SERIALS[0]}.mp4").unlink()
    assert reasons(tmp_path / "raw", tmp_path) == ["missing_video"]
    write_droid(tmp_path / "raw" / PLACE, 5, write_video)
    with h5py.File(folder / "trajectory.h5", "a") as file:
        file[f"observation/camera_type/{SERIALS[1]}"][:] = 0
    assert reasons(tmp_path / "raw", tmp_path) == ["bad_cameras"]


def test_a_field_that_missed_a_step_is_left_out_unless_it_is_essential(tmp_path: Path, write_video: Make) -> None:
    folder = write_droid(tmp_path / "raw" / PLACE, 5, write_video)
    received = f"observation/timestamp/cameras/{SERIALS[0]}_frame_received"
    with h5py.File(folder / "trajectory.h5", "a") as file:
        values = file[received][:-1]
        del file[received]
        file[received] = values
    dataset, said = ingested(tmp_path / "raw", tmp_path)
    assert f"{received}: 4 entries for 5 steps" in said
    assert len(dataset) == 1
    with h5py.File(folder / "trajectory.h5", "a") as file:
        values = file["observation/robot_state/joint_positions"][:-1]
        del file["observation/robot_state/joint_positions"]
        file["observation/robot_state/joint_positions"] = values
    assert reasons(tmp_path / "raw", tmp_path) == ["length_mismatch"]


def test_the_trajectory_alone_is_enough_to_find_the_rest(tmp_path: Path, write_video: Make) -> None:
    folder = write_droid(tmp_path / "raw" / PLACE, 5, write_video)
    dataset, _ = ingested(folder / "trajectory.h5", tmp_path)
    assert dataset.episodes.lengths.tolist() == [5]


def test_the_clock_is_the_trajectorys(tmp_path: Path, write_video: Make) -> None:
    write_droid(tmp_path / "raw" / PLACE, 5, write_video)
    reader = open_source(str(tmp_path / "raw"))
    assert isinstance(reader, Timed)
    (ref,) = (ref for ref in reader.refs() if isinstance(ref, SourceRef))
    np.testing.assert_allclose(np.diff(reader.times(ref)), 1 / 15, atol=1e-3)


def test_an_episode_is_the_same_as_in_rlds(
    tmp_path: Path, write_video: Make, write_rlds: Make, make_features: Make
) -> None:
    write_droid(tmp_path / "raw" / PLACE, 5, write_video)
    rlds = write_rlds(tmp_path / "rlds", [make_features(5, path=f"{PLACE}/trajectory.h5")])
    assert len({episode_id(tmp_path / "raw"), episode_id(rlds)}) == 1


def episode_id(source: Path) -> str:
    reader = open_source(str(source))
    (ref,) = (ref for ref in reader.refs() if isinstance(ref, SourceRef))
    (episode,) = (item for item in reader.read(ref) if isinstance(item, Episode))
    return episode.meta.episode_id


def test_a_folder_that_was_moved_is_known_by_its_metadata(tmp_path: Path, write_video: Make) -> None:
    folder = write_droid(tmp_path / "raw" / PLACE, 5, write_video)
    known = episode_id(folder)
    said = {"lab": "LAB", "hdf5_path": "success/day/time/trajectory.h5"}
    (folder / "metadata_LAB+x+day.json").write_text(json.dumps(said))
    shutil.move(folder, tmp_path / "elsewhere")
    assert episode_id(tmp_path / "elsewhere") == known
    (tmp_path / "elsewhere/metadata_LAB+x+day.json").unlink()
    assert episode_id(tmp_path / "elsewhere") != known

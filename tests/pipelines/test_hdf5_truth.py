"""The fixtures of DROID raw, LIBERO and robomimic through the store, against what their JSON says."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.ingest import IngestReport, ingest
from pipelines.options import IngestOptions
from pipelines.sources.registry import detect
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.conventions import DROID_ACTION, DROID_CAMERAS, DROID_FPS, droid_action
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import Dataset, open_dataset
from tests.pipelines.conftest import Truth

pytestmark = pytest.mark.ground_truth

NEAR = 1.5
"""Most that JPEG and scaling change the mean of a channel, of 255."""


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def ingested(source: Path, store: str) -> tuple[IngestReport, Dataset]:
    """The source in a store, its format detected, checked whole and found unchanged by a second run."""
    options = IngestOptions()
    report = ingest(str(source), store, options)
    again = ingest(str(source), store, options)
    assert (again.added, again.replaced, again.present) == (0, 0, report.added)
    assert verify(store).ok
    return report, open_dataset(store)


def rows_by_uri(dataset: Dataset) -> dict[str, int]:
    return {uri: row for row, uri in enumerate(dataset.episodes.column("source_uri"))}


def mean(dataset: Dataset, row: int, camera: str, step: int) -> Any:
    return dataset.frames(row, camera, [step])[0].mean(axis=(0, 1))


def demos_of(expected: Any) -> dict[str, Any]:
    """The demonstrations of either kind of JSON by name: steps, sum of the actions, means of frames."""
    if "demos" in expected:
        return {demo["demo"]: {**demo, "num_samples": demo["n"]} for demo in expected["demos"]}
    return {name: value for name, value in expected.items() if name.startswith("demo_")}


def test_demonstrations(demonstrations_truth: Truth, store: str) -> None:
    path, demos = demonstrations_truth.path, demos_of(demonstrations_truth.expected)
    attributes = demonstrations_truth.expected.get("data_attrs", {})
    libero = "problem_info" in attributes
    assert detect(str(path)) == ("libero" if libero else "robomimic")
    report, dataset = ingested(path, store)
    assert (report.added, report.quarantined) == (len(demos), ())
    rows = rows_by_uri(dataset)
    assert list(rows) == [f"{path}#data/{name}" for name in demos], "in the order of their numbers"
    with h5py.File(path) as file:
        for name, demo in demos.items():
            check_numbers(dataset, rows[f"{path}#data/{name}"], file[f"data/{name}"], demo, libero)
            check_pictures(dataset, rows[f"{path}#data/{name}"], file[f"data/{name}"], demo, libero)
    assert {tuple(text) for text in dataset.episodes.column("language")} == {language(attributes)}


def language(attributes: Any) -> tuple[str, ...]:
    said = json.loads(attributes.get("problem_info", "{}")).get("language_instruction")
    return (said,) if said else ()


def check_numbers(dataset: Dataset, row: int, raw: h5py.Group, demo: Any, libero: bool) -> None:
    steps = demo["num_samples"]
    assert dataset.episodes.lengths[row] == steps
    action, known = dataset.array(row, "action"), dataset.array(row, "mask/action")
    given = dataset.array(row, "state/simulator_action")
    np.testing.assert_allclose(given.sum(axis=0), demo["action_sum"], rtol=1e-12)
    assert given.dtype == np.float64
    if libero:
        np.testing.assert_array_equal(action[:-1], given[1:].astype(np.float32))
        assert known.tolist() == [True] * (steps - 1) + [False]
        assert not action[-1].any()
    else:
        np.testing.assert_allclose(action.sum(axis=0), demo["action_sum"], atol=1e-4)
        assert known.all()
    np.testing.assert_array_equal(dataset.array(row, "state/simulator"), raw["states"][:])
    assert dataset.array(row, "state/dones").dtype == np.int64


def check_pictures(dataset: Dataset, row: int, raw: h5py.Group, demo: Any, libero: bool) -> None:
    last = demo["num_samples"] - 1
    for camera in dataset.spec.cameras:
        stem = camera.replace("robot0_eye_in_hand_image", "wrist").removesuffix("_image")
        for step, word in ((0, "first"), (last, "last")):
            if f"{stem}_mean_{word}" in demo:
                assert np.abs(mean(dataset, row, camera, step) - demo[f"{stem}_mean_{word}"]).max() < NEAR
            shown = raw[f"obs/{camera}"][step]
            upright = shown[::-1] if libero else shown
            stored = dataset.frames(row, camera, [step])[0].astype(np.int16)
            assert np.abs(stored - upright).mean() < 6 < np.abs(stored - upright[::-1]).mean()


def test_liberos_observations_follow_their_action(demonstrations_truth: Truth, store: str) -> None:
    """Joints as the cameras see them are those of the simulator one row later: the off-by-one, seen in the numbers."""
    if "data_attrs" not in demonstrations_truth.expected:
        pytest.skip("not LIBERO's")
    _, dataset = ingested(demonstrations_truth.path, store)
    for row in range(len(dataset)):
        simulator = dataset.array(row, "state/simulator")
        seen = dataset.array(row, "state/obs/joint_states")
        np.testing.assert_array_equal(seen[:-1], simulator[1:, 1 : 1 + seen.shape[1]].astype(np.float32))


def test_liberos_action_is_what_its_controller_takes(demonstrations_truth: Truth, store: str) -> None:
    _, dataset = ingested(demonstrations_truth.path, store)
    space = dataset.spec.action
    assert space is not None
    assert space.dim == len(demos_of(demonstrations_truth.expected)["demo_0"]["action_sum"])
    with h5py.File(demonstrations_truth.path) as file:
        said = "OSC_POSE" in file["data"].attrs["env_args"]
    assert [part.quantity for part in space.parts] == (
        ["position_delta", "rotation_delta", "gripper_position"] if said else ["other"]
    )


def test_droid_raw(droid_raw_truth: Truth, store: str) -> None:
    root, episodes = droid_raw_truth.path, droid_raw_truth.expected["episodes"]
    assert detect(str(root)) == "droid-raw"
    report, dataset = ingested(root, store)
    assert (report.added, report.quarantined) == (len(episodes), ())
    assert dataset.spec.cameras == DROID_CAMERAS
    assert dataset.spec.action == DROID_ACTION
    rows = rows_by_uri(dataset)
    for episode in episodes:
        check_episode(dataset, rows[f"{root}/{episode['dir']}/trajectory.h5"], episode, root / episode["dir"])
    stereo = sum(name.endswith("-stereo.mp4") for episode in episodes for name in episode["videos"])
    assert f"{stereo} stereo videos" in " ".join(item.what for item in report.left_out)


def check_episode(dataset: Dataset, row: int, episode: Any, folder: Path) -> None:
    steps, attributes = episode["n_steps"], episode["attrs"]
    assert dataset.episodes.lengths[row] == steps
    assert dataset.episodes.action_steps[row] == steps - episode["n_idle"]
    facts = {name: dataset.episodes.column(name)[row] for name in ("language", "success", "collection", "fps")}
    assert list(facts["language"]) == [attributes["current_task"]]
    assert facts["success"] == attributes["success"]
    assert facts["collection"] == episode["dir"].split("/")[0]
    assert facts["fps"] == DROID_FPS
    action, known = dataset.array(row, "action"), dataset.array(row, "mask/action")
    for name in ("cartesian_velocity", "cartesian_position", "joint_position", "gripper_position"):
        stored = dataset.array(row, f"state/action_dict/{name}").astype(np.float64).sum(axis=0)
        np.testing.assert_allclose(stored, np.atleast_1d(episode[f"action/{name}"]["sum"]), atol=1e-3)
    np.testing.assert_allclose(action[:, :3].sum(axis=0), episode["action/cartesian_velocity"]["sum"][:3], atol=1e-3)
    with h5py.File(folder / "trajectory.h5") as file:
        raw = droid_action(file["action/cartesian_velocity"][:], file["action/gripper_position"][:])
        np.testing.assert_array_equal(action[known], raw[known])
        types = {serial: int(kind[0]) for serial, kind in file["observation/camera_type"].items()}
    exterior = sorted(serial for serial, kind in types.items() if kind)
    serials = [*exterior, *(serial for serial, kind in types.items() if not kind)]
    for camera, serial in zip(DROID_CAMERAS, serials, strict=True):
        video = episode["videos"][f"{serial}.mp4"]
        for step, word in ((0, "first"), (steps - 1, "last")):
            assert np.abs(mean(dataset, row, camera, step) - video[f"mean_{word}_rgb"]).max() < NEAR, camera


def test_a_camera_that_is_a_frame_short_is_said(droid_raw_truth: Truth, store: str) -> None:
    report, _ = ingested(droid_raw_truth.path, store)
    short = [
        episode["dir"]
        for episode in droid_raw_truth.expected["episodes"]
        for name, video in episode["videos"].items()
        if "-stereo" not in name and video["frames"] < episode["n_steps"]
    ]
    assert short
    said = [item.source_uri for item in report.left_out if "a frame early" in item.what]
    assert said == [f"{droid_raw_truth.path}/{folder}/trajectory.h5" for folder in short]


REASONS = {
    "truncated.h5": {"truncated"},
    "not_hdf5.hdf5": {"not_hdf5"},
    "length_mismatch.hdf5": {"length_mismatch", "non_finite", "empty"},
}
"""What `expected_bad.json` says in words."""


def test_bad_files_have_a_reason(bad_hdf5: Truth, store: str) -> None:
    report = ingest(str(bad_hdf5.path), store, IngestOptions(format="robomimic"))
    assert report.nothing_good
    assert {rejection.reason for rejection in report.quarantined} == REASONS[bad_hdf5.path.name]
    assert {row.reason for row in quarantined(store)} == REASONS[bad_hdf5.path.name]


def test_bad_files_together(fixtures_root: Path, store: str) -> None:
    folder = fixtures_root / "bad/hdf5"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    report = ingest(str(folder), store)
    assert {rejection.reason for rejection in report.quarantined} == set().union(*REASONS.values())


def test_an_episode_without_one_of_its_videos(fixtures_root: Path, store: str) -> None:
    folder = fixtures_root / "bad/droid_raw_missing_mp4"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    report = ingest(str(folder), store)
    assert [rejection.reason for rejection in report.quarantined] == ["missing_video"]

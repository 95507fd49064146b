"""LeRobot datasets of the genuine writers, against what the genuine reader gave."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipelines.ingest import IngestReport, ingest
from storage_schemas.store.dataset import Dataset, open_dataset

pytestmark = pytest.mark.ground_truth

NEAR = 1.5
"""Mean difference of 255 that another conversion to RGB, and JPEG, make."""


def ingested(source: Path, folder: Path) -> tuple[IngestReport, Dataset]:
    report = ingest(str(source), str(folder))
    return report, open_dataset(str(folder))


def test_numbers_frames_and_tasks_are_those_of_the_genuine_reader(lerobot_truth, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    report, dataset = ingested(lerobot_truth.path, tmp_path / "store")
    episodes = lerobot_truth.expected["episodes"]
    assert report.source_format == "lerobot"
    assert not (report.quarantined or report.left_out)  # noqa: PT018 - one claim
    assert dataset.episodes.lengths.tolist() == [episode["n"] for episode in episodes]
    assert dataset.episodes.column("language") == [[episode["task"]] for episode in episodes]
    for number, expected in enumerate(episodes):
        action = dataset.array(number, "action").sum(axis=0, dtype=np.float64)
        state = dataset.array(number, "state/observation.state").sum(axis=0, dtype=np.float64)
        np.testing.assert_allclose(action, expected["action_sum"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(state, expected["state_sum"], rtol=1e-6, atol=1e-6)
        for camera in dataset.spec.cameras:
            shown = dataset.frames(number, camera, [0, expected["n"] - 1]).mean(axis=(1, 2))
            for mean, place in zip(shown, ("first", "last"), strict=True):
                assert np.abs(mean - expected[f"{camera}_{place}_mean_rgb"]).max() < NEAR


def test_versions_of_the_same_episodes_are_equal(lerobot_versions, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one, other = (ingested(path, tmp_path / str(number))[1] for number, path in enumerate(lerobot_versions.expected))
    assert one.episodes.episode_ids == other.episodes.episode_ids
    assert one.spec == other.spec
    for number, length in enumerate(one.episodes.lengths.tolist()):
        for name in ("action", "state/observation.state"):
            np.testing.assert_array_equal(one.array(number, name), other.array(number, name))
        for camera in one.spec.cameras:
            pixels = [dataset.frames(number, camera, range(length)).astype(np.int16) for dataset in (one, other)]
            assert np.abs(pixels[0] - pixels[1]).mean() < 3, "two encodings of the same frames"


def test_bad_dataset_loses_what_is_bad_and_says_why(bad_lerobot, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    report, dataset = ingested(bad_lerobot.path, tmp_path / "store")
    told = bad_lerobot.expected
    reasons = {rejection.reason for rejection in report.quarantined}
    numbers = {int(item.source_uri.rpartition("=")[2]) for item in report.quarantined}
    assert reasons <= {"missing_video", "missing_rows", "length_mismatch"}
    assert ("missing_video" in reasons) == ("absent" in told)
    assert ("missing_rows" in reasons) == ("parquet absent" in told)
    assert ("length_mismatch" in reasons) == ("frames" in told)
    if named := {int(number) for number in re.findall(r"\bep(\d)", told)}:
        assert numbers == named
    assert dataset.episodes.action_steps.tolist() == dataset.episodes.lengths.tolist()

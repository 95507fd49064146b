"""DROID RLDS against ground truth, and what may be odd in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from pipelines.checks.quality import BadDataError, Rejection
from pipelines.source import SourceRef
from pipelines.sources.rlds import DroidRlds
from storage_schemas.conventions import DROID_CAMERAS, droid_action
from storage_schemas.episode import EncodedFrames, Episode

Make = Callable[..., Any]


class Truth(Protocol):
    path: Path
    expected: Any


def outcomes(source: Path) -> dict[str, Episode | str]:
    """The episode, or the reason why there is none, by URI."""
    reader = DroidRlds(str(source))
    found: dict[str, Episode | str] = {}
    for ref in reader.refs():
        if not isinstance(ref, SourceRef):
            if isinstance(ref, Rejection):
                found[ref.source_uri] = ref.reason
            continue
        try:
            (found[ref.uri],) = reader.read(ref)
        except BadDataError as error:
            found[ref.uri] = error.reason
    return found


@pytest.mark.ground_truth
def test_episodes_are_as_tensorflow_reads_them(rlds_truth: Truth) -> None:
    found = list(outcomes(rlds_truth.path).values())
    assert len(found) == rlds_truth.expected["num_examples"]
    for outcome, expected in zip(found, rlds_truth.expected["episodes"], strict=True):
        if expected["n_steps"] == 0:
            assert outcome == "empty"
        elif expected["n_nan_action"]:
            assert outcome == "non_finite"
        else:
            assert isinstance(outcome, Episode)
            check_numbers(outcome, expected)
            check_meta(outcome, expected)


def check_numbers(episode: Episode, expected: Any) -> None:
    assert len(episode) == expected["n_steps"]
    sums = {key.removesuffix("/sum"): value for key, value in expected.items() if key.endswith("/sum")}
    for name, total in {**sums, "action": expected["action_sum"]}.items():
        np.testing.assert_allclose(episode.state[name].sum(axis=0, dtype=np.float64), total, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(episode.state["action"][[0, -1]], [expected["action_first"], expected["action_last"]])
    for name in ("reward", "discount", "is_terminal"):
        np.testing.assert_allclose(episode.state[name].sum(dtype=np.float64), expected[f"{name}_sum"])
    velocity, gripper = (episode.state[f"action_dict/{n}"] for n in ("cartesian_velocity", "gripper_position"))
    np.testing.assert_array_equal(episode.action, droid_action(velocity, gripper))
    assert episode.action_mask.all()


def check_meta(episode: Episode, expected: Any) -> None:
    parts = expected["file_path"].split("/")
    assert episode.meta.success == ("success" in parts)
    assert episode.meta.collection == parts[parts.index("success" if episode.meta.success else "failure") - 1]
    spoken = [expected.get(f"language_instruction{slot}") or "" for slot in ("", "_2", "_3")]
    assert set(episode.meta.language) == {text.strip() for text in spoken if text.strip()}
    for camera, frames in episode.frames.items():
        assert isinstance(frames, EncodedFrames)
        shape = expected[f"observation/{camera}/shape"]
        assert [len(frames), frames.height, frames.width, 3] == shape
    assert {f"observation/{camera}/shape" for camera in episode.frames} == {k for k in expected if k.endswith("/shape")}


@pytest.mark.ground_truth
def test_bad_records_have_a_reason_and_spoil_nothing(bad_tfrecord: Truth) -> None:
    found = outcomes(bad_tfrecord.path)
    reasons = [outcome for outcome in found.values() if isinstance(outcome, str)]
    episodes = [outcome for outcome in found.values() if isinstance(outcome, Episode)]
    text = bad_tfrecord.expected
    for number in range(3):
        if f"record {number} valid" in text:
            assert isinstance(next(v for uri, v in found.items() if uri.endswith(f"#record={number}")), Episode)
    if any(phrase in text for phrase in ("control", "bare tfrecord", "is_last never true")):
        assert episodes
        assert not reasons
    else:
        assert reasons
    assert all(np.isfinite(episode.action).all() for episode in episodes)


def test_missing_shards_and_records_are_named(tmp_path: Path, write_rlds: Make, make_features: Make) -> None:
    folder = write_rlds(tmp_path / "set", [make_features(path="A/success/1/x.h5")], [make_features()])
    sorted(folder.glob("*tfrecord*"))[1].unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2", "1"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    found = outcomes(folder)
    assert sorted(value for value in found.values() if isinstance(value, str)) == ["count_mismatch", "missing_shard"]
    shard = next(iter(folder.glob("*tfrecord*")))
    assert "missing_shard" not in outcomes(shard).values()  # of a single file the others were not asked for


def test_damaged_metadata_is_named_and_does_without(tmp_path: Path, write_rlds: Make, make_features: Make) -> None:
    folder = write_rlds(tmp_path / "set", [make_features()])
    (folder / "dataset_info.json").write_text("{")
    (folder / "features.json").write_text("[]")
    found = outcomes(folder)
    assert list(found.values())[:2] == ["bad_metadata", "bad_metadata"]
    assert isinstance(list(found.values())[2], Episode)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("missing_field", {"steps__is_last": None}),
        ("missing_field", {"steps__action_dict__cartesian_velocity": None}),
        ("length_mismatch", {"steps__action": [0.5] * 41}),
        ("length_mismatch", {"steps__observation__wrist_image_left": [b"\xff\xd8"] * 5}),
        ("non_finite", {"steps__observation__gripper_position": [float("inf")] * 6}),
        ("truncated_jpeg", {"steps__observation__wrist_image_left": [b"\xff\xd8abc"] * 6}),
        ("invalid_utf8", {"steps__language_instruction": [b"\xff\xfe"] * 6}),
        ("bad_boundaries", {"steps__is_first": [0] * 6}),
    ],
)
def test_bad_episode(
    tmp_path: Path, write_rlds: Make, make_features: Make, reason: str, changes: dict[str, Any]
) -> None:
    good = make_features(path="A/success/1/x.h5")
    folder = write_rlds(tmp_path / "set", [good, make_features(**changes)])
    first, second = outcomes(folder).values()
    assert isinstance(first, Episode)
    assert second == reason


@pytest.mark.parametrize(
    ("path", "collection", "success"),
    [
        ("gs://bucket/data/TRI/success/2023-01-01/time/trajectory.h5", "TRI", True),
        ("/x/success/y/WEIRD/failure/2023-01-01/time/trajectory.h5", "WEIRD", False),
        ("somewhere/else.h5", "set", None),
    ],
)
def test_identity_is_parsed_from_the_right(
    tmp_path: Path, write_rlds: Make, make_features: Make, path: str, collection: str, success: bool | None
) -> None:
    (episode,) = outcomes(write_rlds(tmp_path / "set", [make_features(path=path)])).values()
    assert isinstance(episode, Episode)
    assert (episode.meta.collection, episode.meta.success) == (collection, success)


def test_recorded_prefix_and_place_do_not_matter(tmp_path: Path, write_rlds: Make, make_features: Make) -> None:
    tail = "IRIS/failure/day/time/trajectory.h5"
    first = write_rlds(tmp_path / "a", [make_features(path=f"one/{tail}")])
    second = write_rlds(tmp_path / "b", [make_features(path="X/success/1/x.h5"), make_features(path=f"two/{tail}")])
    (here,), (_, there) = outcomes(first).values(), outcomes(second).values()
    assert isinstance(here, Episode)
    assert isinstance(there, Episode)
    assert here.meta.episode_id == there.meta.episode_id


def test_languages_are_distinct_and_empty_slots_are_none(tmp_path: Path, write_rlds: Make, make_features: Make) -> None:
    changes = {"steps__language_instruction": [b" lift "] * 6, "steps__language_instruction_2": [b"lift"] * 6}
    (episode,) = outcomes(write_rlds(tmp_path / "set", [make_features(**changes)])).values()
    assert isinstance(episode, Episode)
    assert episode.meta.language == ("lift",)
    gone = {"steps__language_instruction": None, "steps__language_instruction_2": None}
    (silent,) = outcomes(write_rlds(tmp_path / "none", [make_features(**gone)])).values()
    assert isinstance(silent, Episode)
    assert silent.meta.language == ()


def test_cameras(tmp_path: Path, write_rlds: Make, make_features: Make) -> None:
    fewer = write_rlds(tmp_path / "fewer", [make_features(steps__observation__wrist_image_left=None)])
    assert DroidRlds(str(fewer)).spec().cameras == DROID_CAMERAS
    features = make_features()
    features["steps/observation/top"] = features["steps/observation/wrist_image_left"]
    more = write_rlds(tmp_path / "more", [features])
    assert set(DroidRlds(str(more)).spec().cameras) == {*DROID_CAMERAS, "top"}


def test_a_shard_without_a_readable_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.tfrecord-00000-of-00001").write_bytes(b"garbage" * 10)
    (rejection,) = DroidRlds(str(tmp_path)).refs()
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "length_crc_mismatch"

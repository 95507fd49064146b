"""LeRobot datasets: what is read, every fault that is tolerated or refused, and never a frame of another step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_maker import FPS, SIZE, TOP, WRIST, Maker, numbers_of, png, write_clip

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, episodes_of
from pipelines.sources.registry import open_source
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.errors import UserError
from storage_schemas.spaces import Space
from storage_schemas.store.dataset import open_dataset

VERSIONS = ("v3.0", "v2.1", "v2.0")


class Result:
    """All that a reader says of a source."""

    def __init__(self, source: Path, **options: Any) -> None:
        self.reader = open_source(str(source), IngestOptions(**options))
        self.episodes: dict[int, Episode] = {}
        self.bad: dict[int, str] = {}
        self.tolerated: list[str] = []
        self.left_out: list[str] = []
        for item in self.reader.refs():
            if not isinstance(item, SourceRef):
                self._note(item)
                continue
            try:
                for found in episodes_of(self.reader, item):
                    if isinstance(found, LeftOut):
                        self._note(found)
                    else:
                        self.episodes[_number(item.uri)] = found
            except BadDataError as error:
                self._note(item.rejection(error.reason, error.detail))

    def _note(self, item: Rejection | LeftOut) -> None:
        if isinstance(item, Rejection):
            assert "\n" not in item.detail
            self.bad[_number(item.source_uri)] = item.reason
        elif item.tolerated:
            self.tolerated.append(item.what)
        else:
            self.left_out.append(item.what)


def _number(uri: str) -> int:
    return int(uri.rpartition("#episode=")[2]) if "#episode=" in uri else -1


def check(result: Result, made: Maker, wanted: list[int] | None = None) -> None:
    """Those episodes are there, with their own numbers, frames and text."""
    assert sorted(result.episodes) == (list(range(len(made.lengths))) if wanted is None else wanted)
    for number, episode in result.episodes.items():
        start, stop = made.starts[number], made.starts[number + 1]
        np.testing.assert_array_equal(episode.action, made.rows["action"][start:stop])
        assert episode.action_mask.all()
        np.testing.assert_array_equal(episode.state["observation.state"], made.rows["observation.state"][start:stop])
        assert episode.meta.language == (made.tasks[number % 2],)
        assert episode.meta.fps == made.info["fps"]
        for frames in episode.frames.values():
            assert numbers_of(frames) == list(range(start, stop))


@pytest.mark.parametrize("version", VERSIONS)
def test_all_of_a_dataset_is_read(tmp_path: Path, version: str) -> None:
    made = Maker(root=tmp_path / "set", version=version, cameras=(TOP, WRIST))
    result = Result(made.write())
    check(result, made)
    assert not result.bad
    assert not [*result.tolerated, *result.left_out]
    spec = result.reader.spec()
    assert spec.cameras == ("top", "wrist")
    assert (spec.role("top"), spec.role("wrist")) == ("unknown", "wrist")
    assert spec.action == Space.model_validate(
        {"parts": ({"name": "action", "quantity": "other", "dim": 3},), "rate": 10.0}
    )
    assert spec.states[0].space.labels == ("a", "b", "c", "d")


def test_versions_of_one_dataset_are_the_same_episodes(tmp_path: Path) -> None:
    sets = [Result(Maker(root=tmp_path / version, version=version).write()) for version in VERSIONS]
    ids = [[episode.meta.episode_id for episode in one.episodes.values()] for one in sets]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 3


def test_many_files_and_stated_places(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set", splits=(6, 11))
    for number, row in enumerate(made.episodes):
        row["data/file_index"] = number
        row[f"videos/{TOP}/file_index"] = number
        row[f"videos/{TOP}/from_timestamp"], row[f"videos/{TOP}/to_timestamp"] = 0.0, made.lengths[number] / FPS
        made.clips[made.clip(TOP, number)] = list(range(made.starts[number], made.starts[number + 1]))
    result = Result(made.write())
    check(result, made)
    assert not result.tolerated


def drifting_start(made: Maker) -> None:
    """Each episode starts 1.3 frames later than it says, the third 2.6."""
    for number, row in enumerate(made.episodes):
        row[f"videos/{TOP}/from_timestamp"] -= 0.13 * number
        row[f"videos/{TOP}/to_timestamp"] -= 0.13 * (number + 1)


def slightly_late_start(made: Maker) -> None:
    """Frames of a deleted episode follow, so that nothing can be counted; rounding leads to the right frame."""
    made.clips[made.clip()] += [40, 41]
    for row in made.episodes[1:]:
        row[f"videos/{TOP}/from_timestamp"] += 0.03
        row[f"videos/{TOP}/to_timestamp"] += 0.03


def stale_data_index(made: Maker) -> None:
    made.splits = (6,)


def info_of_the_other_version(made: Maker) -> None:
    made.info["codebase_version"] = "v2.1" if made.new else "v3.0"
    if not made.new:
        made.info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        made.info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def unsorted_rows(made: Maker) -> None:
    order = np.arange(made.starts[-1])
    order[:6] = [2, 1, 0, 3, 5, 4]
    made.spoilt = {name: values[order] for name, values in made.rows.items()}  # type: ignore[attr-defined]


def gaps_in_frame_index(made: Maker) -> None:
    index = made.rows["frame_index"].copy()
    index[9] = 77
    made.spoilt = made.rows | {"frame_index": index}  # type: ignore[attr-defined]


def no_timestamps(made: Maker) -> None:
    made.spoilt = made.rows | {"timestamp": np.full(made.starts[-1], np.nan, np.float32)}  # type: ignore[attr-defined]


def uneven_timestamps(made: Maker) -> None:
    made.spoilt = made.rows | {"timestamp": made.rows["timestamp"] * np.float32(1.3)}  # type: ignore[attr-defined]


def nan_in_integer_columns(made: Maker) -> None:
    """As pandas writes integers of which one is missing."""
    for row in made.episodes:
        row["data/file_index"] = row[f"videos/{TOP}/file_index"] = float("nan")
    tasks = made.rows["task_index"].astype(np.float64)
    tasks[3] = np.nan
    made.spoilt = made.rows | {"task_index": tasks}  # type: ignore[attr-defined]


def names_that_do_not_count(made: Maker) -> None:
    made.info["features"]["action"]["names"] = ["x", "y"]


def other_tasks_in_the_list(made: Maker) -> None:
    made.episodes[0]["tasks"] = ["something else"]


TOLERATED = {
    drifting_start: ("v3.0", "drifts by 0.26"),
    slightly_late_start: ("v3.0", "misses its frame by 0.03"),
    stale_data_index: ("v3.0", "a stale index of files"),
    info_of_the_other_version: ("v2.1", "info.json says v3.0, the files are those of version 2"),
    unsorted_rows: ("v3.0", "sorted"),
    gaps_in_frame_index: ("v3.0", "frame_index with gaps"),
    no_timestamps: ("v3.0", "no timestamp"),
    uneven_timestamps: ("v2.1", "uneven timestamps"),
    nan_in_integer_columns: ("v3.0", "steps whose task has no text"),
    names_that_do_not_count: ("v3.0", "2 names for 3 numbers"),
    other_tasks_in_the_list: ("v3.0", "other tasks in its rows"),
}


@pytest.mark.parametrize("spoil", TOLERATED, ids=lambda spoil: spoil.__name__)
def test_fault_is_tolerated_and_said(tmp_path: Path, spoil: Callable[[Maker], None]) -> None:
    version, said = TOLERATED[spoil]
    made = Maker(root=tmp_path / "set", version=version)
    spoil(made)
    whole = made.rows
    made.rows = getattr(made, "spoilt", made.rows)
    made.write()
    made.rows = whole
    result = Result(made.root)
    check(result, made)
    assert any(said in what for what in result.tolerated), result.tolerated
    assert not result.bad


def test_a_newer_list_before_old_info_is_said(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    info_of_the_other_version(made)
    result = Result(made.write())
    check(result, made)
    assert any("the files are those of version 3" in what for what in result.tolerated)


def test_task_lines_in_a_folder_of_version_3(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    made.write()
    (made.root / "meta/tasks.parquet").unlink()
    lines = [json.dumps({"task_index": number, "task": text}) for number, text in enumerate(made.tasks)]
    (made.root / "meta/tasks.jsonl").write_text("\n".join([*lines, "{broken"]))
    result = Result(made.root)
    check(result, made)
    assert {"tasks.jsonl in a folder of version 3", "meta/tasks.jsonl has 1 lines that are not what belongs there"} <= {
        *result.tolerated
    }


def test_rows_that_no_list_names_are_counted_and_not_read(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    del made.episodes[1]
    result = Result(made.write())
    check(result, made, [0, 2])
    assert result.left_out == ["5 rows of 1 episodes that meta does not list"]


@pytest.mark.parametrize("kill", ["unlink", "cut"])
def test_a_list_that_was_never_finished_is_made_up_from_the_rows(tmp_path: Path, kill: str) -> None:
    made = Maker(root=tmp_path / "set")
    made.write()
    table = made.root / "meta/episodes/chunk-000/file-000.parquet"
    table.unlink() if kill == "unlink" else table.write_bytes(table.read_bytes()[:-8])
    result = Result(made.root)
    check(result, made)
    assert any("meta lists no episode" in what for what in result.tolerated)


def test_rows_that_were_never_finished_lose_their_episodes_alone(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set", version="v2.1")
    made.write()
    made.data(1).write_bytes(made.data(1).read_bytes()[:-4])
    result = Result(made.root)
    check(result, made, [0, 2])
    assert result.bad == {1: "truncated"}


def test_files_that_are_not_there_lose_their_episodes_alone(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set", version="v2.1")
    made.write()
    made.data(0).unlink()
    (made.root / made.clip(TOP, 1)).unlink()
    result = Result(made.root)
    check(result, made, [2])
    assert result.bad == {0: "missing_rows", 1: "missing_video"}


def drift_that_nothing_settles(made: Maker) -> None:
    """Half a frame off, in a video with frames of a deleted episode."""
    made.clips[made.clip()] += [40, 41]
    for row in made.episodes[1:]:
        row[f"videos/{TOP}/from_timestamp"] += 0.05


def overlapping_starts(made: Maker) -> None:
    made.clips[made.clip()] += [40, 41]
    made.episodes[1][f"videos/{TOP}/from_timestamp"] -= 2 / FPS
    made.episodes[1][f"videos/{TOP}/to_timestamp"] -= 2 / FPS


def short_video(made: Maker) -> None:
    del made.clips[made.clip()][8:]


def rows_of_another_length(made: Maker) -> None:
    made.episodes[1]["length"] = 9


def a_start_that_jumps(made: Maker) -> None:
    """As many frames as steps, but the order of the episodes in the video is not what the starts say."""
    made.episodes[1][f"videos/{TOP}/from_timestamp"] = 1.15


def steps_in_no_order(made: Maker) -> None:
    made.rows["frame_index"][7:9] = 40, 3
    made.rows["timestamp"][7:9] = 0.4, 0.3


def listed_twice(made: Maker) -> None:
    made.episodes.append(made.episodes[1] | {"length": 4})


def not_a_number(made: Maker) -> None:
    made.rows["action"][7, 1] = np.nan


def other_shape(made: Maker) -> None:
    made.info["features"]["action"]["shape"] = [4]


REFUSED = {
    drift_that_nothing_settles: ([0], "frames_misplaced"),
    overlapping_starts: ([2], "frames_misplaced"),
    short_video: ([0], "length_mismatch"),
    rows_of_another_length: ([0, 2], "length_mismatch"),
    a_start_that_jumps: ([0], "frames_misplaced"),
    steps_in_no_order: ([0, 2], "bad_order"),
    listed_twice: ([0, 2], "duplicate_episode"),
    not_a_number: ([0, 2], "non_finite"),
    other_shape: ([], "shape_mismatch"),
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_fault_is_refused_where_a_frame_or_number_might_be_wrong(
    tmp_path: Path, spoil: Callable[[Maker], None]
) -> None:
    good, reason = REFUSED[spoil]
    made = Maker(root=tmp_path / "set")
    spoil(made)
    result = Result(made.write())
    check(result, made, good)
    assert set(result.bad.values()) == {reason}
    assert len(result.bad) + len(good) == len(made.lengths)


@pytest.mark.parametrize(
    ("fps", "clip_fps", "shown"), [(10, 20, [0, 2, 4, 6]), (10, 5, [0, 0, 1, 1]), (9.5, 19, [0, 2, 4, 6])]
)
def test_a_video_with_its_own_rate_shows_what_was_on_screen(
    tmp_path: Path, fps: float, clip_fps: float, shown: list[int]
) -> None:
    made = Maker(root=tmp_path / "set", version="v2.1", lengths=(4,))
    made.info["fps"], made.clip_fps = fps, clip_fps
    made.rows["timestamp"] = (np.arange(4) / fps).astype(np.float32)
    made.clips[made.clip()] = list(range(8 if clip_fps > fps else 2))
    result = Result(made.write())
    assert numbers_of(result.episodes[0].frames["top"]) == shown
    assert result.episodes[0].meta.fps == fps
    assert any(f"{clip_fps:g} frames a second" in what for what in result.tolerated)


def test_a_rate_that_is_no_integer(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set", lengths=(30,))
    made.info["fps"] = made.clip_fps = 29.97
    made.rows["timestamp"] = (np.arange(30) / 29.97).astype(np.float32)
    made.episodes[0][f"videos/{TOP}/to_timestamp"] = 30 / 29.97
    result = Result(made.write())
    check(result, made)
    assert not result.tolerated


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (None, ("action.x", "action.y", "action.z")),
        (["a", "b", "c"], ("a", "b", "c")),
        ({"motors": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"arm": {"motors": ["a", "b"]}, "hand": ["c"]}, ("a", "b", "c")),
        ({"c": 2, "a": 0, "b": 1}, ("a", "b", "c")),
    ],
)
def test_names_in_every_form(tmp_path: Path, names: Any, axes: tuple[str, ...]) -> None:
    made = Maker(root=tmp_path / "set")
    made.info["features"]["action"]["names"] = names
    action = open_source(str(made.write())).spec().action
    assert action is not None
    assert action.labels == axes


def test_one_feature_for_each_joint(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    actions = made.rows.pop("action")
    del made.info["features"]["action"]
    for index, joint in enumerate(("shoulder", "elbow", "gripper")):
        made.add(f"action.{joint}", actions[:, index])
    result = Result(made.write())
    made.rows["action"] = actions
    check(result, made)
    action = result.reader.spec().action
    assert action is not None
    assert action.labels == ("action.shoulder", "action.elbow", "action.gripper")


def test_actions_and_more_numbers_keep_their_types(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    made.info["features"]["actions"] = made.info["features"].pop("action")
    actions = made.rows.pop("action")
    made.rows["actions"] = actions
    total = len(actions)
    made.add("action.velocity", np.ones((total, 2), np.float32))
    made.add("next.reward", np.linspace(0, 1, total), "float64")
    made.add("next.done", np.arange(total) % 2 == 0, "bool")
    made.add("observation.timestamp", 1.7e9 + np.arange(total) / 100, "float64")
    made.add("observation.grid", np.arange(total * 6).reshape(total, 2, 3), "int64")
    result = Result(made.write())
    made.rows["action"] = actions
    check(result, made)
    state = result.episodes[1].state
    kinds = {name: (values.dtype.name, values.shape[1]) for name, values in state.items()}
    assert kinds == {
        "observation.state": ("float32", 4), "action.velocity": ("float32", 2), "next.reward": ("float32", 1),
        "next.done": ("int64", 1), "observation.timestamp": ("float64", 1), "observation.grid": ("int64", 6),
    }  # fmt: skip
    assert state["observation.timestamp"][0, 0] == 1.7e9 + made.starts[1] / 100


def test_integers_of_which_one_is_not_known_are_left_out_of_their_episode(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    counts = np.arange(made.starts[-1], dtype=np.float64)
    counts[7] = np.nan
    made.add("observation.count", counts, "int64")
    result = Result(made.write())
    check(result, made)
    assert [("observation.count" in result.episodes[number].state) for number in range(3)] == [True, False, True]
    assert result.episodes[0].state["observation.count"].dtype == np.int64
    assert any("some are not known" in what for what in result.left_out)


def test_a_dataset_without_actions_is_video_with_states(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    del made.info["features"]["action"]
    result = Result(made.write())
    assert not any(episode.action_mask.any() for episode in result.episodes.values())
    assert result.reader.spec().action is None
    assert "action: a column that it does not declare" in result.left_out


@pytest.mark.parametrize("shape", [[3, *SIZE], [*SIZE, 3]])
def test_images_in_the_rows(tmp_path: Path, shape: list[int]) -> None:
    made = Maker(root=tmp_path / "set", version="v2.1")
    made.info["features"][TOP] = {"dtype": "image", "shape": shape, "names": ["channels", "height", "width"]}
    made.info["features"]["observation.images.depth"] = {"dtype": "image", "shape": [*SIZE, 1], "names": None}
    total, made.clips = made.starts[-1], {}
    made.rows[TOP] = [{"bytes": png(number), "path": None} for number in range(total)]
    made.rows["observation.images.depth"] = [{"bytes": png(0, "I;16"), "path": None}] * total
    result = Result(made.write())
    check(result, made)
    assert "observation.images.depth: images of 16 bits, which are depth" in result.left_out
    frames = result.episodes[0].frames["top"]
    assert isinstance(frames, EncodedFrames)
    assert (frames.height, frames.width) == SIZE


def test_images_that_are_only_named_are_refused(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    made.info["features"][TOP]["dtype"] = "image"
    made.rows[TOP] = [{"bytes": None, "path": "images/0.png"}] * made.starts[-1]
    assert set(Result(made.write()).bad.values()) == {"missing_image"}


def test_depth_and_language_features_are_named_and_left_out(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    depth = {"dtype": "video", "shape": [*SIZE, 1], "names": None, "info": {"video.is_depth_map": True}}
    made.info["features"] |= {
        "observation.images.depth": depth,
        "language_persistent": {"dtype": "language", "shape": [1], "names": None},
    }
    result = Result(made.write())
    check(result, made)
    assert {what.partition(":")[0] for what in result.left_out} == {"observation.images.depth", "language_persistent"}


def test_instructions_and_success_in_the_rows(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    made.rows["language_instruction_2"] = ["put it away"] * made.starts[-1]
    made.info["features"]["language_instruction_2"] = {"dtype": "string", "shape": [1], "names": None}
    made.add("next.success", np.arange(made.starts[-1]) == 5, "bool")
    episodes = Result(made.write()).episodes
    assert episodes[0].meta.language == (made.tasks[0], "put it away")
    assert [episodes[number].meta.success for number in range(3)] == [True, False, False]


def test_the_meaning_of_numbers_is_what_the_dataset_says(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    made.write()
    part = {"name": "move", "quantity": "position_delta", "dim": 3, "unit": "m/step"}
    (made.root / "meta/uwm.json").write_text(json.dumps({"action": {"parts": [part], "rate": 10.0}}))
    action = open_source(str(made.root)).spec().action
    assert action is not None
    assert action.parts[0].quantity == "position_delta"
    (made.root / "meta/uwm.json").write_text('{"action": {"parts": []}}')
    result = Result(made.root)
    check(result, made)
    assert any("meta/uwm.json can't be understood" in what for what in result.tolerated)


def test_paths_lead_to_no_file_outside_and_format_nothing_else(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    made.write()
    write_clip(tmp_path / "outside.mp4", range(made.starts[-1]))
    for path in ("../outside.mp4", str(tmp_path / "outside.mp4"), "{video_key.__class__}/{0}", "{video_key:99999d}"):
        made.info["video_path"] = path
        (made.root / "meta/info.json").write_text(json.dumps(made.info))
        assert set(Result(made.root).bad.values()) == {"missing_video"}


@pytest.mark.parametrize("fps", [None, 0, -1, "15", float("inf"), True])
def test_info_without_a_rate_is_one_line(tmp_path: Path, fps: Any) -> None:
    made = Maker(root=tmp_path / "set")
    made.info["fps"] = fps
    with pytest.raises(UserError, match=r"info\.json") as caught:
        open_source(str(made.write()))
    assert "\n" not in str(caught.value)


def test_a_damaged_description_is_said_and_its_videos_are_no_clips(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    del made.info["features"]
    with pytest.raises(UserError, match="declares no features"):
        open_source(str(made.write()))
    (made.root / "meta/info.json").write_text('{"fps": ')
    with pytest.raises(UserError, match="damaged"):
        open_source(str(made.root))


def test_several_datasets_below_one_folder_are_collections(tmp_path: Path) -> None:
    for number in range(2):
        Maker(root=tmp_path / f"sets/{number}", seed=number, version=VERSIONS[number]).write()
    result = open_source(str(tmp_path / "sets"))
    refs = [ref for ref in result.refs() if isinstance(ref, SourceRef)]
    assert len({ref.fingerprint for ref in refs}) == len(refs) == 6
    found = [next(e for e in episodes_of(result, ref) if isinstance(e, Episode)) for ref in refs]
    assert {episode.meta.collection for episode in found} == {"0", "1"}
    odd = Maker(root=tmp_path / "sets/odd")
    odd.add("action", np.zeros((odd.starts[-1], 2), np.float32))
    odd.write()
    with pytest.raises(UserError, match="other actions"):
        open_source(str(tmp_path / "sets"))


def test_equal_numbers_with_other_frames_are_two_episodes(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set", version="v2.1", lengths=(5, 5, 5))
    for values in made.rows.values():
        if values.dtype == np.float32:
            values[5:10] = values[:5]
    made.rows["task_index"][:] = 0
    for row in made.episodes:
        row["tasks"] = made.tasks[:1]
    result = Result(made.write())
    assert len({episode.meta.episode_id for episode in result.episodes.values()}) == 3
    report = ingest(str(made.root), str(tmp_path / "store"))
    assert report.added == 3
    assert not report.quarantined


def test_ingestion_reports_what_it_tolerated_and_adds_only_what_is_new(tmp_path: Path) -> None:
    made = Maker(root=tmp_path / "set")
    drifting_start(made)
    store = str(tmp_path / "store")
    report = ingest(str(made.write()), store)
    assert report.added == 3
    assert any(item.tolerated and "drifts" in item.what for item in report.left_out)
    assert ingest(str(made.root), store).present == 3
    dataset = open_dataset(store)
    assert dataset.episodes.lengths.tolist() == list(made.lengths)
    moved = Maker(root=tmp_path / "set", version="v2.1")
    for path in (made.root / "videos").rglob("*.mp4"):
        path.unlink()
    assert pq.read_metadata(made.data()).num_rows == moved.starts[-1]

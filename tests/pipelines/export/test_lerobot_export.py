"""A store as a LeRobot dataset: contiguous, sorted, nothing lost, and the same store again when it is ingested."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.cli import run
from pipelines.export.lerobot import export_lerobot
from pipelines.export.videos import VideoFiles
from pipelines.ingest import ingest
from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode, EpisodeMeta
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Camera, Part, Space, StateField
from storage_schemas.store.dataset import Dataset, open_dataset
from storage_schemas.store.parts import write_part

SIZE = (48, 64)
SPEC = DatasetSpec(
    cameras=("left/eye", "wrist"),
    action_dim=4,
    action=Space(
        parts=(
            Part(name="move", quantity="position_delta", dim=3, unit="m/step", frame="base"),
            Part(name="gripper", quantity="gripper_position", dim=1, unit="1", open=0.0, closed=1.0),
        ),
        rate=10.0,
    ),
    states=(
        StateField(
            name="observation/joints",
            space=Space(parts=(Part(name="joints", quantity="joint_position", dim=2, unit="rad"),)),
        ),
    ),
    views=(Camera(name="wrist", role="wrist"),),
)


def level(episode: int, step: int, view: int) -> int:
    return 20 + 60 * view + 25 * episode + 3 * step


def episode(number: int, steps: int = 6, **changes: Any) -> Episode:
    rng = np.random.default_rng(number)
    mask = np.arange(steps) != 2
    frames = {
        camera: np.stack([np.full((*SIZE, 3), level(number, step, view), np.uint8) for step in range(steps)])
        for view, camera in enumerate(SPEC.cameras)
    }
    state = {
        "observation/joints": rng.normal(size=(steps, 2)).astype(np.float32),
        "count": np.arange(steps)[:, None] + 2**40,
        "clock": 1.7e9 + rng.random((steps, 1)),
        "action": rng.normal(size=(steps, 3)).astype(np.float32),
    }
    meta = EpisodeMeta(
        episode_id=f"{number:032x}", source_uri=f"/raw/{number}.h5", source_format="toy",
        source_fingerprint=f"f{number}", collection="AB"[number % 2], fps=10.0,
        language=("do it", "please do it") if number else (), success=bool(number),
    )  # fmt: skip
    action = np.where(mask[:, None], rng.normal(size=(steps, 4)), 0).astype(np.float32)
    made = Episode(meta=meta, action=action, action_mask=mask, frames=frames, state=state)
    return replace(made, **changes)


def store(folder: Path, episodes: Sequence[Episode]) -> str:
    uri = str(folder / "store")
    create_dataset(uri, SPEC)
    commit(uri, write_part(uri, list(episodes), run_id="run", spec=SPEC))
    return uri


def check_equal(one: Dataset, other: Dataset) -> None:
    """Two stores with the same content, up to the codec of the frames."""
    assert one.spec == other.spec
    for name in (
        "episode_id",
        "length",
        "fps",
        "collection",
        "language",
        "success",
        "cameras",
        "split",
        "action_steps",
    ):
        assert one.episodes.column(name) == other.episodes.column(name), name
    for number, length in enumerate(one.episodes.lengths.tolist()):
        arrays = one.schema(number).numbers
        assert arrays.keys() == other.schema(number).numbers.keys()
        for name in arrays:
            first, second = one.array(number, name), other.array(number, name)
            assert first.dtype == second.dtype
            np.testing.assert_array_equal(first, second, name)
        for camera in one.episodes.row(number).cameras:
            shown = [dataset.frames(number, camera, range(length)).mean(axis=(1, 2, 3)) for dataset in (one, other)]
            np.testing.assert_allclose(shown[0], shown[1], atol=1.2)


def test_export_comes_back_equal(tmp_path: Path) -> None:
    whole = [episode(number, 5 + number) for number in range(3)]
    fewer = {name: values for name, values in whole[1].state.items() if name != "count"}
    whole[1] = replace(whole[1], frames={"wrist": whole[1].frames["wrist"]}, state=fewer)
    uri = store(tmp_path, whole)
    report = export_lerobot(uri, str(tmp_path / "out"))
    assert (report.episodes, report.steps, report.tasks, report.without_actions) == (3, 18, 2, 0)
    again = ingest(str(tmp_path / "out"), str(tmp_path / "again"))
    assert again.source_format == "lerobot"
    assert not (again.quarantined or again.left_out)  # noqa: PT018 - one claim
    check_equal(open_dataset(uri), open_dataset(again.store_uri))


def test_what_is_written_goes_by_position(tmp_path: Path) -> None:
    """As the genuine reader takes it: row k of the list is episode k, row k of the tasks is task k."""
    uri = store(tmp_path, [episode(number, 4 + number) for number in (2, 0, 1)])
    export_lerobot(uri, str(tmp_path / "out"))
    rows = pq.read_table(tmp_path / "out/data").to_pydict()
    listed = pq.read_table(tmp_path / "out/meta/episodes").to_pylist()
    tasks = pq.read_table(tmp_path / "out/meta/tasks.parquet").to_pydict()
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert rows["index"] == list(range(info["total_frames"]))
    assert tasks["task_index"] == list(range(info["total_tasks"]))
    assert [row["episode_index"] for row in listed] == list(range(info["total_episodes"]))
    for row in listed:
        part = slice(row["dataset_from_index"], row["dataset_to_index"])
        assert set(rows["episode_index"][part]) == {row["episode_index"]}
        assert rows["frame_index"][part] == list(range(row["length"]))
        np.testing.assert_allclose(rows["timestamp"][part], np.arange(row["length"]) / info["fps"], rtol=1e-6)
        assert [tasks["task"][task] for task in set(rows["task_index"][part])] == row["tasks"]
    cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    assert cameras == ["observation.images.left.eye", "observation.images.wrist"]
    for name in cameras:
        places = [(row[f"videos/{name}/from_timestamp"], row[f"videos/{name}/to_timestamp"]) for row in listed]
        assert [start for start, _ in places] == pytest.approx([0.0, *(end for _, end in places[:-1])])
        with av.open(
            str(tmp_path / "out" / info["video_path"].format(video_key=name, chunk_index=0, file_index=0))
        ) as f:
            times = [frame.time for frame in f.decode(video=0)]
        assert times == pytest.approx([index / info["fps"] for index in range(info["total_frames"])], abs=1e-5)


def test_statistics_are_those_of_the_numbers(tmp_path: Path) -> None:
    uri = store(tmp_path, [episode(number) for number in range(2)])
    export_lerobot(uri, str(tmp_path / "out"))
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    actions = np.concatenate([open_dataset(uri).array(number, "action") for number in range(2)]).astype(np.float64)
    for name, value in (
        ("min", actions.min(0)),
        ("max", actions.max(0)),
        ("mean", actions.mean(0)),
        ("std", actions.std(0)),
    ):
        np.testing.assert_allclose(stats["action"][name], value, rtol=1e-6, atol=1e-9)
    assert stats["action"]["count"] == [12]
    brightness = np.mean([level(number, step, 1) for number in range(2) for step in range(6)]) / 255
    np.testing.assert_allclose(np.array(stats["observation.images.wrist"]["mean"]).shape, (3, 1, 1))
    np.testing.assert_allclose(stats["observation.images.wrist"]["mean"], brightness, atol=0.01)


def test_episodes_without_actions_are_left_out_or_declared(tmp_path: Path) -> None:
    unknown = episode(1, action=np.zeros((6, 4), np.float32), action_mask=np.zeros(6, np.bool_))
    uri = store(tmp_path, [episode(0), unknown])
    report = export_lerobot(uri, str(tmp_path / "less"))
    assert (report.episodes, report.without_actions) == (1, 1)
    report = export_lerobot(uri, str(tmp_path / "all"), keep_without_actions=True)
    assert (report.episodes, report.without_actions) == (2, 0)
    ingest(str(tmp_path / "all"), str(tmp_path / "again"))
    check_equal(open_dataset(uri), open_dataset(str(tmp_path / "again")))


def test_many_videos_share_no_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.export.videos._MAX_BYTES", 10)
    monkeypatch.setattr("pipelines.export.videos.CHUNK", 2)
    uri = store(tmp_path, [episode(number) for number in range(5)])
    export_lerobot(uri, str(tmp_path / "out"))
    found = sorted(path.relative_to(tmp_path / "out/videos/observation.images.wrist").as_posix()
                   for path in (tmp_path / "out/videos/observation.images.wrist").rglob("*.mp4"))  # fmt: skip
    assert found == [f"chunk-{n // 2:03d}/file-{n % 2:03d}.mp4" for n in range(5)]
    ingest(str(tmp_path / "out"), str(tmp_path / "again"))
    check_equal(open_dataset(uri), open_dataset(str(tmp_path / "again")))


@pytest.mark.parametrize("codec", ["hevc", "vp9"])
def test_other_codecs_come_back_too(tmp_path: Path, codec: Any) -> None:
    uri = store(tmp_path, [episode(number) for number in range(2)])
    export_lerobot(uri, str(tmp_path / "out"), codec=codec)
    ingest(str(tmp_path / "out"), str(tmp_path / "again"))
    check_equal(open_dataset(uri), open_dataset(str(tmp_path / "again")))


def test_what_does_not_fit_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    slow = episode(1, meta=replace(episode(1).meta, fps=5.0))
    small = episode(3, frames={"wrist": np.zeros((6, 24, 32, 3), np.uint8)})
    uri = store(tmp_path, [episode(0), slow, small])
    (tmp_path / "there").mkdir()
    for out, options, said in (
        ("out", {}, "choose one with --fps"),
        ("out", {"fps": 10.0}, "frames of several sizes"),
        ("out", {"collections": ["nobody"]}, "no episode to export"),
        ("there", {"collections": ["A"]}, "exists"),
        ("s3://bucket/out", {}, "no local folder"),
    ):
        target = out if "://" in out else str(tmp_path / out)
        with pytest.raises(UserError, match=said) as caught:
            export_lerobot(uri, target, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "there"]
    with pytest.raises(UserError, match="odd"):
        VideoFiles(tmp_path, (47, 64), 10.0, "av1")


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    uri = store(tmp_path, [episode(number) for number in range(2)])

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_lerobot(uri, str(tmp_path / "out"), progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_the_command_says_what_it_did(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    unknown = episode(1, action=np.zeros((6, 4), np.float32), action_mask=np.zeros(6, np.bool_))
    uri = store(tmp_path, [episode(0), unknown])
    assert run(["export-dataset", uri, str(tmp_path / "out")]) == 0
    said = capfd.readouterr()
    assert "1 episode with 6 steps, 1 task" in said.out
    assert "1 episode left out, without a known action" in said.err
    assert run(["export-dataset", uri, str(tmp_path / "two"), "--without-actions", "keep", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["episodes"] == 2
    assert run(["export-dataset", uri, str(tmp_path / "two")]) == 2
    assert "exists: name another folder" in capfd.readouterr().err

"""From a source to a committed version: nothing lost, nothing doubled, nothing bad let in."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from pipelines.ingest import IngestProgress, IngestReport, ingest
from pipelines.options import IngestOptions
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.catalog.rows import EpisodeRow
from storage_schemas.catalog.table import dataset_exists
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset, summary
from storage_schemas.store.parts import write_part

Make = Callable[..., Any]


class Truth(Protocol):
    path: Path
    expected: Any


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def episodes(tmp_path: Path, write_rlds: Make, make_features: Make) -> Callable[..., Path]:
    """A function that writes an RLDS set of numbered episodes; a negative number is a bad one."""

    def write(*numbers: int, seed: int = 0, folder: str = "set") -> Path:
        made = []
        for number in numbers:
            path = f"LAB/success/day/{abs(number)}/trajectory.h5"
            bad = {"steps__is_first": [1] * (4 + abs(number))} if number < 0 else {}
            made.append(make_features(4 + abs(number), path=path, seed=seed + abs(number), **bad))
        return Path(write_rlds(tmp_path / folder, made))

    return write


def lengths(store: str, version: int | None = None) -> list[int]:
    return open_dataset(store, version).episodes.lengths.tolist()


def counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    return report.version, report.added, report.replaced, report.present, len(report.quarantined)


@pytest.mark.ground_truth
def test_rlds_through_the_store(rlds_truth: Truth, store: str) -> None:
    report = ingest(str(rlds_truth.path), store)
    wanted = [e for e in rlds_truth.expected["episodes"] if e["n_steps"] and not e["n_nan_action"]]
    dataset = open_dataset(store)
    facts = summary(dataset)
    assert facts.lengths == tuple(e["n_steps"] for e in wanted)
    assert facts.steps == facts.actions_available == report.steps == sum(facts.lengths)
    assert facts.episodes + facts.quarantined == rlds_truth.expected["num_examples"]
    for row, expected in enumerate(wanted):
        stored = dataset.array(row, "state/action").sum(axis=0, dtype=np.float64)
        np.testing.assert_allclose(stored, expected["action_sum"], rtol=1e-9, atol=1e-9)
        for view, camera in enumerate(dataset.spec.cameras):
            truth = expected["accurate_decode"].get(camera)
            assert dataset.array(row, "mask/view")[:, view].all() == (truth is not None)
            if truth:
                jpegs = dataset.encoded(row, camera, range(truth["n"]))
                assert hashlib.sha256(b"".join(jpegs)).hexdigest() == truth["jpeg_sha256"]
                mean = dataset.frames(row, camera, [0])[0].mean(axis=(0, 1))
                np.testing.assert_allclose(mean, truth["first_mean"], atol=1e-6)
    assert verify(store).ok
    again = ingest(str(rlds_truth.path), store)
    assert counts(again)[:4] == (report.version, 0, 0, len(wanted))
    assert again.source_fingerprint == report.source_fingerprint


@pytest.mark.ground_truth
def test_videos_through_the_store(fixtures_root: Path, store: str) -> None:
    report = ingest(str(fixtures_root / "videos"), store)
    assert not report.quarantined
    dataset = open_dataset(store)
    facts = summary(dataset)
    assert facts.actions_available == 0
    names = {Path(uri.partition("#")[0]).name for uri in dataset.episodes.column("source_uri")}
    assert names == {path.name for path in (fixtures_root / "videos").iterdir() if path.suffix != ".json"}
    for row in range(len(dataset)):
        mask = dataset.array(row, "mask/view")
        assert mask[:, 0].all()
        assert not mask[:, 1:].any()
        assert not dataset.array(row, "mask/action").any()
        assert not dataset.array(row, "action").any()
        assert min(dataset.episodes.sizes[row, 0]) <= 180
    assert counts(ingest(str(fixtures_root / "videos"), store)) == (1, 0, 0, facts.episodes, 0)


GOOD_WORDS = ("readable", "duplicate", "12 frames")
UNWANTED_WORDS = ("identical black", "no motion")
BAD_WORDS = ("first half", "cut at", "0 bytes", "plain text", "HTML", "flipped", "no video stream", " 1 frame", " 3 fr")


@pytest.mark.ground_truth
def test_bad_videos_have_a_reason(bad_video: Truth, store: str) -> None:
    report = ingest(str(bad_video.path), store, IngestOptions(format="video"))
    good, unwanted, bad = (
        any(word in bad_video.expected for word in words) for words in (GOOD_WORDS, UNWANTED_WORDS, BAD_WORDS)
    )
    assert good + unwanted + bad == 1
    assert (report.added > 0) == good
    named = [rejection.source_uri.partition("#")[0] for rejection in report.quarantined]
    assert named == ([] if good else [str(bad_video.path)])
    assert report.version == int(good)
    assert len(quarantined(store)) == len(named)
    again = ingest(str(bad_video.path), store, IngestOptions(format="video", reject=()))
    assert (again.added > 0) == unwanted


@pytest.mark.ground_truth
def test_sets_that_share_episodes_settle(fixtures_root: Path, store: str) -> None:
    """All damaged sets at once hold the same episodes in many versions; a second run must find nothing to do."""
    source = str(fixtures_root / "bad/tfrecord")
    first = ingest(source, store)
    assert first.added
    assert "duplicate_episode" in {rejection.reason for rejection in first.quarantined}
    second = ingest(source, store)
    assert (second.version, second.added, second.replaced) == (first.version, 0, 0)
    assert verify(store).ok


def test_again_is_nothing_new(episodes: Make, store: str) -> None:
    source = episodes(1, 2, 3)
    first = ingest(str(source), store, IngestOptions(batch_episodes=2))
    assert counts(first) == (2, 3, 0, 0, 0)  # two batches, two versions
    second = ingest(str(source), store, IngestOptions(batch_episodes=2))
    assert counts(second) == (2, 0, 0, 3, 0)
    assert second.source_fingerprint == first.source_fingerprint
    shutil.move(source, source.parent / "moved")
    assert counts(ingest(str(source.parent / "moved"), store)) == (2, 0, 0, 3, 0)
    assert lengths(store) == [5, 6, 7]


def test_only_what_is_new_is_added(episodes: Make, store: str) -> None:
    ingest(str(episodes(1, 2)), store)
    assert counts(ingest(str(episodes(1, 2, 3)), store)) == (2, 1, 0, 2, 0)
    assert lengths(store) == [5, 6, 7]
    assert lengths(store, 1) == [5, 6]


def test_a_changed_record_is_replaced(episodes: Make, store: str) -> None:
    ingest(str(episodes(1, 2)), store)
    before = open_dataset(store)
    source = episodes(1, 2, seed=5)
    assert counts(ingest(str(source), store)) == (2, 0, 2, 0, 0)
    after = open_dataset(store)
    assert sorted(after.episodes.episode_ids) == sorted(before.episodes.episode_ids)
    assert set(after.episodes.column("source_fingerprint")).isdisjoint(before.episodes.column("source_fingerprint"))
    assert before.episodes.splits == [after.episodes.splits[after.episodes.episode_ids.index(i)]
                                      for i in before.episodes.episode_ids]  # fmt: skip


def test_bad_records_are_reported_once(episodes: Make, store: str) -> None:
    source = str(episodes(1, -2, 3))
    report = ingest(source, store)
    assert counts(report) == (1, 2, 0, 0, 1)
    assert report.quarantined[0].reason == "bad_boundaries"
    assert lengths(store) == [5, 7]
    assert counts(ingest(source, store)) == (1, 0, 0, 2, 1)
    assert len(quarantined(store)) == summary(open_dataset(store)).quarantined == 1


def test_nothing_good_makes_no_version(episodes: Make, store: str) -> None:
    assert counts(ingest(str(episodes(-1, -2)), store)) == (0, 0, 0, 0, 2)
    assert len(quarantined(store)) == 2
    assert counts(ingest(str(episodes(1, 2)), store)) == (1, 2, 0, 0, 0)


def test_doubled_records_are_stored_once(episodes: Make, store: str) -> None:
    assert counts(ingest(str(episodes(1, 1, 2)), store)) == (1, 2, 0, 1, 0)
    assert lengths(store) == [5, 6]
    assert ingest(str(episodes(1, 1, 2)), store).version == 1


def test_progress_counts_all(episodes: Make, store: str) -> None:
    seen: list[IngestProgress] = []
    ingest(str(episodes(1, -2, 3)), store, progress=seen.append)
    assert [(p.done, p.total, p.episodes, p.steps, p.quarantined) for p in seen] == [
        (1, 3, 1, 5, 0),
        (2, 3, 1, 5, 1),
        (3, 3, 2, 12, 1),
    ]


def test_a_changed_video_leaves_no_old_clip(tmp_path: Path, write_video: Make, store: str) -> None:
    options = IngestOptions(clip_steps=10)
    for name in ("a", "b"):
        write_video(tmp_path / f"clips/{name}.mp4", frames=30, seed=ord(name))
    assert counts(ingest(str(tmp_path / "clips"), store, options)) == (1, 6, 0, 0, 0)
    write_video(tmp_path / "clips/a.mp4", frames=12, seed=77)  # one clip of 10, and 2 steps that are too few
    assert counts(ingest(str(tmp_path / "clips"), store, options)) == (2, 0, 1, 3, 0)
    found = [Path(uri).name for uri in open_dataset(store).episodes.column("source_uri")]
    assert found == ["b.mp4#clip=0", "b.mp4#clip=1", "b.mp4#clip=2", "a.mp4#clip=0"]
    assert lengths(store, 1) == [10] * 6
    assert ingest(str(tmp_path / "clips"), store, options).version == 2
    shutil.copy(tmp_path / "clips/b.mp4", tmp_path / "clips/a.mp4")
    report = ingest(str(tmp_path / "clips"), store, options)
    assert counts(report) == (3, 0, 0, 3, 1)
    assert report.quarantined[0].reason == "duplicate"
    assert lengths(store) == [10] * 3
    assert ingest(str(tmp_path / "clips"), store, options).version == 3


def test_a_video_that_breaks_late_leaves_nothing(
    tmp_path: Path, write_video: Make, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are written while it is read; none of its rows may reach a commit."""
    written: list[str] = []

    def write(uri: str, batch: Sequence[Episode], **options: Any) -> list[EpisodeRow]:
        written.extend(episode.meta.source_uri for episode in batch)
        return write_part(uri, batch, **options)

    monkeypatch.setattr("pipelines.convert._MAX_STEPS", 20)
    monkeypatch.setattr("pipelines.convert.write_part", write)
    for name in ("a", "b", "c"):
        write_video(tmp_path / f"clips/{name}.mp4", frames=60, seed=ord(name))
    broken = tmp_path / "clips/b.mp4"
    data = broken.read_bytes()
    middle = len(data) // 2  # the header lies at the end
    broken.write_bytes(data[:middle] + bytes(300) + data[middle + 300 :])
    report = ingest(str(tmp_path / "clips"), store, IngestOptions(clip_steps=10))
    assert [Path(rejection.source_uri).name for rejection in report.quarantined] == ["b.mp4"]
    found = open_dataset(store).episodes.column("source_uri")
    assert {Path(uri.partition("#")[0]).name for uri in found} == {"a.mp4", "c.mp4"}
    assert len(found) == 12
    assert any("b.mp4#clip=" in uri for uri in written)
    assert verify(store).ok


def test_video_joins_a_robot_dataset(tmp_path: Path, episodes: Make, write_video: Make, store: str) -> None:
    ingest(str(episodes(1, 2)), store)
    write_video(tmp_path / "clips/a.mp4")
    options = IngestOptions(camera="wrist_image_left", collection="web")
    assert counts(ingest(str(tmp_path / "clips"), store, options)) == (2, 1, 0, 0, 0)
    dataset = open_dataset(store)
    assert dataset.array(2, "mask/view")[0].tolist() == [False, False, True]
    assert dataset.episodes.collections == ["LAB", "LAB", "web"]
    assert verify(store).ok
    with pytest.raises(UserError, match="choose one of"):
        ingest(str(tmp_path / "clips"), store, IngestOptions(camera="nose"))


def test_hostile_names_and_places(tmp_path: Path, write_video: Make, store: str) -> None:
    root = tmp_path / "clips"
    good = write_video(root / "plain.mp4", frames=12)
    names = ["new\nline", "sp ace  double", "ünïcödé_日本語_🤖", "-dash", "quote'\"$HOME`;", ".hidden", "percent%03d",
             "colon_Fri_Jul__7_09:42:23", "hash#1", os.fsdecode(b"latin1_\xe9")]  # fmt: skip
    for number, name in enumerate(names):
        write_video(root / "a" / f"{name}.mp4", frames=12, seed=number + 1)
    os.mkfifo(root / "fifo.mp4")
    (root / "self.mp4").symlink_to("self.mp4")
    (root / "dangling.mp4").symlink_to("nowhere")
    (root / "a/loop").symlink_to("..")
    (root / "dir.mp4").mkdir()
    shutil.copy(good, root / "dir.mp4/copy.mp4")
    report = ingest(str(root), store)
    assert report.added == len(names) + 1
    assert {Path(r.source_uri).name: r.reason for r in report.quarantined} == {
        "fifo.mp4": "not_a_file",
        "self.mp4": "unreadable",
        "dangling.mp4": "unreadable",
        "plain.mp4": "duplicate",  # of the one that comes first, dir.mp4/copy.mp4
    }
    assert verify(store).ok
    assert ingest(str(root), store).version == report.version


def test_misfits_are_one_line(
    tmp_path: Path, episodes: Make, write_rlds: Make, make_features: Make, store: str
) -> None:
    ingest(str(episodes(1)), store, IngestOptions(val_percent=30))
    features = make_features()
    features["steps/observation/top"] = features["steps/observation/wrist_image_left"]
    with pytest.raises(UserError, match="has no camera top"):
        ingest(str(write_rlds(tmp_path / "more", [features])), store)
    with pytest.raises(UserError, match="holds out 30%"):
        ingest(str(episodes(1)), store, IngestOptions(val_percent=20))
    with pytest.raises(UserError, match="nothing at"):
        ingest(str(tmp_path / "absent"), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


KILLED = """
import os, signal, sys
import pipelines.convert
import pipelines.ingest
source, store, name, moment, nth = sys.argv[1:]
calls = 0
owner = {"write_part": pipelines.convert, "commit": pipelines.ingest.Committer}.get(name, pipelines.ingest)
real = getattr(owner, name)

def dying(*args, **options):
    global calls
    calls += 1
    if calls == int(nth) and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **options)
    if calls == int(nth) and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, dying)
pipelines.ingest.ingest(source, store, pipelines.options.IngestOptions(batch_episodes=2))
"""


@pytest.mark.parametrize(
    ("name", "moment", "nth", "kept"),
    [
        ("start_dataset", "after", 1, 0),
        ("write_part", "before", 1, 0),
        ("write_part", "after", 1, 0),
        ("write_part", "after", 2, 2),
        ("commit", "after", 2, 3),
        ("add_quarantine", "before", 1, 3),
    ],
)
def test_killed_at_a_moment(episodes: Make, store: str, name: str, moment: str, nth: int, kept: int) -> None:
    source = str(episodes(1, 2, -3, 4, 5, 6))
    done = subprocess.run([sys.executable, "-c", KILLED, source, store, name, moment, str(nth)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (len(open_dataset(store)) if dataset_exists(store) else 0) == kept
    assert kept == 0 or verify(store).ok
    ingest(source, store, IngestOptions(batch_episodes=2))
    assert lengths(store) == [5, 6, 8, 9, 10]
    assert len(quarantined(store)) == 1
    assert verify(store).ok


@pytest.mark.slow
def test_killed_at_any_time(tmp_path: Path, write_rlds: Make, make_features: Make, store: str) -> None:
    records = [make_features(5, path=f"LAB/success/day/{number}/x.h5", seed=number) for number in range(40)]
    source = str(write_rlds(tmp_path / "set", records))
    code = "import sys; from pipelines.ingest import ingest; from pipelines.options import IngestOptions; "
    code += "ingest(*sys.argv[1:], IngestOptions(batch_episodes=1))"
    for delay in (0.4, 0.6, 0.8, 1.0):
        process = subprocess.Popen([sys.executable, "-c", code, source, store])
        time.sleep(delay)
        process.kill()
        process.wait()
        if Path(store).exists():
            assert verify(store).ok
    ingest(source, store, IngestOptions(batch_episodes=1))
    dataset = open_dataset(store)
    assert sorted(dataset.episodes.episode_ids) == sorted(set(dataset.episodes.episode_ids))
    assert len(dataset) == len(records)
    assert verify(store).ok

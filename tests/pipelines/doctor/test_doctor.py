"""The doctor's report: on every bad fixture, on hostile places, on stores; and its findings as filters."""

import base64
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from pipelines.doctor.diagnose import Diagnosis, diagnose
from pipelines.doctor.page import MAX_SHOWN, markdown, verdict, write_page
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.maintenance.verify import verify
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part

Make = Callable[..., Any]

VALID = ("valid clip", "valid 25-frame", "valid 16x16", "should still be readable", "control:")
"""How the fixtures' list calls a case that has nothing wrong."""
FATAL = {
    "NaN": "non_finite", "first half": "truncated", "cut at": "truncated", "cut in the middle": "truncated",
    "0 bytes": "not_a_video", "plain text": "not_a_video", "HTML": "not_a_video", "flipped bytes": "corrupt",
    "no video stream": "no_video_stream", "valid, 1 frame": "too_short", "valid, 3 frame": "too_short",
    "7 bytes of the next": "truncated", "DATA crc": "crc_mismatch", "LENGTH crc": "length_crc_mismatch",
    "one payload byte": "crc_mismatch", "2**62": "length_crc_mismatch", "shardLengths says": "count_mismatch",
    "lacks steps/": "missing_field", "6 wrist images": "length_mismatch", "JPEG stub": "truncated_jpeg",
    "is an empty string": "not_a_jpeg", "53 action": "length_mismatch", "+inf": "non_finite",
    "is_first true again": "bad_boundaries", "not UTF-8": "invalid_utf8", "not a protobuf": "not_an_example",
    "shard 1 absent": "missing_shard", "and 0-step": "empty",
}  # fmt: skip
DOUBT = {"black frames": "black", "no motion": "static", "no wrist_image_left": "missing_camera"}
ACCEPTED = {"is_last never true": "an episode cut by its recorder", "bare tfrecord": "its fields are inferred"}
"""Cases that are usable, and why; the reader's own tests say so too."""


class Truth(Protocol):
    path: Path
    expected: Any


def reasons(found: Diagnosis) -> set[str]:
    return {finding.reason for finding in found.findings}


def check(case: Path, text: str, store: str) -> None:
    """A case's reason is in the report and in the quarantine, and what enters the store is whole."""
    found = diagnose(str(case))
    fatal = {reason for words, reason in FATAL.items() if words in text and not text.startswith(VALID)}
    doubt = {reason for words, reason in DOUBT.items() if words in text}
    fine = text.startswith(VALID) or "duplicate" in text or any(words in text for words in [*ACCEPTED, *VALID])
    assert fatal or doubt or fine, "the list has a case that this test does not know"
    assert fatal <= reasons(found)
    assert doubt <= reasons(found)
    assert found.ok == (not fatal)
    report = ingest(
        str(case),
        store,
        IngestOptions(
            reject=(
                "black",
                "static",
                "missing_camera",
            )
        ),
    )
    held = {row.reason for row in quarantined(store)}
    assert fatal <= held
    assert doubt <= held | {"static"}
    assert bool(report.quarantined) == bool(fatal or doubt)
    assert verify(store).ok
    if doubt:
        assert not report.added


@pytest.mark.ground_truth
def test_every_bad_video(bad_video: Truth, tmp_path: Path) -> None:
    check(bad_video.path, str(bad_video.expected), str(tmp_path / "store"))


@pytest.mark.ground_truth
def test_every_bad_tfrecord(bad_tfrecord: Truth, tmp_path: Path) -> None:
    check(bad_tfrecord.path, str(bad_tfrecord.expected), str(tmp_path / "store"))


@pytest.mark.ground_truth
def test_every_bad_rlds_set(bad_rlds: Truth, tmp_path: Path) -> None:
    check(bad_rlds.path, str(bad_rlds.expected), str(tmp_path / "store"))


@pytest.mark.ground_truth
def test_the_duplicate_beside_its_original(fixtures_root: Path, tmp_path: Path) -> None:
    listed = json.loads((fixtures_root / "bad/expected_bad.json").read_text())["entries"]
    for name, text in listed.items():
        if match := re.search(r"byte-identical duplicate of (\S+)", text):
            (tmp_path / "clips").mkdir()
            for number, file in enumerate((fixtures_root / match[1], fixtures_root / "bad" / name)):
                shutil.copy(file, tmp_path / f"clips/{number}.mp4")
            found = diagnose(str(tmp_path / "clips"))
            assert ("duplicate", f"byte-identical to {tmp_path}/clips/0.mp4") in {
                (finding.reason, finding.detail) for finding in found.findings
            }
            report = ingest(str(tmp_path / "clips"), str(tmp_path / "store"))
            assert [rejection.reason for rejection in report.quarantined] == ["duplicate"]
            return
    pytest.skip("the fixtures have no duplicate")


@pytest.mark.ground_truth
def test_good_robot_data_has_no_findings(fixtures_root: Path) -> None:
    found = diagnose(str(fixtures_root / "droid_rlds"))
    assert reasons(found) <= {"left_out"}
    assert found.episodes == found.references > 0


@pytest.mark.ground_truth
def test_good_videos_are_at_worst_duplicates(fixtures_root: Path) -> None:
    found = diagnose(str(fixtures_root / "videos"))
    assert reasons(found) <= {"duplicate", "idle", "time_gap", "left_out"}
    assert found.references == len([path for path in (fixtures_root / "videos").iterdir() if path.suffix != ".json"])


def hostile(root: Path, write_video: Make) -> int:
    """The hand-made cases of the fixtures' README; returns how many good files there are."""
    names = ["new\nline", "sp ace  double", "ünïcödé_日本語_🤖", "-leading-dash", "quote'\"$HOME`;", ".hidden",
             "percent%03d", "colon_Fri_Jul__7_09:42:23_2023", os.fsdecode(b"latin1_\xe9")]  # fmt: skip
    for number, name in enumerate(names):
        write_video(root / "a" / f"{name}.mp4", frames=12, seed=30 * number)
    write_video(root / "dir_named.mp4/inside.mp4", frames=12, seed=333)
    os.mkfifo(root / "fifo.mp4")
    (root / "self.mp4").symlink_to("self.mp4")
    (root / "dangling.mp4").symlink_to("nowhere")
    (root / "a/loop").symlink_to("..")
    (root / "outside").symlink_to("/etc")
    return len(names) + 1


def test_hostile_names_and_places(tmp_path: Path, write_video: Make) -> None:
    good = hostile(tmp_path / "clips", write_video)
    found = diagnose(str(tmp_path / "clips"))
    assert found.episodes == good
    expected = {"fifo.mp4": "not_a_file", "self.mp4": "unreadable", "dangling.mp4": "unreadable"}
    assert {Path(f.source_uri).name: f.reason for f in found.findings if f.fatal} == expected
    report = ingest(str(tmp_path / "clips"), str(tmp_path / "store"))
    assert {Path(r.source_uri).name: r.reason for r in report.quarantined} == expected
    assert report.added == good
    json.dumps(found.to_dict()).encode()
    write_page(found, str(tmp_path / "report.html"))
    markdown(found).encode()


def test_one_damaged_file_of_each_kind_alone(tmp_path: Path) -> None:
    (tmp_path / "fifo.mp4").parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "self.mp4").symlink_to("self.mp4")
    for name in ("fifo.mp4", "self.mp4"):
        found = diagnose(str(tmp_path / name), IngestOptions(format="video"))
        assert (found.ok, found.episodes, len(found.findings)) == (False, 0, 1)


@pytest.fixture
def clips(tmp_path: Path, write_video: Make) -> Path:
    """A moving clip, a copy of it, the same in another coding, and one with a gap in its times."""
    root = tmp_path / "clips"
    write_video(root / "a.mp4", frames=40, seed=1)
    shutil.copy(root / "a.mp4", root / "b.mp4")
    write_video(root / "c.mkv", frames=40, seed=1, format="matroska")
    write_video(root / "d.mp4", frames=40, seed=90, times=[600 * i + (40_000 if i > 20 else 0) for i in range(40)])
    return root


def test_duplicates_and_gaps(clips: Path) -> None:
    found = {(Path(f.source_uri.partition("#")[0]).name, f.reason): f.detail for f in diagnose(str(clips)).findings}
    assert set(found) >= {("b.mp4", "duplicate"), ("c.mkv", "duplicate"), ("d.mp4", "time_gap")}
    assert "byte-identical" in found["b.mp4", "duplicate"]
    assert "looks like" in found["c.mkv", "duplicate"]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (None, "acd"),
        (["none"], "abcd"),
        (["copy"], "acd"),
        (["duplicate"], "ad"),
        (["duplicate", "time_gap"], "a"),
    ],
)
def test_findings_are_filters(clips: Path, tmp_path: Path, names: list[str] | None, kept: str) -> None:
    store = str(tmp_path / "store")
    report = ingest(str(clips), store, IngestOptions(reject=names))
    uris = open_dataset(store).episodes.column("source_uri")
    assert "".join(sorted({Path(uri).name[0] for uri in uris})) == kept
    assert len(report.quarantined) == (0 if names == ["none"] else 4 - len(kept))
    again = ingest(str(clips), store, IngestOptions(reject=names))
    assert (again.version, again.added) == (report.version, 0)
    assert len(quarantined(store)) == len(report.quarantined)
    assert verify(store).ok


def test_only_the_black_clips_of_a_film_are_left_out(tmp_path: Path, write_video: Make) -> None:
    import av

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=15)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        rng = np.random.default_rng(0)
        for step in range(450):
            pixels = rng.integers(0, 255, (6, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            frame = av.VideoFrame.from_ndarray(pixels * (step < 150 or step >= 300), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    report = ingest(str(path), str(tmp_path / "store"))
    assert report.added == 2
    assert [(r.source_uri.rpartition("#")[2], r.reason) for r in report.quarantined] == [("clip=1", "black")]


@pytest.fixture
def store(tmp_path: Path, make_episode: Callable[..., Episode]) -> str:
    uri = str(tmp_path / "store")
    create_dataset(uri, DatasetSpec(cameras=("left", "wrist"), action_dim=3))
    episodes = [make_episode("a"), make_episode("b", length=40), make_episode("c", cameras=("left",))]
    commit(uri, write_part(uri, episodes, run_id="test"))
    return uri


def test_a_store(store: str) -> None:
    found = diagnose(store)
    assert (found.kind, found.version, found.episodes, found.references, found.steps) == ("dataset", 1, 3, 3, 88)
    assert [(f.reason, f.source_uri) for f in found.findings] == [("missing_camera", "memory://c")]
    assert found.ok
    assert diagnose(store, version=0).references == 0


def test_a_damaged_store(store: str) -> None:
    shard = max((path for path in Path(store, "parts").rglob("*") if path.is_file()), key=os.path.getsize)
    content = bytearray(shard.read_bytes())
    content[100:140] = bytes(40)
    shard.chmod(0o644)
    shard.write_bytes(content)
    found = diagnose(store)
    assert not found.ok
    assert "damaged" in reasons(found)
    assert any(f.source_uri.startswith("memory://") for f in found.findings if f.reason == "damaged")


def test_a_store_shows_its_quarantine(tmp_path: Path, clips: Path) -> None:
    ingest(str(clips), str(tmp_path / "store"))
    found = diagnose(str(tmp_path / "store"))
    assert any(f.detail.startswith("in quarantine") and f.source_uri.endswith("b.mp4") for f in found.findings)


def test_the_report_in_three_forms(clips: Path, tmp_path: Path) -> None:
    (clips / "<script>alert(1)<.mp4").write_bytes(b"no video | at all")
    told = []
    found = diagnose(str(clips), progress=told.append)
    assert [(p.done, p.total) for p in told] == [(n + 1, 5) for n in range(5)]
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["counts"]["duplicate"] == 2
    assert plain["ok"] is False
    assert {"reason", "detail", "source_uri", "fatal", "first", "last", "camera", "share"} <= set(plain["findings"][0])
    page = Path(write_page(found, str(tmp_path / "page.html"))).read_text()
    assert "<script>" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert pictures
    assert all(base64.b64decode(text).startswith(b"\xff\xd8") for text in pictures)
    text = markdown(found)
    assert "<script>" not in text
    assert text.count("\n| ") == len(found.findings) + 2
    assert verdict(found) in text


def test_long_reports_are_cut(tmp_path: Path) -> None:
    for number in range(MAX_SHOWN + 7):
        (tmp_path / f"{number:03}.mp4").write_bytes(f"no video {number}".encode())
    found = diagnose(str(tmp_path))
    assert len(found.findings) == MAX_SHOWN + 7
    assert "7 more" in markdown(found)
    assert "7 more" in Path(write_page(found, str(tmp_path / "page.html"))).read_text()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing at"):
        diagnose(str(tmp_path / "absent"))

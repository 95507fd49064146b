"""What a source holds and is not read is counted and named: in the report, on the command line and as JSON."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import av
import pytest
from painted import paint_number
from video_maker import Recipe, write

from flows.cli import run
from pipelines.doctor.diagnose import diagnose
from pipelines.ingest import ingest
from storage_schemas.store.dataset import open_dataset

CASE = Path(os.environ.get("UWM_CASES") or Path(__file__).resolve().parents[3] / "shared/cases") / "symlinked_folder"


def write_two_tracks(path: Path) -> None:
    """Two cameras in one file."""
    with av.open(str(path), "w", format="matroska") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=30) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for index in range(30):
            for stream in streams:
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(paint_number(index + 1, 96, 128), format="rgb24"))
                )
        for stream in streams:
            container.mux(stream.encode())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    write_two_tracks(folder / "two.mkv")
    glued = write(folder / "glued.mp4", Recipe(format="mp4", codec="libx264", numbers=range(101, 131)))
    glued.write_bytes(glued.read_bytes() * 2)
    return folder


EXPECTED = {("two.mkv", "video track 1"), ("glued.mp4", "another file glued to it"), ("videos", "1 file *.txt")}


def named(items: list[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(Path(uri).name, what.partition(" at byte")[0]) for uri, what in items}


def test_in_the_report_and_by_the_doctor(source: Path, tmp_path: Path) -> None:
    report = ingest(str(source), str(tmp_path / "store"))
    assert report.added == 2
    assert not report.quarantined
    assert named([(item.source_uri, item.what) for item in report.left_out]) == EXPECTED
    found = diagnose(str(source))
    assert found.ok
    assert named([(f.source_uri, f.detail) for f in found.findings if f.reason == "left_out"]) == EXPECTED


def test_on_the_command_line(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["ingest", str(source), str(tmp_path / "store")]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == len(EXPECTED)
    assert run(["ingest", str(source), str(tmp_path / "other"), "--json"]) == 0
    left_out = json.loads(capfd.readouterr().out)["left_out"]
    assert named([(item["source_uri"], item["what"]) for item in left_out]) == EXPECTED


@pytest.mark.ground_truth
@pytest.mark.skipif(not CASE.is_dir(), reason=f"no {CASE}: set UWM_CASES to a folder with the cases")
def test_a_folder_behind_a_link(tmp_path: Path) -> None:
    shutil.copytree(CASE, tmp_path / "case")
    (tmp_path / "case/src/k").symlink_to(tmp_path / "case/real/k")
    (tmp_path / "case/src/loop").symlink_to(tmp_path / "case/src")
    ingest(str(tmp_path / "case/src"), str(tmp_path / "store"))
    assert len(open_dataset(str(tmp_path / "store"))) == 2

"""Lists of videos: what a line says, which file and which span of it is meant, and how little of it is decoded."""

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painted import number_of
from video_maker import Recipe, write

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from pipelines.source import SourceRef
from pipelines.sources.registry import detect, open_source
from pipelines.video import decode
from pipelines.video.clock import TimedFrame
from pipelines.video.list_lines import ListLine, parse_lines
from pipelines.video.spans import Span
from storage_schemas.episode import Episode
from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset

Make = Callable[..., Any]


def said(line: Any) -> Any:
    """A line as a tuple, or the reason why there is none."""
    if isinstance(line, ListLine):
        return line.path, line.start, line.end, line.text, line.collection
    return line[0], line[1].reason


@pytest.mark.parametrize(
    ("suffix", "text", "expected"),
    [
        ("csv", "a.mp4\nb.mp4,1,2.5,open it,kitchen\n\nc.mp4,,,close it", [
            ("a.mp4", None, None, "", ""), ("b.mp4", 1, 2.5, "open it", "kitchen"),
            ("c.mp4", None, None, "close it", ""),
        ]),
        ("csv", "path,text\nx.mp4,\"a, b\"", [("x.mp4", None, None, "a, b", "")]),
        ("csv", "label,youtube_id,time_start,time_end,split\nabseiling,-3B32lodo2M,59,69,train",
            [("-3B32lodo2M", 59, 69, "abseiling", "")]),
        ("csv", "id;label\n74225;spinning a cube", [("74225", None, None, "spinning a cube", "")]),
        ("csv", "video_uid,clip_uid,video_start_sec,video_end_sec,narration_text\nab-1,cd-2,0.5,8.0,#C C lifts a pot",
            [("ab-1", 0.5, 8, "#C C lifts a pot", "")]),
        ("tsv", "text\tpath\nhi, there\ta b.mp4", [("a b.mp4", None, None, "hi, there", "")]),
        ("txt", "a.mp4\nb.mp4, 00:01:02.5, 1:03", [
            ("a.mp4", None, None, "", ""), ("b.mp4", 62.5, 63, "", ""),
        ]),
        ("json", '[{"id": "7", "label": "holding it", "template": "Holding [something]"}]',
            [("7", None, None, "holding it", "")]),
        ("jsonl", '{"path": "a.mp4", "start": 1, "end": 2.5, "text": null}\n"b.mp4"\n["c.mp4", 1, 2, "go"]', [
            ("a.mp4", 1, 2.5, "", ""), ("b.mp4", None, None, "", ""), ("c.mp4", 1, 2, "go", ""),
        ]),
        ("csv", "a.mp4,2,1\nb.mp4,x,2\nc.mp4,nan,\nd.mp4,-1,\n,1,2\nf.mp4,1,2,a,b,c\n\"g", [
            (1, "bad_span"), (2, "bad_span"), (3, "bad_span"), (4, "bad_span"), (5, "bad_line"), (6, "bad_line"),
            (7, "bad_line"),
        ]),
        ("jsonl", '{\n[]\n{"text": "x"}\n{"path": {"a": 1}}\n{"path": "a\\u0000"}\n5', [
            (number, "bad_line") for number in range(1, 7)
        ]),
    ],
)  # fmt: skip
def test_what_lines_say(suffix: str, text: str, expected: list[Any]) -> None:
    assert [said(line) for line in parse_lines(text.encode(), suffix)] == expected
    assert [said(line) for line in parse_lines(b"\xef\xbb\xbf" + text.encode(), suffix)] == expected or suffix == "json"


def test_lines_that_are_no_text() -> None:
    lines = list(parse_lines(b"a.mp4\n\xff.mp4\n" + b"x" * (1 << 17) + b"\nb.mp4,,," + b"y" * 5000, "csv"))
    assert [said(line) for line in lines[1:]] == [(2, "invalid_utf8"), (3, "bad_line"), (4, "bad_line")]
    with pytest.raises(BadDataError, match="not_a_list"):
        list(parse_lines(b'{"videos": []}', "json"))


def episodes(source: Path, **options: Any) -> tuple[list[Episode], dict[str, str], list[str]]:
    """Episodes, reason by place of what was turned away, and what was left out."""
    reader = open_source(str(source), IngestOptions(**options))
    found: list[Episode] = []
    rejected, left_out = {}, []
    for ref in reader.refs():
        if isinstance(ref, SourceRef):
            try:
                items = list(reader.read(ref))
            except BadDataError as error:
                rejected[ref.uri] = error.reason
                continue
            found += [item for item in items if isinstance(item, Episode)]
            left_out += [item.what for item in items if isinstance(item, LeftOut)]
        elif isinstance(ref, Rejection):
            rejected[ref.source_uri] = ref.reason
        else:
            left_out.append(ref.what)
    return found, rejected, left_out


def numbers(episode: Episode) -> list[int]:
    (frames,) = episode.frames.values()
    assert isinstance(frames, np.ndarray)
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize(
    ("container", "codec", "start"),
    [("mp4", "libx264", 0), ("matroska", "libx264", 30), ("webm", "libvpx", 0), ("mpegts", "libx264", 2),
     ("avi", "mpeg4", 0), ("mp4", "mpeg4", 0), ("mjpeg", "mjpeg", 0), ("mov", "mjpeg", 0)],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_span_is_what_is_on_screen_then(tmp_path: Path, container: str, codec: str, start: int, backend: str) -> None:
    """At 15 frames a second frame n appears at (n - 1) / 15 s after the first."""
    options = {"g": "12", "bf": "2"} if codec == "libx264" else {"g": "12"} if codec != "mjpeg" else {}
    recipe = Recipe(format=container, codec=codec, rate=Fraction(15), numbers=range(1, 91), start=Fraction(start),
                    options=options)  # fmt: skip
    write(tmp_path / f"video.{container}", recipe)
    spans = ["0,1", "1,3", "2.4,3", "4,6", "5.03,"]
    (tmp_path / "list.csv").write_text("".join(f"video.{container},{span}\n" for span in spans))
    found, rejected, _ = episodes(tmp_path / "list.csv", backend=backend)
    if backend == "decord" and set(rejected.values()) == {"unsupported_by_decord"}:
        return
    assert not rejected
    first = {"0,1": 1, "1,3": 16, "2.4,3": 37, "4,6": 61, "5.03,": 76}
    # at the last tick of the last span the 89th frame is on screen
    last = {"0,1": 15, "1,3": 45, "2.4,3": 45, "4,6": 90, "5.03,": 89}
    assert len(found) == len(spans)
    for span, episode in zip(spans, found, strict=True):
        assert numbers(episode) == list(range(first[span], last[span] + 1)), span


def test_ten_seconds_of_an_hour_decode_less_than_thirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = 1
    recipe = Recipe(format="mp4", codec="mpeg4", rate=Fraction(rate), numbers=range(1, 3601), size=(48, 64),
                    options={"g": "10"})  # fmt: skip
    path = write(tmp_path / "hour.mp4", recipe)
    decoded = 0
    in_order = decode.in_order

    def counting(frames: Iterator[Any], *rest: Any) -> Iterator[TimedFrame]:
        def each() -> Iterator[Any]:
            nonlocal decoded
            for frame in frames:
                decoded += 1
                yield frame

        return in_order(each(), *rest)

    monkeypatch.setattr(decode, "in_order", counting)
    with path.open("rb") as file:
        info = decode.probe(file, whole=False)
        for start in (0, 1803, 3590):
            decoded = 0
            span = Span(start, start + 10)
            frames = list(decode.steady_frames(file, info, rate=rate, size=(48, 64), backend="pyav", span=span))
            assert [number_of(frame) for frame in frames] == list(range(start + 1, start + 11))
            assert decoded < 30 * rate


def test_texts_become_language(tmp_path: Path, write_video: Make) -> None:
    for number in range(3):
        write_video(tmp_path / f"clips/{number}.mp4", frames=30, seed=number)
    lines = ["path,start,end,text,collection", "clips/0.mp4,,,turn  the tap,kitchen", "clips/1.mp4,0,1,cut,",
             "clips/1.mp4,0,1,chop,", "clips/1.mp4,1,2,peel,", f"{tmp_path}/clips/2.mp4,,,17,"]  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert detect(str(tmp_path / "list.csv")) == "video"
    found, rejected, left_out = episodes(tmp_path / "list.csv")
    assert not rejected
    assert [e.meta.language for e in found] == [("turn the tap",), ("cut", "chop"), ("peel",), ()]
    assert [e.meta.collection for e in found] == ["kitchen", "clips", "clips", "clips"]
    assert [e.meta.source_uri.rpartition("/")[2] for e in found] == [
        "0.mp4#clip=0", "1.mp4#t=0,1#clip=0", "1.mp4#t=1,2#clip=0", "2.mp4#clip=0",
    ]  # fmt: skip
    assert left_out == ["labels that are numbers, which are no language: 1"]
    assert all(not e.action_mask.any() for e in found)


def test_lines_with_mistakes_are_rejected_alone(tmp_path: Path, write_video: Make) -> None:
    write_video(tmp_path / "good.mp4", frames=30)
    (tmp_path / "folder").mkdir()
    lines = ["good.mp4", "absent.mp4", "folder", "good.mp4,1,60", "good.mp4,70,80", "good.mp4,5,x",
             "odd://there.mp4", "good.mp4,0,0.1", "good.mp4,,,,other"]  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(lines))
    found, rejected, _ = episodes(tmp_path / "list.csv")
    assert len(found) == 1
    place = f"{tmp_path}/list.csv#line="
    assert rejected == {
        f"{place}2": "missing_file",
        f"{place}3": "not_a_file",
        f"{tmp_path}/good.mp4#t=1,60": "beyond_end",
        f"{tmp_path}/good.mp4#t=70,80": "beyond_end",
        f"{place}6": "bad_span",
        f"{place}7": "bad_line",
        f"{tmp_path}/good.mp4#t=0,0.1": "too_short",
        f"{place}9": "bad_line",
    }
    store = str(tmp_path / "store")
    report = ingest(str(tmp_path / "list.csv"), store, IngestOptions(reject=()))
    assert {r.reason for r in report.quarantined} == set(rejected.values())
    assert (report.added, report.source_format) == (1, "video")


@pytest.mark.parametrize("name", ["list.csv", "list.json", "list.jsonl", "list.txt"])
def test_a_list_that_is_none_is_one_line(tmp_path: Path, name: str) -> None:
    for text in ("", "{"):
        (tmp_path / name).write_text(text)
        try:
            found, rejected, _ = episodes(tmp_path / name)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert not found
            assert rejected


def test_names_without_a_suffix_are_found_below_the_list(tmp_path: Path, write_video: Make) -> None:
    write_video(tmp_path / "videos/train/abc_000059_000069.mp4", frames=20, seed=1)
    write_video(tmp_path / "videos/raw.mp4", frames=60, seed=2)
    write_video(tmp_path / "a/twice.mp4", frames=20, seed=3)
    write_video(tmp_path / "b/twice.mp4", frames=20, seed=4)
    lines = ["label,youtube_id,time_start,time_end,split", "abseiling,abc,59,69,train", "boxing,raw,1,2,train",
             "diving,gone,1,2,train", "rowing,twice,1,2,train"]  # fmt: skip
    (tmp_path / "kinetics.csv").write_text("\n".join(lines))
    found, rejected, _ = episodes(tmp_path / "kinetics.csv")
    assert [(e.meta.source_uri.rpartition("/")[2], e.meta.language) for e in found] == [
        ("abc_000059_000069.mp4#clip=0", ("abseiling",)),
        ("raw.mp4#t=1,2#clip=0", ("boxing",)),
    ]
    assert list(rejected.values()) == ["missing_file", "ambiguous"]
    something = [{"id": "raw", "label": "Showing it", "template": "Showing [something]"}]
    (tmp_path / "something.json").write_text(json.dumps(something))
    ((episode,), _, _) = episodes(tmp_path / "something.json")
    assert episode.meta.language == ("Showing it",)


def test_plain_lines_of_path_and_label(tmp_path: Path, write_video: Make) -> None:
    write_video(tmp_path / "a b.mp4", frames=20, seed=1)
    write_video(tmp_path / "c.mp4", frames=20, seed=2)
    (tmp_path / "train.txt").write_text("a b.mp4\nc.mp4 stirring\n")
    found, rejected, _ = episodes(tmp_path / "train.txt")
    assert not rejected
    assert [episode.meta.language for episode in found] == [(), ("stirring",)]


def test_a_list_adds_language_to_what_is_there(tmp_path: Path, write_video: Make) -> None:
    store, clips = str(tmp_path / "store"), tmp_path / "clips"
    for number in range(2):
        write_video(clips / f"{number}.mp4", frames=20, seed=10 * number)
    assert ingest(str(clips), store).added == 2
    listing = tmp_path / "list.jsonl"
    listing.write_text('{"path": "clips/0.mp4", "text": "pour"}\n{"path": "clips/1.mp4"}')
    report = ingest(str(listing), store)
    assert (report.added, report.replaced, report.present) == (0, 1, 1)
    assert sorted(row.language for row in open_dataset(store).episodes.rows()) == [[], ["pour"]]
    assert ingest(str(listing), store).version == report.version
    listing.write_text(listing.read_text().replace("pour", "spill"))
    assert ingest(str(listing), store).replaced == 1
    assert sorted(row.language for row in open_dataset(store).episodes.rows()) == [[], ["spill"]]


def scene(seed: int, frames: int, size: tuple[int, int] = (48, 64)) -> Iterator[np.ndarray[Any, Any]]:
    """A blurred picture that drifts, with a bright disc that jumps about in it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    phase, level = rng.uniform(0, 6, 2), 40 + 150 * (seed % 2)
    for index in range(frames):
        wave = level + 25 * np.sin(x / 6 + phase[0] + index / 8) + 20 * np.cos(y / 5 + phase[1])
        row, column = rng.integers(8, size[0] - 8), rng.integers(8, size[1] - 8)
        wave = np.where((y - row) ** 2 + (x - column) ** 2 < 30, 255, wave)
        yield np.repeat(np.clip(wave, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_cuts_at_scene_changes(tmp_path: Path) -> None:
    lengths = (30, 12, 3, 25)
    pictures = [frame for seed, length in enumerate(lengths) for frame in scene(seed, length)]
    write(tmp_path / "film.mp4", Recipe(format="mp4", codec="mpeg4", rate=Fraction(15), size=(48, 64)), pictures)
    found, _, left_out = episodes(tmp_path / "film.mp4", scene_cuts=True)
    assert [len(episode) for episode in found] == [30, 12, 25]
    assert left_out == ["scenes or ends of fewer than 5 steps: 1"]
    shorter, _, _ = episodes(tmp_path / "film.mp4", scene_cuts=True, clip_steps=20)
    assert [len(episode) for episode in shorter] == [20, 10, 12, 20, 5]
    whole, _, _ = episodes(tmp_path / "film.mp4")
    assert [len(episode) for episode in whole] == [70]


def test_movement_light_and_fades_are_no_cuts(tmp_path: Path) -> None:
    moving = list(scene(0, 30))
    flicker = [np.clip(frame.astype(int) + 12 * (i % 2), 0, 255).astype(np.uint8) for i, frame in enumerate(moving)]
    a, b = np.full((48, 64, 3), 30, np.uint8), np.full((48, 64, 3), 220, np.uint8)
    fade = [(a + (b.astype(int) - a) * i / 29).astype(np.uint8) for i in range(30)]
    recipe = Recipe(format="mp4", codec="mpeg4", rate=Fraction(15), size=(48, 64))
    for name, pictures in (("moving", moving), ("flicker", flicker), ("fade", fade)):
        write(tmp_path / f"{name}.mp4", recipe, pictures)
        found, _, _ = episodes(tmp_path / f"{name}.mp4", scene_cuts=True)
        assert [len(episode) for episode in found] == [30], name

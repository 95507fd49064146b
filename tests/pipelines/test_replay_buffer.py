"""Replay buffers of diffusion_policy and UMI: what they mean, and what is refused of them."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import LZ4, GZip, Zlib, Zstd
from replay_buffers import BLOSC, pusht, umi, write_store, zipped

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import find
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from pipelines.source import SourceRef
from pipelines.sources import replay_buffer
from pipelines.sources.registry import detect, open_source
from pipelines.zarr_v2 import ArrayV2, FolderGroup
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.frames import decode_frames

LENGTHS = (6, 7, 5)
STARTS = (0, 6, 13)


def outcomes(source: Path, **options: Any) -> tuple[list[Episode], dict[str, str], list[str]]:
    """Episodes, reasons by place, and remarks."""
    reader = open_source(str(source), IngestOptions(**options))
    found: list[Episode] = []
    rejected, remarks = {}, []
    for ref in reader.refs():
        if isinstance(ref, SourceRef):
            try:
                found += [one for one in reader.read(ref) if isinstance(one, Episode)]
            except BadDataError as error:
                rejected[ref.uri.rpartition("#")[2]] = error.reason
        elif isinstance(ref, Rejection):
            rejected[ref.source_uri.rpartition("#")[2]] = ref.reason
        else:
            remarks.append(ref.what)
    return found, rejected, remarks


def assert_alike(episode: Episode, camera: str, truth: Any) -> None:
    """The frames are those, once through JPEG."""
    frames = episode.frames[camera]
    assert isinstance(frames, EncodedFrames)
    pixels = np.empty((len(frames), frames.height, frames.width, 3), np.uint8)
    decode_frames(frames.jpegs, "jpeg", pixels)
    assert pixels.shape == truth.shape
    assert np.abs(pixels.astype(int) - truth).mean() < 3


@pytest.mark.parametrize("compressor", [BLOSC, LZ4(), Zstd(), Zlib(), GZip(), None], ids=str)
def test_diffusion_policy(tmp_path: Path, compressor: Any) -> None:
    arrays = pusht(LENGTHS)
    source = write_store(tmp_path / "pusht.zarr", arrays, LENGTHS, compressor=compressor)
    assert detect(str(source)) == "replay-buffer"
    found, rejected, remarks = outcomes(source)
    assert not rejected
    assert remarks == ["no rate is stored: 10 steps per second are taken, unless --rate says otherwise"]
    for episode, start, length in zip(found, STARTS, LENGTHS, strict=True):
        steps = slice(start, start + length)
        np.testing.assert_array_equal(episode.action, arrays["action"][steps])
        assert_alike(episode, "img", arrays["img"][steps])
        np.testing.assert_array_equal(episode.state["keypoint"], arrays["keypoint"][steps].reshape(length, 18))
        assert set(episode.state) == {"state", "keypoint", "n_contacts"}
        assert episode.action_mask.all()
        assert (episode.meta.fps, episode.meta.collection, episode.meta.language) == (10.0, "pusht", ())
    spec = open_source(str(source)).spec()
    assert spec.action is not None
    assert [part.quantity for part in spec.action.parts] == ["other"], "nothing in the store says what it is"
    (episode, *_), _, remarks = outcomes(source, rate=20)
    assert (episode.meta.fps, remarks) == (20.0, [])


@pytest.mark.parametrize("packed", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("robots", [1, 2])
def test_the_next_pose_is_umis_action(tmp_path: Path, packed: int | None, robots: int) -> None:
    arrays = umi(LENGTHS, robots=robots)
    source = write_store(tmp_path / "cup.zarr", arrays, LENGTHS)
    source = source if packed is None else zipped(source, packed)
    assert detect(str(source)) == "replay-buffer"
    found, rejected, _ = outcomes(source)
    assert not rejected
    names = [f"robot{r}_{n}" for r in range(robots) for n in ("eef_pos", "eef_rot_axis_angle", "gripper_width")]
    poses = np.concatenate([arrays[name] for name in names], axis=1)
    for episode, start, length in zip(found, STARTS, LENGTHS, strict=True):
        np.testing.assert_array_equal(episode.action[:-1], poses[start + 1 : start + length])
        assert episode.action_mask.tolist() == [True] * (length - 1) + [False]
        assert not episode.action[-1].any()
        assert_alike(episode, "camera0_rgb", arrays["camera0_rgb"][start : start + length])
        assert (episode.meta.fps, episode.meta.collection) == (60.0, "cup")
        assert episode.state["robot0_demo_start_pose"].dtype == np.float32
    spec = open_source(str(source)).spec()
    assert spec.action is not None
    assert [part.name for part in spec.action.parts] == names
    assert [(part.quantity, part.unit) for part in spec.action.parts[:3]] == [
        ("position", "m"), ("rotation", "rad"), ("gripper_position", "m"),
    ]  # fmt: skip
    assert {spec.role(camera) for camera in spec.cameras} == {"wrist"}
    rotation = spec.state("robot0_eef_rot_axis_angle")
    assert rotation is not None
    assert rotation.parts[0].representation == "axis_angle"


def test_into_a_store(tmp_path: Path) -> None:
    source, store = zipped(write_store(tmp_path / "cup.zarr", umi(LENGTHS), LENGTHS)), str(tmp_path / "store")
    assert ingest(str(source), store).added == 3
    dataset = open_dataset(store)
    assert dataset.episodes.action_steps.tolist() == [length - 1 for length in LENGTHS]
    assert verify(store).ok
    assert ingest(str(source), store).present == 3
    grown = umi((*LENGTHS, 9))
    first = umi(LENGTHS)
    grown = {name: np.concatenate([first[name], values[18:]]) for name, values in grown.items()}
    source.unlink()
    zipped(write_store(tmp_path / "cup.zarr", grown, (*LENGTHS, 9)))
    report = ingest(str(source), store)
    assert (report.added, report.replaced, report.present) == (1, 0, 3)


@pytest.mark.parametrize("layout", ["unit floats", "chw", "float64", "half", "dark"])
def test_pictures_of_any_kind(tmp_path: Path, layout: str) -> None:
    arrays = dict(pusht(LENGTHS))
    truth = arrays["img"].astype(np.uint8)
    if layout == "unit floats":
        arrays["img"] = arrays["img"] / np.float32(255)
    elif layout == "chw":
        arrays["img"] = np.ascontiguousarray(np.moveaxis(truth, -1, 1))
    elif layout == "dark":  # the first chunk looks like one of floats from 0 to 1
        arrays["img"][:4] = 0
    else:
        arrays["img"] = arrays["img"].astype({"float64": np.float64, "half": np.float16}[layout])
    found, rejected, _ = outcomes(write_store(tmp_path / "x.zarr", arrays, LENGTHS))
    if layout == "dark":
        assert set(rejected.values()) == {"out_of_range"}, "better none than a wrong brightness"
        return
    assert not rejected
    for episode, start, length in zip(found, STARTS, LENGTHS, strict=True):
        assert_alike(episode, "img", truth[start : start + length])


def test_numbers_keep_their_kind(tmp_path: Path) -> None:
    arrays = dict(pusht(LENGTHS))
    arrays |= {"count": np.arange(18, dtype=np.int32), "big": np.arange(18, dtype=np.int64)[:, None] + 2**60,
               "timestamp": np.arange(18) + 1.7e9, "wide": np.arange(18) / 3}  # fmt: skip
    (first, *_), _, _ = outcomes(write_store(tmp_path / "x.zarr", arrays, LENGTHS))
    kinds = {name: values.dtype.name for name, values in first.state.items()}
    assert {name: kinds[name] for name in ("count", "big", "timestamp", "wide")} == {
        "count": "int64", "big": "int64", "timestamp": "float64", "wide": "float32",
    }  # fmt: skip
    assert first.state["big"][0, 0] == 2**60


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("state", np.full((18, 5), np.nan, np.float32), "non_finite"),
        ("state", np.full((18, 1), 1e300), "non_finite"),
        ("count", np.full((18, 1), 2**63 + 5, np.uint64), "out_of_range"),
        ("img", np.full((18, 24, 24, 3), np.nan, np.float32), "non_finite"),
        ("img", np.full((18, 24, 24, 3), 300.0, np.float32), "out_of_range"),
    ],
)
def test_numbers_that_can_not_be_kept(tmp_path: Path, name: str, values: Any, reason: str) -> None:
    found, rejected, _ = outcomes(write_store(tmp_path / "x.zarr", {**pusht(LENGTHS), name: values}, LENGTHS))
    assert not found
    assert set(rejected.values()) == {reason}


def test_an_episode_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_buffer, "_BLOCK_BYTES", 24 * 24 * 3 * 4 * 6)
    arrays = pusht((3, 15))
    found, _, _ = outcomes(write_store(tmp_path / "x.zarr", arrays, (3, 15)))
    assert_alike(found[0], "img", arrays["img"][:3])
    assert_alike(found[1], "img", arrays["img"][3:])


def test_what_is_no_field_is_named(tmp_path: Path) -> None:
    arrays = dict(pusht(LENGTHS))
    arrays |= {"depth": np.ones((18, 8, 8, 1), np.uint16), "mask": np.ones((18, 2, 3, 4, 5), np.uint8)}
    source = write_store(tmp_path / "x.zarr", arrays, LENGTHS)
    found, _, remarks = outcomes(source)
    assert set(found[0].frames) == {"img"}
    assert [text for text in remarks if text.startswith("data/")] == [
        "data/depth: no pictures in colours: uint16 (18, 8, 8, 1)",
        "data/mask: no list of numbers: (18, 2, 3, 4, 5)",
    ]


def edit(source: Path, array: str, **changes: Any) -> None:
    path = source / array / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "|O"}, "holds |O, no plain numbers"),
        ({"dtype": [["a", "<f4"]]}, "no plain numbers"),
        ({"dtype": "<M8[ns]"}, "no plain numbers"),
        ({"filters": [{"id": "pickle"}]}, "or has filters"),
        ({"compressor": {"id": "pickle"}}, "is packed with pickle, not with one of blosc"),
        ({"compressor": {"id": "msgpack2"}}, "is packed with msgpack2"),
        ({"shape": [1 << 50, 1 << 40, 1 << 20], "chunks": [1 << 50, 1 << 40, 1 << 20]}, "hold the same rows"),
        ({"shape": [18, 1 << 40], "chunks": [1, 1]}, "hold the same rows"),
        ({"shape": [-1, 2]}, "has the shape"),
        ({"chunks": [0, 2]}, "has the shape"),
        ({"shape": "x"}, "makes no sense"),
        ({"zarr_format": 3}, "no plain Zarr v2 array"),
    ],
)
def test_hostile_arrays_are_refused_before_a_chunk_is_read(tmp_path: Path, changes: Any, reason: str) -> None:
    source = write_store(tmp_path / "x.zarr", pusht(LENGTHS), LENGTHS)
    edit(source, "data/state", **changes)
    found, _, remarks = outcomes(source)
    assert len(found) == 3
    assert any(reason in text for text in remarks)
    edit(source, "meta/episode_ends", **changes)
    with pytest.raises(UserError) as caught:
        open_source(str(source))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def unpacks(source: Path, data: bytes) -> BadDataError:
    """What is wrong with an array of 1 MiB whose one chunk is `data`."""
    (source / "data/action/0.0").write_bytes(data)
    with pytest.raises(BadDataError) as caught:
        ArrayV2(FolderGroup(locate(str(source))), "data/action").rows(0, 2)
    return caught.value


@pytest.mark.parametrize("codec", [BLOSC, LZ4(), Zstd(), Zlib(), GZip(), None], ids=str)
def test_a_chunk_that_unpacks_to_more_is_stopped(tmp_path: Path, codec: Any) -> None:
    source = write_store(tmp_path / "x.zarr", pusht(LENGTHS), LENGTHS, compressor=codec)
    bomb = bytes(64 << 20)
    error = unpacks(source, codec.encode(bomb) if codec else bomb)
    assert error.reason in ("corrupt", "too_large")
    assert unpacks(source, b"").reason == "corrupt"
    assert unpacks(source, b"x" * 40).reason == "corrupt"


def test_a_lost_chunk_is_no_zeros(tmp_path: Path) -> None:
    source = write_store(tmp_path / "x.zarr", pusht(LENGTHS), LENGTHS)
    (source / "data/img/4.0.0.0").unlink()  # steps 16 to 18
    (source / "data/action/0.0").unlink()  # steps 0 to 4
    found, rejected, _ = outcomes(source)
    assert (len(found), rejected) == (1, {"episode=0": "unreadable", "episode=2": "unreadable"})


@pytest.mark.parametrize(
    ("ends", "reasons"),
    [
        ([6, 6, 18], {"episode=1": "bad_boundaries"}),
        ([6, 4, 18], {"episode=1": "bad_boundaries"}),
        ([6, 13, 40], {"episode=2": "length_mismatch"}),
        ([-3, 13, 18], {"episode=0": "bad_boundaries", "episode=1": "bad_boundaries"}),
    ],
)
def test_ends_that_make_no_sense(tmp_path: Path, ends: list[int], reasons: dict[str, str]) -> None:
    source = write_store(tmp_path / "x.zarr", pusht(LENGTHS), LENGTHS)
    (source / "meta/episode_ends/0").write_bytes(np.array(ends, "<i8").tobytes())
    _, rejected, _ = outcomes(source)
    assert rejected == reasons


def test_steps_behind_the_last_end_are_named(tmp_path: Path) -> None:
    source = write_store(tmp_path / "x.zarr", pusht(LENGTHS), (6, 7))
    found, rejected, remarks = outcomes(source)
    assert (len(found), rejected) == (2, {})
    assert "5 steps behind the last episode's end" in remarks


def test_without_images_or_actions_its_arrays_are_listed(tmp_path: Path) -> None:
    arrays = pusht(LENGTHS)
    for gone, word in (("img", "no_camera"), ("action", "no_action")):
        source = write_store(tmp_path / f"{gone}.zarr", {k: v for k, v in arrays.items() if k != gone}, LENGTHS)
        with pytest.raises(UserError, match=r"data holds .*state \(18, 5\)") as caught:
            open_source(str(source))
        assert ("images" if word == "no_camera" else "action") in str(caught.value)


@pytest.mark.parametrize("width", [0, 5000])
def test_actions_of_no_possible_width(tmp_path: Path, width: int) -> None:
    arrays = {**pusht(LENGTHS), "action": np.zeros((18, width), np.float32)}
    with pytest.raises(UserError, match=rf"neither data/action nor UMI's poses; .*action \(.*\(18, {width}\)"):
        open_source(str(write_store(tmp_path / "x.zarr", arrays, LENGTHS)))


def test_poses_that_are_not_umis(tmp_path: Path) -> None:
    arrays = {**umi((6,)), "robot0_eef_rot_axis_angle": np.zeros((6, 4), np.float32)}
    with pytest.raises(UserError, match="neither data/action nor UMI's poses"):
        open_source(str(write_store(tmp_path / "x.zarr", arrays, (6,))))


def test_two_stores_must_mean_the_same(tmp_path: Path) -> None:
    write_store(tmp_path / "all/a.zarr", pusht((6,)), (6,))
    write_store(tmp_path / "all/b.zarr", pusht((7,), seed=5), (7,))
    assert len(outcomes(tmp_path / "all")[0]) == 2
    write_store(tmp_path / "all/c.zarr", umi((6,)), (6,))
    with pytest.raises(UserError, match="ingest them one by one"):
        open_source(str(tmp_path / "all"))


def test_jpeg_xl_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_store(tmp_path / "cup.zarr", umi((6,)), (6,))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(UserError, match=r"imagecodecs_jpegxl.*uwm-pipeline\[umi\]"):
        open_source(str(source))


def test_zip_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr.zip"
    path.write_bytes(b"PK\3\4 no zip")
    with pytest.raises(UserError, match="no directory of a zip file"):
        open_source(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../etc/passwd", "x")
    with pytest.raises(UserError, match="it has no meta/episode_ends"):
        open_source(str(path))
    path.unlink()
    packed = zipped(write_store(tmp_path / "x.zarr", umi((6, 7)), (6, 7)))
    data = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        place = archive.getinfo("data/camera0_rgb/2.0.0.0").header_offset
    data[place + 80] ^= 255
    packed.write_bytes(data)
    found, rejected, _ = outcomes(packed)
    assert (len(found), rejected) == (1, {"episode=0": "crc_mismatch"})


def test_a_zip_directory_that_leads_out_of_the_file(tmp_path: Path) -> None:
    packed = zipped(write_store(tmp_path / "x.zarr", umi((6, 7)), (6, 7)))
    data = bytearray(packed.read_bytes())
    place = data.rindex(b"data/camera0_rgb/2.0.0.0") - 4  # where the directory says that the file begins
    data[place : place + 4] = (1 << 30).to_bytes(4, "little")
    packed.write_bytes(data)
    found, rejected, _ = outcomes(packed)
    assert (len(found), rejected) == (1, {"episode=0": "corrupt"})


def test_the_store_itself_is_found_and_no_other_array(tmp_path: Path) -> None:
    (tmp_path / "plain.zarr").mkdir()
    (tmp_path / "plain.zarr/.zgroup").write_text("{}")
    with pytest.raises(UserError, match="no file of a known format"):
        detect(str(tmp_path))
    write_store(tmp_path / "deep/inside/x.zarr", pusht((6,)), (6,))
    assert detect(str(tmp_path)) == "replay-buffer"
    assert not any(isinstance(item, LeftOut) for item in find(str(tmp_path), lambda name: True))

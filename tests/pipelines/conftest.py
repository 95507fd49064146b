"""Raw data made on the spot, and every case of the fixtures as a parameter."""

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

ROOT = Path(os.environ.get("UWM_FIXTURES") or Path(__file__).resolve().parents[3] / "shared/fixtures").resolve()
Values = Sequence[bytes] | Sequence[float] | Sequence[int]


@dataclass(frozen=True)
class Truth:
    """A data set or file of the fixtures, and what its JSON says of it."""

    path: Path
    expected: Any


def _rlds() -> list[Truth]:
    found = []
    for file in sorted([*ROOT.glob("droid_rlds/**/expected*.json"), *ROOT.glob("bad/*/expected.json")]):
        expected = json.loads(file.read_text())
        if "shard_lengths" in expected:
            name = file.stem.removeprefix("expected").removeprefix("_")
            found.append(Truth(file.parent / name if name else file.parent, expected))
    return found


def _videos() -> list[Truth]:
    file = ROOT / "videos/expected.json"
    listed = json.loads(file.read_text())["files"] if file.is_file() else {}
    return [Truth(file.parent / name, expected) for name, expected in sorted(listed.items())]


def _is_cut(expected: Any) -> bool:
    """Whether an edit list cuts frames off."""
    return bool(expected["header_frames"] > expected["decoded_frames"])


def _some_videos(wanted: Callable[[Any], bool]) -> Callable[[], list[Truth]]:
    return lambda: [truth for truth in _videos() if wanted(truth.expected)]


def _lerobot() -> list[Truth]:
    found = []
    for file in sorted(ROOT.glob("lerobot*/expected*.json")):
        expected = json.loads(file.read_text())
        for info in sorted(file.parent.glob("*/meta/info.json")):
            told = json.loads(info.read_text())
            if (told["total_frames"], told["total_episodes"]) == (expected["total_frames"], expected["num_episodes"]):
                found.append(Truth(info.parents[1], expected))
    return found


def _versions() -> list[Truth]:
    """Pairs of datasets with the same episodes, of two versions of the format."""
    known = _lerobot()
    same = [(a, b) for a, b in combinations(known, 2) if _lengths(a) == _lengths(b)]
    return [Truth(a.path, (a.path, b.path)) for a, b in same]


def _lengths(truth: Truth) -> list[Any]:
    return [(episode["n"], episode["task"]) for episode in truth.expected["episodes"]]


def _bad(prefix: str) -> list[Truth]:
    file = ROOT / "bad/expected_bad.json"
    listed = json.loads(file.read_text())["entries"] if file.is_file() else {}
    chosen = {name: text for name, text in listed.items() if name.startswith(prefix)}
    return [Truth(file.parent / n, text) for n, text in sorted(chosen.items()) if (file.parent / n).exists()]


def _demonstrations() -> list[Truth]:
    found = sorted(ROOT.glob("libero_hdf5/**/*.hdf5.expected.json"))
    return [Truth(file.with_suffix("").with_suffix(""), json.loads(file.read_text())) for file in found]


def _droid_raw() -> list[Truth]:
    return [Truth(file.parent, json.loads(file.read_text())) for file in sorted(ROOT.glob("droid_raw/expected*.json"))]


CASES: dict[str, Callable[[], list[Truth]]] = {
    "rlds_truth": _rlds,
    "video_truth": _videos,
    "h264_truth": _some_videos(lambda expected: expected["codec"] == "h264" and not _is_cut(expected)),
    "av1_truth": _some_videos(lambda expected: expected["codec"] in ("av1", "libdav1d")),
    "cut_truth": _some_videos(_is_cut),
    "demonstrations_truth": _demonstrations,
    "droid_raw_truth": _droid_raw,
    "bad_hdf5": lambda: _bad("hdf5/"),
    "bad_tfrecord": lambda: _bad("tfrecord/"),
    "bad_video": lambda: _bad("videos/"),
    "lerobot_truth": _lerobot,
    "lerobot_versions": _versions,
    "bad_lerobot": lambda: _bad("lerobot_"),
    "bad_rlds": lambda: _bad("rlds_"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, discover in CASES.items():
        if name in metafunc.fixturenames:
            cases = discover()
            skip = pytest.mark.skip(reason=f"no such fixtures under {ROOT}: set UWM_FIXTURES")
            params = [pytest.param(case, id=case.path.relative_to(ROOT).as_posix()) for case in cases]
            metafunc.parametrize(name, params or [pytest.param(None, marks=skip)])


def varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def block(field: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def example(features: Mapping[str, Values], *, packed: bool = True) -> bytes:
    """A tf.train.Example, encoded by hand from the protobuf specification."""
    entries = []
    for key, values in features.items():
        if values and isinstance(values[0], bytes):
            feature = block(1, b"".join(block(1, value) for value in values))  # type: ignore[arg-type]
        elif values and isinstance(values[0], int):
            feature = block(3, block(1, b"".join(varint(value & (1 << 64) - 1) for value in values)))  # type: ignore[arg-type]
        elif packed:
            feature = block(2, block(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = block(2, b"".join(b"\x0d" + struct.pack("<f", value) for value in values))
        entries.append(block(1, block(1, key.encode()) + block(2, feature)))
    return block(1, b"".join(entries))


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame_record(data: bytes) -> bytes:
    """A TFRecord record."""
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


@pytest.fixture(scope="session")
def make_example() -> Callable[..., bytes]:
    return example


@pytest.fixture(scope="session")
def make_record() -> Callable[[bytes], bytes]:
    return frame_record


def image(seed: int, size: tuple[int, int] = (24, 32)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    wave = 120 + 60 * np.sin(x / 5 + seed / 4) + 60 * np.cos(y / 4 - seed / 3)
    return np.repeat(np.clip(wave, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")


def droid_features(
    steps: int = 6, *, path: str = "LAB/success/day/time/trajectory.h5", seed: int = 0, **changes: Any
) -> dict[str, Values]:
    """The features of one DROID episode; a change of None takes a feature away ('__' stands for '/')."""
    import simplejpeg

    rng = np.random.default_rng(seed)
    features: dict[str, Any] = {
        "episode_metadata/file_path": [f"/nfs/data/{path}".encode()],
        "steps/is_first": [int(i == 0) for i in range(steps)],
        "steps/is_last": [int(i == steps - 1) for i in range(steps)],
        "steps/language_instruction": [b"lift the cube"] * steps,
        "steps/language_instruction_2": [b""] * steps,
        "steps/reward": [0.0] * steps,
    }
    dims = {"action": 7, "action_dict/cartesian_velocity": 6, "action_dict/gripper_position": 1}
    for name, dim in {**dims, "observation/gripper_position": 1}.items():
        features[f"steps/{name}"] = rng.uniform(-1, 1, steps * dim).astype(np.float32).tolist()
    for view, camera in enumerate(CAMERAS):
        features[f"steps/observation/{camera}"] = [
            simplejpeg.encode_jpeg(image(seed + 7 * view + i)) for i in range(steps)
        ]
    features |= {key.replace("__", "/"): value for key, value in changes.items()}
    return {key: value for key, value in features.items() if value is not None}


@pytest.fixture(scope="session")
def make_features() -> Callable[..., dict[str, Values]]:
    return droid_features


@pytest.fixture(scope="session")
def write_rlds() -> Callable[..., Path]:
    """A function that writes shards of episodes as tensorflow-datasets names them."""

    def write(folder: Path, *shards: Sequence[Mapping[str, Values] | bytes], name: str = "set") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for index, records in enumerate(shards):
            data = b"".join(r if isinstance(r, bytes) else frame_record(example(r)) for r in records)
            (folder / f"{name}-train.tfrecord-{index:05d}-of-{len(shards):05d}").write_bytes(data)
        lengths = [str(len(records)) for records in shards]
        info = {"name": name, "splits": [{"name": "train", "shardLengths": lengths}]}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return folder

    return write


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """A function that writes a small video; `times` in units of 1/9000 s make its rate variable."""
    import av

    def write(
        path: Path,
        *,
        frames: int = 30,
        rate: int = 15,
        size: tuple[int, int] = (48, 64),
        codec: str = "mpeg4",
        format: str = "mp4",  # noqa: A002
        seed: int = 0,
        times: Sequence[int] | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file, av.open(file, "w", format=format) as container:
            stream: Any = container.add_stream(codec, rate=rate)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, 9000)
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(image(seed + index, size), format="rgb24")
                frame.pts = times[index] if times else index * 9000 // rate
                frame.time_base = Fraction(1, 9000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write

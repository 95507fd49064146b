"""Small LeRobot datasets whose every frame says which it is; a test may spoil their parts before they are written."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

FPS = 10
SIZE = (48, 64)
TOP, WRIST = "observation.images.top", "observation.images.wrist"
_DARK, _STEP = 24, 3


def level(number: int) -> int:
    """Brightness of the frame of that number."""
    return _DARK + _STEP * number


def numbers_of(frames: Any) -> list[int]:
    """Which frames of the dataset these are, by their brightness."""
    pixels = [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in frames.jpegs]
    return [round((float(one.mean()) - _DARK) / _STEP) for one in pixels]


def write_clip(path: Path, numbers: Sequence[int], fps: float = FPS, times: Sequence[float] | None = None) -> None:
    """An MP4 of uniform frames; `times` in seconds where they are not even."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4", "preset": "ultrafast", "g": "4"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for index, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE, 3), level(number), np.uint8), "rgb24")
            frame.time_base = Fraction(1, 90_000)
            frame.pts = round((times[index] if times else index / rate) * 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def png(number: int, mode: str = "RGB") -> bytes:
    """A picture of that number."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.full((*SIZE, 3), level(number), np.uint8))
    (image if mode == "RGB" else Image.fromarray(np.full(SIZE, 1000, np.uint16))).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(kw_only=True)
class Maker:
    """A dataset in memory; `write` puts it on disk. Frames are counted through all episodes."""

    root: Path
    lengths: tuple[int, ...] = (6, 5, 7)
    version: str = "v3.0"
    cameras: tuple[str, ...] = (TOP,)
    seed: int = 0
    info: dict[str, Any] = field(init=False)
    rows: dict[str, Any] = field(init=False)
    """All rows; by column."""
    episodes: list[dict[str, Any]] = field(init=False)
    tasks: list[str] = field(default_factory=lambda: ["Lift the cube", "Stack the cubes"])
    clips: dict[str, list[int]] = field(init=False)
    """Numbers of the frames of each video, by path."""
    clip_fps: float = FPS
    splits: tuple[int, ...] = ()
    """Rows of version 3 at which a new data file begins."""

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        total, count = sum(self.lengths), len(self.lengths)
        steps = np.concatenate([np.arange(n) for n in self.lengths])
        episode = np.repeat(np.arange(count), self.lengths)
        self.rows = {
            "observation.state": rng.normal(size=(total, 4)).astype(np.float32),
            "action": rng.normal(size=(total, 3)).astype(np.float32),
            "timestamp": (steps / FPS).astype(np.float32),
            "frame_index": steps,
            "episode_index": episode,
            "index": np.arange(total),
            "task_index": episode % 2,
        }
        self.info = {
            "codebase_version": self.version, "robot_type": "toy", "fps": FPS, "chunks_size": 1000,
            "total_episodes": count, "total_frames": total, "total_tasks": 2, "splits": {"train": f"0:{count}"},
            "features": {
                "observation.state": {"dtype": "float32", "shape": [4], "names": ["a", "b", "c", "d"]},
                "action": {"dtype": "float32", "shape": [3], "names": None},
                **{c: {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
                   for c in self.cameras},
                "timestamp": {"dtype": "float32", "shape": [1], "names": None},
                **{name: {"dtype": "int64", "shape": [1], "names": None}
                   for name in ("frame_index", "episode_index", "index", "task_index")},
            },
        }  # fmt: skip
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)]).tolist()
        self.new = self.version.startswith("v3")
        self._new() if self.new else self._old()

    def _new(self) -> None:
        self.info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        self.info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        self.episodes = []
        for number, (start, stop) in enumerate(pairwise(self.starts)):
            row: dict[str, Any] = {
                "episode_index": number, "tasks": [self.tasks[number % 2]], "length": stop - start,
                "data/chunk_index": 0, "data/file_index": 0,
                "dataset_from_index": start, "dataset_to_index": stop,
            }  # fmt: skip
            for camera in self.cameras:
                row |= {
                    f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0,
                    f"videos/{camera}/from_timestamp": start / FPS, f"videos/{camera}/to_timestamp": stop / FPS,
                }  # fmt: skip
            self.episodes.append(row)
        self.clips = {self.clip(camera): list(range(self.starts[-1])) for camera in self.cameras}

    def _old(self) -> None:
        self.info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        self.info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        self.episodes = [
            {"episode_index": number, "tasks": [self.tasks[number % 2]], "length": length}
            for number, length in enumerate(self.lengths)
        ]
        self.clips = {
            self.clip(camera, number): list(range(start, stop))
            for camera in self.cameras
            for number, (start, stop) in enumerate(pairwise(self.starts))
        }

    def clip(self, camera: str = TOP, number: int = 0) -> str:
        """Path of a video: of an episode in version 2, of a file in version 3."""
        if self.new:
            return f"videos/{camera}/chunk-000/file-{number:03d}.mp4"
        return f"videos/chunk-000/{camera}/episode_{number:06d}.mp4"

    def data(self, number: int = 0) -> Path:
        """A file of rows."""
        name = f"file-{number:03d}" if self.new else f"episode_{number:06d}"
        return self.root / f"data/chunk-000/{name}.parquet"

    def add(self, name: str, values: Any, dtype: str = "float32", **feature: Any) -> None:
        """One more feature of numbers, (rows, ...)."""
        self.rows[name] = values
        shape = list(np.shape(values)[1:]) or [1]
        self.info["features"][name] = {"dtype": dtype, "shape": shape, "names": None, **feature}

    def write(self) -> Path:
        """Put it on disk; returns its folder."""
        (self.root / "meta").mkdir(parents=True, exist_ok=True)
        (self.root / "meta/info.json").write_text(json.dumps(self.info))
        self._write_rows()
        self._write_meta()
        for path, numbers in self.clips.items():
            write_clip(self.root / path, numbers, self.clip_fps)
        return self.root

    def _write_rows(self) -> None:
        total = len(next(iter(self.rows.values())))
        edges = [0, *self.splits, total] if self.new else self.starts
        for number, (start, stop) in enumerate(pairwise(edges)):
            part = {name: values[start:stop] for name, values in self.rows.items()}
            self.data(number).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({name: _column(values) for name, values in part.items()}), self.data(number))

    def _write_meta(self) -> None:
        meta = self.root / "meta"
        if self.new:
            (meta / "episodes/chunk-000").mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(self.episodes), meta / "episodes/chunk-000/file-000.parquet")
            table = pa.table({"task_index": range(len(self.tasks)), "task": self.tasks})
            pq.write_table(table, meta / "tasks.parquet")
            return
        lines = [{"task_index": number, "task": text} for number, text in enumerate(self.tasks)]
        (meta / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (meta / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.episodes))


def _column(values: Any) -> pa.Array:
    if not isinstance(values, np.ndarray):
        return pa.array(values)
    flat: NDArray[Any] = values.reshape(len(values), -1)
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])

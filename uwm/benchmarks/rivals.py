"""Other ways to keep the same episodes, each written and read the way its users do.

Every reader makes the frames (V, 4, H, W, 3) of the samples it is asked for: steps t-1, t, t+15 and t+16 of all
views; that of the published layout all 19 steps t-1 .. t+17, and the actions, collated. They read sample by sample, as
the `__getitem__` of a map-style dataset does; `LanceBatch` takes all at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from storage_schemas.episode import EncodedFrames, Episode, SegmentId, frame_size
from storage_schemas.store.dataset import open_dataset
from storage_schemas.synthetic import take

OFFSETS = (-1, 0, 15, 16)
"""Steps of a sample's frames, counted from the current one."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a reader has to know of the episodes that a layout holds."""

    lengths: tuple[int, ...]
    views: int
    size: tuple[int, int]

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> "Facts":
        """The facts of some episodes, whose frames are of one size."""
        first = episodes[0].frames
        return cls(lengths=tuple(map(len, episodes)), views=len(first), size=frame_size(next(iter(first.values()))))

    @property
    def starts(self) -> list[int]:
        """First row of every episode where all lie one after the other."""
        return [0, *accumulate(self.lengths)]


class Rival(Protocol):
    """A layout with its reader."""

    def read(self, segments: Sequence[SegmentId]) -> None:
        """Read the frames around some steps."""
        ...


def jpegs(episode: Episode) -> list[tuple[bytes, ...]]:
    """The JPEG bytes of every view."""
    return [frames.jpegs for frames in episode.frames.values() if isinstance(frames, EncodedFrames)]


def pixels(encoded: Sequence[bytes]) -> NDArray[np.uint8]:
    """Decoded frames (T, H, W, 3)."""
    return np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in encoded])


class DecodeOnly:
    """No storage at all: the JPEG bytes are in memory and the arrays are there. The limit of any JPEG layout."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        self._episodes = [jpegs(episode) for episode in take(open_dataset(folder), len(facts.lengths))]
        self._out = np.empty((facts.views, len(OFFSETS), *facts.size, 3), np.uint8)

    def read(self, segments: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        for episode, step in segments:
            for view, encoded in enumerate(self._episodes[episode]):
                for index, offset in enumerate(OFFSETS):
                    simplejpeg.decode_jpeg(encoded[step + offset], buffer=self._out[view, index])


class Published:
    """The published layout: Zarr version 2, all episodes in one array per view, one frame per LZ4 chunk.

    The script `published_layout.py` reads it in an interpreter that has the published code's zarr. Today's zarr-python
    reads the same files at 1.5 to 2 times the cost, so it is no stand-in for it.
    """

    SCRIPT = Path(__file__).with_name("published_layout.py")

    @staticmethod
    def write(folder: Path, episodes: Sequence[Episode]) -> None:
        """Hand the frames to the script, which writes them when it starts."""
        raw = folder / "raw"
        raw.mkdir(parents=True)
        for view in range(len(jpegs(episodes[0]))):
            np.save(raw / f"view_{view}.npy", np.concatenate([pixels(jpegs(episode)[view]) for episode in episodes]))
        np.save(raw / "action.npy", np.concatenate([episode.action for episode in episodes]))

    @staticmethod
    def rows(segments: Sequence[SegmentId], facts: Facts) -> list[int]:
        """What the script is asked for: the first row of every sample."""
        return [facts.starts[segment.episode] + segment.step - 1 for segment in segments]


class Mp4:
    """One H.264 file per episode and view with a key frame every 2 frames, read by PyAV: LeRobot's way."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.paths = _mp4_paths(folder, len(facts.lengths), facts.views)

    @staticmethod
    def write(folder: Path, episodes: Sequence[Episode]) -> None:
        """Write the layout."""
        folder.mkdir(parents=True)
        for episode, paths in zip(episodes, _mp4_paths(folder, len(episodes), len(episodes[0].frames)), strict=True):
            for path, encoded in zip(paths, jpegs(episode), strict=True):
                _write_mp4(path, pixels(encoded), float(episode.meta.fps))

    def read(self, segments: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        for episode, step in segments:
            for path in self.paths[episode]:
                _read_mp4(path, [step + offset for offset in OFFSETS])


def _mp4_paths(folder: Path, episodes: int, views: int) -> list[list[Path]]:
    return [[folder / f"{episode}-{view}.mp4" for view in range(views)] for episode in range(episodes)]


def _write_mp4(path: Path, frames: NDArray[np.uint8], fps: float) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=round(fps), options={"crf": "23", "g": "2"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def _read_mp4(path: Path, steps: Sequence[int]) -> list[NDArray[np.uint8]]:
    import av

    frames: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        tick = 1 / (float(stream.average_rate or 15) * float(stream.time_base or 1))
        for runs in (steps[:2], steps[2:]):
            container.seek(round(runs[0] * tick), stream=stream)
            for frame in container.decode(stream):
                if round((frame.pts or 0) / tick) in runs:
                    frames.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
                if round((frame.pts or 0) / tick) >= runs[-1]:
                    break
    return frames


class TorchCodec:
    """The same files read by torchcodec, with its decoders kept open."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        from torchcodec import decoders  # type: ignore[import-not-found,unused-ignore]

        self._open: Callable[[str], Any] = lambda path: decoders.VideoDecoder(  # type: ignore[attr-defined,unused-ignore]
            path, num_ffmpeg_threads=1
        )
        self._paths = Mp4(folder, facts).paths
        self._decoders: dict[str, Any] = {}

    def read(self, segments: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        for episode, step in segments:
            for path in map(str, self._paths[episode]):
                if path not in self._decoders:
                    self._decoders[path] = self._open(path)
                self._decoders[path].get_frames_at([step + offset for offset in OFFSETS])


class Lance:
    """A Lance table with one row per step and a column of JPEG bytes per view, read by `take`."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        import lance

        self._dataset: Any = lance.dataset(str(folder))
        self._columns = [f"view_{view}" for view in range(facts.views)]
        self._starts = facts.starts
        self._shape = (facts.views, len(OFFSETS), *facts.size, 3)

    @staticmethod
    def write(folder: Path, episodes: Sequence[Episode]) -> None:
        """Write the layout."""
        import lance
        import pyarrow as pa

        views = range(len(jpegs(episodes[0])))
        columns = {f"view_{view}": [jpeg for e in episodes for jpeg in jpegs(e)[view]] for view in views}
        table = pa.table({name: pa.array(values, pa.large_binary()) for name, values in columns.items()})
        lance.write_dataset(table, str(folder))

    def read(self, segments: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        for segment in segments:
            self.take_all([segment])

    def take_all(self, segments: Sequence[SegmentId]) -> NDArray[np.uint8]:
        """Frames (V, 4 n, H, W, 3) of n samples by one `take`."""
        rows = [self._starts[episode] + step + offset for episode, step in segments for offset in OFFSETS]
        rows_read = self._dataset.take(rows, columns=self._columns)
        views, frames, *image = self._shape
        out = np.empty((views, frames * len(segments), *image), np.uint8)
        for view, column in enumerate(self._columns):
            for target, jpeg in zip(out[view], rows_read[column], strict=True):
                simplejpeg.decode_jpeg(memoryview(jpeg.as_buffer()).cast("B"), buffer=target)
        return out


class LanceBatch(Lance):
    """The same table with one `take` for all samples of a batch."""

    def read(self, segments: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        self.take_all(segments)


def folder_bytes(folder: Path) -> tuple[int, int]:
    """Bytes and number of all files in a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)

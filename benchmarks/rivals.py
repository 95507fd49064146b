"""Other ways to keep the same episodes, each written and read the way its users do.

Every reader makes the frames (V, 4, H, W, 3) of the samples it is asked for: steps t-1, t, t+15 and t+16 of all
views. That of the published layout makes all 19 steps t-1 .. t+17, of which the published loader keeps 4. They read
sample by sample, as the `__getitem__` of a map-style dataset does, and let go of each; `LanceBatch` takes all at once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from storage_schemas.episode import EncodedFrames, Episode, SegmentId

OFFSETS = (-1, 0, 15, 16)
"""Steps of a sample's frames, counted from the current one."""
_PUBLISHED_STEPS = 19


class Rival(Protocol):
    """A layout with its reader."""

    def read(self, places: Sequence[SegmentId]) -> None:
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

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self._episodes = [jpegs(episode) for episode in episodes]
        height, width = simplejpeg.decode_jpeg_header(self._episodes[0][0][0])[:2]
        self._out = np.empty((len(self._episodes[0]), len(OFFSETS), height, width, 3), np.uint8)

    def read(self, places: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        for episode, step in places:
            for view, encoded in enumerate(self._episodes[episode]):
                for place, offset in enumerate(OFFSETS):
                    simplejpeg.decode_jpeg(encoded[step + offset], buffer=self._out[view, place])


class Published:
    """The published layout: Zarr version 2, all episodes in one array per view, one frame per LZ4 chunk.

    Args:
        folder: an empty one.
        episodes: to write.
        whole: read all 19 steps, as the published loader does, or only the 4 that it uses.
    """

    def __init__(self, folder: Path, episodes: Sequence[Episode], *, whole: bool) -> None:
        import zarr
        from numcodecs import Blosc

        self._starts = np.cumsum([0, *map(len, episodes)])
        self._whole = whole
        if not folder.exists():
            group = zarr.open_group(str(folder), mode="w", zarr_format=2)
            for view in range(len(jpegs(episodes[0]))):
                frames = np.concatenate([pixels(jpegs(episode)[view]) for episode in episodes])
                array = group.create_array(
                    f"view_{view}",
                    shape=frames.shape,
                    chunks=(1, *frames.shape[1:]),
                    dtype="uint8",
                    compressors=Blosc("lz4", 5, Blosc.SHUFFLE),
                )
                array[:] = frames
        group = zarr.open_group(str(folder), mode="r")
        self._views: list[Any] = [group[f"view_{view}"] for view in range(len(jpegs(episodes[0])))]

    def read(self, places: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        for place in places:
            self._read(*place)

    def _read(self, episode: int, step: int) -> list[Any]:
        first = int(self._starts[episode]) + step - 1
        if self._whole:
            return [view[first : first + _PUBLISHED_STEPS] for view in self._views]
        return [(view[first : first + 2], view[first + 16 : first + 18]) for view in self._views]


class Mp4:
    """One H.264 file per episode and view with a key frame every 2 frames, read by PyAV: LeRobot's way."""

    def __init__(self, folder: Path, episodes: Sequence[Episode]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [
            [folder / f"{number}-{view}.mp4" for view in range(len(jpegs(episode)))]
            for number, episode in enumerate(episodes)
        ]
        for paths, episode in zip(self._paths, episodes, strict=True):
            for path, encoded in zip(paths, jpegs(episode), strict=True):
                if not path.exists():
                    _write_mp4(path, pixels(encoded), float(episode.meta.fps))

    def read(self, places: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        for episode, step in places:
            for path in self._paths[episode]:
                _read_mp4(path, [step + offset for offset in OFFSETS])


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

    found: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        tick = 1 / (float(stream.average_rate or 15) * float(stream.time_base or 1))
        for runs in (steps[:2], steps[2:]):
            container.seek(round(runs[0] * tick), stream=stream)
            for frame in container.decode(stream):
                if round((frame.pts or 0) / tick) in runs:
                    found.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
                if round((frame.pts or 0) / tick) >= runs[-1]:
                    break
    return found


class TorchCodec:
    """The same files read by torchcodec, with its decoders kept open."""

    def __init__(self, mp4: Mp4) -> None:
        from torchcodec import decoders  # type: ignore[import-not-found,unused-ignore]

        self._open: Callable[[str], Any] = lambda path: decoders.VideoDecoder(  # type: ignore[attr-defined,unused-ignore]
            path, num_ffmpeg_threads=1
        )
        self._paths = mp4._paths
        self._decoders: dict[str, Any] = {}

    def read(self, places: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        for episode, step in places:
            for path in map(str, self._paths[episode]):
                if path not in self._decoders:
                    self._decoders[path] = self._open(path)
                self._decoders[path].get_frames_at([step + offset for offset in OFFSETS])


class Lance:
    """A Lance table with one row per step and a column of JPEG bytes per view, read by `take`."""

    def __init__(self, folder: Path, episodes: Sequence[Episode]) -> None:
        import lance
        import pyarrow as pa

        views = len(jpegs(episodes[0]))
        if not folder.exists():
            columns = [[jpeg for e in episodes for jpeg in jpegs(e)[view]] for view in range(views)]
            table = pa.table({f"view_{v}": pa.array(c, pa.large_binary()) for v, c in enumerate(columns)})
            lance.write_dataset(table, str(folder))
        self._dataset: Any = lance.dataset(str(folder))
        self._columns = [f"view_{view}" for view in range(views)]
        self._starts = np.cumsum([0, *map(len, episodes)])
        height, width = simplejpeg.decode_jpeg_header(jpegs(episodes[0])[0][0])[:2]
        self._shape = (views, len(OFFSETS), height, width, 3)

    def read(self, places: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        for place in places:
            self.take([place])

    def take(self, places: Sequence[SegmentId]) -> NDArray[np.uint8]:
        """Frames (V, 4 n, H, W, 3) of n samples by one `take`."""
        rows = [int(self._starts[episode]) + step + offset for episode, step in places for offset in OFFSETS]
        found = self._dataset.take(rows, columns=self._columns)
        views, frames, *image = self._shape
        out = np.empty((views, frames * len(places), *image), np.uint8)
        for view, column in enumerate(self._columns):
            for target, jpeg in zip(out[view], found[column], strict=True):
                simplejpeg.decode_jpeg(memoryview(jpeg.as_buffer()).cast("B"), buffer=target)
        return out


class LanceBatch(Lance):
    """The same table with one `take` for all samples of a batch."""

    def read(self, places: Sequence[SegmentId]) -> None:
        """See `Rival`."""
        self.take(places)


def folder_bytes(folder: Path) -> tuple[int, int]:
    """Bytes and number of all files in a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)

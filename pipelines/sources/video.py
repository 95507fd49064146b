"""Video: every file, or every span of one that a list names, becomes clips without actions, seen by one camera.

Letters: T steps of a clip, A action dimensions.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import SourceFile, find, printable
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, reading
from pipelines.video.isolation import decoding, frame_times
from pipelines.video.listed import VideoEntry, is_list, listed
from pipelines.video.scenes import clips
from pipelines.video.spans import Span
from storage_schemas.conventions import DROID_ACTION_DIM, DROID_CAMERAS
from storage_schemas.episode import Episode, EpisodeMeta
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.schema import DatasetSpec

_SUFFIXES = frozenset(
    """
    264 265 266 3g2 3gp 3gpp amv apng asf av1 avc avi dav dif divx dv evo f4v flv gif gxf h261 h263 h264 h265 h266 hevc
    insv ismv ivf ivr lrf lrv m1v m2p m2t m2ts m2v m4s m4v mj2 mjpeg mjpg mk3d mkv mod mov mp4 mpe mpeg mpg mpv mts mxf
    nsv nut obu ogg ogm ogv ps qt rm rmvb swf tod tp trp ts vc1 vob vro vvc webm webp wmv wtv xvid y4m
    """.split()  # noqa: SIM905 - a list of quoted words is three times as long
)
SHORT_SIDE = 180
"""Most pixels of the shorter side; smaller videos keep their size."""
MIN_STEPS = 5
"""A clip below this is dropped, and a file without any other is too short: a third of a second at 15 fps."""
_BLOCK, _BLOCKS = 1 << 20, 16
"""A fingerprint reads 16 blocks of 1 MiB: all of a small file, samples of a large one."""


_SPAN_RATE = 1 << 20
"""Bytes per second for which a span counts."""


class VideoFiles:
    """Reader of a video file, a glob, all videos in a folder, or those that a list names (`pipelines.video.listed`).

    The id of a clip comes from its file's content and its place in it: a renamed file is the same episodes.

    Args:
        source: path or fsspec URI.
        options: how videos become episodes.
        dataset: the dataset to ingest into; when None, one with DROID's cameras and action.

    Raises:
        UserError: when there is no video, or the dataset has no such camera.
    """

    format: ClassVar[str] = "video"
    unwanted: ClassVar[frozenset[str]] = frozenset(("black", "copy", "static"))

    def __init__(self, source: str, options: IngestOptions, dataset: DatasetSpec | None = None) -> None:
        self._spec = dataset or DatasetSpec(cameras=DROID_CAMERAS, action_dim=DROID_ACTION_DIM)
        self._camera = options.camera or self._spec.cameras[0]
        if self._camera not in self._spec.cameras:
            raise UserError(f"no camera {self._camera!r}: choose one of {', '.join(self._spec.cameras)}")
        self._options = options
        self._items = list(listed(source, is_mine) if takes(locate(source).name) else _whole(find(source, is_mine)))
        self._entries = {item.uri: item for item in self._items if isinstance(item, VideoEntry)}
        if all(isinstance(item, LeftOut) for item in self._items):
            raise UserError(f"{printable(source)} holds no video: is it another --format?")

    def spec(self) -> DatasetSpec:
        """The dataset's own, or DROID's cameras and action."""
        return self._spec

    def refs(self) -> Iterator[SourceRef | Rejection | LeftOut]:
        """One reference per file or span.

        The fingerprint is a hash of the file's size and content (of samples above 16 MiB), and of what a list says.
        """
        copies: Counter[str] = Counter()
        contents: dict[SourceFile, str | Rejection] = {}
        for entry in self._items:
            item = _reference(entry, contents) if isinstance(entry, VideoEntry) else entry
            if isinstance(item, SourceRef):
                copies[item.fingerprint] += 1
                if more := copies[item.fingerprint] - 1:
                    item = replace(item, fingerprint=f"{item.fingerprint}+{more}")
            yield item

    def read(self, ref: SourceRef) -> Iterator[Episode | LeftOut]:
        """The clips of a file, and other tracks of it. Raises BadDataError, possibly after some clips."""
        options, entry = self._options, self._entry(ref)
        decoder = decoding(
            ref.file,
            fps=options.fps,
            short_side=SHORT_SIDE,
            backend=options.backend,
            min_steps=MIN_STEPS,
            span=Span(entry.start or 0.0, entry.end) if entry.is_span else None,
        )
        with reading(), decoder as (rate, frames, left_out):
            yield from (LeftOut(source_uri=ref.uri, what=what) for what in left_out)
            index = short = 0
            clip: list[NDArray[np.uint8]] = []
            for clip in clips(frames, options.clip_steps, scenes=options.scene_cuts):
                if len(clip) < MIN_STEPS:
                    short += 1
                    continue
                yield self._episode(ref, entry, index, rate, np.stack(clip))
                index += 1
            if index == 0:
                raise BadDataError("too_short", f"{len(clip)} steps at {rate:g} fps, fewer than {MIN_STEPS}")
            if short and options.scene_cuts:
                yield LeftOut(source_uri=ref.uri, what=f"scenes or ends of fewer than {MIN_STEPS} steps: {short}")

    def times(self, ref: SourceRef) -> NDArray[np.float64]:
        """When the frames of a file or span appear, (T,) in seconds. Raises BadDataError."""
        entry = self._entry(ref)
        with reading():
            times = frame_times(ref.file)
        after = times - times[:1]
        last = np.inf if entry.end is None else entry.end
        return times[(after >= (entry.start or 0.0)) & (after < last)] if entry.is_span else times

    def _entry(self, ref: SourceRef) -> VideoEntry:
        """What is asked for. Raises BadDataError when it was there when the source was listed, and is not any more."""
        if ref.uri not in self._entries:
            raise BadDataError("unreadable", "it is not in the source any more")
        return self._entries[ref.uri]

    def _episode(
        self, ref: SourceRef, entry: VideoEntry, index: int, rate: float, frames: NDArray[np.uint8]
    ) -> Episode:
        said, _, copy = ref.fingerprint.partition("+")
        content = said.partition("-")[0] + (f"+{copy}" if copy else "")
        place = f"{content}\0{entry.start or 0:g}-{entry.end}" if entry.is_span else content
        identity = f"video\0{place}\0{index}"
        folder = printable(ref.file.folder.rpartition("/")[2])
        return Episode(
            meta=EpisodeMeta(
                episode_id=hashlib.sha256(identity.encode()).hexdigest()[:32],
                source_uri=f"{ref.uri}#clip={index}",
                source_format=self.format,
                source_fingerprint=ref.fingerprint,
                collection=self._options.collection or entry.collection or folder or "video",
                fps=rate,
                language=entry.texts,
            ),
            action=np.zeros((len(frames), self._spec.action_dim), np.float32),
            action_mask=np.zeros(len(frames), np.bool_),
            frames={self._camera: frames},
        )


def is_mine(name: str) -> bool:
    """Whether a file name has the suffix of a video."""
    return name.rpartition(".")[2].lower() in _SUFFIXES


def takes(name: str) -> bool:
    """Whether a source of this name is a list of videos."""
    return is_list(name)


def open_reader(source: str, options: IngestOptions, dataset: DatasetSpec | None) -> VideoFiles:
    """For the registry."""
    return VideoFiles(source, options, dataset)


def _whole(found: Iterable[SourceFile | Rejection | LeftOut]) -> Iterator[VideoEntry | Rejection | LeftOut]:
    return (VideoEntry(file=item) if isinstance(item, SourceFile) else item for item in found)


def _reference(entry: VideoEntry, contents: dict[SourceFile, str | Rejection]) -> SourceRef | Rejection:
    """The reference of an entry; `contents` keeps what files hold that several entries are of."""
    file = entry.file
    if file not in contents:
        contents[file] = _content(file)
    content = contents[file]
    if isinstance(content, Rejection):
        return replace(content, source_uri=entry.uri)
    length = file.size
    if entry.end is not None:  # how many bytes a span has is not known before it is read
        length = min(length, round((entry.end - (entry.start or 0.0)) * _SPAN_RATE))
    return SourceRef(uri=entry.uri, fingerprint=content + entry.mark, file=file, length=length)


def _content(file: SourceFile) -> str | Rejection:
    try:
        with file.open() as opened:
            return content_fingerprint(opened, file.size)
    except OSError as error:
        detail = f"{type(error).__name__}: {error.strerror or error}"
        return Rejection(source_uri=file.uri, fingerprint=f"size={file.size}", reason="unreadable", detail=detail)


def content_fingerprint(file: BinaryIO, size: int) -> str:
    """Hash of a file's size and of up to 16 blocks of 1 MiB spread evenly from its first to its last byte."""
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    whole = size <= _BLOCK * _BLOCKS
    last = max(0, size - _BLOCK)
    for index in range(_BLOCKS):
        start = index * _BLOCK if whole else last * index // (_BLOCKS - 1)
        file.seek(start)
        digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32]

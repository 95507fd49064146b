"""Read one episode of a LeRobot dataset: its rows, its frames, and what of them is odd.

Letters: T steps, D numbers of a step.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks import quality
from pipelines.checks.quality import BadDataError, LeftOut
from pipelines.parquet import is_number, numbers
from pipelines.source import SourceRef
from pipelines.sources.lerobot_frames import locate_frames
from pipelines.sources.lerobot_info import INDEX, INSTRUCTION, TIME
from pipelines.sources.lerobot_rows import read_runs, typed
from pipelines.sources.lerobot_set import LeRobotSet, times_of
from pipelines.sources.rlds_fields import JPEG, PNG, pixels_of
from pipelines.video.isolation import decoding_at
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta, Frames
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.frames import encode_frames

if TYPE_CHECKING:
    import pyarrow

_ID = re.compile(r"[0-9a-f]{32}")
_SUCCESS = re.compile(r"(.+\.)?(success|is_episode_successful)")
_ANY_SIZE = 1 << 16
_IMAGES = 32
"""Images that are pixels at the same time."""
_DEPTH = (PNG, 24, b"\x10")
"""How a PNG begins, and where it says that a channel has 16 bits."""


def read_episode(one: LeRobotSet, ref: SourceRef, spec: DatasetSpec) -> Iterator[Episode | LeftOut]:
    """The episode of a reference, after what is odd about it.

    Raises:
        BadDataError: when it can't be read, or it can't be told which frames are its own.
        OSError: when a file can't be read.
    """
    number = int(ref.uri.rpartition("=")[2])
    if number not in one.episodes:
        raise BadDataError("unreadable", "its dataset does not list it any more")
    reading = _Reading(one, ref, number)
    episode = reading.episode(spec)
    yield from (LeftOut(source_uri=ref.uri, what=what, tolerated=good) for what, good in reading.remarks)
    yield episode


class _Reading:
    """One episode while it is read."""

    def __init__(self, one: LeRobotSet, ref: SourceRef, number: int) -> None:
        self._set, self._ref, self._number = one, ref, number
        self.remarks: list[tuple[str, bool]] = []
        self._runs, remark = one.runs(number)
        self._note(remark)
        self._values = self._numbers()
        self._texts = {name: self._column(name) for name in one.info.texts if INSTRUCTION.fullmatch(name)}
        self._steps = sum(run.count for run in self._runs)
        self._order = self._in_order()

    def _note(self, remark: str, tolerated: bool = True) -> None:
        if remark and (remark, tolerated) not in self.remarks:
            self.remarks.append((remark, tolerated))

    def _numbers(self) -> dict[str, NDArray[Any]]:
        """All numbers of the rows, (T, D) each, as they are stored."""
        info = self._set.info
        parts: dict[str, list[NDArray[Any]]] = {}
        for columns in read_runs(self._set.files, self._runs, {*info.numbers, *INDEX}):
            for name, column in columns.items():
                parts.setdefault(name, []).append(numbers(name, column))
        count = len(self._runs)
        if short := [name for name, values in parts.items() if len(values) != count]:
            raise BadDataError("missing_field", f"some of its rows have no {short[0]}")
        found = {name: np.concatenate(values) for name, values in parts.items()}
        for name, feature in info.numbers.items():
            if name not in found:
                self._note(f"{name}: declared, and in no row", tolerated=False)
            elif found[name].shape[1] != feature.dim:
                dim = found[name].shape[1]
                raise BadDataError("shape_mismatch", f"{name} has {dim} numbers a step, info.json says {feature.dim}")
        return found

    def _column(self, name: str) -> list[Any]:
        found: list[Any] = []
        for columns in read_runs(self._set.files, self._runs, {name}):
            if name in columns:
                found += columns[name].to_pylist()
        return found

    def _in_order(self) -> NDArray[np.int64] | slice:
        """Which rows are the steps, in order."""
        index, time = self._values.get("frame_index"), self._values.get(TIME)
        if index is None or not np.isfinite(index).all() or (np.diff(index[:, 0]) == 1).all():
            return slice(None)
        order = np.argsort(index[:, 0], kind="stable")
        if (np.diff(index[order, 0]) == 1).all():
            self._note("rows that do not lie in the order of their frame_index: sorted")
            return order
        if time is None or not (np.diff(time[:, 0]) > 0).all():
            raise BadDataError("bad_order", "frame_index counts no steps, and timestamps do not go up either")
        self._note("frame_index with gaps: rows in the order in which they lie")
        return slice(None)

    def episode(self, spec: DatasetSpec) -> Episode:
        """All of it."""
        one, info = self._set, self._set.info
        values = {name: rows[self._order] for name, rows in self._values.items()}
        action, known = self._action(values, spec.action_dim)
        states = self._states(values)
        quality.check_finite({"action": action, **states})
        language = self._language(values.get("task_index"))
        exported = one.episodes[self._number].exported
        identity = hashlib.sha256(f"lerobot\0{self._ref.fingerprint.partition('-')[0]}".encode())
        copy = self._ref.fingerprint.partition("+")[2]
        identity.update(copy.encode())
        named = str(exported.get("episode_id") or "")
        meta = EpisodeMeta(
            episode_id=named if _ID.fullmatch(named) else identity.hexdigest()[:32],
            source_uri=self._ref.uri,
            source_format="lerobot",
            source_fingerprint=self._ref.fingerprint,
            collection=one.given_collection or str(exported.get("collection") or one.collection),
            fps=info.fps,
            language=language,
            success=self._success(values, exported),
        )
        frames = self._frames(values)
        if not frames:
            raise BadDataError("no_camera", "no camera saw it")
        return Episode(meta=meta, action=action, action_mask=known, frames=frames, state=states)

    def _action(self, values: Mapping[str, NDArray[Any]], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        info, mask = self._set.info, values.get(self._set.extra.action_mask)
        names = [name for name in info.actions if name in values]
        if not names:
            return np.zeros((self._steps, dim), np.float32), np.zeros(self._steps, np.bool_)
        if len(names) != len(info.actions):
            raise BadDataError("missing_field", f"its rows have no {next(n for n in info.actions if n not in names)}")
        action = np.concatenate([values[name].astype(np.float32) for name in names], axis=1)
        known = np.ones(self._steps, np.bool_) if mask is None else mask[:, 0] != 0
        return np.where(known[:, None], action, np.float32(0)), known

    def _states(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found, fields = {}, self._set.extra.fields
        unknown = self._unknown(values, self._set.extra.state_mask)
        for feature in self._set.states:
            name = fields.get(feature.name, feature.name)
            if feature.name not in values or name in unknown:
                continue
            column = values[feature.name]
            if feature.is_integer and column.dtype.kind == "f":
                if not np.isfinite(column).all():
                    self._note(f"{feature.name}: integers of which some are not known", tolerated=False)
                    continue
                column = column.astype(np.int64)
            found[name] = typed(feature.name, column, exact=feature.name in fields)
        return found

    def _language(self, tasks: NDArray[Any] | None) -> tuple[str, ...]:
        exported = self._set.episodes[self._number].exported.get("language")
        if isinstance(exported, list):
            return tuple(str(text) for text in exported)
        texts, remark = self._set.tasks(None if tasks is None else tasks[:, 0], self._number)
        self._note(remark)
        more = (str(text).strip() for column in self._texts.values() for text in dict.fromkeys(column) if text)
        return tuple(dict.fromkeys(text for text in (*texts, *more) if text))

    def _success(self, values: Mapping[str, NDArray[Any]], exported: Mapping[str, Any]) -> bool | None:
        if isinstance(exported.get("success"), bool):
            return bool(exported["success"])
        told = [values[name] for name in values if _SUCCESS.fullmatch(name)]
        return bool(np.nan_to_num(told[0]).any()) if told else None

    def _clock(self, values: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """When the steps are, (T,) in seconds."""
        time = values.get(TIME)
        if time is not None and np.isfinite(time).all():
            return time[:, 0].astype(np.float64)
        self._note("no timestamp that could be used: steps at the stated rate")
        return np.arange(self._steps) / self._set.info.fps

    def _frames(self, values: Mapping[str, NDArray[Any]]) -> dict[str, Frames]:
        clock, info = self._clock(values), self._set.info
        unseen = self._unknown(values, self._set.extra.view_mask)
        frames: dict[str, Frames] = {}
        for feature, camera in self._set.cameras.items():
            if camera in unseen:
                continue
            try:
                found = self._video(feature, clock) if feature in info.videos else self._images(feature)
            except BadDataError as error:
                raise BadDataError(error.reason, f"{feature}: {error.detail}") from error
            if found is not None:
                frames[camera] = found
        return frames

    def _unknown(self, values: Mapping[str, NDArray[Any]], name: str) -> set[str]:
        """What a mask says that no step has: cameras and states for which an export has black frames and zeros."""
        mask, feature = values.get(name), self._set.info.numbers.get(name)
        if mask is None or feature is None:
            return set()
        return {one for one, known in zip(feature.axes, mask.T, strict=False) if not known.any()}

    def _video(self, feature: str, clock: NDArray[np.float64]) -> Frames:
        one = self._set
        file = one.video(self._number, feature)
        times = times_of(file)
        slots = one.slots[feature, one.episodes[self._number].videos[feature].file or ""]
        indices, remarks = locate_frames(times, clock, slots, self._number, one.info.fps)
        for remark in remarks:
            self._note(f"{feature}: {remark}")
        with decoding_at(file, times[indices], short_side=_ANY_SIZE) as ((height, width), frames):
            jpegs = tuple(encode_frames(frame[None], "jpeg")[0] for frame in frames)
        quality.check_lengths({"video": len(jpegs)}, self._steps)
        return EncodedFrames(height=height, width=width, jpegs=jpegs)

    def _images(self, feature: str) -> Frames | None:
        """Images in the rows; JPEG passes through."""
        images: list[bytes] = []
        for columns in read_runs(self._set.files, self._runs, {feature}):
            if feature not in columns:
                raise BadDataError("missing_field", "declared, and in no row")
            images += _contents(columns[feature])
        order = np.arange(self._steps)[self._order]
        images = [images[row] for row in order]
        start, place, bits = _DEPTH
        if all(image.startswith(start) and image[place : place + 1] == bits for image in images):
            self._note(f"{feature}: images of 16 bits, which are depth", tolerated=False)
            return None
        if all(image.startswith(JPEG) for image in images):
            height, width = quality.check_jpegs(feature, images)
            return EncodedFrames(height=height, width=width, jpegs=tuple(images))
        jpegs: list[bytes] = []
        sizes = set()
        for first in range(0, len(images), _IMAGES):
            pixels = pixels_of(feature, tuple(images[first : first + _IMAGES]))
            sizes.add(pixels.shape[1:3])
            jpegs += encode_frames(pixels, "jpeg")
        if len(sizes) > 1:
            raise BadDataError("frame_size_mismatch", f"images of {' and '.join(map(str, sorted(sizes)))} pixels")
        height, width = sizes.pop()
        return EncodedFrames(height=height, width=width, jpegs=tuple(jpegs))


def _contents(column: "pyarrow.ChunkedArray") -> list[bytes]:
    """The bytes of the images of a column, as Hugging Face's `datasets` embeds them."""
    from pyarrow import types

    kind = column.type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        values = [row and row.get("bytes") for row in column.to_pylist()]
    elif types.is_binary(kind) or types.is_large_binary(kind):
        values = column.to_pylist()
    else:
        what = "numbers" if is_number(kind) else str(kind)[:40]
        raise BadDataError("not_an_image", f"its rows hold {what}, not the bytes of images")
    if not all(isinstance(value, bytes) for value in values):
        raise BadDataError("missing_image", "some of its rows have no image: they name files instead")
    return values

"""DROID as its robots recorded it: a folder per episode with `trajectory.h5`, a metadata JSON and MP4 files.

Step i of the trajectory is frame i of each camera's video: the time is that of the trajectory, and what a video's
header says of its rate is not asked. `camera_type` 0 is the wrist, and the exterior cameras are numbered in the order
of their serials. The `-stereo` videos show what the others show, with the right eye beside it, and are left out.

Action, cameras and the state's names are those of DROID's RLDS release, and an episode is the same one there and here.
Fields of a camera have its place in their name instead of its serial (`exterior_1_left`, `wrist_frame_received`).
Where the robot waited for its operator (`skip_action`) no action was given, so it is unknown.

Letters: T steps, H, W height and width in pixels.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError, LeftOut, Rejection, check_lengths
from pipelines.files import SourceFile, find, printable
from pipelines.hdf5.episode import encoded, state_fields
from pipelines.hdf5.files import describe, read_arrays
from pipelines.hdf5.layout import Array, Attributes
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, reading
from pipelines.sources.droid_paths import recorded
from pipelines.sources.video import SHORT_SIDE, content_fingerprint
from pipelines.video.isolation import decoding
from storage_schemas.conventions import (
    DROID_ACTION,
    DROID_ACTION_DIM,
    DROID_CAMERAS,
    DROID_FPS,
    DROID_STATES,
    DROID_VIEWS,
    droid_action,
)
from storage_schemas.documents import find_document
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import Location
from storage_schemas.schema import DatasetSpec

_TRAJECTORY, _VIDEOS = "trajectory.h5", "/recordings/MP4/"
_PLACES = dict(zip(("exterior_1", "exterior_2", "wrist"), DROID_CAMERAS, strict=True))
_CAMERA_TYPE = "observation/camera_type/"
_VELOCITY, _GRIPPER = "action/cartesian_velocity", "action/gripper_position"
_SKIPPED, _ENABLED = "observation/timestamp/skip_action", "observation/controller_info/movement_enabled"
_STARTED = "observation/timestamp/control/step_start"
"""When each step began, in milliseconds."""
_RELEASED = {
    "observation/robot_state/cartesian_position": "observation/cartesian_position",
    "observation/robot_state/joint_positions": "observation/joint_position",
    "observation/robot_state/gripper_position": "observation/gripper_position",
    **{
        f"action/{name}": f"action_dict/{name}"
        for name in (
            "cartesian_position",
            "cartesian_velocity",
            "gripper_position",
            "gripper_velocity",
            "joint_position",
            "joint_velocity",
        )
    },
}
"""Fields that have another name in the RLDS release."""
_ESSENTIAL = frozenset((*_RELEASED, _SKIPPED, _ENABLED))
"""Fields that an episode must have for every step, where it has them; others are left out when they don't."""
_SAMPLE = 64 << 10
"""Bytes from both ends of a video that enter the fingerprint: in one of them lies the table of its frames."""


class DroidRaw:
    """Reader of an episode's folder or trajectory, a lab's folder, or all of them.

    Args:
        source: path or fsspec URI.
        options: name of the collection.

    Raises:
        UserError: when there is no trajectory.
    """

    format: ClassVar[str] = "droid-raw"
    unwanted: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, source: str, options: IngestOptions) -> None:
        self._options = options
        self._source = source
        found = find(source, _is_wanted)
        self._trajectories = [item for item in found if isinstance(item, SourceFile) and is_mine(item.name)]
        self._others = [item for item in found if not isinstance(item, SourceFile)]
        if not self._trajectories:
            raise UserError(f"{printable(source)} holds no {_TRAJECTORY}: is it another --format?")
        files = [item for item in found if isinstance(item, SourceFile)]
        self._beside = _by_folder(files)

    def spec(self) -> DatasetSpec:
        """DROID's, for every lab has the same robot and cameras."""
        return DatasetSpec(
            cameras=DROID_CAMERAS,
            action_dim=DROID_ACTION_DIM,
            action=DROID_ACTION,
            states=DROID_STATES,
            views=DROID_VIEWS,
        )

    def refs(self) -> Iterator[SourceRef | Rejection | LeftOut]:
        """One reference per trajectory; the fingerprint is a hash of it, and of both ends of its videos."""
        stereo = 0
        for file in self._trajectories:
            videos = self._videos(file)
            stereo += sum(name.endswith("-stereo") for name in videos)
            yield _reference(file, {name: video for name, video in videos.items() if not name.endswith("-stereo")})
        if stereo:
            yield LeftOut(source_uri=printable(self._source), what=f"{stereo} stereo videos of cameras that are read")
        yield from self._others

    def read(self, ref: SourceRef) -> Iterator[Episode | LeftOut]:
        """The one episode of a trajectory, and what is odd about it. Raises BadDataError."""
        with reading():
            layout = describe(ref.file)
            layout.check_links()
            numbers = {path: array for path, array in layout.arrays.items() if _is_read(array)}
            values = read_arrays(ref.file, numbers)
            steps = _steps(values)
            serials, strange = _serials(values)
            strange += [f"{name}: {len(values.pop(name))} entries for {steps} steps" for name in _uneven(values, steps)]
            videos = self._videos(ref.file)
            if missing := [serial for serial in serials if serial not in videos]:
                raise BadDataError("missing_video", f"there is no {missing[0]}.mp4 in recordings/MP4")
            frames: dict[str, EncodedFrames] = {}
            for serial, place in serials.items():
                frames[_PLACES[place]], note = _frames(videos[serial], steps)
                strange += [f"{_PLACES[place]} {note}"] if note else []
        known = ~_waited(values, steps)
        if not known.all():
            strange.append(f"{steps - int(known.sum())} steps in which the robot waited: kept, without an action")
        left = sorted(set(layout.arrays) - set(numbers))  # texts and the like
        strange += [f"{', '.join(left)}: no numbers of steps"] if left else []
        yield from (LeftOut(source_uri=ref.uri, what=what) for what in strange)
        yield self._episode(ref, layout.attributes, values, frames, known, serials)

    def times(self, ref: SourceRef) -> NDArray[np.float64]:
        """When the steps of a trajectory began, (T,) in seconds. Raises BadDataError."""
        with reading():
            array = describe(ref.file).array(_STARTED)
            return np.sort(read_arrays(ref.file, {_STARTED: array})[_STARTED].astype(np.float64).ravel() / 1000)

    def _episode(
        self,
        ref: SourceRef,
        attributes: Attributes,
        values: Mapping[str, NDArray[Any]],
        frames: Mapping[str, EncodedFrames],
        known: NDArray[np.bool_],
        serials: Mapping[str, str],
    ) -> Episode:
        steps = len(known)
        fields = state_fields({_field_name(path, serials): array for path, array in values.items()}, steps)
        lab, success, identity = self._recorded(ref.file)
        task = attributes.get("current_task")
        action = droid_action(fields[_RELEASED[_VELOCITY]], fields[_RELEASED[_GRIPPER]])
        return Episode(
            meta=EpisodeMeta(
                episode_id=hashlib.sha256((identity or f"trajectory\0{ref.content}").encode()).hexdigest()[:32],
                source_uri=ref.uri,
                source_format=self.format,
                source_fingerprint=ref.fingerprint,
                collection=self._options.collection or lab or printable(ref.file.folder.rpartition("/")[2]) or "droid",
                fps=_rate(values),
                language=(task.strip(),) if isinstance(task, str) and task.strip() else (),
                success=success if success is not None else _success(attributes),
            ),
            action=np.where(known[:, None], action, np.float32(0)),
            action_mask=known,
            frames=frames,
            state=fields,
        )

    def _videos(self, trajectory: SourceFile) -> dict[str, SourceFile]:
        """The videos of an episode by name without suffix: the serial, or serial and `-stereo`."""
        return {
            name.removesuffix(".mp4"): file for name, file in self._files(trajectory).items() if name.endswith(".mp4")
        }

    def _files(self, trajectory: SourceFile) -> dict[str, SourceFile]:
        """What lies beside a trajectory, by file name; looked up when the source names the trajectory alone."""
        if trajectory.folder not in self._beside:
            place = (
                trajectory.folder if trajectory.protocol == "file" else f"{trajectory.protocol}://{trajectory.folder}"
            )
            listed = find(place, _is_wanted)
            self._beside |= {trajectory.folder: {}} | _by_folder([f for f in listed if isinstance(f, SourceFile)])
        return self._beside[trajectory.folder]

    def _recorded(self, trajectory: SourceFile) -> tuple[str | None, bool | None, str | None]:
        """Lab, success and identity by the path, or by the one that the metadata keeps."""
        found = recorded(trajectory.path)
        documents = [f for name, f in self._files(trajectory).items() if name.startswith("metadata")]
        if found[2] is not None or not documents:
            return found
        try:
            said = find_document(Location(documents[0].uri, documents[0].protocol, documents[0].path), dict[str, Any])
        except DamagedError as error:
            raise BadDataError("bad_metadata", str(error)) from error
        return recorded(f"{(said or {}).get('lab')}/{(said or {}).get('hdf5_path')}")


def is_mine(name: str) -> bool:
    """Whether a file name is that of a trajectory."""
    return name == _TRAJECTORY


def open_reader(source: str, options: IngestOptions, _dataset: DatasetSpec | None) -> DroidRaw:
    """For the registry."""
    return DroidRaw(source, options)


def _is_wanted(name: str) -> bool:
    return is_mine(name) or name.endswith(".mp4") or (name.startswith("metadata") and name.endswith(".json"))


def _by_folder(files: list[SourceFile]) -> dict[str, dict[str, SourceFile]]:
    """The videos and documents of each episode's folder, by name."""
    beside: dict[str, dict[str, SourceFile]] = {}
    for file in files:
        folder, videos, name = file.path.rpartition(_VIDEOS)
        if file.name.endswith(".mp4") and videos and "/" not in name:
            beside.setdefault(folder, {})[file.name] = file
        elif file.name.endswith(".json"):
            beside.setdefault(file.folder, {})[file.name] = file
    return beside


def _reference(file: SourceFile, videos: Mapping[str, SourceFile]) -> SourceRef | Rejection:
    try:
        with file.open() as opened:
            digest = hashlib.sha256(content_fingerprint(opened, file.size).encode())
        for name, video in sorted(videos.items()):
            digest.update(f"{name}\0{video.size}\0".encode())
            digest.update(video.read(0, _SAMPLE))
            digest.update(video.read(max(0, video.size - _SAMPLE), _SAMPLE))
    except OSError as error:
        detail = f"{type(error).__name__}: {error.strerror or error}"
        return Rejection(source_uri=file.uri, fingerprint=f"size={file.size}", reason="unreadable", detail=detail)
    length = file.size + sum(video.size for video in videos.values())
    return SourceRef(uri=file.uri, fingerprint=digest.hexdigest()[:32], file=file, length=length)


def _is_read(array: Array) -> bool:
    return not array.refused.startswith("unsupported")


def _steps(values: Mapping[str, NDArray[Any]]) -> int:
    """T, which all essential fields agree on. Raises BadDataError."""
    for name, shape in ((_VELOCITY, (6,)), (_GRIPPER, ())):
        if name not in values:
            raise BadDataError("missing_field", f"there is no {name}")
        if values[name].shape[1:] not in (shape, shape or (1,)):
            raise BadDataError("action_dim", f"{name} has the shape {values[name].shape}")
    steps = len(values[_VELOCITY])
    if not steps:
        raise BadDataError("empty", "the trajectory has no steps")
    check_lengths({name: len(array) for name, array in values.items() if name in _ESSENTIAL}, steps)
    return steps


def _uneven(values: Mapping[str, NDArray[Any]], steps: int) -> list[str]:
    """Fields that do not have an entry for every step, such as those of a camera that missed one."""
    return sorted(name for name, array in values.items() if len(array) != steps)


def _serials(values: Mapping[str, NDArray[Any]]) -> tuple[dict[str, str], list[str]]:
    """Where the camera of each serial is, and what is left out. Raises BadDataError "bad_cameras" or "no_camera"."""
    kinds: dict[str, int] = {}
    for path, array in values.items():
        if path.startswith(_CAMERA_TYPE):
            if len(np.unique(array)) != 1:
                raise BadDataError("bad_cameras", f"{path} changes within the episode")
            kinds[path.removeprefix(_CAMERA_TYPE)] = int(array.flat[0])
    wrist = sorted(serial for serial, kind in kinds.items() if kind == 0)
    exterior = sorted(serial for serial, kind in kinds.items() if kind != 0)
    if len(wrist) > 1:
        raise BadDataError("bad_cameras", f"cameras {', '.join(wrist)} are all said to be the wrist's")
    if not kinds:
        raise BadDataError("no_camera", "the trajectory names no camera")
    more = [f"camera {serial}, which is neither the wrist's nor one of two outside" for serial in exterior[2:]]
    return {
        **dict(zip(exterior[:2], ("exterior_1", "exterior_2"), strict=False)),
        **dict.fromkeys(wrist, "wrist"),
    }, more


def _frames(video: SourceFile, steps: int) -> tuple[EncodedFrames, str]:
    """A frame for every step, and a note where the video is a frame short or long. Raises BadDataError."""
    with decoding(video, fps=None, short_side=SHORT_SIDE) as (_, frames, _):
        found = encoded(frame[None] for frame in islice(frames, steps + 2))
    count = len(found)
    if abs(count - steps) > 1 or not count:
        more = "more than " if count > steps + 1 else ""
        count -= bool(more)
        raise BadDataError("length_mismatch", f"{video.name} has {more}{count} frames for {steps} steps")
    jpegs = (*found.jpegs, found.jpegs[-1])[:steps]
    note = {steps: "", steps - 1: "ends a frame early: its last one stays for the last step"}.get(
        count, "has a frame after the last step, which is dropped"
    )
    return EncodedFrames(height=found.height, width=found.width, jpegs=jpegs), note


def _waited(values: Mapping[str, NDArray[Any]], steps: int) -> NDArray[np.bool_]:
    """In which steps (T,) the action was not executed."""
    waited = np.zeros(steps, np.bool_)
    if _SKIPPED in values:
        waited |= values[_SKIPPED].reshape(steps, -1)[:, 0] != 0
    if _ENABLED in values:
        waited |= values[_ENABLED].reshape(steps, -1)[:, 0] == 0
    return waited


def _rate(values: Mapping[str, NDArray[Any]]) -> float:
    """Steps per second: DROID's own where the clock, which counts milliseconds, is within 5 % of it."""
    steps = np.diff(values[_STARTED].astype(np.float64).ravel()) if _STARTED in values else np.empty(0)
    usual = float(np.median(steps)) if len(steps) else 0.0
    if not 1 <= usual < 1e5:
        return DROID_FPS
    rate = 1000 / usual
    return DROID_FPS if abs(rate / DROID_FPS - 1) < 0.05 else rate


def _field_name(path: str, serials: Mapping[str, str]) -> str:
    """A field's name in the store, which is the same for all episodes."""
    folder, slash, name = path.rpartition("/")
    for serial, place in serials.items():
        if re.match(rf"{re.escape(serial)}(_|$)", name):
            return f"{folder}{slash}{place}{name.removeprefix(serial)}"
    return _RELEASED.get(path, path)


def _success(attributes: Attributes) -> bool | None:
    said = attributes.get("success"), attributes.get("failure")
    return said[0] if isinstance(said[0], bool) and said[0] != said[1] else None

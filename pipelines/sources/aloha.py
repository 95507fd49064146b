"""ACT and ALOHA: one HDF5 file per episode, `episode_N.hdf5`, with the joints of two arms and some cameras.

Cameras hold pixels, or JPEG images that are padded with zeros to one length. The recorder hands RGB pixels to an
encoder that expects BGR, so that what a decoder calls red is blue: channels are swapped back, which takes decoding.
Where an image ends its own end marker says, for the rows of `compress_len` are in the order of the recorder's cameras,
which the file does not keep. Nothing says the rate, which is 50 Hz, nor what was asked for.

Letters: T steps, H, W height and width in pixels, L bytes of a padded image.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError, LeftOut, Rejection, check_jpegs, check_lengths
from pipelines.files import SourceFile, find, printable
from pipelines.hdf5.episode import check_size, encoded, state_fields
from pipelines.hdf5.files import describe, has_suffix, read_arrays, read_blocks
from pipelines.hdf5.layout import Array, Layout
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, reading
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Camera, Part, Role, Space, StateField, undeclared

FPS = 50.0
"""ALOHA's control rate in Hz; its files carry no time."""
ACTION, OBSERVED, IMAGES = "action", "observations/", "observations/images/"
_ROLES: dict[str, Role] = {
    "cam_high": "exterior",
    "cam_low": "exterior",
    "cam_left_wrist": "wrist",
    "cam_right_wrist": "wrist",
    "top": "exterior",
    "angle": "exterior",
}
"""Cameras of the robot, and of ACT's simulation."""
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_ARMS = 14
"""Numbers of two arms of six joints and a gripper each."""


def _arm(side: str) -> tuple[Part, Part]:
    joints = Part(
        name=f"{side}_joint_position",
        quantity="joint_position",
        dim=len(_JOINTS),
        unit="rad",
        axes=tuple(f"{side}_{joint}" for joint in _JOINTS),
    )
    gripper = Part(name=f"{side}_gripper_position", quantity="gripper_position", dim=1, unit="1", open=1.0, closed=0.0)
    return joints, gripper


ALOHA_POSITIONS = Space(parts=(*_arm("left"), *_arm("right")))
"""What two arms are told, and where they are; grippers are normalized, 0 closed and 1 open."""


class Aloha:
    """Reader of an episode's file, a glob, or all HDF5 files in a folder.

    Args:
        source: path or fsspec URI.
        options: name of the collection.

    Raises:
        UserError: when there is no HDF5 file.
    """

    format: ClassVar[str] = "aloha"
    unwanted: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, source: str, options: IngestOptions) -> None:
        self._options = options
        self._found = find(source, has_suffix)
        self._files = [item for item in self._found if isinstance(item, SourceFile)]
        if not self._files:
            raise UserError(f"{printable(source)} holds no HDF5 file: is it another --format?")

    def spec(self) -> DatasetSpec:
        """The cameras and the action of the first file that is good; the robot's when none is."""
        return self._spec

    @cached_property
    def _spec(self) -> DatasetSpec:
        for file in self._files:
            try:
                with reading():
                    layout = describe(file)
                cameras, dim = sorted(_cameras(layout)), _dim(layout.array(ACTION))
            except BadDataError:  # which is said when it is read
                continue
            if cameras:
                return _spec(tuple(cameras), dim, layout)
        return DatasetSpec(cameras=tuple(_ROLES)[:4], action_dim=_ARMS)

    def refs(self) -> Iterator[SourceRef | Rejection | LeftOut]:
        """One reference per file; the fingerprint is a hash of its numbers and of rows spread over its images."""
        for item in self._found:
            yield _reference(item) if isinstance(item, SourceFile) else item

    def read(self, ref: SourceRef) -> Iterator[Episode | LeftOut]:
        """The one episode of a file. Raises BadDataError."""
        with reading():
            layout = describe(ref.file)
            layout.check_links()
            steps = layout.array(ACTION).shape[0] if _dim(layout.array(ACTION)) else 0
            if not steps:
                raise BadDataError("empty", "the episode has no steps")
            cameras = _cameras(layout)
            if not cameras:
                raise BadDataError("no_camera", "observations/images holds no images")
            numbers = _numbers(layout)
            check_lengths({path: array.shape[0] for path, array in (numbers | _by_path(cameras)).items()}, steps)
            fields = state_fields(read_arrays(ref.file, numbers), steps)
            action = fields.pop(ACTION)
            left = sorted(set(layout.arrays) - set(numbers) - set(_by_path(cameras)) - {"compress_len"})
            if left:
                yield LeftOut(source_uri=ref.uri, what=f"{', '.join(left)}: no numbers of steps and no pictures")
            yield Episode(
                meta=EpisodeMeta(
                    episode_id=hashlib.sha256(f"{self.format}\0{ref.content}".encode()).hexdigest()[:32],
                    source_uri=ref.uri,
                    source_format=self.format,
                    source_fingerprint=ref.fingerprint,
                    collection=self._options.collection or printable(ref.file.folder.rpartition("/")[2]) or "aloha",
                    fps=FPS,
                ),
                action=action.astype(np.float32),
                action_mask=np.ones(steps, np.bool_),
                frames={name: _frames(ref.file, name, array) for name, array in cameras.items()},
                state=fields,
            )


def is_mine(name: str) -> bool:
    """Whether a file name is that of an HDF5 file."""
    return has_suffix(name)


def recognizes(file: SourceFile) -> bool:
    """Whether a file holds an episode of ACT's layout."""
    with reading():
        layout = describe(file, depth=2)
    return ACTION in layout.arrays and f"{OBSERVED}qpos" in layout.arrays


def open_reader(source: str, options: IngestOptions, _dataset: DatasetSpec | None) -> Aloha:
    """For the registry."""
    return Aloha(source, options)


def _spec(cameras: tuple[str, ...], dim: int, layout: Layout) -> DatasetSpec:
    action = ALOHA_POSITIONS if dim == _ARMS else undeclared(ACTION, dim)
    qpos = layout.arrays.get(f"{OBSERVED}qpos")
    known = qpos is not None and qpos.shape[1:] == (_ARMS,)
    return DatasetSpec(
        cameras=cameras,
        action_dim=dim,
        action=action.model_copy(update={"rate": FPS}),
        states=(StateField(name=f"{OBSERVED}qpos", space=ALOHA_POSITIONS),) if known else (),
        views=tuple(Camera(name=name, role=_ROLES[name]) for name in cameras if name in _ROLES),
    )


def _reference(file: SourceFile) -> SourceRef | Rejection:
    try:
        with reading():
            layout = describe(file, digests=True)
        layout.check_links()
        if ACTION not in layout.arrays or f"{OBSERVED}qpos" not in layout.arrays:
            raise BadDataError("other_format", "it has no `action` and `observations/qpos`: use another --format")
    except BadDataError as error:
        return Rejection(source_uri=file.uri, fingerprint=f"size={file.size}", reason=error.reason, detail=error.detail)
    length = sum(array.nbytes for array in layout.arrays.values() if not array.refused)
    return SourceRef(uri=file.uri, fingerprint=layout.fingerprint, file=file, length=length)


def _dim(action: Array) -> int:
    """Numbers of an action. Raises BadDataError "bad_shape"."""
    if len(action.shape) != 2 or not action.shape[1]:
        raise BadDataError("bad_shape", f"action has the shape {action.shape}")
    return action.shape[1]


def _cameras(layout: Layout) -> dict[str, Array]:
    """The cameras by name: pixels (T, H, W, 3) or padded images (T, L)."""
    inside = {path.removeprefix(IMAGES): array for path, array in layout.arrays.items() if path.startswith(IMAGES)}
    return {
        name: array
        for name, array in sorted(inside.items())
        if "/" not in name and (array.is_images or (array.dtype == "uint8" and len(array.shape) == 2))
    }


def _by_path(cameras: dict[str, Array]) -> dict[str, Array]:
    """The same by their paths in the file."""
    return {f"{IMAGES}{name}": array for name, array in cameras.items()}


def _numbers(layout: Layout) -> dict[str, Array]:
    return {
        path: array
        for path, array in layout.arrays.items()
        if not path.startswith(IMAGES)
        and path != "compress_len"
        and not array.refused.startswith("unsupported")
        and len(array.shape) <= 2
    }


def _frames(file: SourceFile, camera: str, array: Array) -> EncodedFrames:
    blocks = (block for _, block in read_blocks(file, {f"{IMAGES}{camera}": array}))
    if array.is_images:
        check_size(camera, *array.shape[1:3])
        return encoded(blocks)
    return encoded(frame for block in blocks for frame in _decoded(camera, block))


def _decoded(camera: str, padded: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """Padded images (N, L) as pixels (1, H, W, 3) with their channels put right. Raises BadDataError."""
    import simplejpeg

    jpegs = [row.tobytes().rstrip(b"\0") for row in padded]
    check_jpegs(camera, jpegs)
    for jpeg in jpegs:
        yield simplejpeg.decode_jpeg(jpeg, "BGR")[None]

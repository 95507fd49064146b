"""Replay buffers of diffusion_policy and UMI: Zarr v2 with all steps in a row and `meta/episode_ends`.

UMI has no action: the next pose is the action, and that of the last step is unknown. The stores say neither what their
other numbers mean nor at which rate they were recorded. An episode is known by its numbers.
Letters: T steps of an episode, N of a store, H and W of an image, A action dimensions.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.checks import quality
from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import SourceFile, find, printable
from pipelines.hdf5.episode import check_size, encoded, state_fields
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, reading
from pipelines.zarr_v2 import ENDS, ArrayV2, FolderGroup, Group, ZipGroup, arrays_of
from storage_schemas.episode import Episode, EpisodeMeta
from storage_schemas.errors import UserError
from storage_schemas.location import Location
from storage_schemas.schema import DatasetSpec, check_field_names
from storage_schemas.spaces import Camera, Part, Space, StateField, undeclared

RATE, UMI_RATE = 10.0, 60.0
"""Steps per second of diffusion_policy's own tasks, and of UMI's cameras (59.94)."""
_MAX_EPISODES = 1 << 24
_MAX_ACTION, _MAX_WIDTH = 4096, 1 << 16
"""Numbers of a step."""
_MAX_EPISODE_BYTES = 4 << 30
_BLOCK_BYTES = 32 << 20
"""Of images that are decoded at once."""
_SAMPLES = 3
"""Images of an episode whose bytes go into its fingerprint; of all others the sizes, or a zip file's checksums."""
_META = "/meta/.zgroup"
_UMI_CAMERA = re.compile(r"camera\d+_rgb")
_UMI_POSE = re.compile(r"(robot\d+)_eef_pos")
_POSE = ("eef_pos", "eef_rot_axis_angle", "gripper_width")


def _umi_parts(robot: str) -> tuple[Part, ...]:
    """What UMI's numbers of one gripper mean; the pose is that of a map which the camera made of the room."""
    position, rotation, width = (f"{robot}_{name}" for name in _POSE)
    return (
        Part(name=position, quantity="position", dim=3, unit="m", frame="world", axes=("x", "y", "z")),
        Part(name=rotation, quantity="rotation", dim=3, representation="axis_angle", unit="rad", frame="world"),
        Part(name=width, quantity="gripper_position", dim=1, unit="m"),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Store:
    """One replay buffer."""

    file: SourceFile
    """The zip file, or the metadata of the group that the episodes' ends are in."""
    name: str
    group: Group
    ends: NDArray[np.int64]
    images: dict[str, ArrayV2]
    numbers: dict[str, ArrayV2]
    left_out: dict[str, str]
    """Why an array is neither."""

    @cached_property
    def robots(self) -> tuple[str, ...]:
        """UMI's grippers; none when there is an action."""
        if "action" in self.numbers:
            return ()
        found = (match[1] for name in self.numbers if (match := _UMI_POSE.fullmatch(name)))
        return tuple(robot for robot in sorted(found) if all(map(self._has, _umi_parts(robot))))

    def _has(self, part: Part) -> bool:
        return part.name in self.numbers and _width(self.numbers[part.name]) == part.dim

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What the action's numbers mean."""
        if self.robots:
            return tuple(part for robot in self.robots for part in _umi_parts(robot))
        return undeclared("action", _width(self.numbers["action"])).parts

    def action(self, numbers: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The action (T, A) of an episode, and of which steps (T,) it is known."""
        if not self.robots:
            action = numbers["action"].astype(np.float32)
            return action, np.ones(len(action), np.bool_)
        poses = np.concatenate([numbers[part.name] for part in self.parts], axis=1).astype(np.float32)
        action = np.concatenate([poses[1:], np.zeros_like(poses[:1])])
        return action, np.arange(len(action)) < len(action) - 1


class ReplayBuffers:
    """Reader of replay buffers: folders or `.zarr.zip` files, one or all that lie below a folder.

    Args:
        source: path or fsspec URI.
        options: its `rate` says the steps per second, which the stores do not.

    Raises:
        UserError: when there is none, none can be read, or two hold different actions.
    """

    format: ClassVar[str] = "replay-buffer"
    unwanted: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, source: str, options: IngestOptions) -> None:
        self._options = options
        self._stores: dict[str, _Store] = {}
        self._unusable: list[Rejection | LeftOut] = []
        for item in find(source, is_mine):
            if isinstance(item, SourceFile) and recognizes(item):
                self._open(item)
            elif isinstance(item, Rejection):
                self._unusable.append(item)
        if not self._stores:
            why = next((f"{one.source_uri}: {one.detail}" for one in self._unusable if isinstance(one, Rejection)), "")
            told = f"no replay buffer that can be read ({why})" if why else "no replay buffer: is it another --format?"
            raise UserError(f"{printable(source)} holds {told}")
        first, *rest = self._stores.values()
        if other := next((store for store in rest if store.parts != first.parts), None):
            raise UserError(f"{other.file.uri} has other actions than {first.file.uri}: ingest them one by one")

    def spec(self) -> DatasetSpec:
        """All cameras in order; UMI's look from the wrist, and its numbers are declared."""
        stores = list(self._stores.values())
        cameras = tuple(dict.fromkeys(name for store in stores for name in store.images))
        parts = stores[0].parts
        fields = (part for robot in stores[0].robots for part in _umi_parts(robot))
        return DatasetSpec(
            cameras=cameras,
            action_dim=sum(part.dim for part in parts),
            action=Space(parts=parts, rate=self._fps(stores[0])),
            states=tuple(StateField(name=part.name, space=Space(parts=(part,))) for part in fields),
            views=tuple(Camera(name=name, role="wrist") for name in cameras if _UMI_CAMERA.fullmatch(name)),
        )

    def refs(self) -> Iterator[SourceRef | Rejection | LeftOut]:
        """One reference per episode.

        The fingerprint is a hash of its numbers, of some of its images' bytes, and of the sizes of the others.
        """
        yield from self._unusable
        for store in self._stores.values():
            for name, why in store.left_out.items():
                yield LeftOut(source_uri=store.file.uri, what=f"data/{name}: {why}")
            if self._options.rate is None:
                what = (
                    f"no rate is stored: {self._fps(store):g} steps per second are taken, unless --rate says otherwise"
                )
                yield LeftOut(source_uri=store.file.uri, what=what, tolerated=True)
            rows = min((len(array) for array in (*store.images.values(), *store.numbers.values())), default=0)
            if len(store.ends) and (more := rows - int(store.ends[-1])) > 0:
                yield LeftOut(source_uri=store.file.uri, what=f"{more} steps behind the last episode's end")
            for index in range(len(store.ends)):
                yield self._reference(store, index)

    def read(self, ref: SourceRef) -> Iterator[Episode]:
        """The one episode of a reference. Raises BadDataError."""
        store, index = self._stores.get(ref.file.uri), int(ref.uri.rpartition("=")[2])
        if store is None or index >= len(store.ends):
            raise BadDataError("unreadable", "it is not in the source any more")
        with reading():
            yield self._episode(ref, store, index)

    def _open(self, file: SourceFile) -> None:
        try:
            with reading():
                self._stores[file.uri] = _open_store(file)
        except BadDataError as error:
            self._unusable.append(
                Rejection(
                    source_uri=file.uri, fingerprint=f"size={file.size}", reason=error.reason, detail=error.detail
                )
            )

    def _fps(self, store: _Store) -> float:
        return self._options.rate or (UMI_RATE if store.robots else RATE)

    def _reference(self, store: _Store, index: int) -> SourceRef | Rejection:
        uri = f"{store.file.uri}#episode={index}"
        try:
            start, stop = _span(store, index)
            with reading():
                fingerprint = f"{_identity(store, start, stop)}-{_images_digest(store, start, stop)}"
        except BadDataError as error:
            mark = f"{error.reason}-{store.ends[index]}"
            return Rejection(source_uri=uri, fingerprint=mark, reason=error.reason, detail=error.detail)
        size = (stop - start) * sum(array.row_bytes for array in (*store.images.values(), *store.numbers.values()))
        return SourceRef(uri=uri, fingerprint=fingerprint, file=store.file, length=size)

    def _episode(self, ref: SourceRef, store: _Store, index: int) -> Episode:
        start, stop = _span(store, index)
        numbers = {name: array.rows(start, stop) for name, array in store.numbers.items()}
        times = {name for name, values in numbers.items() if "timestamp" in name and values.dtype.itemsize == 8}
        state = state_fields(numbers, stop - start, times)
        frames = {name: encoded(_pictures(name, array, start, stop)) for name, array in store.images.items()}
        action, mask = store.action(state)
        return Episode(
            meta=EpisodeMeta(
                episode_id=hashlib.sha256(f"replay\0{_identity(store, start, stop)}".encode()).hexdigest()[:32],
                source_uri=ref.uri,
                source_format=self.format,
                source_fingerprint=ref.fingerprint,
                collection=self._options.collection or store.name,
                fps=self._fps(store),
            ),
            action=action,
            action_mask=mask,
            frames=frames,
            state={name: values for name, values in state.items() if name != "action"},
        )


def is_mine(name: str) -> bool:
    """Whether a file name is that of a group's metadata, or of a zipped store."""
    return name == ".zgroup" or name.endswith(".zarr.zip")


def recognizes(file: SourceFile) -> bool:
    """Whether a group is that of the episodes' ends."""
    if not file.path.endswith(_META):
        return file.name.endswith(".zarr.zip")
    root = file.path.removesuffix(_META)
    return (Location(root, file.protocol, root) / f"{ENDS}/.zarray").exists()


def open_reader(source: str, options: IngestOptions, _dataset: DatasetSpec | None) -> ReplayBuffers:
    """For the registry."""
    return ReplayBuffers(source, options)


def _open_store(file: SourceFile) -> _Store:
    """Read the metadata of a store. Raises BadDataError."""
    root = file.path.removesuffix(_META)
    group = ZipGroup(file) if file.name.endswith(".zip") else FolderGroup(Location(root, file.protocol, root))
    try:
        ends = ArrayV2(group, ENDS)
    except FileNotFoundError as error:
        raise BadDataError("bad_metadata", f"it has no {ENDS}") from error
    if len(ends.shape) != 1 or ends.dtype.kind not in "iu" or len(ends) > _MAX_EPISODES:
        raise BadDataError("bad_metadata", f"{ENDS} is no list of at most {_MAX_EPISODES} numbers")
    images, numbers, left_out = {}, {}, {}
    for name, array in arrays_of(group, "data").items():
        why = array.detail if isinstance(array, BadDataError) else _no_field(name, array)
        if why or isinstance(array, BadDataError):
            left_out[name] = why
        elif len(array.shape) == 4:
            images[name] = array
        else:
            numbers[name] = array
    store = _Store(
        file=file,
        name=printable(root.rpartition("/")[2].removesuffix(".zip").removesuffix(".zarr")),
        group=group,
        ends=ends.rows(0, len(ends)).astype(np.int64),
        images=images,
        numbers=numbers,
        left_out=left_out,
    )
    if not images:
        raise BadDataError("no_camera", f"it has no images; {_listing(store)}")
    if not store.robots and "action" not in numbers:
        raise BadDataError("no_action", f"it has neither data/action nor UMI's poses; {_listing(store)}")
    return store


def _listing(store: _Store) -> str:
    known = [*(f"{name} {array.shape}" for name, array in (store.images | store.numbers).items())]
    return f"data holds {', '.join([*known, *(f'{name} ({why})' for name, why in store.left_out.items())][:20])}"


def _no_field(name: str, array: ArrayV2) -> str:
    """Why an array is neither a camera nor a field of numbers; empty when it is one."""
    try:
        check_field_names([name])
    except ValueError as error:
        return str(error)
    if len(array.shape) == 4:
        is_picture = 3 in (array.shape[1], array.shape[3]) and array.dtype.str[1:] in ("u1", "f2", "f4", "f8")
        return "" if is_picture else f"no pictures in colours: {array.dtype.name} {array.shape}"
    most = _MAX_ACTION if name == "action" else _MAX_WIDTH
    return "" if len(array.shape) < 4 and 0 < _width(array) <= most else f"no list of numbers: {array.shape}"


def _width(array: ArrayV2) -> int:
    return array.row_bytes // array.dtype.itemsize


def _span(store: _Store, index: int) -> tuple[int, int]:
    """First step of an episode and the one behind its last. Raises BadDataError."""
    start, stop = int(store.ends[index - 1]) if index else 0, int(store.ends[index])
    if not 0 <= start < stop:
        raise BadDataError("bad_boundaries", f"it begins at step {start} and ends at {stop}")
    arrays = [*store.images.values(), *store.numbers.values()]
    if short := next((array for array in arrays if len(array) < stop), None):
        raise BadDataError("length_mismatch", f"it ends at step {stop}, {short.name} has {len(short)}")
    if (stop - start) * sum(array.row_bytes for array in arrays) > _MAX_EPISODE_BYTES:
        raise BadDataError("too_large", f"{stop - start} steps of one episode")
    return start, stop


def _identity(store: _Store, start: int, stop: int) -> str:
    """Hash of an episode's numbers."""
    digest = hashlib.sha256(str(stop - start).encode())
    for name, array in sorted(store.numbers.items()):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(array.rows(start, stop)).tobytes())
    return digest.hexdigest()[:32]


def _images_digest(store: _Store, start: int, stop: int) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(store.images.items()):
        digest.update("\0".join([name, *array.chunk_digests(start, stop)]).encode())
        for step in np.linspace(start, stop - 1, _SAMPLES).round().astype(int).tolist():
            digest.update(array.encoded(step))
    return digest.hexdigest()[:16]


def _pictures(name: str, array: ArrayV2, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """Blocks of images (N, H, W, 3); floats go from 0 to 1 or from 0 to 255, which the store's first ones tell.

    Raises:
        BadDataError: "out_of_range", "non_finite", "bad_shape", and what reading an array raises.
    """
    last = array.shape[3] == 3
    check_size(name, *(array.shape[1:3] if last else array.shape[2:]))
    most = 255.0
    if array.dtype.kind == "f" and float(array.rows(0, min(len(array), array.chunks[0])).max()) <= 1.0:
        most = 1.0
    for first, behind in _blocks(array, start, stop):
        values = array.rows(first, behind)
        pictures = values if last else np.moveaxis(values, 1, -1)
        if array.dtype.kind == "f":
            quality.check_finite({name: values})
            if values.min() < 0 or values.max() > most:
                detail = f"{name} goes from {values.min():g} to {values.max():g}, where 0 to {most:g} was expected"
                raise BadDataError("out_of_range", detail)
            pictures = np.round(pictures * (255.0 / most)).astype(np.uint8)
        yield pictures


def _blocks(array: ArrayV2, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Rows from and to, in whole chunks and not much more than `_BLOCK_BYTES` at once."""
    step = array.chunks[0] * max(1, _BLOCK_BYTES // max(1, array.row_bytes * array.chunks[0]))
    edges = [start, *range((start // step + 1) * step, stop, step), stop]
    yield from pairwise(edges)

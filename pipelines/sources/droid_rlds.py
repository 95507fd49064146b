"""DROID in RLDS: TFRecord files as tensorflow-datasets writes them, one record per episode, without TensorFlow.

The fields come from `features.json`; where that is absent, from the first readable record. JPEG bytes pass through
untouched. Letters: T steps, D dimensions of a field.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.checks import quality
from pipelines.checks.quality import BadDataError, Rejection
from pipelines.files import SourceFile, find, printable
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, reading
from pipelines.tfrecord import Example, Record, check_record, scan
from storage_schemas.conventions import DROID_ACTION_DIM, DROID_CAMERAS, DROID_FPS, droid_action
from storage_schemas.documents import find_document
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import Location
from storage_schemas.schema import DatasetSpec, check_field_names

_SHARD = re.compile(r"(?P<stem>.+-(?P<split>[^-]+)\.tfrecord)-(?P<index>\d{5,})-of-(?P<total>\d{5,})")
_MAX_JSON = 1 << 24
_MAX_DIM = 1 << 20
_STRUCTURE = ("is_first", "is_last")  # checked, then implied by the episode's length
_VELOCITY, _GRIPPER = "action_dict/cartesian_velocity", "action_dict/gripper_position"


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What the records of a folder hold, by name without the leading `steps/`."""

    cameras: tuple[str, ...]
    """Keys of the image fields, such as `observation/wrist_image_left`."""
    numbers: Mapping[str, int]
    """Name of each numeric field and its D."""
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """One version folder of a dataset."""

    name: str
    fields: Fields
    records: Mapping[str, int]
    """How many records `dataset_info.json` promises, by the shard's file name."""
    shards: tuple[SourceFile, ...]
    problems: tuple[Rejection, ...]


class DroidRlds:
    """Reader of a shard, a version folder, a dataset folder or anything above them.

    Args:
        source: path or fsspec URI.
        collection: name for all episodes instead of the lab that recorded them.

    Raises:
        UserError: when there is no TFRecord file, or none that says what it holds.
    """

    format: ClassVar[str] = "droid-rlds"
    unwanted: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, source: str, *, collection: str | None = None) -> None:
        self._collection = collection
        found = find(source, is_mine)
        self._unusable = [item for item in found if isinstance(item, Rejection)]
        shards: dict[str, list[SourceFile]] = {}
        for file in found:
            if isinstance(file, SourceFile) and is_mine(file.name):
                shards.setdefault(file.folder, []).append(file)
        if not shards:
            raise UserError(f"{printable(source)} holds no TFRecord file: is it another --format?")
        whole = not is_mine(source.rstrip("/").rpartition("/")[2])
        self._folders = {folder: _open_folder(files, whole) for folder, files in shards.items()}

    def spec(self) -> DatasetSpec:
        """DROID's three views, even where the source lacks one; other cameras in the order of the source."""
        fields = (folder.fields for folder in self._folders.values())
        cameras = tuple(dict.fromkeys(_camera(key) for f in fields for key in f.cameras))
        return DatasetSpec(
            cameras=DROID_CAMERAS if set(cameras) <= set(DROID_CAMERAS) else cameras, action_dim=DROID_ACTION_DIM
        )

    def refs(self) -> Iterator[SourceRef | Rejection]:
        """One reference per record, found by seeking over the framing; the fingerprint is its length and checksum."""
        yield from self._unusable
        for folder in self._folders.values():
            yield from folder.problems
            for shard in folder.shards:
                yield from _list_shard(shard, folder.records.get(shard.name))

    def read(self, ref: SourceRef) -> Iterator[Episode]:
        """The one episode of a record. Raises BadDataError."""
        folder = self._folders[ref.file.folder]
        with reading():
            raw = ref.file.read(ref.offset, ref.length)
        yield self._episode(ref, folder, Example(check_record(raw, ref.length, ref.checksum)))

    def _episode(self, ref: SourceRef, folder: _Folder, example: Example) -> Episode:
        steps = len(example.numbers("steps/is_first"))
        if steps == 0:
            raise BadDataError("empty", "the episode has no steps")
        _check_declared(example, folder.fields)
        state = _numbers(example, folder.fields, steps)
        quality.check_flags(state["is_first"][:, 0] != 0, state["is_last"][:, 0] != 0)
        quality.check_finite(state)
        missing = [name for name in (_VELOCITY, _GRIPPER) if name not in state]
        if missing:
            raise BadDataError("missing_field", f"the action needs {missing[0]}")
        place = ref.uri.removeprefix(printable(ref.file.folder))
        lab, success, identity = _identity(example, fallback=f"{folder.name}{place}")
        return Episode(
            meta=EpisodeMeta(
                episode_id=hashlib.sha256(f"droid\0{identity}".encode()).hexdigest()[:32],
                source_uri=ref.uri,
                source_format=self.format,
                source_fingerprint=ref.fingerprint,
                collection=self._collection or lab or folder.name,
                fps=DROID_FPS,
                language=_language(example, folder.fields),
                success=success,
            ),
            action=droid_action(state[_VELOCITY], state[_GRIPPER]),
            action_mask=np.ones(steps, np.bool_),
            frames={_camera(key): _frames(example, key, steps) for key in folder.fields.cameras},
            state={name: values for name, values in state.items() if name not in _STRUCTURE},
        )


def is_mine(name: str) -> bool:
    """Whether a file name is that of a TFRecord file."""
    return ".tfrecord" in name


def open_reader(source: str, options: IngestOptions, _dataset: DatasetSpec | None) -> DroidRlds:
    """For the registry."""
    return DroidRlds(source, collection=options.collection)


def _camera(key: str) -> str:
    return key.rpartition("/")[2]


def _list_shard(shard: SourceFile, promised: int | None) -> Iterator[SourceRef | Rejection]:
    count = 0
    try:
        with shard.open() as file:
            for found in scan(file, shard.size):
                yield _reference(shard, count, found)
                count += 1
    except OSError as error:
        yield _rejection(shard.uri, shard.size, "unreadable", f"{type(error).__name__}: {error.strerror or error}")
        return
    if promised is not None and count != promised:
        detail = f"dataset_info.json promises {promised} records, {count} were found"
        yield _rejection(shard.uri, shard.size, "count_mismatch", detail)


def _reference(shard: SourceFile, index: int, found: Record | BadDataError) -> SourceRef | Rejection:
    uri = f"{shard.uri}#record={index}"
    if isinstance(found, BadDataError):
        return _rejection(uri, shard.size, found.reason, found.detail)
    return SourceRef(
        uri=uri,
        fingerprint=f"{found.length:x}-{found.checksum:08x}",
        file=shard,
        offset=found.offset,
        length=found.length,
        checksum=found.checksum,
    )


def _rejection(uri: str, size: int, reason: str, detail: str) -> Rejection:
    return Rejection(source_uri=uri, fingerprint=f"size={size}", reason=reason, detail=detail)


def _open_folder(shards: list[SourceFile], whole: bool) -> _Folder:
    """Read a folder's metadata; `whole` says that all of its shards were asked for."""
    first = shards[0]
    place = Location(first.folder, first.protocol, first.folder)
    features, info = (_read_json(place / name) for name in ("features.json", "dataset_info.json"))
    problems = [value for value in (features, info) if isinstance(value, Rejection)]
    uri = first.uri.removesuffix(printable(first.name))
    name, records = first.name.partition("-")[0], dict[str, int]()
    if isinstance(info, dict):
        try:
            records, name = _promised(info, default=name)
        except BadDataError as error:
            problems.append(_rejection(f"{uri}dataset_info.json", 0, error.reason, error.detail))
    names = {shard.name for shard in shards}
    if whole:
        expected = sorted({*records, *(sibling for shard in names for sibling in _siblings(shard))} - names)
        problems += [_rejection(f"{uri}{e}", 0, "missing_shard", "the shard is not in its folder") for e in expected]
    fields = None
    if isinstance(features, dict):
        try:
            fields = _declared(features)
        except BadDataError as error:
            problems.append(_rejection(f"{uri}features.json", 0, error.reason, error.detail))
    fields = fields or _inferred(shards)
    return _Folder(name=name, fields=fields, records=records, shards=tuple(shards), problems=tuple(problems))


def _read_json(place: Location) -> dict[str, Any] | Rejection | None:
    """The object in a JSON file, None when there is no file."""
    try:
        return find_document(place, dict[str, Any])
    except DamagedError as error:
        return _rejection(printable(place.uri), 0, "bad_metadata", str(error))


def _promised(info: dict[str, Any], default: str) -> tuple[dict[str, int], str]:
    """Records by shard name, and the dataset's name, as `dataset_info.json` has them.

    Raises:
        BadDataError: "bad_metadata".
    """
    name, counts = str(info.get("name") or default), {}
    try:
        for split in info.get("splits") or []:
            lengths = split.get("shardLengths") or []
            for index, length in enumerate(lengths):
                counts[f"{name}-{split.get('name')}.tfrecord-{index:05d}-of-{len(lengths):05d}"] = int(length)
    except (AttributeError, TypeError, ValueError) as error:
        raise BadDataError("bad_metadata", f"its splits make no sense: {error}") from error
    return counts, name


def _siblings(shard: str) -> list[str]:
    """Names of all shards that were written together with this one."""
    match = _SHARD.fullmatch(shard)
    if not match or int(match["total"]) > 1_000_000:
        return []
    return [f"{match['stem']}-{index:05d}-of-{match['total']}" for index in range(int(match["total"]))]


def _declared(features: dict[str, Any]) -> Fields:
    """The fields that `features.json` declares under `steps`.

    Raises:
        BadDataError: "bad_metadata", when a feature is of no known kind or has no possible shape or name.
    """
    cameras, numbers, texts = [], {}, []
    try:
        for key, node in _leaves(features, ""):
            name = key.removeprefix("steps/")
            if name == key:
                continue
            if "image" in node:
                cameras.append(name)
            elif "text" in node or node["tensor"]["dtype"] in ("string", "object"):
                texts.append(name)
            else:
                numbers[name] = _dim(node["tensor"].get("shape", {}).get("dimensions", []))
        check_field_names(list(numbers))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadDataError("bad_metadata", f"a feature makes no sense: {type(error).__name__}: {error}") from error
    if not numbers:
        raise BadDataError("bad_metadata", "it declares no number under steps")
    return Fields(cameras=tuple(cameras), numbers=numbers, texts=tuple(texts))


def _dim(dimensions: list[Any]) -> int:
    dim = math.prod(int(size) for size in dimensions)
    if not 0 <= dim <= _MAX_DIM:
        raise ValueError(f"a shape of {dimensions}")
    return dim


def _leaves(node: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{key}/{name}" if key else name)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], key)
    else:
        yield key, node


def _inferred(shards: list[SourceFile]) -> Fields:
    """The fields of the first readable record of at least one step."""
    for shard in shards:
        for ref in _list_shard(shard, None):
            try:
                if isinstance(ref, SourceRef):
                    data = ref.file.read(ref.offset, ref.length)
                    return _fields_of(Example(check_record(data, ref.length, ref.checksum)))
            except BadDataError:
                continue
    raise UserError(f"{shards[0].uri}: no readable record, and no features.json beside it")


def _fields_of(example: Example) -> Fields:
    steps = len(example.numbers("steps/is_first"))
    if steps == 0:
        raise BadDataError("empty", "the episode has no steps")
    cameras, numbers, texts = [], {}, []
    for key in example.names():
        name = key.removeprefix("steps/")
        if name == key:
            continue
        strings = example.byte_strings(key)
        if not strings:
            numbers[name] = len(example.numbers(key)) // steps
        elif strings[0].startswith(b"\xff\xd8"):
            cameras.append(name)
        else:
            texts.append(name)
    return Fields(cameras=tuple(cameras), numbers=numbers, texts=tuple(texts))


def _numbers(example: Example, fields: Fields, steps: int) -> dict[str, NDArray[np.float32]]:
    """All numeric fields, each (T, D)."""
    values = {}
    for name, dim in fields.numbers.items():
        flat = example.numbers(f"steps/{name}")
        if len(flat) != steps * dim:
            detail = f"{name} has {len(flat)} numbers for {steps} steps of {dim}"
            raise BadDataError("length_mismatch", detail)
        values[name] = flat.reshape(steps, dim)
    for name in _STRUCTURE:
        if name not in values:
            raise BadDataError("missing_field", f"the record has no steps/{name}")
    return values


def _check_declared(example: Example, fields: Fields) -> None:
    """All fields of the record are declared, so that a damaged declaration loses none of them."""
    known = {f"steps/{name}" for name in (*fields.cameras, *fields.numbers, *fields.texts)}
    strange = [key for key in example.names() if key.startswith("steps/") and key not in known]
    if strange:
        raise BadDataError("undeclared_field", f"the record has {strange[0]}, which features.json does not declare")


def _frames(example: Example, key: str, steps: int) -> EncodedFrames:
    jpegs = example.byte_strings(f"steps/{key}")
    quality.check_lengths({key: len(jpegs)}, steps)
    height, width = quality.check_jpegs(_camera(key), jpegs)
    return EncodedFrames(height=height, width=width, jpegs=jpegs)


def _language(example: Example, fields: Fields) -> tuple[str, ...]:
    """The distinct instructions of an episode; slots may be missing or empty."""
    slots = [name for name in fields.texts if "language" in name and f"steps/{name}" in example]
    raw = dict.fromkeys(text for name in slots for text in dict.fromkeys(example.byte_strings(f"steps/{name}")))
    try:
        return tuple(dict.fromkeys(text for text in (value.decode().strip() for value in raw) if text))
    except UnicodeDecodeError as error:
        raise BadDataError("invalid_utf8", f"a language instruction is not UTF-8: {error.reason}") from error


def _identity(example: Example, fallback: str) -> tuple[str | None, bool | None, str]:
    """Lab, success and identity of an episode, from the path under which it was recorded.

    The recorded prefix differs between releases (/nfs/..., gs://...), so the path is read from the right:
    `<lab>/<success|failure>/<day>/<time>/trajectory.h5`.
    """
    key = "episode_metadata/file_path"
    paths = example.byte_strings(key) if key in example else ()
    parts = paths[0].decode(errors="replace").split("/") if paths else []
    for index in range(len(parts) - 2, 0, -1):
        if parts[index] in ("success", "failure") and parts[index - 1]:
            tail = parts[index - 1 : -1] if "." in parts[-1] else parts[index - 1 :]
            return parts[index - 1], parts[index] == "success", "/".join(tail)
    return None, None, fallback

"""RLDS: TFRecord files as tensorflow-datasets writes them, one record per episode, without TensorFlow.

The fields come from `features.json`; where that is absent, from all records. What they mean says a mapping
(`pipelines.sources.rlds_mapping`), DROID's when nobody names another. JPEG bytes pass through untouched.

An episode of DROID is known by where it was recorded, any other by its content: builders of different robots give
records the same names and places, and a set that is built again shuffles them.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipelines.checks import quality
from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import SourceFile, find, printable
from pipelines.names import MAPPINGS
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, reading
from pipelines.sources.droid_paths import recorded
from pipelines.sources.rlds_fields import (
    PNG,
    Fields,
    declared_fields,
    fields_of,
    instructions_of,
    numbers_of,
    pixels_of,
)
from pipelines.sources.rlds_mapping import RldsMapping, load_mapping
from pipelines.tfrecord import Example, Record, check_record, scan
from storage_schemas.documents import find_document
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta, Frames
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import Location
from storage_schemas.schema import DatasetSpec

_UNFINISHED = re.compile(r"\..*|.*(\.gstmp|\.part|\.partial|\.tmp|\.incomplete|\.crdownload|\.aria2)", re.DOTALL)
"""Names under which rsync, gsutil and others write what is not complete yet."""
_SHARD = re.compile(r"(?P<stem>.+-(?P<split>[^-]+)\.tfrecord)-(?P<index>\d{5,})-of-(?P<total>\d{5,})")
_STRUCTURE = ("is_first", "is_last")  # checked, then implied by the episode's length
_SHOWN = 40
"""Fields of a kind that a refusal lists."""


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """One version folder of a dataset."""

    name: str
    fields: Fields
    records: Mapping[str, int]
    """How many records `dataset_info.json` promises, by the shard's file name."""
    shards: tuple[SourceFile, ...]
    problems: tuple[Rejection, ...]


class Rlds:
    """Reader of a shard, a version folder, a dataset folder or anything above them.

    Args:
        source: path or fsspec URI.
        mapping: what the fields mean; without one the source is refused with a list of its fields.
        collection: name for all episodes instead of the lab or data set that they are from.

    Raises:
        UserError: when there is no TFRecord file, or none with the fields that the mapping needs.
    """

    format: ClassVar[str] = "rlds"
    unwanted: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, source: str, mapping: RldsMapping | None, *, collection: str | None = None) -> None:
        self._collection = collection
        shards: dict[str, list[SourceFile]] = {}
        self._unusable: list[Rejection | LeftOut] = []
        for file in find(source, is_mine, beside=("features.json", "dataset_info.json")):
            if not isinstance(file, SourceFile):
                self._unusable.append(file)
            elif _UNFINISHED.fullmatch(file.name):
                self._unusable.append(
                    _rejection(file.uri, file.size, "unfinished", "its name is that of a download under way")
                )
            elif is_mine(file.name):
                shards.setdefault(file.folder, []).append(file)
        if not shards:
            raise UserError(f"{printable(source)} holds no TFRecord file: is it another --format?")
        whole = not is_mine(source.rstrip("/").rpartition("/")[2])
        self._folders = {folder: _open_folder(files, whole) for folder, files in shards.items()}
        if mapping is None or not _fits(mapping, self._folders.values()):
            raise UserError(f"{printable(source)}: {_undeclared(mapping, self._folders.values())}")
        self._mapping = mapping

    def spec(self) -> DatasetSpec:
        """The mapping's cameras, even where the source lacks one; with others all in the order of the source."""
        mapping, fields = self._mapping, [folder.fields for folder in self._folders.values()]
        cameras = tuple(dict.fromkeys(mapping.camera(key) for f in fields for key in f.cameras))
        declared = tuple(camera.camera for camera in mapping.cameras)
        names = declared if set(cameras) <= set(declared) else cameras
        known = {name for f in fields for name in f.numbers}
        return DatasetSpec(
            cameras=names,
            action_dim=mapping.space.dim,
            action=mapping.space,
            states=tuple(field for field in mapping.state_fields if field.name in known),
            views=tuple(view for view in mapping.views if view.name in names),
        )

    def refs(self) -> Iterator[SourceRef | Rejection | LeftOut]:
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
        fields, mapping = folder.fields, self._mapping
        fields.check(example)
        state = numbers_of(example, fields, steps)
        if missing := [name for name in (*_STRUCTURE, *mapping.widths) if name not in state]:
            raise BadDataError("missing_field", f"the record has no steps/{missing[0]}")
        quality.check_flags(state["is_first"][:, 0] != 0, state["is_last"][:, 0] != 0)
        quality.check_finite(state)
        absent = {camera.field for camera in mapping.cameras if camera.present and _is_zero(example, camera.present)}
        images = [key for key in fields.of(example, fields.cameras) if key not in absent]
        frames = {mapping.camera(key): _frames(example, key, steps) for key in images}
        if not frames:
            raise BadDataError("no_camera", "the record has no image")
        lab, success, identity = _recorded(example) if mapping.recorded_path == "droid" else (None, None, None)
        return Episode(
            meta=EpisodeMeta(
                episode_id=hashlib.sha256((identity or f"record\0{ref.fingerprint}").encode()).hexdigest()[:32],
                source_uri=ref.uri,
                source_format=self.format,
                source_fingerprint=ref.fingerprint,
                collection=self._collection or lab or folder.name,
                fps=mapping.fps,
                language=instructions_of(example, *mapping.language),
                success=success,
            ),
            action=mapping.action_of(state),
            action_mask=np.ones(steps, np.bool_),
            frames=frames,
            state={name: values for name, values in state.items() if name not in _STRUCTURE},
        )


class DroidRlds(Rlds):
    """Reader of DROID's own release, and of what has its fields."""

    format: ClassVar[str] = "droid-rlds"

    def __init__(self, source: str, *, collection: str | None = None) -> None:
        super().__init__(source, load_mapping("droid"), collection=collection)


def is_mine(name: str) -> bool:
    """Whether a file name is that of a TFRecord file."""
    return ".tfrecord" in name


def open_reader(source: str, options: IngestOptions, _dataset: DatasetSpec | None) -> Rlds:
    """For the registry: DROID, unless the format or a mapping says otherwise. Raises UserError when they disagree."""
    if options.mapping in (None, "droid") and options.format != Rlds.format:
        return DroidRlds(source, collection=options.collection)
    if options.format == DroidRlds.format:
        raise UserError(f"--mapping {options.mapping} is not for {DroidRlds.format}: use --format {Rlds.format}")
    mapping = None if options.mapping is None else load_mapping(options.mapping)
    return Rlds(source, mapping, collection=options.collection)


def _fits(mapping: RldsMapping, folders: Collection[_Folder]) -> bool:
    """Whether some folder has the fields of the action; also when none of them has a record that can be read."""
    known = [folder.fields for folder in folders if folder.fields.numbers]
    return not known or any(mapping.widths.keys() <= fields.numbers.keys() for fields in known)


def _undeclared(mapping: RldsMapping | None, folders: Collection[_Folder]) -> str:
    """What is missing, what there is instead, and what to do, in a line."""
    numbers = {name: dim for folder in folders for name, dim in folder.fields.numbers.items()}
    images = list(dict.fromkeys(key for folder in folders for key in folder.fields.cameras))
    texts = list(dict.fromkeys(key for folder in folders for key in folder.fields.texts))
    numeric = [f"{name} ({dim})" for name, dim in numbers.items() if name not in _STRUCTURE]
    listed = [
        f"{kind} {', '.join(names[:_SHOWN]) or 'none'}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in (("images:", images), ("numbers:", numeric), ("texts:", texts))
    ]
    missing = sorted(mapping.widths.keys() - numbers.keys()) if mapping else []
    lacking = f"RLDS without {', '.join(missing)}" if missing else "RLDS of which nobody says what its fields mean"
    shipped = ", ".join(MAPPINGS)
    return f"{lacking}: name a mapping with --mapping ({shipped}, or a TOML file: docs/formats.md). {'; '.join(listed)}"


def _is_zero(example: Example, key: str) -> bool:
    return key in example and not example.numbers(key).any()


def _list_shard(shard: SourceFile, promised: int | None) -> Iterator[SourceRef | Rejection]:
    count = 0
    try:
        with shard.open() as file:
            for record in scan(file, shard.size):
                yield _reference(shard, count, record)
                count += 1
    except OSError as error:
        yield _rejection(shard.uri, shard.size, "unreadable", f"{type(error).__name__}: {error.strerror or error}")
        return
    if promised is not None and count != promised:
        detail = f"dataset_info.json promises {promised} records, {count} were found"
        yield _rejection(shard.uri, shard.size, "count_mismatch", detail)


def _reference(shard: SourceFile, index: int, record: Record | BadDataError) -> SourceRef | Rejection:
    uri = f"{shard.uri}#record={index}"
    if isinstance(record, BadDataError):
        return _rejection(uri, shard.size, record.reason, record.detail)
    return SourceRef(
        uri=uri,
        fingerprint=f"{record.length:x}-{record.checksum:08x}",
        file=shard,
        offset=record.offset,
        length=record.length,
        checksum=record.checksum,
    )


def _rejection(uri: str, size: int, reason: str, detail: str) -> Rejection:
    return Rejection(source_uri=uri, fingerprint=f"size={size}", reason=reason, detail=detail)


def _open_folder(shards: list[SourceFile], whole: bool) -> _Folder:
    """Read a folder's metadata; `whole` says that all of its shards were asked for."""
    first = shards[0]
    folder = Location(first.folder, first.protocol, first.folder)
    features, info = (_read_json(folder / name) for name in ("features.json", "dataset_info.json"))
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
        problems += _missing(uri, names, {*records, *(sibling for shard in names for sibling in _siblings(shard))})
    fields = None
    if isinstance(features, dict):
        try:
            fields = declared_fields(features)
        except BadDataError as error:
            problems.append(_rejection(f"{uri}features.json", 0, error.reason, error.detail))
    fields = fields or fields_of(_readable(shards))
    for key, what in fields.left_out.items():
        problems.append(_rejection(f"{uri}#{key}", 0, "not_a_picture", f"it holds {what}: stored without it"))
    return _Folder(name=name, fields=fields, records=records, shards=tuple(shards), problems=tuple(problems))


def _missing(uri: str, names: set[str], expected: set[str]) -> Iterator[Rejection]:
    """One verdict on all shards that are not in their folder."""
    missing = sorted(expected - names)
    if len(missing) == 1:
        yield _rejection(f"{uri}{printable(missing[0])}", 0, "missing_shard", "the shard is not in its folder")
    elif missing:
        detail = f"{len(missing)} of {len(expected)} shards are not in their folder, such as {missing[0]}"
        yield Rejection(source_uri=uri, fingerprint=_digest(missing), reason="missing_shard", detail=detail)


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:32]


def _read_json(file: Location) -> dict[str, Any] | Rejection | None:
    """The object in a JSON file, None when there is no file."""
    try:
        return find_document(file, dict[str, Any])
    except DamagedError as error:
        return _rejection(printable(file.uri), 0, "bad_metadata", str(error))


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


def _readable(shards: list[SourceFile]) -> Iterator[Example]:
    """All records that can be read."""
    for shard in shards:
        for ref in _list_shard(shard, None):
            with suppress(BadDataError, OSError):
                if isinstance(ref, SourceRef):
                    yield Example(check_record(ref.file.read(ref.offset, ref.length), ref.length, ref.checksum))


def _frames(example: Example, key: str, steps: int) -> Frames:
    images = example.byte_strings(f"steps/{key}")
    quality.check_lengths({key: len(images)}, steps)
    if any(image.startswith(PNG) for image in images):
        return pixels_of(key.rpartition("/")[2], images)
    height, width = quality.check_jpegs(key.rpartition("/")[2], images)
    return EncodedFrames(height=height, width=width, jpegs=images)


def _recorded(example: Example) -> tuple[str | None, bool | None, str | None]:
    """Lab, success and identity of an episode, as far as the path tells under which it was recorded."""
    key = "episode_metadata/file_path"
    paths = example.byte_strings(key) if key in example else ()
    return recorded(paths[0].decode(errors="replace") if paths else "")

"""Files of demonstrations as robomimic lays them out: a group `data/demo_N` for each, with actions and observations.

robomimic and LIBERO share the layout and differ in what it means, which each says in its file of `pipelines.sources`.
Every demonstration is a reference of its own: one that is bad costs no other. It is known by its content, for the
layout keeps nothing of where it was recorded.

Letters: T steps, A numbers of an action.
"""

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError, LeftOut, Rejection, check_finite, check_lengths
from pipelines.files import SourceFile, find, printable
from pipelines.hdf5.episode import check_size, encoded, state_fields
from pipelines.hdf5.files import describe, has_suffix, read_arrays, read_blocks
from pipelines.hdf5.layout import Array, Attributes, Layout
from pipelines.hdf5.robosuite import action_space, camera_role, control_rate
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, reading
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Camera, Space, StateField

ACTIONS, STATES = "actions", "states"
SIMULATOR, SIMULATOR_ACTION = "simulator", "simulator_action"
"""Fields that replay an episode: in the state of each row its action was given. Both float64."""
_MEANT = ("env_args", "problem_info", "bddl_file_name", "macros_image_convention")
"""Attributes of `data` that say what its demonstrations mean; others change when one is added."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a file says of all of its demonstrations."""

    attributes: Attributes
    env: Mapping[str, Any]
    """`env_args`, parsed; empty when there are none."""

    @classmethod
    def of(cls, attributes: Attributes) -> "Facts":
        """What the attributes of `data` say. Raises BadDataError "bad_metadata"."""
        return cls(attributes=attributes, env=json_attribute(attributes, "env_args"))

    @property
    def digest(self) -> str:
        """Changes when the meaning does."""
        said = [f"{name}\0{self.attributes[name]!r}" for name in _MEANT if name in self.attributes]
        return hashlib.sha256("\0".join(said).encode(errors="replace")).hexdigest()


def json_attribute(attributes: Attributes, name: str) -> Mapping[str, Any]:
    """An attribute that holds a JSON object; empty when there is none. Raises BadDataError "bad_metadata"."""
    text = attributes.get(name)
    if text is None:
        return {}
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise BadDataError("bad_metadata", f"attribute {name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadDataError("bad_metadata", f"attribute {name} is no JSON object")
    return value


def is_libero(attributes: Attributes) -> bool:
    """Whether the attributes of `data` are those that LIBERO adds."""
    return "problem_info" in attributes or "bddl_file_name" in attributes


def look(file: SourceFile) -> Attributes | None:
    """Attributes of `data` of a file of demonstrations; None when it is none. Raises BadDataError as `describe`."""
    with reading():
        layout = describe(file, depth=2)
    if "data" not in layout.groups:
        return None
    layout = layout.below("data")
    return layout.attributes if any(_NUMBERED.fullmatch(name) for name in layout.children()) else None


_NUMBERED = re.compile(r"demo_?(\d+)")


def _order(name: str) -> tuple[int, str]:
    match = _NUMBERED.fullmatch(name)
    return (int(match[1]) if match and len(match[1]) < 19 else 1 << 62, name)


class Demonstrations(ABC):
    """Reader of a file, a glob, or all HDF5 files in a folder.

    Args:
        source: path or fsspec URI.
        options: name of the collection.
        dataset: the dataset to ingest into, whose action is the one that is taken.

    Raises:
        UserError: when there is no HDF5 file.
    """

    format: ClassVar[str]
    unwanted: ClassVar[frozenset[str]] = frozenset()
    _placeholder: ClassVar[DatasetSpec]
    """Of a source of which nothing is good, so that its reasons can be told."""

    def __init__(self, source: str, options: IngestOptions, dataset: DatasetSpec | None = None) -> None:
        self._options = options
        self._dataset = dataset
        self._found = find(source, has_suffix)
        self._files = [item for item in self._found if isinstance(item, SourceFile)]
        if not self._files:
            raise UserError(f"{printable(source)} holds no HDF5 file: is it another --format?")
        self._facts: dict[str, Facts] = {}
        self._outlines: dict[str, Layout] = {}

    @abstractmethod
    def _check_kind(self, attributes: Attributes) -> None:
        """The file is of this format. Raises BadDataError "other_format"."""

    @abstractmethod
    def _is_upright(self, facts: Facts) -> bool:
        """Whether images lie in the file as they are meant to be seen."""

    @abstractmethod
    def _language(self, facts: Facts) -> tuple[str, ...]:
        """The instruction, where there is one. Raises BadDataError."""

    @abstractmethod
    def _aligned(self, actions: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The command given at each observation, (T, A), and where it is known, (T,)."""

    @abstractmethod
    def _success(self, state: Mapping[str, NDArray[Any]], facts: Facts) -> bool | None:
        """Whether the task was solved, as far as the rewards tell."""

    @abstractmethod
    def _declared(self, name: str, dim: int) -> StateField | None:
        """What a field of the state means."""

    def spec(self) -> DatasetSpec:
        """The cameras of all files, and the action of most of them."""
        return self._spec

    @cached_property
    def _spec(self) -> DatasetSpec:
        cameras: dict[str, None] = {}
        fields: dict[str, StateField] = {}
        actions: Counter[Space] = Counter()
        for file in self._files:
            for facts, demo in self._first(file):
                actions[self._space(facts, demo)] += 1
                cameras |= dict.fromkeys(_cameras(demo))
                for path, array in _numbers(demo).items():
                    if field := self._declared(path, int(np.prod(array.shape[1:]))):
                        fields.setdefault(path, field)
        if not actions or not cameras:
            return self._placeholder
        action = actions.most_common(1)[0][0]
        return DatasetSpec(
            cameras=tuple(sorted(cameras)),
            action_dim=action.dim,
            action=action,
            states=tuple(fields[name] for name in sorted(fields)),
            views=tuple(Camera(name=name, role=camera_role(name)) for name in sorted(cameras)),
        )

    def refs(self) -> Iterator[SourceRef | Rejection | LeftOut]:
        """One reference per demonstration, in the order of their numbers.

        The fingerprint is a hash of its numbers, of rows spread over its images, and of what the file says of its
        environment.
        """
        for item in self._found:
            if isinstance(item, SourceFile):
                yield from self._list(item)
            else:
                yield item

    def read(self, ref: SourceRef) -> Iterator[Episode | LeftOut]:
        """The one episode of a demonstration. Raises BadDataError."""
        place = os.fsdecode(unquote_to_bytes(ref.uri.partition("#")[2]))
        with reading():
            facts, demo = self._facts_of(ref.file), describe(ref.file, place)
            yield self._episode(ref, place, facts, demo)

    def _list(self, file: SourceFile) -> Iterator[SourceRef | Rejection | LeftOut]:
        try:
            with reading():
                root = describe(file, digests=True)
            if "data" not in root.groups:
                raise BadDataError("other_format", "it has no group `data`, where demonstrations are")
            layout = root.below("data")
            facts = Facts.of(layout.attributes)
            self._check_kind(layout.attributes)
        except BadDataError as error:
            yield Rejection(
                source_uri=file.uri, fingerprint=f"size={file.size}", reason=error.reason, detail=error.detail
            )
            return
        self._facts[file.path], self._outlines[file.path] = facts, layout
        names = sorted(layout.children(), key=_order)
        if not names:
            yield Rejection(
                source_uri=file.uri, fingerprint=f"size={file.size}", reason="empty", detail="it has no demonstration"
            )
        for name in names:
            demo = layout.below(name)
            content = hashlib.sha256(f"{demo.fingerprint}\0{facts.digest}".encode()).hexdigest()[:32]
            yield SourceRef(
                uri=f"{file.uri}#data/{printable(name)}",
                fingerprint=content,
                file=file,
                length=sum(array.nbytes for array in demo.arrays.values() if not array.refused),
            )
        if count := _miscounted(layout, names):
            yield Rejection(source_uri=file.uri, fingerprint=f"size={file.size}", reason="count_mismatch", detail=count)
        yield from _left_out(file, root, layout)

    def _facts_of(self, file: SourceFile) -> Facts:
        if file.path not in self._facts:
            attributes = describe(file, "data", depth=0).attributes
            self._check_kind(attributes)
            self._facts[file.path] = Facts.of(attributes)
        return self._facts[file.path]

    def _first(self, file: SourceFile) -> Iterator[tuple[Facts, Layout]]:
        """The first demonstration of a file that has actions and images, if one has."""
        try:
            with reading():
                facts = self._facts_of(file)
                outline = self._outlines.get(file.path) or describe(file, "data")
        except BadDataError:  # which is said when it is listed
            return
        self._outlines[file.path] = outline
        for name in sorted(outline.children(), key=_order):
            demo = outline.below(name)
            if ACTIONS in demo.arrays and len(demo.arrays[ACTIONS].shape) == 2 and _cameras(demo):
                yield facts, demo
                return

    def _space(self, facts: Facts, demo: Layout) -> Space:
        return action_space(facts.env, demo.arrays[ACTIONS].shape[1])

    @cached_property
    def _action(self) -> Space | None:
        """The one that all episodes must have."""
        return self.spec().action if self._dataset is None else self._dataset.action

    def _episode(self, ref: SourceRef, place: str, facts: Facts, demo: Layout) -> Episode:
        steps = self._check(facts, demo)
        numbers = _numbers(demo)
        found = read_arrays(ref.file, {f"{place}/{path}": array for path, array in numbers.items()})
        recorded = {path: found[f"{place}/{path}"] for path in numbers}
        actions = recorded.pop(ACTIONS)
        action, known = self._aligned(_as_action(actions))
        state = {SIMULATOR if path == STATES else path: values for path, values in recorded.items()}
        if STATES in recorded or not known.all():
            state[SIMULATOR_ACTION] = actions
        fields = state_fields(state, steps, keep64=(SIMULATOR, SIMULATOR_ACTION))
        return Episode(
            meta=EpisodeMeta(
                episode_id=hashlib.sha256(f"{self.format}\0{ref.content}".encode()).hexdigest()[:32],
                source_uri=ref.uri,
                source_format=self.format,
                source_fingerprint=ref.fingerprint,
                collection=self._options.collection or _collection(ref.file),
                fps=control_rate(facts.env),
                language=self._language(facts),
                success=self._success(fields, facts),
            ),
            action=action,
            action_mask=known,
            frames={name: self._frames(ref.file, f"{place}/obs/{name}", demo, facts) for name in _cameras(demo)},
            state=fields,
        )

    def _check(self, facts: Facts, demo: Layout) -> int:
        """What can be said of a demonstration before it is read; returns T. Raises BadDataError."""
        demo.check_links()
        if not demo.arrays:
            raise BadDataError("empty", "the demonstration has no data")
        actions = demo.array(ACTIONS)
        if len(actions.shape) != 2 or not actions.shape[1]:
            raise BadDataError("bad_shape", f"actions have the shape {actions.shape}")
        steps = actions.shape[0]
        if not steps:
            raise BadDataError("empty", "the demonstration has no steps")
        if not _cameras(demo):
            raise BadDataError("no_camera", "obs has no images (T, H, W, 3)")
        lengths = {path: array.shape[0] for path, array in demo.arrays.items() if _is_read(path, array)}
        check_lengths(lengths, steps)
        said = demo.attributes.get("num_samples", steps)
        if said != steps:
            raise BadDataError("length_mismatch", f"num_samples is {said} for {steps} actions")
        if self._action is not None and self._space(facts, demo) != self._action:
            raise BadDataError("other_action", "its environment takes other actions than the dataset has")
        return steps

    def _frames(self, file: SourceFile, path: str, demo: Layout, facts: Facts) -> EncodedFrames:
        array = demo.arrays[path[path.index("/obs/") + 1 :]]
        check_size(path.rpartition("/")[2], *array.shape[1:3])
        upright = self._is_upright(facts)
        blocks = (block for _, block in read_blocks(file, {path: array}))
        return encoded(block if upright else block[:, ::-1] for block in blocks)


def _cameras(demo: Layout) -> list[str]:
    """Names of the observations that are images."""
    return sorted(
        path.removeprefix("obs/")
        for path, array in demo.arrays.items()
        if path.startswith("obs/") and path.count("/") == 1 and array.is_images
    )


def _is_read(path: str, array: Array) -> bool:
    """Whether an array becomes a part of the episode; nothing that is meant to be read is refused silently."""
    return not path.startswith("next_obs/") and not array.refused.startswith("unsupported") and not _is_depth(array)


def _is_depth(array: Array) -> bool:
    """Images that are no pictures: they are left out."""
    return len(array.shape) == 4 and not array.is_images


def _numbers(demo: Layout) -> dict[str, Array]:
    return {path: array for path, array in demo.arrays.items() if _is_read(path, array) and not array.is_images}


def _miscounted(layout: Layout, names: list[str]) -> str:
    """How the steps of all demonstrations differ from what the file says that they are; empty when they don't."""
    said = layout.attributes.get("total")
    actions = [array for name in names if (array := layout.arrays.get(f"{name}/{ACTIONS}")) and array.shape]
    found = sum(array.shape[0] for array in actions)
    if said is None or said == found or len(actions) < len(names):  # one without actions says so itself
        return ""
    return f"its demonstrations have {found} steps, not {said} in total"


def _left_out(file: SourceFile, root: Layout, demos: Layout) -> Iterator[LeftOut]:
    """What a file holds beside its episodes, said once."""
    inside = {path.partition("/")[2]: array for path, array in demos.arrays.items()}
    others = sorted(
        path for path, array in inside.items() if not path.startswith("next_obs/") and not _is_read(path, array)
    )
    masks = [path for path in root.arrays if path.startswith("mask/")]
    what = {
        "next_obs, which obs has a step later, but for the last step": any(p.startswith("next_obs/") for p in inside),
        f"{', '.join(others)}: neither pictures nor numbers of steps": others,
        f"{', '.join(masks)}: an episode's split comes from its content": masks,
    }
    yield from (LeftOut(source_uri=file.uri, what=words) for words, there_is in what.items() if there_is)


def _as_action(actions: NDArray[Any]) -> NDArray[np.float32]:
    """Actions as the store keeps them. Raises BadDataError "non_finite"."""
    with np.errstate(over="ignore"):
        values = actions.astype(np.float32)
    check_finite({ACTIONS: values})
    return values


def _collection(file: SourceFile) -> str:
    return printable(file.folder.rpartition("/")[2]) or "demonstrations"

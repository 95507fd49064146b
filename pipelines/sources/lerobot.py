"""LeRobot datasets of versions 3.0, 2.1 and 2.0: rows in Parquet, frames in shared videos or in the rows.

What the format promises and folders in the wild do not keep is tolerated, and said, as long as every number and frame
is known to be the right one; else the episode is turned away. `docs/formats.md` has the list.

LeRobot names no episode beyond its place, so one is known by its numbers: the same episode in another version, or at
another place of an edited dataset, has the same id.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import SourceFile, find, printable
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, reading
from pipelines.sources.lerobot_episode import read_episode
from pipelines.sources.lerobot_info import Info, parse_info
from pipelines.sources.lerobot_set import INFO, LeRobotSet
from pipelines.sources.lerobot_spec import spec_of
from storage_schemas.documents import find_document
from storage_schemas.episode import Episode
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import Location
from storage_schemas.schema import DatasetSpec

_KEYS = frozenset(("codebase_version", "features", "data_path"))
"""Of `info.json`; one of them is enough, so that a damaged one is said and its videos are not taken for clips."""
_READ = (".json", ".jsonl", ".parquet", ".mp4")


class LeRobot:
    """Reader of a dataset's folder, or of one with several below it.

    Args:
        source: path or fsspec URI.
        options: how it becomes episodes.
        dataset: the dataset to ingest into.

    Raises:
        UserError: when there is no dataset, none that can be read, or several that do not mean the same.
    """

    format: ClassVar[str] = "lerobot"
    unwanted: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, source: str, options: IngestOptions, dataset: DatasetSpec | None = None) -> None:
        source = source.removesuffix(INFO).rstrip("/") if source.endswith(f"/{INFO}") else source
        files: dict[str, SourceFile] = {}
        self._first: list[Rejection | LeftOut] = []
        for item in find(source, lambda name: name.endswith(_READ)):
            if isinstance(item, SourceFile):
                files[item.path] = item
            else:
                self._first.append(item)
        roots = sorted(path.removesuffix(f"/{INFO}") for path in files if path.endswith(f"/{INFO}"))
        self._sets: dict[str, LeRobotSet] = {}
        for root in roots:
            try:
                mine = {p.removeprefix(f"{root}/"): f for p, f in files.items() if _root(p, roots) == root}
                self._sets[root] = LeRobotSet(root, mine, _info(files[f"{root}/{INFO}"]), options.collection)
            except BadDataError as error:
                uri = files[f"{root}/{INFO}"].uri
                self._first.append(Rejection(source_uri=uri, fingerprint="", reason=error.reason, detail=error.detail))
        if not self._sets:
            bad = next((f": {item.detail}" for item in self._first if isinstance(item, Rejection)), "")
            raise UserError(f"{printable(source)} holds no LeRobot dataset that can be read ({INFO}{bad})")
        self._spec = spec_of(list(self._sets.values()), dataset)

    def spec(self) -> DatasetSpec:
        """The cameras, action and states of all datasets of the source."""
        return self._spec

    def refs(self) -> Iterator[SourceRef | Rejection | LeftOut]:
        """One reference per episode; its fingerprint is a hash of its numbers and of the sizes of its videos."""
        yield from self._first
        for one in self._sets.values():
            yield from one.refs()

    def read(self, ref: SourceRef) -> Iterator[Episode | LeftOut]:
        """The one episode of a reference. Raises BadDataError."""
        root = next((root for root in self._sets if ref.file.path.startswith(f"{root}/")), None)
        if root is None:
            raise BadDataError("unreadable", "its dataset is not there any more")
        with reading():
            yield from read_episode(self._sets[root], ref, self._spec)


def is_mine(name: str) -> bool:
    """Whether a file name is that of a dataset's description."""
    return name == INFO.rpartition("/")[2]


def recognizes(file: SourceFile) -> bool:
    """Whether a file describes a LeRobot dataset."""
    if not file.path.endswith(f"/{INFO}"):
        return False
    try:
        return not _KEYS.isdisjoint(_raw(file))
    except BadDataError:
        return True  # so that the error is said


def open_reader(source: str, options: IngestOptions, dataset: DatasetSpec | None) -> LeRobot:
    """For the registry."""
    return LeRobot(source, options, dataset)


def _root(path: str, roots: list[str]) -> str | None:
    """The innermost dataset that a file lies in."""
    return max((root for root in roots if path.startswith(f"{root}/")), key=len, default=None)


def _raw(file: SourceFile) -> Mapping[str, Any]:
    try:
        found: dict[str, Any] | None = find_document(Location(file.uri, file.protocol, file.path), dict[str, Any])
    except DamagedError as error:
        raise BadDataError("bad_metadata", str(error)) from error
    if found is None:
        raise BadDataError("unreadable", "it is not there any more")
    return found


def _info(file: SourceFile) -> Info:
    return parse_info(_raw(file))

"""The log of a dataset: a Delta Lake table with one row per episode, whose version is the dataset's."""

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from storage_schemas.catalog.rows import ROW_SCHEMA, EpisodeTable
from storage_schemas.errors import StorageError, UserError
from storage_schemas.location import Location, locate, persistent, storage_errors
from storage_schemas.schema import DatasetSpec

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable

_SPEC_KEY = "uwm.spec"
_CONFIGURATION = {  # Delta's defaults forget old versions after 30 days, also those that a run has pinned
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of a dataset, read from the log."""

    version: int
    table_id: str
    spec: DatasetSpec
    episodes: EpisodeTable


def create_dataset(uri: str | os.PathLike[str], spec: DatasetSpec) -> Snapshot:
    """Create an empty dataset, version 0; does nothing when there is one with the same spec.

    Returns:
        The newest version.

    Raises:
        UserError: when there is one with another spec, or the path can't hold a dataset.
    """
    location = locate(uri)
    if is_table(location / "episodes"):
        snapshot = load(location)
    else:
        snapshot = _snapshot(location, create_table(location / "episodes", ROW_SCHEMA, {_SPEC_KEY: spec.to_json()}))
    if snapshot.spec != spec:
        raise UserError(f"{location.uri} exists with other settings: {snapshot.spec.to_json()}, not {spec.to_json()}")
    return snapshot


def dataset_exists(uri: str | os.PathLike[str]) -> bool:
    """Whether there is a dataset."""
    return is_table(locate(uri) / "episodes")


def dataset_spec(location: Location) -> DatasetSpec:
    """The spec of the dataset. Raises UserError when there is none."""
    return _spec(location, open_dataset_table(location))


def load(location: Location, version: int | None = None) -> Snapshot:
    """Read one version of a dataset, the newest when `version` is None.

    Raises:
        UserError: when there is no dataset or no such version.
    """
    return _snapshot(location, open_dataset_table(location, version))


def _snapshot(location: Location, table: "DeltaTable") -> Snapshot:
    spec = _spec(location, table)
    columns = [name for name in ROW_SCHEMA.names if name != "statistics"]
    pool = pa.system_memory_pool()  # the default one keeps 50 MB more of what decoding took
    rows = persistent(location, lambda: in_order(table).to_table(columns=columns, memory_pool=pool))
    pool.release_unused()
    return Snapshot(
        version=table.version(),
        table_id=str(table.metadata().id),
        spec=spec,
        episodes=EpisodeTable(rows, partial(_statistics, location, table.version())),
    )


def in_order(table: "DeltaTable") -> Any:
    """The table's data files as a dataset of pyarrow, oldest rows first, so that they need not be sorted."""
    from pyarrow.dataset import FileSystemDataset

    actions = pa.table(table.get_add_actions(flatten=True))
    found = table.to_pyarrow_dataset()
    if not len(actions):
        return found
    first = dict(zip(actions["path"].to_pylist(), actions["min.ordinal"].to_pylist(), strict=True))
    files = sorted(found.get_fragments(), key=lambda file: first.get(file.path) or 0)
    return FileSystemDataset(files, found.schema, found.format, found.filesystem)


def _statistics(location: Location, version: int) -> pa.Table:
    table = open_dataset_table(location, version)
    return persistent(location, lambda: table.to_pyarrow_table(columns=["ordinal", "statistics"]))


def is_table(location: Location) -> bool:
    """Whether there is a Delta table."""
    from deltalake import DeltaTable

    if location.is_local and not location.is_dir():
        return False
    uri, options = location.delta_uri(), location.delta_options() or None
    return persistent(location, lambda: bool(DeltaTable.is_deltatable(uri, storage_options=options)))


def create_table(location: Location, schema: pa.Schema, configuration: dict[str, str]) -> "DeltaTable":
    """Create a Delta table that keeps all its versions and open it; another creator may have been faster.

    Raises:
        UserError: when the path can't hold a Delta table.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    if location.is_local and unquote(location.path) != location.path:
        raise UserError(f"{location.uri}: Delta Lake can't write below a folder with a percent code in its name")
    try:
        return persistent(
            location,
            lambda: DeltaTable.create(
                location.delta_uri(),
                schema,
                mode="ignore",
                configuration=_CONFIGURATION | configuration,
                storage_options=location.delta_options() or None,
                raise_if_key_not_exists=False,
            ),
        )
    except (DeltaError, StorageError):
        if not is_table(location):  # there is one: by another creator at the same time, or ours after a lost answer
            raise
        return open_table(location)


def open_table(location: Location, version: int | None = None) -> "DeltaTable":
    """Open a Delta table that exists."""
    from deltalake import DeltaTable

    uri, options = location.delta_uri(), location.delta_options() or None
    return persistent(location, lambda: DeltaTable(uri, version=version, storage_options=options))


def read_columns(file: Location, columns: list[str]) -> pa.Table:
    """Some columns of one data file of a table. Raises FileNotFoundError."""
    from pyarrow.parquet import read_table

    if file.is_local:
        return read_table(file.path, columns=columns, partitioning=None)
    with storage_errors(file):
        return read_table(pa.BufferReader(file.read_bytes()), columns=columns)


def append(table: "DeltaTable", data: pa.Table) -> None:
    """Append to the version that `table` has read; fails when another exclusive commit came between."""
    from deltalake import write_deltalake

    write_deltalake(table, data, mode="append", commit_properties=exclusive(table))


def exclusive(table: "DeltaTable") -> "CommitProperties":
    """Properties that make two commits from the same version conflict instead of both going through."""
    from deltalake import CommitProperties, Transaction

    return CommitProperties(app_transactions=[Transaction("uwm", table.version() + 1)], max_commit_retries=0)


def open_dataset_table(location: Location, version: int | None = None) -> "DeltaTable":
    """The episode table of a dataset. Raises UserError when there is no dataset or no such version."""
    episodes = location / "episodes"
    if not is_table(episodes):
        raise UserError(
            f"{location.uri} is not a dataset: it has no episode table"
            if location.exists()
            else f"{location.uri} does not exist"
        )
    table = open_table(episodes)
    newest = table.version()
    if version is None or version == newest:
        return table
    if not 0 <= version < newest:
        raise UserError(f"{location.uri} has no version {version}: its newest is {newest}")
    return open_table(episodes, version)


def _spec(location: Location, table: "DeltaTable") -> DatasetSpec:
    configuration: dict[str, Any] = table.metadata().configuration
    try:
        return DatasetSpec.from_json(configuration[_SPEC_KEY])
    except (KeyError, ValueError) as error:
        raise UserError(f"{location.uri} is not a dataset: its table was written by something else") from error

"""Delta Lake tables: made, opened, read and appended to, with what every table of a dataset needs."""

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from storage_schemas.errors import StorageError, UserError
from storage_schemas.location import Location, persistent, storage_errors

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable

_CONFIGURATION = {  # Delta's defaults forget old versions after 30 days, also those that a run has pinned
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}


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


def in_order(table: "DeltaTable") -> Any:
    """The table's data files as a dataset of pyarrow, oldest rows first, so that they need not be sorted."""
    from pyarrow.dataset import FileSystemDataset

    actions = pa.table(table.get_add_actions(flatten=True))
    files = table.to_pyarrow_dataset()
    if not len(actions):
        return files
    first = dict(zip(actions["path"].to_pylist(), actions["min.ordinal"].to_pylist(), strict=True))
    ordered = sorted(files.get_fragments(), key=lambda file: first.get(file.path) or 0)
    return FileSystemDataset(ordered, files.schema, files.format, files.filesystem)


def read_columns(file: Location, columns: list[str]) -> pa.Table:
    """Some columns of one data file of a table. Raises FileNotFoundError."""
    from pyarrow.parquet import read_table

    if file.is_local:
        return read_table(file.path, columns=columns, partitioning=None)
    with storage_errors(file):
        return read_table(pa.BufferReader(file.read_bytes()), columns=columns)


def with_columns_of(table: "DeltaTable", data: pa.Table) -> pa.Table:
    """The data with the columns that the table has besides, empty: a table of an older version can be added to."""
    schema = pa.schema(table.schema())
    for field in schema:
        if field.name not in data.column_names:
            data = data.append_column(field, pa.nulls(data.num_rows, field.type))
    return data.select(schema.names)


def exclusive(table: "DeltaTable") -> "CommitProperties":
    """Properties that make two commits from the same version conflict instead of both going through."""
    from deltalake import CommitProperties, Transaction

    return CommitProperties(app_transactions=[Transaction("uwm", table.version() + 1)], max_commit_retries=0)

"""Delta Lake tables: made, opened, read and appended to, with what every table of a dataset needs."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from storage_schemas.errors import DamagedError, StorageError, UserError
from storage_schemas.location import Location, persistent

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable

_CONFIGURATION = {  # Delta's defaults forget old versions after 30 days, also those that a run has pinned
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
_NOT_WRITABLE = re.compile(r"[\[\]|^\\\x00-\x1f\x7f]")
_FILE_FACTS = ("path", "num_records", "min.ordinal", "max.ordinal", "min.source_uri", "max.source_uri")


def is_table(location: Location) -> bool:
    """Whether there is a Delta table."""
    from deltalake import DeltaTable

    if location.is_local and not location.is_dir():
        return False
    uri, options = location.uri, location.delta_options() or None
    return persistent(location, lambda: bool(DeltaTable.is_deltatable(uri, storage_options=options)))


def create_table(location: Location, schema: pa.Schema, configuration: dict[str, str]) -> "DeltaTable":
    """Create a Delta table that keeps all its versions and open it; another creator may have been faster.

    Raises:
        UserError: when the path can't hold a Delta table.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    check_writable(location)
    try:
        return persistent(
            location,
            lambda: DeltaTable.create(
                location.uri,
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


def check_writable(location: Location) -> None:
    """Refuse the local folders below which deltalake panics, takes another folder, or half makes a table.

    Raises:
        UserError: for brackets and other characters that its inner addresses can't hold, and percent codes.
    """
    if location.is_local and (_NOT_WRITABLE.search(location.path) or unquote(location.path) != location.path):
        raise UserError(
            f"{location.uri!r}: Delta Lake can't write below a folder with one of [ ] | ^ \\, a control character or a "
            "percent code in its name: rename it"
        )


def open_table(location: Location, version: int | None = None) -> "DeltaTable":
    """Open a Delta table that exists."""
    from deltalake import DeltaTable

    uri, options = location.uri, location.delta_options() or None
    return persistent(location, lambda: DeltaTable(uri, version=version, storage_options=options))


def data_files(table: "DeltaTable") -> list[dict[str, Any]]:
    """The data files of a version, oldest rows first: path, number of rows, and bounds of what is searched by."""
    actions = pa.table(table.get_add_actions(flatten=True))
    files: list[dict[str, Any]] = actions.select(
        [name for name in _FILE_FACTS if name in actions.column_names]
    ).to_pylist()
    for file in files:
        file["path"] = unquote(file["path"])
    return sorted(files, key=lambda file: file.get("min.ordinal") or 0)


def read_rows(
    location: Location,
    table: "DeltaTable",
    columns: Sequence[str] | None = None,
    files: Sequence[dict[str, Any]] | None = None,
) -> pa.Table:
    """Some columns, or all, of the version that a table is opened at, oldest rows first.

    Args:
        location: Where the table lies.
        table: It, opened.
        columns: None reads all.
        files: Of `data_files`; None reads all.

    Raises:
        DamagedError: when a data file is gone or no Parquet file.
    """
    return read_files(location, table_schema(table, columns), data_files(table) if files is None else files)


def table_schema(table: "DeltaTable", columns: Sequence[str] | None = None) -> pa.Schema:
    """The schema of some columns of a table, of all when None."""
    schema = pa.schema(table.schema())
    return pa.schema([schema.field(name) for name in columns or schema.names])


def read_files(location: Location, schema: pa.Schema, files: Sequence[dict[str, Any]]) -> pa.Table:
    """The columns of `schema` of some data files of a table, in the order of the files.

    deltalake's own way goes through a file system written in Python, of which Arrow's threads let go when they like:
    when that is after the interpreter's end, the process aborts though its work is done (apache/arrow#34314).

    Raises:
        DamagedError: when a data file is gone or no Parquet file.
    """
    usual = pa.default_memory_pool()  # keeps what decoding took: half a gigabyte for the statistics of 80,000 episodes
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        rows = [_with_columns(read_columns(location / file["path"], schema.names), schema) for file in files]
    finally:
        pa.set_memory_pool(usual)
    return pa.concat_tables([schema.empty_table(), *rows])


def read_columns(file: Location, columns: list[str]) -> pa.Table:
    """Some columns of one data file of a table, read in this thread alone. Raises DamagedError."""
    from pyarrow.parquet import ParquetFile

    def read() -> pa.Table:
        source = pa.OSFile(file.path) if file.is_local else pa.BufferReader(file.read_bytes())
        with source, ParquetFile(source, pre_buffer=False) as parquet:
            return parquet.read(columns, use_threads=False)

    try:
        return persistent(file, read)
    except FileNotFoundError as error:
        raise DamagedError(f"{file.uri} is missing, though the table names it") from error
    except pa.ArrowException as error:
        raise DamagedError(f"{file.uri} is damaged: {' '.join(str(error).split())[:200]}") from error


def with_columns_of(table: "DeltaTable", data: pa.Table) -> pa.Table:
    """The data with the columns that the table has besides, empty: a table of an older version can be added to."""
    return _with_columns(data, pa.schema(table.schema()))


def _with_columns(data: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema; those that the data lack are empty."""
    for field in schema:
        if field.name not in data.column_names:
            data = data.append_column(field, pa.nulls(data.num_rows, field.type))
    return data.select(schema.names).cast(schema)


def exclusive(table: "DeltaTable") -> "CommitProperties":
    """Properties that make two commits from the same version conflict instead of both going through."""
    from deltalake import CommitProperties, Transaction

    # Delta lets two appends through, and its own retry writes a loser's rows without reading what the winner has
    # brought: the same episode would be there twice.
    return CommitProperties(app_transactions=[Transaction("uwm", table.version() + 1)], max_commit_retries=0)

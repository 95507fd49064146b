"""Parquet files that nobody vouches for: opened with bounds, read a row group at a time, as arrays of numbers.

Letters: R rows, D numbers of a row.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile

if TYPE_CHECKING:
    import pyarrow

_MAGIC = b"PAR1"
_MAX_ROWS = 1 << 28
_MAX_BYTES = 1 << 30
"""Most bytes of the columns of one row group: what a reader holds in memory at once."""
_MAX_TEXT, _MAX_ITEMS = 64 << 20, 1 << 20
"""Bounds of the footer's strings and lists."""


class Table:
    """An open Parquet file; see `open_table`."""

    def __init__(self, file: Any) -> None:
        import pyarrow.parquet

        self._file = pyarrow.parquet.ParquetFile(
            file,
            thrift_string_size_limit=_MAX_TEXT,
            thrift_container_size_limit=_MAX_ITEMS,
            arrow_extensions_enabled=False,
        )
        self._facts = self._file.metadata
        rows = self.group_rows
        if min(rows, default=0) < 0 or sum(rows) > _MAX_ROWS or sum(rows) != self._facts.num_rows:
            raise BadDataError("bad_parquet", f"its footer counts {self._facts.num_rows} rows, its parts {sum(rows)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(self._file.schema_arrow.names)

    @property
    def group_rows(self) -> list[int]:
        """Rows of each row group."""
        return [self._facts.row_group(group).num_rows for group in range(self._facts.num_row_groups)]

    def read(self, group: int, names: Collection[str]) -> dict[str, "pyarrow.ChunkedArray"]:
        """Those columns of a row group that there are.

        Raises:
            BadDataError: "too_large" or "bad_parquet".
        """
        wanted = [name for name in self.names if name in names]
        self._check_size(group, wanted)
        with _refusing():
            table = self._file.read_row_group(group, columns=wanted, use_threads=False)
        if table.num_rows != self.group_rows[group]:
            raise BadDataError("bad_parquet", f"{table.num_rows} rows where the footer says {self.group_rows[group]}")
        return {name: table.column(name) for name in table.column_names if name in wanted}

    def _check_size(self, group: int, names: Sequence[str]) -> None:
        """By what the footer says, in which a few bytes may stand for a billion equal numbers."""
        facts = self._facts.row_group(group)
        size = 0
        for index in range(facts.num_columns):
            column = facts.column(index)
            if any(column.path_in_schema == name or column.path_in_schema.startswith(f"{name}.") for name in names):
                size += max(column.total_uncompressed_size, column.total_compressed_size, column.num_values * 8)
        if size > _MAX_BYTES:
            raise BadDataError("too_large", f"a row group of {size >> 20} MB, more than {_MAX_BYTES >> 20}")

    def lists(self, names: Collection[str]) -> dict[str, list[Any]]:
        """All rows of those columns that there are, as Python values. Raises as `read` does."""
        found: dict[str, list[Any]] = {name: [] for name in self.names if name in names}
        for group in range(len(self.group_rows)):
            for name, column in self.read(group, names).items():
                with _refusing():
                    found[name] += column.to_pylist()
        return found


@contextmanager
def open_table(file: SourceFile) -> Iterator[Table]:
    """A Parquet file, for reading.

    Raises:
        BadDataError: "truncated" when it has no footer, which is what a recorder that was killed leaves; "not_parquet";
            "bad_parquet" when pyarrow objects, here or while it is read.
        OSError: when the file can't be read.
    """
    with file.open() as opened:
        opened.seek(max(0, file.size - len(_MAGIC)))
        end = opened.read()
        opened.seek(0)
        start = opened.read(len(_MAGIC))
        opened.seek(0)
        if start != _MAGIC:
            raise BadDataError("not_parquet", f"a file of {file.size} bytes that does not begin as Parquet does")
        if end != _MAGIC or file.size < 12:
            raise BadDataError("truncated", "the Parquet file has no footer: its writer did not finish it")
        with _refusing():
            yield Table(opened)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what pyarrow raises into `BadDataError`, but not what goes wrong with the storage below it."""
    from pyarrow import ArrowException

    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise BadDataError("bad_parquet", f"pyarrow can't read it: {error}") from error
    except (ArrowException, UnicodeDecodeError, MemoryError) as error:
        raise BadDataError("bad_parquet", f"pyarrow can't read it: {type(error).__name__}: {error}") from error


def is_number(kind: "pyarrow.DataType") -> bool:
    """Whether a column holds numbers or lists of them."""
    from pyarrow import types

    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def numbers(name: str, column: "pyarrow.ChunkedArray") -> NDArray[Any]:
    """A column of numbers, or of lists of one length, as (R, D); NaN where an integer is not known.

    Raises:
        BadDataError: "ragged", "missing_value" or "bad_parquet".
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not is_number(column.type):
        raise BadDataError("not_a_number", f"{name} holds {column.type}, which is no number")
    with _refusing():
        array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        while pa.types.is_nested(array.type):
            lengths = pc.unique(pc.list_value_length(array)).to_pylist()
            if len(lengths) > 1 or None in lengths:
                raise BadDataError("ragged", f"{name} has rows of {', '.join(map(str, lengths[:4]))} numbers")
            array = array.flatten()
        if pa.types.is_boolean(array.type):
            array = array.cast(pa.int8())
        values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "f" and array.null_count and pa.types.is_floating(array.type):
        values = np.where(array.is_null().to_numpy(zero_copy_only=False), np.nan, values)
    return values.reshape(len(column), -1) if len(column) else values.reshape(0, 1)

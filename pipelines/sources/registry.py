"""Opens sources by their format, which is found by the files when nobody says it."""

import importlib
from itertools import islice
from typing import TYPE_CHECKING

from pipelines.names import FORMATS
from pipelines.options import INGEST_DEFAULTS, IngestOptions
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec

if TYPE_CHECKING:
    from pipelines.source import SourceReader

_LOOKED_INTO = 32
"""Files of a source that are looked into before another format is tried."""


def open_source(
    source: str, options: IngestOptions = INGEST_DEFAULTS, dataset: DatasetSpec | None = None
) -> "SourceReader":
    """The reader of a source.

    Args:
        source: path or fsspec URI of a file, a folder or a glob.
        options: what the user says about it; the format is found by the files when it names none.
        dataset: the dataset that exists already.

    Raises:
        UserError: when there is nothing there, or nothing of that format.
    """
    name = options.format or detect(source)
    module = importlib.import_module(f"pipelines.sources.{FORMATS[name]}")
    reader: SourceReader = module.open_reader(source, options, dataset)
    return reader


def detect(source: str) -> str:
    """The format of a source, by the names of its files; a module whose names do not suffice looks into one.

    Such a module has `recognizes(file)`: whether a file of its names is of its format; BadDataError says why it can't
    be looked into. One with `takes(name)` takes sources of that name, which it would not look for in a folder.

    Raises:
        UserError: when there is nothing there or no file tells.
    """
    from pipelines.checks.quality import BadDataError
    from pipelines.files import SourceFile, find, printable

    fault, own_name = "", source.rstrip("/").rpartition("/")[2]
    for name, module_name in FORMATS.items():
        module = importlib.import_module(f"pipelines.sources.{module_name}")
        files = (item for item in find(source, module.is_mine) if isinstance(item, SourceFile))
        mine = islice((file for file in files if module.is_mine(file.name)), _LOOKED_INTO)
        if getattr(module, "takes", _never)(own_name):
            return name
        recognizes = getattr(module, "recognizes", bool)
        for file in mine:
            try:
                if recognizes(file):
                    return name
            except BadDataError as error:
                fault = fault or f"; {file.uri} can't be looked into ({error})"
    raise UserError(
        f"{printable(source)} holds no file of a known format ({', '.join(FORMATS)}): name it with --format{fault}"
    )


def _never(_name: str) -> bool:
    return False


def is_of(format: str | None, name: str) -> bool:  # noqa: A002
    """Whether a file of this name may belong to a source of the format, or of any format when None."""
    modules = FORMATS.values() if format is None else (FORMATS[format],) if format in FORMATS else ()
    return any(importlib.import_module(f"pipelines.sources.{module}").is_mine(name) for module in modules)

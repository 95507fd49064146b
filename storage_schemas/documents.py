"""JSON documents: read whole, bounded in size and checked against a type; written so that nobody sees half of one."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import Location

MAX_DOCUMENT_BYTES = 16 << 20

T = TypeVar("T")
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def read_document(location: Location, kind: type[T], *, hint: str = "", limit: int = MAX_DOCUMENT_BYTES) -> T:
    """Read a JSON file as a pydantic model or any type that pydantic can check.

    Args:
        location: The file.
        kind: What it holds.
        hint: What to do when there is no such file, for the error's line.
        limit: Bytes that it may have: nobody's file makes this process take any memory that it likes.

    Raises:
        UserError: when there is no such file.
        DamagedError: when it is larger, no JSON, or holds something else.
    """
    value = find_document(location, kind, limit=limit)
    if value is None:
        raise UserError(f"{location.uri} does not exist" + (f": {hint}" if hint else ""))
    return value


def find_document(location: Location, kind: type[T], *, limit: int = MAX_DOCUMENT_BYTES) -> T | None:
    """What `read_document` returns, and None when there is no such file."""
    try:
        content = location.read_bytes(0, limit + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    if len(content) > limit:
        raise DamagedError(f"{location.uri} is larger than {limit} bytes")
    try:
        value: T = _adapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise DamagedError(f"{location.uri} is damaged or of another version: {where}{first['msg']}") from error
    return value


def write_document(location: Location, value: object, *, exclusive: bool = False) -> None:
    """Write a model, dataclass or plain value as an indented JSON file, whole and on disk when this returns.

    Raises:
        FileExistsError: when `exclusive` and there is a file; exactly one of several writers wins.
    """
    location.write_bytes(to_json(value, indent=1) + b"\n", exclusive=exclusive)

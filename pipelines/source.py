"""What every source of episodes offers: references that are cheap to list, and episodes read one by one."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import SourceFile
from storage_schemas.episode import Episode
from storage_schemas.schema import DatasetSpec


@dataclass(frozen=True, kw_only=True)
class SourceRef:
    """Where one or more episodes lie, known without reading them."""

    uri: str
    """The raw file with the place inside it as a fragment. Episodes repeat it, or add a fragment to it."""
    fingerprint: str
    """Changes when the raw content does; as cheap to find as the format allows. The second of a source that has the
    same content ends in `+1`, the third in `+2`, so that both are kept where copies are wanted."""
    file: SourceFile
    offset: int = 0
    length: int = 0
    """Bytes of the raw content."""
    checksum: int = 0
    """What the file says that the content's checksum is, in the format's own kind."""

    @property
    def content(self) -> str:
        """What is equal for equal content."""
        return self.fingerprint.partition("+")[0]

    def rejection(self, reason: str, detail: str) -> Rejection:
        """The verdict that nothing of this reference can be used."""
        return Rejection(source_uri=self.uri, fingerprint=self.fingerprint, reason=reason, detail=detail)


@contextmanager
def reading() -> Iterator[None]:
    """Turn the error of a file that can't be read into `BadDataError`, so that no error of a store is taken for it."""
    try:
        yield
    except OSError as error:
        raise BadDataError("unreadable", f"{type(error).__name__}: {error}") from error


@runtime_checkable
class SourceReader(Protocol):
    """A source of episodes. Listing and reading are separate, so that what is stored already is never read."""

    format: ClassVar[str]
    unwanted: ClassVar[frozenset[str]]
    """Filters of `pipelines.checks.filters` that apply to its episodes unless the user says otherwise."""

    def spec(self) -> DatasetSpec:
        """The dataset that this source would start: its cameras and action."""
        ...

    def refs(self) -> Iterator[SourceRef | Rejection | LeftOut]:
        """All references, in a stable order; what is seen to be broken while listing comes as a rejection."""
        ...

    def read(self, ref: SourceRef) -> Iterator[Episode | LeftOut]:
        """The episodes of a reference, in order, and what else it holds.

        Raises:
            BadDataError: when the reference is bad; episodes that were yielded before must be dropped too.
        """
        ...


_ODD = (ValueError, TypeError, LookupError, ArithmeticError, struct.error)
"""What a reader stumbles over in a record that no check foresaw."""


def episodes_of(reader: SourceReader, ref: SourceRef) -> Iterator[Episode | LeftOut]:
    """The episodes of a reference, in order, and what else it holds, so that one odd record ends nothing but itself.

    Raises:
        BadDataError: as the reader does, and "odd" where it fails in a way that it should have foreseen.
    """
    try:
        yield from reader.read(ref)
    except _ODD as error:
        raise BadDataError("odd", f"it can't be read: {type(error).__name__}: {error}") from error


@runtime_checkable
class Timed(Protocol):
    """A reader whose references have a clock of their own."""

    def times(self, ref: SourceRef) -> NDArray[np.float64]:
        """When the frames of a reference appear, (T,) in seconds, ascending. Raises BadDataError."""
        ...

"""Which files and which spans of them a list of videos asks for, relative to the list."""

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import SourceFile, file_at, find, printable
from pipelines.video.list_lines import MAX_BYTES, SUFFIXES, ListLine, parse_lines, suffix_of
from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """A video or a span of one, and what is said of it."""

    file: SourceFile
    start: float | None = None
    """Seconds after the first frame."""
    end: float | None = None
    texts: tuple[str, ...] = ()
    collection: str = ""
    line: int = 0
    """Of the list."""

    @property
    def is_span(self) -> bool:
        """Whether it is not the whole video."""
        return self.start is not None or self.end is not None

    @property
    def uri(self) -> str:
        """The file's, with a span as a fragment as in W3C's Media Fragments."""
        return f"{self.file.uri}#t={_text(self.start or 0.0)}{self._until}" if self.is_span else self.file.uri

    @property
    def _until(self) -> str:
        return "" if self.end is None else f",{_text(self.end)}"

    @property
    def mark(self) -> str:
        """Changes with what the list says of the video; empty when it says nothing."""
        if not self.is_span and not self.texts and not self.collection:
            return ""
        said = json.dumps([_text(self.start), _text(self.end), self.texts, self.collection])
        return "-" + hashlib.sha256(said.encode()).hexdigest()[:16]


def _text(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f}".rstrip("0").rstrip(".")


def is_list(name: str) -> bool:
    """Whether a file name is that of a list."""
    return "." in name and suffix_of(name) in SUFFIXES


def listed(source: str, is_video: Callable[[str], bool]) -> Iterator[VideoEntry | Rejection | LeftOut]:
    """What the lists at `source` ask for, in their order. Lines about one span of one file are one entry.

    Args:
        source: path or fsspec URI of a list, or a glob of some.
        is_video: whether a file name is that of a video.

    Raises:
        UserError: when there is nothing, or no list.
    """
    for item in find(source, is_list):
        if not isinstance(item, SourceFile):
            yield item
        elif item.size > MAX_BYTES:
            raise UserError(f"{item.uri} is larger than {MAX_BYTES >> 20} MiB: divide the list")
        else:
            yield from _List(item, is_video).entries()


class _List:
    """One list."""

    def __init__(self, file: SourceFile, is_video: Callable[[str], bool]) -> None:
        self._file, self._is_video = file, is_video
        self._folder = Location(file.folder, file.protocol, file.folder)
        self._known: dict[str, SourceFile | Rejection | None] = {}
        self._numbers = 0

    def entries(self) -> Iterator[VideoEntry | Rejection | LeftOut]:
        """What it asks for."""
        entries: dict[str, VideoEntry] = {}
        rejected: list[Rejection] = []
        for line in self._lines():
            try:
                if not isinstance(line, ListLine):
                    raise line[1]
                entry = self._entry(line)
                before = entries.setdefault(entry.uri, entry)
                if before.collection != entry.collection:
                    raise BadDataError("bad_line", f"the same as line {before.line} in another collection")
                entries[entry.uri] = replace(before, texts=tuple(dict.fromkeys((*before.texts, *entry.texts))))
            except BadDataError as error:
                number = line.number if isinstance(line, ListLine) else line[0]
                rejected.append(self._rejection(f"#line={number}", error))
        if not entries and not rejected:
            raise UserError(f"{self._file.uri} lists nothing: a line is path[, start, end, text, collection]")
        yield from entries.values()
        yield from rejected
        if self._numbers:
            what = f"labels that are numbers, which are no language: {self._numbers}"
            yield LeftOut(source_uri=self._file.uri, what=what)

    def _lines(self) -> Iterator[ListLine | tuple[int, BadDataError]]:
        try:
            yield from parse_lines(self._file.read(), suffix_of(self._file.name))
        except OSError as error:
            raise UserError(f"{self._file.uri} can't be read: {error.strerror or error}") from error
        except BadDataError as error:
            raise UserError(f"{self._file.uri}: {error.detail}") from error

    def _rejection(self, place: str, error: BadDataError) -> Rejection:
        uri = f"{self._file.uri}{place}"
        mark = hashlib.sha256(f"{error.reason} {error.detail}".encode(errors="replace")).hexdigest()[:32]
        return Rejection(source_uri=uri, fingerprint=mark, reason=error.reason, detail=error.detail)

    def _entry(self, line: ListLine) -> VideoEntry:
        found, text, trimmed = self._resolve(line.path), line.text, False
        if found is None and line.words is not None:
            found, text = self._resolve(line.words[0]), line.words[1]
        if found is None and not self._is_video(line.path):
            found, trimmed = self._by_stem(line)
        if found is None:
            raise BadDataError("missing_file", f"there is no file {printable(line.path)}")
        if isinstance(found, Rejection):
            raise BadDataError(found.reason, f"{found.source_uri}: {found.detail}")
        if text.isdecimal():  # the number of a class
            self._numbers, text = self._numbers + 1, ""
        return VideoEntry(
            file=found,
            start=None if trimmed or not line.start else line.start,
            end=None if trimmed else line.end,
            texts=(text,) if text else (),
            collection=line.collection,
            line=line.number,
        )

    def _resolve(self, path: str) -> SourceFile | Rejection | None:
        """The file of a path, which the list's folder is the start of; None when there is none."""
        if path not in self._known:
            try:
                self._known[path] = file_at(self._place(path))
            except UserError as error:
                raise BadDataError("bad_line", str(error)) from error
        return self._known[path]

    def _place(self, path: str) -> Location:
        if "://" in path or os.path.isabs(path):  # noqa: PTH117
            return locate(path)
        joined = posixpath.normpath(posixpath.join(self._folder.path, path))
        return Location(joined if self._folder.is_local else f"{self._folder.protocol}://{joined}",
                        self._folder.protocol, joined)  # fmt: skip

    def _by_stem(self, line: ListLine) -> tuple[SourceFile | None, bool]:
        """The video below the list's folder that is called so without its suffix, and whether it was cut already.

        Kinetics' videos are called `<id>_<start>_<end>`, with six digits each, once they are cut.
        """
        stem = line.path.rpartition("/")[2]
        cut = "" if line.start is None or line.end is None else f"{stem}_{line.start:06.0f}_{line.end:06.0f}"
        for name, trimmed in ((cut, True), (stem, False)):
            found = self._stems.get(name, [])
            if len(found) > 1:
                raise BadDataError("ambiguous", f"{len(found)} files are called so, such as {found[0].uri}")
            if found:
                return found[0], trimmed
        return None, False

    @cached_property
    def _stems(self) -> dict[str, list[SourceFile]]:
        stems: dict[str, list[SourceFile]] = {}
        for item in find(self._folder.uri, self._is_video):
            if isinstance(item, SourceFile):
                stems.setdefault(item.name.rpartition(".")[0], []).append(item)
        return stems

"""Is a video file what its container says that it is? Decoders often end a file that was cut as if it were whole.

The outermost structure is read: the boxes of MP4 and MOV (ISO 14496-12), the RIFF chunk of AVI, the trailer of GIF, the
elements of Matroska and WebM (RFC 8794) with their checksums, the size that ASF and FLV state, the last page of Ogg.
Other containers say nothing that could be checked. And does another file follow in it (`cat a.ogv b.ogv`)?
"""

import io
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from pipelines.checks.quality import BadDataError

_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp", b"sidx", b"pnot"))
"""Boxes that a file may begin with."""
_INNER_BOXES = _BOXES | {b"uuid", b"meta", b"udta", b"mfra", b"emsg", b"prft", b"ssix", b"imda", b"pdin", b"meco"}
_MAX_BOXES = 1_000_000
_CRC32 = b"\xbf\x84"
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_FLV_SIZE = b"\0\x08filesize\0"
_HEADER = 1 << 16
"""Bytes in which ASF and FLV state their size."""
_BEGINNINGS = (
    _ASF,
    b"FLV\x01",
    b"nut/multimedia container\0",
    b"\x89PNG\r\n\x1a\n",
    b"DKIF\0\0\x20\0",
    b"YUV4MPEG2 ",
    b".RMF\0\0\0\x12\0",
    bytes.fromhex("060e2b34020501010d0102010102"),  # MXF's header partition
    bytes.fromhex("b7d800203749da11a64e0007e95ead8d"),  # WTV
)
"""What files begin with that have it nowhere else."""
_OGG_FIRST = b"OggS\0\x02" + bytes(8)
"""How each stream of an Ogg begins, all of them before the first that goes on."""
_MAX_STREAMS = 1000
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What the outermost structure of a file shows."""

    whole: bool = False
    """Nothing was cut off, as far as bytes tell; otherwise only the clock can."""
    left_out: tuple[str, ...] = ()
    """What of the file is not decoded."""
    end: int | None = None
    """Bytes of the first of several files that were glued together, the only one that is decoded; None when all are."""
    joined: str = ""
    """Another file that decoders go on to read as if it were a part of this one."""


class FirstBytes(io.RawIOBase):
    """A file that ends after its first `size` bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Where reading goes on."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._size}[whence]
        return self._file.seek(max(0, start + offset))

    def readinto(self, buffer: Any) -> int:
        """As many bytes as there are."""
        data = self._file.read(min(len(buffer), max(0, self._size - self._file.tell())))
        buffer[: len(data)] = data
        return len(data)


def first_file(file: BinaryIO, end: int | None) -> BinaryIO:
    """The first of several files that were glued together, of `Outline.end` bytes."""
    return file if end is None else cast("BinaryIO", FirstBytes(file, end))


def check_whole(file: BinaryIO, size: int) -> Outline:
    """Compare what the container declares with the file and its `size` in bytes.

    Raises:
        BadDataError: "truncated", "crc_mismatch", "no_init_segment", "unsupported_codec", or "corrupt" when its
            structure makes no sense.
    """
    file.seek(0)
    head = file.read(_HEADER)
    if head[4:8] in _BOXES:
        return _check_boxes(file, size)
    if head[:4] == _EBML:
        return _check_matroska(file, size)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _check_riff(file, size)
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20] & 2:
        raise BadDataError("unsupported_codec", "an animated WebP, which no decoder here reads")
    if head[:4] == b"GIF8":
        file.seek(max(0, size - 16))
        if not file.read().rstrip(b"\0").endswith(b";"):
            raise BadDataError("truncated", "the GIF has no trailer")
        return Outline(whole=True)
    if head[:4] == b"OggS":
        end = _occurs_again(file, _OGG_FIRST, _skip_ogg_beginning(file))
        return Outline(whole=_ends_ogg(file, size if end < 0 else end), **_glued(end))
    beginning = next((beginning for beginning in _BEGINNINGS if head.startswith(beginning)), None)
    if beginning is None:
        return Outline()
    stated = _stated_size(head)
    _check_end(stated, size, "the header says that the file")
    return Outline(whole=stated > 0, **_glued(_occurs_again(file, beginning)))


def _check_end(end: int, size: int, what: str) -> None:
    if end > size:
        raise BadDataError("truncated", f"{what} ends at byte {end}, the file at {size}")


def _glued(position: int) -> dict[str, Any]:
    """Fields of an outline when another file begins at `position`."""
    return {"left_out": (_another(position),), "end": position} if position > 0 else {}


def _another(position: int) -> str:
    return f"another file glued to it at byte {position}"


def _stated_size(head: bytes) -> int:
    """Bytes that the header of an ASF or FLV file says the file has; 0 when it doesn't."""
    if (start := head.find(_ASF_FILE)) > 0 and head.startswith(_ASF):
        return int.from_bytes(head[start + 40 : start + 48], "little")
    if (start := head.find(_FLV_SIZE)) > 0 and head.startswith(b"FLV"):
        (size,) = struct.unpack(">d", head[start + len(_FLV_SIZE) :][:8].ljust(8, b"\0"))
        return int(size) if 0 < size < 1 << 60 else 0
    return 0


def _ends_ogg(file: BinaryIO, size: int) -> bool:
    """Whether the last page says that it is the last, and is there to its end."""
    file.seek(max(0, size - _HEADER))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    return len(page) > 27 and bool(page[5] & 4) and len(page) == 27 + page[26] + sum(page[27 : 27 + page[26]])


def _skip_ogg_beginning(file: BinaryIO) -> int:
    """Where the pages end that begin streams."""
    position = 0
    for _ in range(_MAX_STREAMS):
        file.seek(position)
        page = file.read(27 + 255)
        if not page.startswith(_OGG_FIRST) or len(page) < 27:
            break
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])
    return position


def _check_riff(file: BinaryIO, size: int) -> Outline:
    """An AVI is a chunk of 1 GB at most and as many more of the kind AVIX as it takes."""
    position, again = 0, -1
    for _ in range(_MAX_BOXES):
        file.seek(position)
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] not in (b"AVI ", b"AVIX"):
            break
        if position and head[8:] == b"AVI ":
            again = position
            break
        end = position + 8 + int.from_bytes(head[4:8], "little")
        _check_end(end, size, "the RIFF chunk")
        position = end + end % 2
    return Outline(whole=True, **_glued(again))


def _occurs_again(file: BinaryIO, beginning: bytes, start: int = 1) -> int:
    """Where a file begins again within the file, from `start` on; -1 when it doesn't."""
    file.seek(start)
    position, kept = start, b""
    while block := file.read(_BLOCK):
        if (index := (kept + block).find(beginning)) >= 0:
            return position - len(kept) + index
        position, kept = position + len(block), block[1 - len(beginning) :]
    return -1


def _check_boxes(file: BinaryIO, size: int) -> Outline:
    position, kinds, glued = 0, set[bytes](), -1
    for _ in range(_MAX_BOXES):
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:  # a few stray bytes at the end do no harm
            break
        length, kind = struct.unpack(">I4s", head[:8])
        if b"moov" in kinds and kind not in _INNER_BOXES:  # some cameras write what is no box behind the last one
            break
        header = 8
        if length == 1:
            length, header = int.from_bytes(head[8:], "big"), 16
        if kind == b"ftyp" and b"moov" in kinds and glued < 0:
            glued = position
        kinds.add(kind)
        if length == 0:  # up to the end of the file
            break
        if length < header:
            raise BadDataError("corrupt", f"the box at byte {position} says that it has {length} bytes")
        _check_end(position + length, size, f"the box at byte {position}")
        position += length
    if b"moov" not in kinds and b"moof" in kinds:
        raise BadDataError("no_init_segment", "a fragment, which only its init segment says how to read: put it before")
    if b"moov" not in kinds:
        raise BadDataError("truncated", "the file has no moov box, which says how to read the rest")
    # fragments follow each other without a word of how many there are, unless an index of them ends the file
    return Outline(whole=b"moof" not in kinds or b"mfra" in kinds, **_glued(glued))


def _check_matroska(file: BinaryIO, size: int) -> Outline:
    file.seek(4)
    length = _vint(file)
    if length is None:
        return Outline()
    file.seek(length, 1)
    if file.read(4) != _SEGMENT:
        return Outline()
    length = _vint(file)
    end = size if length is None else file.tell() + length
    _check_end(end, size, "the segment")
    _check_elements(file, end)
    file.seek(end)
    return Outline(whole=length is not None, joined=_another(end) if file.read(4) == _EBML else "")


def _check_elements(file: BinaryIO, end: int) -> None:
    """Compare the checksum of every element of the segment that has one, such as those that FFmpeg wrote."""
    while file.tell() < end:
        start = file.tell()
        file.seek(max(0, 7 - (file.read(1) or b"\xff")[0].bit_length() + 1), 1)  # the rest of the id
        length = _vint(file)
        if length is None:
            return
        stop = file.tell() + length
        _check_end(stop, end, f"the element at byte {start}")
        if length >= 6 and file.read(2) == _CRC32:
            expected, checksum = int.from_bytes(file.read(4), "little"), 0
            while (left := stop - file.tell()) > 0:
                checksum = zlib.crc32(file.read(min(left, 1 << 20)), checksum)
            if checksum != expected:
                raise BadDataError("crc_mismatch", f"the checksum of the element at byte {start} does not match")
        file.seek(stop)


def _vint(file: BinaryIO) -> int | None:
    """An EBML size; None when it is unknown, as in live streams."""
    first = file.read(1)
    if not first or not first[0]:
        raise BadDataError("corrupt", "the container's header is damaged")
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    value = int.from_bytes(bytes([first[0] & (1 << 7 - extra) - 1]) + rest, "big")
    return None if value == (1 << 7 * (extra + 1)) - 1 else value

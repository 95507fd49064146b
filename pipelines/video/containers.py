"""Is a video file what its container says that it is? Decoders often end a file that was cut as if it were whole.

The outermost structure is read: the boxes of MP4 and MOV (ISO 14496-12), the RIFF chunk of AVI, the trailer of GIF, and
the elements of Matroska and WebM (RFC 8794) with their checksums. Other containers say nothing that could be checked.
"""

import struct
import zlib
from typing import BinaryIO

from pipelines.checks.quality import BadDataError

_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp", b"sidx", b"pnot"))
_MAX_BOXES = 1_000_000
_CRC32 = b"\xbf\x84"
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def check_whole(file: BinaryIO, size: int) -> None:
    """Compare what the container declares with the file and its `size` in bytes.

    Raises:
        BadDataError: "truncated", "crc_mismatch", or "corrupt" when its structure makes no sense.
    """
    file.seek(0)
    head = file.read(12)
    if head[4:8] in _BOXES:
        _check_boxes(file, size)
    elif head[:4] == _EBML:
        _check_matroska(file, size)
    elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
        _check_end(8 + int.from_bytes(head[4:8], "little"), size, "the RIFF chunk")
    elif head[:4] == b"GIF8":
        file.seek(max(0, size - 16))
        if not file.read().rstrip(b"\0").endswith(b";"):
            raise BadDataError("truncated", "the GIF has no trailer")


def _check_end(end: int, size: int, what: str) -> None:
    if end > size:
        raise BadDataError("truncated", f"{what} ends at byte {end}, the file at {size}")


def _check_boxes(file: BinaryIO, size: int) -> None:
    position, found = 0, set()
    for _ in range(_MAX_BOXES):
        if size - position < 8:  # a few stray bytes at the end do no harm
            break
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if length == 1:
            length, header = int.from_bytes(file.read(8), "big"), 16
        found.add(kind)
        if length == 0:  # up to the end of the file
            break
        if length < header:
            raise BadDataError("corrupt", f"the box at byte {position} says that it has {length} bytes")
        _check_end(position + length, size, f"the box at byte {position}")
        position += length
    if b"moov" not in found:
        raise BadDataError("truncated", "the file has no moov box, which says how to read the rest")


def _check_matroska(file: BinaryIO, size: int) -> None:
    file.seek(4)
    length = _vint(file)
    if length is None:
        return
    file.seek(length, 1)
    if file.read(4) == _SEGMENT:
        length = _vint(file)
        end = size if length is None else file.tell() + length
        _check_end(end, size, "the segment")
        _check_elements(file, end)


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
            wanted, found = int.from_bytes(file.read(4), "little"), 0
            while (left := stop - file.tell()) > 0:
                found = zlib.crc32(file.read(min(left, 1 << 20)), found)
            if found != wanted:
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

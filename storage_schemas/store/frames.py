"""Frames to bytes and back: JPEG, or lossless LZ4."""

from collections.abc import Iterable

import numpy as np
import simplejpeg
from numcodecs import blosc
from numpy.typing import NDArray

from storage_schemas.schema import Codec

QUALITY = 95
"""JPEG quality of frames that the project encodes itself: 37 to 41 dB at 4:2:0."""

Data = bytes | memoryview


def encode_frames(frames: NDArray[np.uint8], codec: Codec) -> list[bytes]:
    """Encode frames (N, H, W, 3), RGB."""
    frames = np.ascontiguousarray(frames)
    if codec == "jpeg":
        return [simplejpeg.encode_jpeg(frame, QUALITY, "RGB", "420") for frame in frames]
    return [blosc.compress(frame, b"lz4", 5, blosc.NOSHUFFLE, 0, 1) for frame in frames]


def decode_frames(
    chunks: Iterable[Data],
    codec: Codec,
    out: Iterable[NDArray[np.uint8]],
    least: tuple[int, int] | None = None,
) -> None:
    """Decode each chunk into its contiguous array (H, W, 3).

    Args:
        chunks: encoded frames.
        codec: How all of them are encoded.
        out: one array for each chunk.
        least: shrink JPEGs while decoding to the `scaled_size` for these least pixels, the size of the arrays.

    Raises:
        ValueError: when a chunk is not an image of that size.
    """
    if codec == "jpeg" and least:
        for chunk, frame in zip(chunks, out, strict=True):
            _decode_scaled(chunk, frame, least)
        return
    if codec == "jpeg":
        decode = simplejpeg.decode_jpeg
        for chunk, frame in zip(chunks, out, strict=True):
            if decode(chunk, buffer=frame).shape != frame.shape:
                raise ValueError(f"the JPEG is not of the size {frame.shape[:2]}")
        return
    for chunk, frame in zip(chunks, out, strict=True):
        check_frame(chunk, "lossless", frame.shape[0], frame.shape[1])
        blosc.decompress(chunk, frame)


def scaled_size(size: tuple[int, int], least: tuple[int, int], codec: Codec) -> tuple[int, int]:
    """The size in which a frame of `size` leaves the decoder when at least `least` pixels are needed.

    JPEG's transform can be evaluated on a coarser grid, n/8 of the frame's, which saves most of the decoding of
    large frames. Frames that would shrink to more than half, and lossless frames, keep their size.

    Args:
        size: height and width of the stored frame.
        least: height and width that the decoded frame must reach.
        codec: of the frame.
    """
    if codec != "jpeg":
        return size
    for eighths in (1, 2, 3, 4):
        height, width = (-(-pixels * eighths // 8) for pixels in size)
        if height >= least[0] and width >= least[1]:
            return height, width
    return size


def _decode_scaled(chunk: Data, frame: NDArray[np.uint8], least: tuple[int, int]) -> None:
    decoded = simplejpeg.decode_jpeg(chunk, min_height=least[0], min_width=least[1], min_factor=2.0, buffer=frame)
    if decoded.shape != frame.shape:
        raise ValueError(f"the JPEG shrinks to {decoded.shape[:2]}, not to {frame.shape[:2]}")


def check_compressed(jpeg: Data) -> None:
    """Read all compressed data of a JPEG, as whoever decodes it later must, and compute next to no pixel of it.

    Raises:
        ValueError: when something of it is missing, too much, or no code of its tables.
    """
    simplejpeg.decode_jpeg(jpeg, "GRAY", fastdct=True, fastupsample=True, min_height=1, min_width=1)


def check_frame(chunk: Data, codec: Codec, height: int, width: int) -> None:
    """Read only the header of an encoded frame.

    Raises:
        ValueError: when it is not the header of a colour or gray image of that size.
    """
    if codec == "jpeg":
        found_height, found_width, space, _ = simplejpeg.decode_jpeg_header(chunk)
        if (found_height, found_width) != (height, width) or space in ("CMYK", "YCCK"):
            raise ValueError(f"a JPEG of {found_height}x{found_width} {space} where {height}x{width} RGB belongs")
    elif len(chunk) < 16 or int.from_bytes(chunk[4:8], "little") != height * width * 3:
        raise ValueError(f"not a compressed frame of {height}x{width}")
    elif int.from_bytes(chunk[12:16], "little") != len(chunk):
        raise ValueError(f"a compressed frame of {height}x{width} is cut short")

"""Frames to bytes and back."""

from typing import get_args

import numpy as np
import pytest
import simplejpeg
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from storage_schemas.schema import Codec
from storage_schemas.store.codec import JpegCodec
from storage_schemas.store.frames import check_frame, decode_frames, encode_frames

CODECS = get_args(Codec)
IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.just(3)))


def smooth(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([128 + 90 * np.sin(x / 9), 128 + 90 * np.cos(y / 7), (x + y) * 2], -1).astype(np.uint8)[None]


@settings(deadline=None)
@given(IMAGES)
def test_lossless_is_exact(frames: NDArray[np.uint8]) -> None:
    chunks = encode_frames(frames, "lossless")
    out = np.zeros_like(frames)
    for chunk in chunks:
        check_frame(chunk, "lossless", *frames.shape[1:3])
    decode_frames(chunks, "lossless", out)
    assert (out == frames).all()


@pytest.mark.parametrize("codec", CODECS)
def test_frames_survive(codec: Codec) -> None:
    frames = smooth()
    out = np.zeros_like(frames)
    decode_frames(encode_frames(frames, codec), codec, out)
    assert np.abs(out.astype(int) - frames).mean() < 2


def test_encoding_takes_any_memory_layout() -> None:
    frames = smooth()
    flipped = frames[:, ::-1, :, ::-1]
    assert encode_frames(flipped, "jpeg") == encode_frames(flipped.copy(), "jpeg")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [(24, 64), (96, 64), (48, 65)])
def test_another_size_is_refused(codec: Codec, size: tuple[int, int]) -> None:
    (chunk,) = encode_frames(smooth(), codec)
    with pytest.raises(ValueError):  # noqa: PT011
        decode_frames([chunk], codec, [np.zeros((*size, 3), np.uint8)])
    with pytest.raises(ValueError):  # noqa: PT011
        check_frame(chunk, codec, *size)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("damage", ["empty", "garbage", "header", "short"])
def test_damage_is_refused(codec: Codec, damage: str) -> None:
    (chunk,) = encode_frames(smooth(), codec)
    cut = 4 if codec == "jpeg" else len(chunk) - 1
    bad = {"empty": b"", "garbage": b"garbage" * 9, "header": b"\0" * 20 + chunk[20:], "short": chunk[:cut]}[damage]
    with pytest.raises((ValueError, RuntimeError)):
        decode_frames([bad], codec, [np.zeros((48, 64, 3), np.uint8)])
    with pytest.raises(ValueError):  # noqa: PT011
        check_frame(bad, codec, 48, 64)


def test_gray_jpeg_is_read_as_rgb() -> None:
    gray = np.ascontiguousarray(smooth()[0, :, :, :1])
    chunk = simplejpeg.encode_jpeg(gray, 95, "GRAY", "Gray")
    check_frame(chunk, "jpeg", 48, 64)
    out = np.zeros((1, 48, 64, 3), np.uint8)
    decode_frames([chunk], "jpeg", out)
    assert np.ptp(out, axis=-1).max() == 0


def test_cmyk_jpeg_is_refused() -> None:
    chunk = simplejpeg.encode_jpeg(np.zeros((8, 8, 4), np.uint8), 95, "CMYK", "444")
    with pytest.raises(ValueError, match="RGB belongs"):
        check_frame(chunk, "jpeg", 8, 8)


def test_zarr_writes_and_reads_through_the_codec() -> None:
    frames = smooth()
    store, codec = zarr.storage.MemoryStore(), JpegCodec(quality=90)
    array = zarr.create_array(
        store, shape=frames.shape, chunks=frames.shape, dtype="uint8", serializer=codec, compressors=None
    )
    array[:] = frames
    again = zarr.open_array(store, mode="r")
    assert again.metadata.codecs == (codec,)
    assert np.abs(again[:].astype(int) - frames).mean() < 2

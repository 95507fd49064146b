"""TFRecord framing and Examples: what is read is what was written, or it is reported."""

import io
import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.checks.quality import BadDataError
from pipelines.tfrecord import Example, Record, check_record, scan

RECORDS = st.lists(st.binary(max_size=40), min_size=1, max_size=5)


def listing(data: bytes) -> list[Record | BadDataError]:
    return list(scan(io.BytesIO(data), len(data)))


def readable(data: bytes) -> list[bytes]:
    """The data of all records that scan and checksum accept."""
    found = []
    for item in listing(data):
        if isinstance(item, Record):
            try:
                payload = data[item.offset : item.offset + item.length]
                found.append(check_record(payload, item.length, item.checksum))
            except BadDataError:
                continue
    return found


@given(RECORDS)
def test_round_trip(make_record: Callable[[bytes], bytes], payloads: list[bytes]) -> None:
    assert readable(b"".join(map(make_record, payloads))) == payloads


@given(RECORDS, st.data())
def test_a_cut_loses_only_what_was_cut(
    make_record: Callable[[bytes], bytes], payloads: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(map(make_record, payloads))
    cut = data.draw(st.integers(0, len(whole)))
    ends = np.cumsum([len(make_record(payload)) for payload in payloads])
    kept = int((ends <= cut).sum())
    found = listing(whole[:cut])
    assert readable(whole[:cut]) == payloads[:kept]
    clean = cut in (0, *ends)
    assert [item.reason for item in found if isinstance(item, BadDataError)] == ([] if clean else ["truncated"])


@settings(max_examples=300)
@given(RECORDS, st.data())
def test_a_changed_byte_is_never_read(
    make_record: Callable[[bytes], bytes], payloads: list[bytes], data: st.DataObject
) -> None:
    whole = bytearray(b"".join(map(make_record, payloads)))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    left = list(payloads)
    for payload in readable(bytes(whole)):
        assert payload in left
        left.remove(payload)
    assert left


def test_a_huge_length_is_not_believed(make_record: Callable[[bytes], bytes]) -> None:
    length = struct.pack("<Q", 2**62)
    good = make_record(b"abc")
    lying = length + good[8:]
    assert [type(item) for item in listing(good + lying)] == [Record, BadDataError]
    signed = length + make_record(length)[12 + 8 :][:4] + b"abc"
    assert [item.reason for item in listing(signed) if isinstance(item, BadDataError)] == ["truncated"]


def test_a_wrong_length_checksum_does_not_hide_the_next_record(make_record: Callable[[bytes], bytes]) -> None:
    first = bytearray(make_record(b"first"))
    first[9] ^= 1
    data = bytes(first) + make_record(b"second")
    assert [getattr(item, "reason", "good") for item in listing(data)] == ["length_crc_mismatch", "good"]
    assert readable(data) == [b"second"]


@pytest.mark.parametrize("packed", [True, False])
def test_example(make_example: Callable[..., bytes], packed: bool) -> None:
    parsed = Example(make_example({"f": [0.5, -1.25, 3.0], "i": [1, 300], "b": [b"x", b"", b"yz"]}, packed=packed))
    assert parsed.names() == ["b", "f", "i"]
    np.testing.assert_array_equal(parsed.numbers("f"), np.float32([0.5, -1.25, 3]))
    np.testing.assert_array_equal(parsed.numbers("i"), np.float32([1, 300]))
    assert parsed.byte_strings("b") == (b"x", b"", b"yz")
    with pytest.raises(BadDataError, match="missing_field"):
        parsed.numbers("absent")
    assert "absent" not in parsed


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, b"plain text that is no protobuf"])
def test_no_example(data: bytes) -> None:
    with pytest.raises(BadDataError, match="not_an_example"):
        Example(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_not(data: bytes) -> None:
    with suppress(BadDataError):
        Example(data).names()

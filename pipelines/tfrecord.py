"""TFRecord framing and tf.train.Example without TensorFlow.

A record is `u64 length | masked crc32c of the length | data | masked crc32c of the data`, little endian
(tensorflow/core/lib/io/record_writer.h). No length is believed before it is checked against its checksum and
the file's size.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError

_HEADER, _FOOTER = 12, 4
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Record:
    """Where a record's data lies in its file, and what the file says its masked checksum is."""

    offset: int
    length: int
    checksum: int


def masked_crc(data: bytes) -> int:
    """TFRecord's masked crc32c, which guards against checksums of data that holds checksums."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scan(file: BinaryIO, size: int) -> Iterator[Record | BadDataError]:
    """The records of a file of `size` bytes, seeking from header to header; an error where the framing is broken.

    A length whose own checksum is wrong counts as damage; the scan goes on behind it when a good header
    (or the end of the file) lies where the length says.
    """
    position = 0
    file.seek(0)
    header = file.read(_HEADER)
    while header:
        if len(header) < _HEADER:
            yield BadDataError("truncated", f"{len(header)} bytes at the end, where a header has {_HEADER}")
            return
        length, good = _length(header)
        if not position and not good and header.startswith(_GZIP):
            yield BadDataError("gzip", "the file is compressed with gzip, in which no record can be sought: unpack it")
            return
        end = position + _HEADER + length + _FOOTER
        if end > size:
            yield _overrun(length, size - position - _HEADER - _FOOTER, good)
            return
        file.seek(end - _FOOTER)
        tail = file.read(_FOOTER + _HEADER)
        header = tail[_FOOTER:]
        if good:
            yield Record(position + _HEADER, length, int.from_bytes(tail[:_FOOTER], "little"))
        else:
            follows = not header or (len(header) == _HEADER and _length(header)[1])
            rest = "" if follows else "; the rest of the file can't be located"
            yield BadDataError("length_crc_mismatch", f"the checksum of the record's length is wrong{rest}")
            if not follows:
                return
        position = end


def _length(header: bytes) -> tuple[int, bool]:
    length, checksum = struct.unpack("<QI", header)
    return length, masked_crc(header[:8]) == checksum


def _overrun(length: int, left: int, good: bool) -> BadDataError:
    if good:
        return BadDataError("truncated", f"the record has {length} bytes, the file has {max(left, 0)} left")
    return BadDataError("length_crc_mismatch", f"the record's length, {length}, is damaged; the rest can't be located")


def check_record(data: bytes, length: int, checksum: int) -> bytes:
    """The data of a record, if it is whole.

    Raises:
        BadDataError: "truncated" or "crc_mismatch".
    """
    if len(data) != length:
        raise BadDataError("truncated", f"{len(data)} bytes where the record has {length}")
    if masked_crc(data) != checksum:
        raise BadDataError("crc_mismatch", "the record's checksum does not match its data")
    return data


class Example:
    """A tf.train.Example: a map from a name to a list of byte strings, floats or integers.

    Raises:
        BadDataError: "not_an_example".
    """

    def __init__(self, data: bytes) -> None:
        from google.protobuf.message import DecodeError

        try:
            self._features = _message("Example").FromString(data).features.feature
        except DecodeError as error:
            raise BadDataError("not_an_example", f"the record is no tf.train.Example: {error}") from error
        if not self._features:
            raise BadDataError("not_an_example", "the record has no features")

    def __contains__(self, key: str) -> bool:
        return key in self._features

    def names(self) -> list[str]:
        """Names of the features, sorted."""
        return sorted(self._features)

    def byte_strings(self, key: str) -> tuple[bytes, ...]:
        """The byte strings of a feature. Raises BadDataError "missing_field"."""
        return tuple(self._get(key).bytes_list.value)

    def numbers(self, key: str) -> NDArray[Any]:
        """The floats (float32) or integers (int64) of a feature, a flat array. Raises BadDataError "missing_field"."""
        feature = self._get(key)
        if feature.WhichOneof("kind") == "int64_list":
            return np.array(feature.int64_list.value, np.int64)
        packed = b"".join(feature.float_list.value)
        if not packed and feature.float_list.ByteSize():  # a writer that does not pack, which the format allows
            plain = _message("PlainFloatList").FromString(feature.float_list.SerializeToString())
            return np.array(plain.value, np.float32)
        if len(packed) % 4:
            raise BadDataError("not_an_example", f"{key} ends in the middle of a float")
        return np.frombuffer(packed, "<f4")

    def _get(self, key: str) -> Any:
        if key not in self._features:  # indexing would create it
            raise BadDataError("missing_field", f"the record has no {key}")
        return self._features[key]


@cache
def _message(name: str) -> Any:
    """The message class of tensorflow/core/example/{example,feature}.proto, with its own descriptor pool.

    Floats are packed, which on the wire is a byte string, so they are declared as one: that hands over the
    buffer of a whole feature at once instead of a Python object for every number.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="uwm", syntax="proto3")

    def message(parent: Any, title: str, *fields: tuple[str, int, int, str]) -> Any:
        added = parent.add(name=title)
        for number, (label, kind, repeated, of) in enumerate(fields, 1):
            added.field.add(name=label, number=number, type=kind, label=repeated, type_name=of or None)
        return added

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message(file.message_type, "BytesList", ("value", field.TYPE_BYTES, many, ""))
    message(file.message_type, "FloatList", ("value", field.TYPE_BYTES, many, ""))
    message(file.message_type, "PlainFloatList", ("value", field.TYPE_FLOAT, many, ""))
    message(file.message_type, "Int64List", ("value", field.TYPE_INT64, many, ""))
    kinds = [("bytes_list", ".uwm.BytesList"), ("float_list", ".uwm.FloatList"), ("int64_list", ".uwm.Int64List")]
    feature = message(file.message_type, "Feature", *((n, field.TYPE_MESSAGE, one, of) for n, of in kinds))
    feature.oneof_decl.add(name="kind")
    for member in feature.field:
        member.oneof_index = 0
    features = message(
        file.message_type, "Features", ("feature", field.TYPE_MESSAGE, many, ".uwm.Features.FeatureEntry")
    )
    entry = message(
        features.nested_type,
        "FeatureEntry",
        ("key", field.TYPE_STRING, one, ""),
        ("value", field.TYPE_MESSAGE, one, ".uwm.Feature"),
    )
    entry.options.map_entry = True
    message(file.message_type, "Example", ("features", field.TYPE_MESSAGE, one, ".uwm.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"uwm.{name}"))

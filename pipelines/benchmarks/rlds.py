"""Writes episodes as DROID RLDS: TFRecord files of one tf.train.Example per episode, for the ingestion to read."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.tfrecord import masked_crc
from storage_schemas.episode import EncodedFrames, Episode

_NUMBERS = {
    "action": 7,
    "action_dict/cartesian_position": 6,
    "action_dict/cartesian_velocity": 6,
    "action_dict/gripper_position": 1,
    "action_dict/joint_position": 7,
    "observation/cartesian_position": 6,
    "observation/gripper_position": 1,
    "observation/joint_position": 7,
    "reward": 1,
}
"""Fields of DROID's steps with a width of each."""


def write_rlds(folder: Path, episodes: Sequence[Episode]) -> Path:
    """Write one shard per episode; returns the folder."""
    folder.mkdir(parents=True)
    for index, episode in enumerate(episodes):
        data = _example(episode, index)
        length = struct.pack("<Q", len(data))
        name = f"bench-train.tfrecord-{index:05d}-of-{len(episodes):05d}"
        checks = [struct.pack("<I", masked_crc(part)) for part in (length, data)]
        (folder / name).write_bytes(length + checks[0] + data + checks[1])
    return folder


def _example(episode: Episode, index: int) -> bytes:
    steps, generator = len(episode), np.random.default_rng(index)
    flags = np.zeros((2, steps), np.int64)
    flags[0, 0] = flags[1, -1] = 1
    features = {
        "steps/is_first": _field(3, _field(1, bytes(flags[0].astype(np.uint8)))),
        "steps/is_last": _field(3, _field(1, bytes(flags[1].astype(np.uint8)))),
        "steps/language_instruction": _strings([b"do it"] * steps),
        "episode_metadata/file_path": _strings([f"/data/LAB/success/day/{index}/trajectory.h5".encode()]),
    }
    for name, width in _NUMBERS.items():
        values = generator.uniform(-1, 1, (steps, width)).astype("<f4")
        features[f"steps/{name}"] = _field(2, _field(1, values.tobytes()))
    for camera, frames in episode.frames.items():
        if isinstance(frames, EncodedFrames):
            features[f"steps/observation/{camera}"] = _strings(frames.jpegs)
    entries = (_field(1, _field(1, key.encode()) + _field(2, value)) for key, value in features.items())
    return _field(1, b"".join(entries))


def _strings(values: Sequence[bytes]) -> bytes:
    return _field(1, b"".join(_field(1, value) for value in values))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

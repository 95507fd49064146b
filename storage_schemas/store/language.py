"""Features of instructions beside the frames, computed once for each distinct text and encoder: what lies where.

    <dataset>/language/<encoder>/<n>.safetensors   some texts and their features; never changed

Files are numbered from 0 without a gap, and each is written by whoever is the first to take its number. Where two hold
the same text the earlier one counts, so what has been read once is read for ever. A file holds `features` float32
(n, E) and `texts`, the UTF-8 bytes of a JSON list of n texts; its metadata carry the SHA-256 of both.

Letters: n texts, E features of a text.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from storage_schemas.errors import DamagedError
from storage_schemas.location import Location

MAX_FILE_BYTES = 256 << 20
_NAME = re.compile(r"[0-9]{6}\.safetensors")
_ENCODER = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")

Features = Mapping[str, NDArray[np.float32]]
"""Text -> (E,)."""


def language_folder(dataset: Location, encoder: str) -> Location:
    """Where the features of an encoder lie. Raises ValueError when its identity is no name of a folder."""
    if not _ENCODER.fullmatch(encoder):
        raise ValueError(f"{encoder!r} is no identity of an encoder")
    return dataset / "language" / encoder


def load_features(folder: Location, features: int) -> dict[str, NDArray[np.float32]]:
    """All texts in a folder with their features; none when there is no such folder.

    Args:
        folder: of an encoder.
        features: E.

    Raises:
        DamagedError: when a file is too large, damaged, or holds features of another size.
    """
    found: dict[str, NDArray[np.float32]] = {}
    for name in sorted(filter(_NAME.fullmatch, folder.names())):
        for text, values in _read(folder / name, features).items():
            found.setdefault(text, values)
    return found


def add_features(folder: Location, texts: Sequence[str], features: NDArray[np.float32]) -> None:
    """Keep the features (n, E) of n texts, in a file that is complete and on disk when this returns."""
    names = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
    values = np.ascontiguousarray(features, np.float32)
    content = save({"features": values, "texts": names}, {"sha256": _digest(values, names)})
    taken = sum(_NAME.fullmatch(name) is not None for name in folder.names())
    for number in count(taken):
        try:
            (folder / f"{number:06d}.safetensors").write_bytes(content, exclusive=True)
        except FileExistsError:
            continue  # somebody else was first
        return


def _read(file: Location, features: int) -> Features:
    content = file.read_bytes(0, MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise DamagedError(f"{file.uri} is larger than {MAX_FILE_BYTES} bytes")
    try:
        arrays, header = load(content), json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        values, names = arrays["features"], arrays["texts"]
        digest = header["__metadata__"]["sha256"]
        texts = json.loads(names.tobytes())
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(
            f"{file.uri} is damaged: {str(error)[:100]}; remove its folder, and it is made again"
        ) from error
    if digest != _digest(values, names):
        raise DamagedError(f"{file.uri} does not match its checksum: remove its folder, and it is made again")
    good = values.dtype == np.float32 and values.ndim == 2 and np.isfinite(values).all()
    if not good or values.shape[1] != features or not isinstance(texts, list) or len(texts) != len(values):
        raise DamagedError(f"{file.uri} holds no features of {features} numbers for its texts")
    if not all(isinstance(text, str) for text in texts):
        raise DamagedError(f"{file.uri} holds texts that are none")
    return dict(zip(texts, values, strict=True))


def _digest(values: NDArray[np.float32], texts: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(str(values.shape).encode())
    digest.update(np.ascontiguousarray(values).tobytes())
    digest.update(texts.tobytes())
    return digest.hexdigest()

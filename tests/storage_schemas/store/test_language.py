"""Features of texts beside a dataset: what is kept stays, the first counts, and damage is one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from s3_server import FaultProxy
from safetensors.numpy import save_file

from storage_schemas.errors import DamagedError
from storage_schemas.location import Location, locate
from storage_schemas.store.language import add_features, language_folder, load_features


def features(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return language_folder(locate(tmp_path / "store"), "clip-0a-1b")


def test_what_is_kept_comes_back(folder: Location) -> None:
    assert load_features(folder, 3) == {}
    add_features(folder, ["öffne die Tür", "lift"], features(2))
    add_features(folder, ["push"], features(1, 1))
    found = load_features(folder, 3)
    assert list(found) == ["öffne die Tür", "lift", "push"]
    np.testing.assert_array_equal(np.stack([*found.values()]), np.concatenate([features(2), features(1, 1)]))
    assert folder.names() == ["000000.safetensors", "000001.safetensors"]


def test_of_two_that_hold_a_text_the_first_counts_for_ever(folder: Location) -> None:
    add_features(folder, ["lift"], features(1))
    add_features(folder, ["lift", "push"], features(2, 1))
    np.testing.assert_array_equal(load_features(folder, 3)["lift"], features(1)[0])


def test_a_number_that_is_taken_meanwhile_is_left_alone(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    add_features(folder, ["lift"], features(1))
    monkeypatch.setattr(Location, "names", lambda self: [])  # as one saw the folder who was slower
    add_features(folder, ["push"], features(1, 1))
    monkeypatch.undo()
    assert list(load_features(folder, 3)) == ["lift", "push"]


def test_on_an_object_store(s3: FaultProxy) -> None:
    folder = language_folder(locate("s3://bucket/store"), "minilm-0-1")
    add_features(folder, ["lift"], features(1))
    add_features(folder, ["push"], features(1, 1))
    assert list(load_features(folder, 3)) == ["lift", "push"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".", "A b", "x" * 101])
def test_an_identity_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no identity of an encoder"):
        language_folder(locate(tmp_path), name)


@pytest.mark.parametrize("where", [0, 9, -1, None])
def test_a_damaged_file_is_refused(folder: Location, where: int | None) -> None:
    add_features(folder, ["lift"], features(1))
    path = Path(folder.path) / folder.names()[0]
    content = bytearray(path.read_bytes())
    if where is None:
        content = content[:-3]
    else:
        content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=str(path)):
        load_features(folder, 3)


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["lift", "push"], features(1)),
        ("lift", features(1)),
        ([1], features(1)),
        (["lift"], features(1)[:, :2]),
        (["lift"], features(1).astype(np.float64)),
        (["lift"], features(1) * np.nan),
    ],
)
def test_another_content_is_refused(folder: Location, texts: object, values: NDArray[np.float32]) -> None:
    add_features(folder, ["lift"], features(1))
    name = Path(folder.path) / folder.names()[0]
    save_file(
        {"features": values, "texts": np.frombuffer(json.dumps(texts).encode(), np.uint8)},
        name,
        {"sha256": _digest(values, texts)},
    )
    with pytest.raises(DamagedError):
        load_features(folder, 3)


def _digest(values: NDArray[np.float32], texts: object) -> str:
    from storage_schemas.store.language import _digest as digest

    return digest(values, np.frombuffer(json.dumps(texts).encode(), np.uint8))

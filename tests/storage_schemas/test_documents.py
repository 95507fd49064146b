"""JSON documents: read back as written, and one line for everything else."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from storage_schemas.documents import find_document, read_document, write_document
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import locate


class Model(BaseModel):
    name: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plain:
    name: str
    count: int | None = None


@pytest.mark.parametrize("value", [Model(name="ü", values=(1.5, 1e-300)), Plain(name="a", count=3), {"a": [1, None]}])
def test_a_document_comes_back(tmp_path: Path, value: object) -> None:
    location = locate(tmp_path / "new" / "a.json")
    write_document(location, value)
    assert read_document(location, type(value)) == value
    with pytest.raises(FileExistsError):
        write_document(location, value, exclusive=True)


def test_plain_numbers_that_are_none_come_back(tmp_path: Path) -> None:
    write_document(locate(tmp_path / "a.json"), {"a": math.nan, "b": math.inf})
    read = read_document(locate(tmp_path / "a.json"), dict[str, float])
    assert math.isnan(read["a"])
    assert read["b"] == math.inf


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"name": 1}', b'{"count": "x"}']
)
@pytest.mark.parametrize("kind", [Model, Plain])
def test_what_is_none_is_one_line(tmp_path: Path, kind: type[object], text: bytes) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(DamagedError, match=r"a\.json is damaged or of another version: ") as caught:
        read_document(locate(tmp_path / "a.json"), kind)
    assert "\n" not in str(caught.value)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'"%s"' % (b"x" * 98))
    assert read_document(locate(tmp_path / "a.json"), str, limit=100) == "x" * 98
    with pytest.raises(DamagedError, match="larger than 99 bytes"):
        read_document(locate(tmp_path / "a.json"), str, limit=99)


@pytest.mark.parametrize("name", ["absent.json", "file/inside.json", "folder"])
def test_what_is_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert find_document(locate(tmp_path / name), Model) is None
    with pytest.raises(UserError, match="does not exist: make it"):
        read_document(locate(tmp_path / name), Model, hint="make it")

"""Schema version 1: what is refused, and that JSON brings the same back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_schemas.errors import UserError
from storage_schemas.schema import (
    DatasetSpec,
    FrameArray,
    StateArray,
    StoreSchema,
    check_field_names,
    parse_size,
    part_metadata,
    size_text,
)

NAMES = st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True).map(tuple)


@given(NAMES, st.integers(1, 99), st.integers(0, 100))
def test_dataset_spec_json_round_trip(cameras: tuple[str, ...], action_dim: int, percent: int) -> None:
    spec = DatasetSpec(cameras=cameras, action_dim=action_dim, val_percent=percent)
    assert DatasetSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("cameras", "action_dim", "percent"),
    [((), 3, 10), (("a", "a"), 3, 10), (("",), 3, 10), (("a",), 0, 10), (("a",), 3, 101)],
)
def test_dataset_spec_refuses_nonsense(cameras: tuple[str, ...], action_dim: int, percent: int) -> None:
    with pytest.raises(ValueError, match=r"must be distinct|out of range"):
        DatasetSpec(cameras=cameras, action_dim=action_dim, val_percent=percent)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"cameras": ["a"], "action_dim": 1, "more": 2}'])
def test_dataset_spec_refuses_other_json(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        DatasetSpec.from_json(text)


@pytest.mark.parametrize(
    "names", [[""], ["a//b"], ["../a"], ["a/.."], ["/a"], ["a/c/0"], ["zarr.json"], ["__x"], ["a", "a/b"], ["a", "a"]]
)
def test_field_names_stay_inside_the_part(names: list[str]) -> None:
    with pytest.raises(ValueError, match="state field"):
        check_field_names(names)


def schema(**changes: object) -> StoreSchema:
    values: dict[str, object] = {
        "codec": "jpeg",
        "steps": 3,
        "cameras": ("a", "b"),
        "action_dim": 2,
        "frames": (FrameArray(name="rgb", height=4, width=6),),
        "state": (StateArray(name="x/y", dim=1),),
    }
    return StoreSchema.model_validate(values | changes)


def test_store_schema_rides_in_the_group_attributes() -> None:
    documents = part_metadata(schema())
    assert StoreSchema.parse(documents["zarr.json"]) == schema()
    assert set(documents) >= {"mask/zarr.json", "state/zarr.json", "state/x/zarr.json", "state/x/y/zarr.json"}


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 2}, {"steps": 0}, {"codec": "gif"}, {"state": [{"name": "../x", "dim": 1}]}, {"more": 1}],
)
def test_store_schema_refuses_what_it_does_not_know(change: dict[str, object]) -> None:
    document = json.loads(part_metadata(schema())["zarr.json"])
    document["attributes"]["uwm"] |= change
    with pytest.raises(ValueError, match="no schema of version 1"):
        StoreSchema.parse(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"null"])
def test_store_schema_refuses_other_bytes(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        StoreSchema.parse(data)


@given(st.integers(1, 65500), st.integers(1, 65500))
def test_size_text_round_trip(height: int, width: int) -> None:
    assert parse_size(size_text(height, width)) == (height, width)


def test_size_text_of_a_missing_camera_and_of_damage() -> None:
    assert parse_size("") == (0, 0)
    for text in ("x", "3x", "axb", "-1x2", "3"):
        with pytest.raises(UserError):
            parse_size(text)

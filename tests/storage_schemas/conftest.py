"""A small dataset to read from."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from storage_schemas.catalog.commits import CommitResult, commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode
from storage_schemas.schema import Codec, DatasetSpec
from storage_schemas.store.parts import write_part

CAMERAS = ("left", "right", "wrist")


@pytest.fixture
def spec() -> DatasetSpec:
    return DatasetSpec(cameras=CAMERAS, action_dim=3)


@pytest.fixture
def add(tmp_path: Path, spec: DatasetSpec) -> Callable[..., CommitResult]:
    """Write and commit episodes to the dataset `tmp_path / "data"`, creating it when needed."""

    def add(episodes: Sequence[Episode], *, codec: Codec = "jpeg", name: str = "data") -> CommitResult:
        uri = tmp_path / name
        create_dataset(uri, spec)
        return commit(uri, write_part(uri, episodes, run_id="run", codec=codec))

    return add

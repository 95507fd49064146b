"""The episode table of a dataset: a Delta table with one row per episode, whose version is the dataset's."""

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from storage_schemas.catalog.delta import (
    create_table,
    data_files,
    exclusive,
    is_table,
    open_table,
    read_files,
    table_schema,
)
from storage_schemas.catalog.rows import ROW_SCHEMA, EpisodeTable
from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate
from storage_schemas.schema import DatasetSpec

if TYPE_CHECKING:
    from deltalake import DeltaTable

_SPEC_KEY = "uwm.spec"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of a dataset, read from the log."""

    version: int
    table_id: str
    """Identity of the log: of two datasets that lay in one place one after the other, and of all copies."""
    spec: DatasetSpec
    episodes: EpisodeTable


def create_dataset(uri: str | os.PathLike[str], spec: DatasetSpec) -> Snapshot:
    """Create an empty dataset, version 0; does nothing when there is one with the same spec.

    Returns:
        The newest version.

    Raises:
        UserError: when there is one with another spec, or the path can't hold a dataset.
    """
    location = locate(uri)
    if is_table(location / "episodes"):
        table = open_table(location / "episodes")
    else:
        table = create_table(location / "episodes", ROW_SCHEMA, {_SPEC_KEY: spec.to_json()})
    snapshot = load(location, table)
    if snapshot.spec != spec:
        raise UserError(f"{location.uri} exists with other settings: {snapshot.spec.to_json()}, not {spec.to_json()}")
    return snapshot


def take_spec(location: Location, spec: DatasetSpec) -> None:
    """Give a dataset that never had an episode, version 0, its spec; one that had must have it, or lack a declaration.

    What actions mean may still be declared as long as no episode has any. Fails when another commit came between.

    Raises:
        UserError: when it had episodes of another spec.
    """
    table = open_dataset_table(location)
    stored = _spec(location, table)
    if stored == spec:
        return
    if table.version():
        declared = stored.model_copy(update={name: getattr(spec, name) for name in ("action", "states", "views")})
        has_actions = stored.action is not None or bool(load(location, table).episodes.action_steps.any())
        if declared != spec or has_actions:
            raise UserError(f"{location.uri} exists with other settings: {stored.to_json()}, not {spec.to_json()}")
    properties = {_SPEC_KEY: spec.to_json()}
    table.alter.set_table_properties(properties, raise_if_not_exists=False, commit_properties=exclusive(table))


def dataset_exists(uri: str | os.PathLike[str]) -> bool:
    """Whether there is a dataset."""
    return is_table(locate(uri) / "episodes")


def dataset_id(uri: str | os.PathLike[str]) -> str:
    """What a dataset is, wherever it lies and however that is spelt: the identity of its log. Reads no row.

    Raises:
        UserError: when there is no dataset.
    """
    return str(open_dataset_table(locate(uri)).metadata().id)


def same_dataset(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two places hold the same dataset, or are the same place."""
    if locate(one) == locate(other):
        return True
    return dataset_exists(one) and dataset_exists(other) and dataset_id(one) == dataset_id(other)


def dataset_spec(location: Location) -> DatasetSpec:
    """The spec of the dataset. Raises UserError when there is none."""
    return _spec(location, open_dataset_table(location))


def open_dataset_table(location: Location) -> "DeltaTable":
    """The episode table of a dataset at its newest version. Raises UserError when there is no dataset."""
    if not is_table(location / "episodes"):
        raise UserError(
            f"{location.uri} is not a dataset: it has no episode table"
            if location.exists()
            else f"{location.uri} does not exist"
        )
    return open_table(location / "episodes")


def load(location: Location, table: "DeltaTable") -> Snapshot:
    """Read the version of a dataset that its table is opened at. Raises UserError."""
    spec = _spec(location, table)
    columns = [name for name in ROW_SCHEMA.names if name != "statistics"]
    folder, files = location / "episodes", data_files(table)
    rows = read_files(folder, table_schema(table, columns), files)
    # no data file of an old version is ever removed, so the statistics can be read later without the log
    statistics = partial(read_files, folder, table_schema(table, ["ordinal", "statistics"]), files)
    return Snapshot(
        version=table.version(),
        table_id=str(table.metadata().id),
        spec=spec,
        episodes=EpisodeTable(rows, statistics),
    )


def _spec(location: Location, table: "DeltaTable") -> DatasetSpec:
    configuration: dict[str, Any] = table.metadata().configuration
    try:
        return DatasetSpec.from_json(configuration[_SPEC_KEY])
    except (KeyError, ValueError) as error:
        raise UserError(f"{location.uri} is not a dataset: its table was written by something else") from error

"""The Parquet and JSON files of a LeRobot dataset.

Letters: T steps of an episode, D numbers of a step.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.export.statistics import NAMES, Stats, combined, of_numbers
from pipelines.export.videos import CHUNK, Written
from pipelines.sources.lerobot_extra import Extra

_VERSION = "v3.0"
_FILE_MB, _VIDEO_MB = 100, 200
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
_BUFFERED = 500
"""Episodes of the list in memory."""
_IMAGE = (3, 1, 1)
"""Shape of an image's statistics."""


class Tables:
    """What is written of the rows, episodes and tasks; one row group for each episode, as LeRobot's own writer does.

    Args:
        folder: of the dataset.
        features: as `info.json` has them.
        fps: steps per second.
    """

    def __init__(self, folder: Path, features: Mapping[str, Mapping[str, Any]], fps: float) -> None:
        self._folder, self._features, self._fps = folder, features, fps
        self._schema = pa.schema(
            [(name, _type(feature)) for name, feature in features.items() if feature["dtype"] != "video"]
        )
        self._data: pq.ParquetWriter | None = None
        self._list: pq.ParquetWriter | None = None
        self._file = -1
        self._buffer: list[dict[str, Any]] = []
        self._stats: dict[str, list[Stats]] = {}
        self.tasks: dict[str, int] = {}
        self.steps = self.episodes = 0

    def add(
        self,
        columns: Mapping[str, NDArray[Any]],
        notes: Mapping[str, str],
        videos: Mapping[str, Written],
        stats: Mapping[str, Stats],
        exported: Mapping[str, Any],
    ) -> None:
        """Append an episode.

        Args:
            columns: numbers (T, D) by feature.
            notes: features of text, equal in every step.
            videos: where its frames are, by feature.
            stats: of its numbers and frames, by feature.
            exported: more columns of the list, under `uwm/`.
        """
        steps = len(next(iter(columns.values())))
        texts = exported["language"]
        task = self.tasks.setdefault(texts[0] if texts else "", len(self.tasks))
        index: dict[str, NDArray[Any]] = {
            "timestamp": (np.arange(steps) / self._fps).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, self.episodes),
            "index": self.steps + np.arange(steps),
            "task_index": np.full(steps, task),
        }
        rows = {name: _array(values, self._schema.field(name).type) for name, values in {**columns, **index}.items()}
        rows |= {name: pa.array([text] * steps, pa.string()) for name, text in notes.items()}
        self._writer().write_table(pa.table([rows[name] for name in self._schema.names], schema=self._schema))
        chunk, file = divmod(self._file, CHUNK)
        row: dict[str, Any] = {
            "episode_index": self.episodes, "tasks": [next(iter(texts), "")], "length": steps,
            "data/chunk_index": chunk, "data/file_index": file,
            "dataset_from_index": self.steps, "dataset_to_index": self.steps + steps,
        }  # fmt: skip
        for name, place in videos.items():
            row |= {
                f"videos/{name}/chunk_index": place.chunk, f"videos/{name}/file_index": place.file,
                f"videos/{name}/from_timestamp": place.start, f"videos/{name}/to_timestamp": place.end,
            }  # fmt: skip
        for name, values in {**stats, **_of_index(index)}.items():
            self._stats.setdefault(name, []).append(values)
            row |= {f"stats/{name}/{key}": value for key, value in values.to_dict(self._shape(name)).items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._buffer.append(row | {f"uwm/{name}": value for name, value in exported.items()})
        self.steps += steps
        self.episodes += 1
        if len(self._buffer) == _BUFFERED:
            self._flush()

    def _shape(self, name: str) -> tuple[int, ...]:
        return _IMAGE if self._features[name]["dtype"] == "video" else (-1,)

    def _writer(self) -> pq.ParquetWriter:
        """The file for the next episode."""
        if self._data is None or self._path().stat().st_size > _FILE_MB << 20:
            if self._data is not None:
                self._data.close()
            self._file += 1
            self._path().parent.mkdir(parents=True, exist_ok=True)
            self._data = pq.ParquetWriter(self._path(), self._schema, compression="snappy")
        return self._data

    def _path(self) -> Path:
        chunk, file = divmod(self._file, CHUNK)
        return self._folder / _DATA.format(chunk_index=chunk, file_index=file)

    def _flush(self) -> None:
        """Write the part of the list that is in memory."""
        if not self._buffer:
            return
        if self._list is None:
            path = self._folder / _EPISODES
            path.parent.mkdir(parents=True, exist_ok=True)
            schema = pa.schema([(name, _list_type(name, value)) for name, value in self._buffer[0].items()])
            self._list = pq.ParquetWriter(path, schema, compression="snappy")
        self._list.write_table(pa.Table.from_pylist(self._buffer, schema=self._list.schema))
        self._buffer = []

    def close(self) -> None:
        """Finish the Parquet files."""
        self._flush()
        for writer in (self._data, self._list):
            if writer is not None:
                writer.close()
        self._data = self._list = None

    def finish(self, extra: Extra) -> None:
        """Write what is known in the end: tasks, statistics, `info.json`."""
        meta = self._folder / "meta"
        pq.write_table(_tasks(list(self.tasks)), meta / "tasks.parquet")
        stats = {name: combined(parts).to_dict(self._shape(name)) for name, parts in self._stats.items()}
        (meta / "stats.json").write_text(json.dumps(stats, indent=4))
        (meta / "uwm.json").write_text(extra.model_dump_json(indent=1, exclude_defaults=True))
        info = {
            "codebase_version": _VERSION,
            "robot_type": None,
            "total_episodes": self.episodes,
            "total_frames": self.steps,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": _FILE_MB,
            "video_files_size_in_mb": _VIDEO_MB,
            "fps": int(self._fps) if self._fps == int(self._fps) else self._fps,
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": _DATA,
            "video_path": _VIDEO,
            "features": self._features,
        }
        (meta / "info.json").write_text(json.dumps(info, indent=4))


def _type(feature: Mapping[str, Any]) -> pa.DataType:
    kinds = {"bool": pa.bool_(), "string": pa.string()}
    kind = kinds.get(feature["dtype"]) or pa.type_for_alias(feature["dtype"])
    (dim,) = feature["shape"]
    return kind if dim == 1 else pa.list_(kind, dim)


def _array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), kind.list_size)
    return pa.array(values.ravel(), kind)


def _of_index(index: Mapping[str, NDArray[Any]]) -> dict[str, Stats]:
    return {name: of_numbers(values[:, None]) for name, values in index.items()}


def _list_type(name: str, value: Any) -> pa.DataType:
    """The type of a column of the list of episodes, by a value of it."""
    if name == "uwm/success":
        return pa.bool_()
    if name in ("tasks", "uwm/language"):
        return pa.list_(pa.string())
    if name.startswith("stats/"):
        inner = pa.int64() if name.endswith(f"/{NAMES[-1]}") else pa.float64()
        while isinstance(value, list):
            inner, value = pa.list_(inner), value[0]
        return inner
    return {int: pa.int64(), float: pa.float64(), str: pa.string()}[type(value)]


def _tasks(texts: Sequence[str]) -> pa.Table:
    """The table of tasks, whose texts are its index in pandas."""
    column = {"metadata": None}
    described = {
        "index_columns": ["task"],
        "column_indexes": [
            {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
             "metadata": {"encoding": "UTF-8"}},
        ],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"} | column,
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"} | column,
        ],
        "pandas_version": "2.3.3",
    }  # fmt: skip
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), "task": pa.array(texts, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(described)})

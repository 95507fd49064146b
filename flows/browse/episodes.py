"""What the pages show of a dataset version: a line for every episode, and one episode whole.

Both are plain values that become JSON. Letters: T steps, V views, D numbers of a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.lineage.pages import keys
from storage_schemas.lineage.provenance import sightings
from storage_schemas.lineage.records import LineageGraph, kind_of
from storage_schemas.spaces import Space, undeclared
from storage_schemas.store.dataset import Dataset

MAX_NUMBERS = 64
"""Numbers of a field that are drawn; a simulator's state has hundreds, which nobody reads as curves."""
_DIGITS = 5


@dataclass(frozen=True)
class Browsed:
    """A dataset version, and the lineage that knows it.

    Attributes:
        dataset: opened.
        graph: of all records where it lies.
        ui: address of the Prefect UI that shows the lineage, without a slash at the end.
    """

    dataset: Dataset
    graph: LineageGraph
    ui: str

    @property
    def identity(self) -> str:
        """What the lineage knows the version by, and the pages' address."""
        return f"{self.dataset.table_id}@{self.dataset.version}"

    def overview(self) -> dict[str, Any]:
        """The version, and its episodes as columns of equal length."""
        dataset, table = self.dataset, self.dataset.episodes
        texts = [next((text for text in texts if text), "") for texts in table.column("language")]
        return {
            "uri": dataset.uri,
            "version": dataset.version,
            "node": self._link(self._node) if self._node else None,
            "cameras": list(dataset.spec.cameras),
            "episodes": {
                "id": list(table.episode_ids),
                "collection": list(table.collections),
                "split": list(table.splits),
                "language": texts,
                "steps": table.lengths.tolist(),
                "fps": list(table.column("fps")),
                "actions": table.action_steps.tolist(),
                "success": list(table.column("success")),
                "source": list(table.column("source_uri")),
            },
        }

    def episode(self, row: int) -> dict[str, Any]:
        """One episode: its views, curves, instruction, and where it comes from and went. Raises IndexError."""
        stored = self.dataset.episodes.row(row)
        masks = self.dataset.array(row, "mask/view")
        views = [
            {"camera": camera, "known": _runs(masks[:, view])}
            for view, camera in enumerate(self.dataset.spec.cameras)
            if camera in stored.cameras
        ]
        seen = sightings(self.graph, {stored.source_uri})
        return {
            "row": row,
            "id": stored.episode_id,
            "steps": stored.length,
            "fps": stored.fps,
            "language": [text for text in stored.language if text],
            "views": views,
            "curves": list(self._curves(row)),
            "facts": {
                "raw file": stored.source_uri,
                "format": stored.source_format,
                "fingerprint": stored.source_fingerprint,
                "collection": stored.collection,
                "split": stored.split,
                "success": stored.success,
                "ingested": stored.ingested_at.isoformat(timespec="seconds"),
                "ingestion run": stored.run_id,
            },
            "seen": [
                self._link(node) | {"held_out": stored.split == "val" and kind_of(node) == "checkpoint"}
                for node in seen.nodes
            ],
            "missing": [f"{node}: {reason}" for node, reason in seen.missing.items()],
        }

    def _curves(self, row: int) -> Any:
        """Part by part of the action, then of every field of the state."""
        spec, schema = self.dataset.spec, self.dataset.schema(row)
        known = self.dataset.array(row, "mask/action")
        if known.any():
            space = spec.action or undeclared("action", spec.action_dim)
            yield from _parts("action", space, self.dataset.array(row, "action"), known)
        for field in schema.state:
            if 0 < field.dim <= MAX_NUMBERS:
                values = self.dataset.array(row, f"state/{field.name}")
                space = spec.state(field.name) or undeclared(field.name, field.dim)
                yield from _parts(f"state/{field.name}", space, values, np.ones(len(values), np.bool_))

    def _link(self, node: str) -> dict[str, Any]:
        return {"node": node, "kind": kind_of(node), "url": f"{self.ui}/artifacts/key/{self._keys[node]}"}

    @cached_property
    def _keys(self) -> Mapping[str, str]:
        return keys(self.graph)

    @cached_property
    def _node(self) -> str | None:
        record = self.graph.identified("dataset", self.identity)
        return record.node if record else None


def _parts(name: str, space: Space, values: NDArray[Any], known: NDArray[np.bool_]) -> Any:
    for part in space.parts:
        chosen = values[:, space.place(part.name)]
        title = f"{name}: {part.name}" if len(space.parts) > 1 else name
        yield {
            "title": title,
            "text": part.text if part.quantity != "other" else "",
            "labels": list(part.labels),
            "values": [_plain(column) for column in chosen.T],
            "known": _runs(known),
        }


def _plain(column: NDArray[Any]) -> list[float | None]:
    """Numbers (T,) as JSON takes them: rounded to what a curve shows, and none for what is not finite."""
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in column.tolist()]


def _runs(known: NDArray[np.bool_]) -> Sequence[tuple[int, int]]:
    """First and last step of every run of known steps (T,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    return [(first, end - 1) for first, end in edges.reshape(-1, 2).tolist()]

"""Which features a store's episodes become in a LeRobot dataset, and whether they can.

A LeRobot dataset has one rate, one size of each camera, and every feature in every row. What a store does not know of
an episode is zero or black there, and a feature says so.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.sources.lerobot_extra import Extra
from pipelines.sources.lerobot_info import INDEX
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec, size_text
from storage_schemas.store.dataset import Dataset

ACTION = "action"
ACTION_MASK, VIEW_MASK, STATE_MASK = "mask.action", "mask.view", "mask.state"
NOTES = {
    "episode_id": "provenance.episode_id",
    "source_uri": "provenance.source_uri",
    "collection": "provenance.collection",
}
"""Features of text that lead from any frame back, by the column of the episode table."""
_OURS = {ACTION, ACTION_MASK, VIEW_MASK, STATE_MASK, *NOTES.values(), *INDEX, "task"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is exported, and how."""

    rows: tuple[int, ...]
    """Episodes of the store."""
    fps: float
    cameras: Mapping[str, str]
    """Feature of each camera."""
    sizes: Mapping[str, tuple[int, int]]
    """Height and width of each camera's frames."""
    states: Mapping[str, str]
    """Feature of each state field."""
    kinds: Mapping[str, tuple[int, str]]
    """Numbers a step, and type, of each state field."""
    partial: bool
    """Whether some episodes lack some state."""
    spec: DatasetSpec
    without_actions: int
    """Episodes that were left out because none of their actions is known."""
    notes: tuple[str, ...]
    """What can't be exported."""

    @property
    def extra(self) -> Extra:
        """What leads back to the store's own terms."""
        return Extra(
            action=self.spec.action,
            states=tuple(field for field in self.spec.states if field.name in self.states),
            views=tuple(view for view in self.spec.views if view.name in self.cameras),
            fields={feature: field for field, feature in self.states.items()},
            cameras={feature: camera for camera, feature in self.cameras.items()},
            action_mask=ACTION_MASK,
            view_mask=VIEW_MASK,
            state_mask=STATE_MASK if self.partial else "",
            notes=tuple(NOTES.values()),
        )

    def features(self, codec: str) -> dict[str, dict[str, Any]]:
        """`features` of `info.json`."""
        found: dict[str, dict[str, Any]] = {}
        for field, feature in self.states.items():
            dim, kind = self.kinds[field]
            space = self.spec.state(field)
            found[feature] = _numbers(kind, dim, space.labels if space is not None and space.dim == dim else None)
        labels = self.spec.action.labels if self.spec.action else None
        found[ACTION] = _numbers("float32", self.spec.action_dim, labels)
        for camera, feature in self.cameras.items():
            found[feature] = _video(self.sizes[camera], self.fps, codec)
        found[ACTION_MASK] = _numbers("bool", 1, None)
        found[VIEW_MASK] = _numbers("bool", len(self.cameras), tuple(self.cameras))
        if self.partial:
            found[STATE_MASK] = _numbers("bool", len(self.states), tuple(self.states))
        found |= {feature: _numbers("string", 1, None) for feature in NOTES.values()}
        kinds = {"timestamp": "float32"}
        names = ("timestamp", "frame_index", "episode_index", "index", "task_index")
        return found | {name: _numbers(kinds.get(name, "int64"), 1, None) for name in names}


def _numbers(kind: str, dim: int, names: Sequence[str] | None) -> dict[str, Any]:
    return {"dtype": kind, "shape": [dim], "names": None if names is None else list(names)}


def _video(size: tuple[int, int], fps: float, codec: str) -> dict[str, Any]:
    height, width = size
    info = {
        "video.height": height, "video.width": width, "video.codec": codec, "video.pix_fmt": "yuv420p",
        "video.fps": fps, "video.channels": 3, "has_audio": False, "is_depth_map": False,
    }  # fmt: skip
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": info}


def plan_export(
    dataset: Dataset, *, collections: Sequence[str] = (), fps: float | None = None, keep_without_actions: bool = False
) -> Plan:
    """Choose episodes and name their features.

    Args:
        dataset: the version to export.
        collections: only these; all when empty.
        fps: only episodes of this rate; all must have one when None.
        keep_without_actions: take episodes of which no action is known, with zeros and a mask.

    Raises:
        UserError: when nothing is left, or the episodes do not fit into one LeRobot dataset.
    """
    table = dataset.episodes
    chosen = table.select(collections=tuple(collections)).tolist()
    rates = table.column("fps")
    chosen = [row for row in chosen if fps is None or abs(rates[row] - fps) < 1e-6 * fps]
    kept = [row for row in chosen if keep_without_actions or table.action_steps[row]]
    if not kept:
        without = f", and {len(chosen)} have no action: --without-actions keep" if chosen else ""
        raise UserError(f"{dataset.uri} has no episode to export{without}")
    if len(found := Counter(rates[row] for row in kept)) > 1:
        listed = ", ".join(f"{count} at {rate:g}" for rate, count in found.most_common())
        raise UserError(f"a LeRobot dataset has one rate, these episodes have more ({listed}): choose one with --fps")
    sizes = _sizes(dataset, kept)
    kinds, partial, notes = _kinds(dataset, kept)
    states = _distinct({field: _plain(field) for field in kinds})
    return Plan(
        rows=tuple(kept),
        fps=rates[kept[0]],
        cameras=_distinct({camera: f"observation.images.{_plain(camera)}" for camera in sizes}),
        sizes=sizes,
        states=states,
        kinds=kinds,
        partial=partial,
        spec=dataset.spec,
        without_actions=len(chosen) - len(kept),
        notes=tuple(notes),
    )


def _sizes(dataset: Dataset, rows: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Height and width of each camera that an episode has. Raises UserError when one has several."""
    sizes: dict[str, tuple[int, int]] = {}
    for view, camera in enumerate(dataset.spec.cameras):
        found = Counter(tuple(dataset.episodes.sizes[row, view].tolist()) for row in rows)
        found.pop((0, 0), None)
        if len(found) > 1:
            listed = ", ".join(f"{count} of {size_text(*size)}" for size, count in found.most_common())
            raise UserError(f"camera {camera} has frames of several sizes ({listed}): choose with --collection")
        if found:
            sizes[camera] = next(iter(found))
    return sizes


def _kinds(dataset: Dataset, rows: Sequence[int]) -> tuple[dict[str, tuple[int, str]], bool, list[str]]:
    """The state fields, whether some episodes lack some, and those that can't be one feature."""
    found: dict[str, Counter[tuple[int, str]]] = {}
    for row in rows:
        for field in dataset.schema(row).state:
            found.setdefault(field.name, Counter())[field.dim, field.dtype] += 1
    kinds, notes = {}, []
    for name, counts in sorted(found.items()):
        kind, _ = counts.most_common(1)[0]
        if len(counts) > 1 or not kind[0]:
            shown = " and ".join(f"{dim} numbers of {dtype}" for dim, dtype in counts)
            notes.append(f"state {name} has {shown}: left out")
        else:
            kinds[name] = kind
    return kinds, any(found[name].total() < len(rows) for name in kinds), notes


def _plain(name: str) -> str:
    """A name that LeRobot takes for a feature and a file system for a folder."""
    plain = re.sub(r"[^\w.-]+", ".", name, flags=re.ASCII).strip(".") or "field"
    return f"state.{plain}" if plain in _OURS else plain


def _distinct(names: Mapping[str, str]) -> dict[str, str]:
    """The same, with a number behind a name that stands twice."""
    found: dict[str, str] = {}
    for name, plain in names.items():
        taken = set(found.values())
        numbered = (plain if number == 1 else f"{plain}_{number}" for number in range(1, len(names) + 1))
        found[name] = next(one for one in numbered if one not in taken)
    return found

"""A store as a LeRobot dataset of version 3.0, as the genuine reader wants it.

That reader goes by position: episode k is row k of the list, task k is row k of the table of tasks, and files are read
in the order of their names. So all of it is written contiguous and sorted. `meta/uwm.json` and columns `uwm/...` of the
list keep what LeRobot has no place for, so that an export can be ingested again as what it was.

Letters: T steps of an episode, D numbers of a step, N sampled frames.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.export.features import ACTION, ACTION_MASK, NOTES, STATE_MASK, VIEW_MASK, Plan, plan_export
from pipelines.export.statistics import of_frames, of_numbers
from pipelines.export.tables import Tables
from pipelines.export.videos import VideoCodec, VideoFiles, Written
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.store.dataset import Dataset, open_dataset

_BLOCK = 64
"""Frames that are pixels at the same time."""
_SAMPLES = 16
"""Frames of an episode that its statistics look at."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export wrote."""

    path: str
    store_uri: str
    version: int
    episodes: int
    steps: int
    tasks: int
    bytes: int
    codec: str
    without_actions: int
    """Episodes that were left out because none of their actions is known."""
    notes: tuple[str, ...]
    """What of the store is not in it."""


def export_lerobot(
    store: str,
    out: str,
    *,
    version: int | str | None = None,
    codec: VideoCodec = "h264",
    collections: Sequence[str] = (),
    fps: float | None = None,
    keep_without_actions: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportReport:
    """Write a dataset version as a LeRobot dataset.

    Args:
        store: the dataset.
        out: a local folder that does not exist; it appears when all of it is written.
        version: number or tag; the newest when None.
        codec: of the videos.
        collections: only these; all when empty.
        fps: only episodes of this rate.
        keep_without_actions: take episodes of which no action is known, with zeros and `mask.action` false.
        progress: called after every episode with the number done and of all.

    Raises:
        UserError: when there is something at `out`, or the episodes do not fit into one LeRobot dataset.
    """
    place = locate(out)
    if not place.is_local:
        raise UserError(f"{out} is no local folder: export to one, and copy it")
    target = Path(place.path)
    if target.exists():
        raise UserError(f"{target} exists: name another folder, or remove it first")
    dataset = open_dataset(store, version)
    plan = plan_export(dataset, collections=collections, fps=fps, keep_without_actions=keep_without_actions)
    folder = target.parent / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        tables = _write(dataset, plan, folder, codec, progress)
        folder.rename(target)
    except OSError as error:
        raise UserError(f"can't write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ExportReport(
        path=str(target),
        store_uri=dataset.uri,
        version=dataset.version,
        episodes=len(plan.rows),
        steps=tables.steps,
        tasks=len(tables.tasks),
        bytes=sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        codec=codec,
        without_actions=plan.without_actions,
        notes=plan.notes,
    )


def _write(
    dataset: Dataset, plan: Plan, folder: Path, codec: VideoCodec, progress: Callable[[int, int], None]
) -> Tables:
    """All files of the dataset."""
    videos = {
        camera: VideoFiles(folder / "videos" / feature, plan.sizes[camera], plan.fps, codec)
        for camera, feature in plan.cameras.items()
    }
    tables = Tables(folder, plan.features(codec), plan.fps)
    try:
        for done, row in enumerate(plan.rows, 1):
            facts = dataset.episodes.row(row)
            columns = _columns(dataset, plan, row)
            stats = {name: of_numbers(values) for name, values in columns.items()}
            places: dict[str, Written] = {}
            for camera, feature in plan.cameras.items():
                sampled: list[NDArray[np.uint8]] = []
                places[feature] = videos[camera].add(_frames(dataset, plan, row, camera, sampled))
                stats[feature] = of_frames(np.stack(sampled))
            told = {name: getattr(facts, name) for name in NOTES}
            exported = {
                "episode_id": facts.episode_id, "source_uri": facts.source_uri, "collection": facts.collection,
                "source_fingerprint": facts.source_fingerprint, "language": list(facts.language),
                "success": facts.success, "split": facts.split,
            }  # fmt: skip
            tables.add(columns, {NOTES[name]: text for name, text in told.items()}, places, stats, exported)
            progress(done, len(plan.rows))
    finally:
        for writer in videos.values():
            writer.close()
        tables.close()
    tables.finish(plan.extra)
    return tables


def _columns(dataset: Dataset, plan: Plan, row: int) -> dict[str, NDArray[Any]]:
    """The numbers of an episode, (T, D) each, by feature."""
    steps = int(dataset.episodes.lengths[row])
    known = dataset.array(row, "mask/action")
    own = {field.name for field in dataset.schema(row).state}
    columns: dict[str, NDArray[Any]] = {}
    for field, feature in plan.states.items():
        dim, kind = plan.kinds[field]
        columns[feature] = dataset.array(row, f"state/{field}") if field in own else np.zeros((steps, dim), kind)
    columns[ACTION] = dataset.array(row, "action")
    columns[ACTION_MASK] = known[:, None]
    views = dataset.array(row, "mask/view")
    columns[VIEW_MASK] = views[:, [dataset.spec.cameras.index(camera) for camera in plan.cameras]]
    if plan.partial:
        columns[STATE_MASK] = np.repeat([[field in own for field in plan.states]], steps, axis=0)
    return columns


def _frames(
    dataset: Dataset, plan: Plan, row: int, camera: str, sampled: list[NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """The frames of a camera, black where it saw nothing; some are put into `sampled`."""
    steps = int(dataset.episodes.lengths[row])
    wanted = set(np.linspace(0, steps - 1, min(steps, _SAMPLES)).astype(int).tolist())
    has = bool(dataset.episodes.sizes[row, dataset.spec.cameras.index(camera), 0])
    for first in range(0, steps, _BLOCK):
        block = range(first, min(first + _BLOCK, steps))
        black = np.zeros((len(block), *plan.sizes[camera], 3), np.uint8)
        frames = dataset.frames(row, camera, block) if has else black
        for step, pixels in zip(block, frames, strict=True):
            if step in wanted:
                sampled.append(pixels)
            yield pixels

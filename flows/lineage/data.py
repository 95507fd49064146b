"""The details of sources and dataset versions, from the episode table and a few frames."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flows.lineage.sections import Section, pictures, strip, table
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.catalog.versions import EpisodeChange, VersionDiff, compare, load_version
from storage_schemas.errors import UserError
from storage_schemas.lineage.provenance import raw_files
from storage_schemas.lineage.records import LineageGraph, LineageRecord, kind_of
from storage_schemas.store.dataset import Dataset, open_dataset, summary

LOOPBACK, BROWSE_PORT = "127.0.0.1", 4210
"""Where `uwm browse` serves its pages."""
SAMPLES = 4
"""Episodes that a dataset's page shows frames of."""


def of_source(graph: LineageGraph, record: LineageRecord, opened: Mapping[str, Dataset]) -> list[Section]:
    """The raw files that became episodes.

    Raises:
        UserError: when a dataset that took them in can't be read.
    """
    raw = raw_files(graph, record.node, {node: dataset.snapshot for node, dataset in opened.items()})
    if raw.missing:
        raise UserError("; ".join(f"{node}: {reason}" for node, reason in raw.missing.items()))
    episodes, steps = Counter[str](), Counter[str]()
    for episode in raw.episodes:
        episodes[episode.file] += 1
        steps[episode.file] += episode.steps
    rows = [(file, f"{episodes[file]:,}", f"{steps[file]:,}") for file in raw.files]
    text = f"{len(rows):,} raw files became {len(raw.episodes):,} episodes"
    text += f" of {', '.join(raw.datasets)}." if raw.datasets else "."
    if rows:
        text += f" All of them: uwm lineage {record.node} --files."
    return [table("Raw files", ("file", "episodes", "steps"), rows, text=text)]


def of_dataset(graph: LineageGraph, record: LineageRecord, opened: Mapping[str, Dataset]) -> list[Section]:
    """Statistics, sample frames, and what changed since the version before.

    Raises:
        UserError: when the dataset can't be read or is another one by now.
    """
    dataset = opened.get(record.node) or open_dataset(record.uri, int(record.version))
    if record.identity != f"{dataset.table_id}@{record.version}":
        raise UserError(f"{record.uri} is another dataset by now")
    return [
        _statistics(dataset),
        _samples(dataset),
        _browsing(record),
        *_changes(graph, record, dataset),
        _cameras(dataset),
        _collections(dataset),
        _actions(dataset),
        *_states(dataset),
    ]


def _statistics(dataset: Dataset) -> Section:
    totals = summary(dataset)
    lengths = dataset.episodes.lengths
    splits = Counter(dataset.episodes.splits)
    rates = sorted({f"{rate:g}" for rate in dataset.episodes.column("fps")}, key=float)
    rows = [
        ("episodes", f"{totals.episodes:,}"),
        ("train / held out", f"{splits['train']:,} / {splits['val']:,}"),
        ("steps", f"{totals.steps:,}"),
        ("steps with a known action", _share(totals.actions_available, totals.steps)),
        ("bytes", f"{totals.bytes:,}"),
        ("steps per second", ", ".join(rates[:8])),
    ]
    if len(lengths):
        shown = f"{lengths.min():,} / {int(np.median(lengths)):,} / {lengths.max():,}"
        rows.insert(3, ("shortest / median / longest episode", shown))
    return table("Statistics", ("", "of this version"), rows)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.0f} %)" if whole else f"{part:,}"


def _cameras(dataset: Dataset) -> Section:
    sizes = dataset.episodes.sizes
    rows = []
    for view, camera in enumerate(dataset.spec.cameras):
        present = sizes[:, view][sizes[:, view, 0] > 0] if len(sizes) else sizes[:0, 0]
        shapes = Counter(f"{height} x {width}" for height, width in present.tolist())
        shown = ", ".join(shape for shape, _ in shapes.most_common(4)) or "-"
        role = (dataset.spec.role(camera),) if dataset.spec.views else ()
        rows.append((camera, _share(len(present), len(dataset)), shown, *role))
    head = ("camera", "episodes that have it", "height x width", *(("looks from",) if dataset.spec.views else ()))
    return table("Cameras", head, rows)


def _collections(dataset: Dataset) -> Section:
    names = np.array(dataset.episodes.collections, dtype=object)
    steps, known = dataset.episodes.lengths, dataset.episodes.action_steps
    rows = []
    for name, count in Counter(names.tolist()).most_common():
        inside = names == name
        total = int(steps[inside].sum())
        rows.append((name, f"{count:,}", f"{total:,}", _share(int(known[inside].sum()), total)))
    return table("Collections", ("collection", "episodes", "steps", "with a known action"), rows)


def _actions(dataset: Dataset) -> Section:
    statistics = dataset.episodes.statistics("action")
    if not statistics.count:
        return Section(title="Actions", text="No step has a known action.")
    columns = zip(statistics.min, statistics.mean, statistics.max, statistics.std, strict=True)
    space = dataset.spec.action
    labels = space.labels if space else range(dataset.spec.action_dim)
    rows = [(label, *(f"{v:.4g}" for v in values)) for label, values in zip(labels, columns, strict=True)]
    text = f"Over {statistics.count:,} known steps. " + (
        "; ".join(space.lines) if space else "What they mean is unknown."
    )
    return table("Actions", ("dimension", "min", "mean", "max", "std"), rows, text=text)


def _states(dataset: Dataset) -> list[Section]:
    fields = dataset.spec.states
    rows = [(field.name, line) for field in fields for line in field.space.lines]
    return [table("States", ("field", "what its numbers mean"), rows)] if rows else []


def _samples(dataset: Dataset) -> Section:
    shown = pictures(_strips(dataset))
    return Section(title="Samples", text="First, middle and last frame." if shown else "No frames.", pictures=shown)


def _browsing(record: LineageRecord) -> Section:
    """Where to look at every episode."""
    return Section(
        title="Episodes",
        text=f"All of them, with video, curves and provenance, as long as this runs: "
        f"uwm browse {record.uri} --version {record.version}",
        link=f"http://{LOOPBACK}:{BROWSE_PORT}/{record.identity}/",
    )


def _strips(dataset: Dataset) -> Iterator[tuple[str, bytes]]:
    count = len(dataset)
    for episode in np.unique(np.linspace(0, count - 1, min(SAMPLES, count)).round().astype(int)).tolist():
        row = dataset.episodes.row(episode)
        if row.cameras:
            frames = dataset.frames(episode, row.cameras[0], [0, row.length // 2, row.length - 1])
            words = [row.episode_id, row.collection, row.cameras[0], next(filter(None, row.language), "")]
            yield ", ".join(filter(None, words)), strip(frames)


def _changes(graph: LineageGraph, record: LineageRecord, dataset: Dataset) -> list[Section]:
    """Against the version that the record names as its parent; without one everything is new."""
    before = next((graph.records[name] for name in record.upstream if _same_log(graph, name, record)), None)
    old = load_version(dataset.location, int(before.version) if before else 0, newest=dataset.version)
    changes = compare(old, dataset.snapshot)
    since = f"since version {before.version}" if before else "in this first version"
    rows = [(change.kind, change.episode_id, _lengths(change), change.source_uri) for change in changes.changes]
    counts = (
        f"{changes.count('added'):,} added, {changes.count('changed'):,} replaced, {changes.count('removed'):,} removed"
    )
    text = f"{counts}, {changes.unchanged:,} as before; {changes.steps:+,} steps."
    header = ("", "episode", "steps", "raw file")
    sections = [table(f"What changed {since}", header, rows if before else [], text=text)]
    rejections = _rejections(dataset, changes)
    if rejections:
        sections.append(table("Turned away", ("reason", "raw file", "detail"), rejections))
    return sections


def _same_log(graph: LineageGraph, name: str, record: LineageRecord) -> bool:
    other = graph.records.get(name)
    same = other is not None and other.identity.rpartition("@")[0] == record.identity.rpartition("@")[0]
    return same and kind_of(name) == "dataset"


def _lengths(change: EpisodeChange) -> str:
    return " -> ".join(f"{length:,}" for length in (change.length_before, change.length_after) if length is not None)


def _rejections(dataset: Dataset, changes: VersionDiff) -> Sequence[tuple[str, str, str]]:
    """What the ingestions of this version quarantined, and why what is removed was removed."""
    added = {change.episode_id for change in changes.changes if change.kind != "removed"}
    removed = {change.source_uri for change in changes.changes if change.kind == "removed"}
    episodes = dataset.episodes
    pairs = zip(episodes.episode_ids, episodes.column("run_id"), strict=True)
    runs = {run for name, run in pairs if name in added}
    return [
        (entry.reason, entry.source_uri, entry.detail)
        for entry in quarantined(dataset.uri, episodes)
        if entry.run_id in runs or entry.source_uri in removed
    ]

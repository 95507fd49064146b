"""Commands about datasets: inspect, verify, diff, tag, remove, gc, backup, scale, export-dataset."""

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import count, note, progress_bar, say, say_json, say_table
from flows.cli.options import AsJson, Store, Version
from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from storage_schemas.schema import DatasetSpec


class How(StrEnum):
    """What becomes [-1, 1]."""

    MIN_MAX = "min_max"
    QUANTILE = "quantile"
    Z_SCORE = "z_score"


class Split(StrEnum):
    """Which episodes count."""

    TRAIN = "train"
    VAL = "val"
    ALL = "all"


class DatasetFormat(StrEnum):
    """Of datasets for other tools."""

    LEROBOT = "lerobot"


class Codec(StrEnum):
    """Of videos that are written."""

    H264 = "h264"
    HEVC = "hevc"
    AV1 = "av1"
    VP9 = "vp9"


class WithoutActions(StrEnum):
    """What becomes of episodes of which no action is known."""

    SKIP = "skip"
    KEEP = "keep"


def inspect(store: Store, version: Version = None, json: AsJson = False) -> int:
    """Show what a dataset version holds.

    Example: uwm inspect runs/droid --version 1 --json
    """
    from dataclasses import asdict

    from storage_schemas.store.dataset import open_dataset, summary

    dataset = open_dataset(store, version)
    facts, spec = asdict(summary(dataset)), dataset.spec
    if json:
        declared = spec.model_dump(mode="json", include={"action", "states", "views"})
        say_json(facts | {"action_dim": spec.action_dim} | declared)
    else:
        rows = [(name, _short(value)) for name, value in facts.items()]
        say_table(store, ("", ""), [*rows, *_meaning(spec)])
    return 0


def _meaning(spec: "DatasetSpec") -> Iterator[tuple[str, str]]:
    """What a dataset says of its numbers and cameras."""
    rate = f" at {spec.action.rate:g} Hz" if spec.action and spec.action.rate else ""
    yield f"actions{rate}", "\n".join(spec.action.lines) if spec.action else f"{spec.action_dim} numbers, not declared"
    for field in spec.states:
        yield f"state {field.name}", "\n".join(field.space.lines)
    if spec.views:
        yield "views", ", ".join(f"{view.name}: {view.role}" for view in spec.views)


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        shown = ", ".join(map(str, value[:12]))
        return f"{shown}, … ({len(value)})" if len(value) > 12 else shown
    return f"{value:,}" if isinstance(value, int) else str(value)


def verify(store: Store, version: Version = None, json: AsJson = False) -> int:
    """Check every byte of a dataset version; exit code 1 when something is damaged.

    Example: uwm verify runs/droid
    """
    from dataclasses import asdict

    from storage_schemas.maintenance.verify import verify as check

    with progress_bar(quiet=json) as display:
        task = display.add_task("verify", total=None)
        report = check(store, version, progress=lambda done, total: display.update(task, completed=done, total=total))
    if json:
        say_json({"ok": report.ok, "problems": [asdict(problem) for problem in report.problems]})
    elif report.ok:
        say(f"{store}: everything is as it was written")
    for problem in () if json else report.problems:
        say(f"damaged: episode {problem.episode_id}, part {problem.part}: {problem.what}")
    return 0 if report.ok else 1


def diff(
    store: Store,
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="A version: its number or a tag.")],
    after: Annotated[str | None, typer.Argument(metavar="AFTER", help="Another; the newest by default.")] = None,
    json: AsJson = False,
) -> int:
    """Show which episodes were added, removed or changed from one version to another.

    Example: uwm diff runs/droid 1 2
    """
    from storage_schemas.catalog.versions import diff as compare

    difference = compare(store, before, after)
    if json:
        say_json(difference)
        return 0
    counts = ", ".join(f"{difference.count(kind):,} {kind}" for kind in ("added", "removed", "changed"))
    counts += f", {difference.unchanged:,} as before; {difference.steps:+,} steps"
    say(f"{store}, version {difference.before} to {difference.after}: {counts}")
    for change in difference.changes:
        lengths = " -> ".join("none" if n is None else f"{n}" for n in (change.length_before, change.length_after))
        say(f"{change.kind}: {change.episode_id}, {lengths} steps, {change.source_uri}")
    return 0


def tag(
    store: Store,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The tag; without one, list them.")] = None,
    version: Version = None,
    move: Annotated[bool, typer.Option("--move", help="Take the name from the version that has it.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Take the name away; the version stays.")] = False,
    json: AsJson = False,
) -> int:
    """Name a dataset version, so that every command takes the name for its number; or list the names.

    Example: uwm tag runs/droid paper-2026 --version 1
    """
    from dataclasses import asdict

    from storage_schemas.catalog.versions import drop_tag, set_tag, tags

    if name is None:
        if drop or move or version is not None:
            raise UserError("name the tag: uwm tag STORE NAME")
        listed = tags(store)
    else:
        listed = [drop_tag(store, name) if drop else set_tag(store, name, version, move=move)]
    if json:
        say_json([asdict(each) for each in listed])
    for each in () if json else listed:
        say(f"{each.name} {'was' if drop else 'is'} version {each.version} of {store}")
    return 0


def remove(
    store: Store,
    episodes: Annotated[list[str], typer.Argument(metavar="EPISODE...", help="Ids, as verify and diff print them.")],
    reason: Annotated[str, typer.Option(help="Why, in one line; kept in the quarantine.")] = "",
    forget: Annotated[
        bool, typer.Option("--forget", help="Don't quarantine: ingesting the source again brings them back.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Take episodes out of a store: a new version without them. Older versions keep them.

    Ingestion leaves them out from now on, unless --forget is given.

    Example: uwm remove runs/droid 3f0c8a12 --reason "the camera was covered"
    """
    from storage_schemas.catalog.quarantine import withdraw

    result = withdraw(store, episodes, detail=reason, forget=forget)
    if json:
        say_json({"version": result.version, "removed": result.removed})
    else:
        say(f"{store} is at version {result.version}: {count(result.removed, 'episode')} removed")
    return 0


def gc(
    store: Store,
    age: Annotated[
        float, typer.Option(min=0, max=24 * 3660, help="Safety age in hours: younger files may be in the making.")
    ] = 24.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what was found; by default it is only listed.")
    ] = False,
    json: AsJson = False,
) -> int:
    """List, or delete, what crashed writers have left and no version names. Old versions stay readable.

    Example: uwm gc runs/droid --age 48 --delete
    """
    from datetime import timedelta

    from storage_schemas.maintenance.orphans import collect_orphans

    report = collect_orphans(store, age=timedelta(hours=age), remove=delete)
    if json:
        say_json(report)
        return 0
    for orphan in report.orphans:
        say(f"{orphan.name}: {orphan.bytes:,} bytes, last written {orphan.modified:%Y-%m-%d %H:%M} UTC")
    done = "deleted" if delete else "found"
    say(
        f"{store}: {count(len(report.orphans), 'orphan')} with {report.bytes:,} bytes {done}"
        f", {report.young} younger than {age:g} h left alone"
        + ("; give --delete to delete them" if report.orphans and not delete else "")
    )
    return 0


def backup(
    store: Store,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Where to: nothing yet, or an older copy.")],
    json: AsJson = False,
) -> int:
    """Copy a dataset with all its versions, also while others write to it; again copies only what is new.

    Restore with the places exchanged. Cached latents are left out: `uwm latents` makes them again.

    Example: uwm backup s3://lab/stores/droid /backup/droid
    """
    from storage_schemas.maintenance.backup import back_up

    with progress_bar(quiet=json) as display:
        task = display.add_task("backup", total=None)
        report = back_up(store, target, progress=lambda done, total: display.update(task, completed=done, total=total))
    if json:
        say_json(report)
    else:
        copied = f"{count(report.copied, 'file')} with {report.bytes:,} bytes copied, {report.present} there already"
        say(f"{report.target_uri} is at version {report.version} of {report.store_uri}: {copied}")
    return 0


def scale(
    store: Store,
    version: Version = None,
    split: Annotated[Split, typer.Option(help="Episodes that count.")] = Split.TRAIN,
    how: Annotated[How, typer.Option(help="All actions, percentiles 1 to 99, or mean and deviation.")] = How.MIN_MAX,
    collections: Annotated[
        list[str] | None, typer.Option("--collection", help="Only these collections; repeatable.")
    ] = None,
    json: AsJson = False,
) -> int:
    """Show the action normalizer of a dataset version's split; no image is read.

    Example: uwm scale runs/droid --how quantile --split val --json
    """
    from uwm.data.mixture import dataset_normalizer

    chosen = None if split is Split.ALL else split.value
    normalizer = dataset_normalizer(store, version, split=chosen, collections=tuple(collections or ()), scale=how.value)
    if json:
        say(normalizer.model_dump_json(indent=1))
        return 0
    columns = zip(normalizer.low, normalizer.high, normalizer.mean, strict=True)
    rows = [tuple(f"{value:.5g}" for value in row) for row in columns]
    say_table(f"{store}, {normalizer.count:,} steps, {normalizer.scale}", ("becomes -1", "becomes 1", "mean"), rows)
    return 0


def export_dataset(
    store: Store,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.")],
    format: Annotated[DatasetFormat, typer.Option(help="Of what is written.")] = DatasetFormat.LEROBOT,  # noqa: A002
    version: Version = None,
    codec: Annotated[Codec, typer.Option(help="Of the videos.")] = Codec.H264,
    collections: Annotated[
        list[str] | None, typer.Option("--collection", help="Only these collections; repeatable.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Only episodes of this rate.")] = None,
    without_actions: Annotated[
        WithoutActions, typer.Option(help="Episodes of which no action is known: skip, or keep with a mask.")
    ] = WithoutActions.SKIP,
    json: AsJson = False,
) -> int:
    """Write a dataset version as a LeRobot dataset (v3.0), which other tools read and `uwm ingest` takes back.

    Example: uwm export-dataset runs/droid /data/droid-lerobot --codec av1
    """
    from pipelines.export.lerobot import export_lerobot

    with progress_bar(quiet=json) as display:
        task = display.add_task("export", total=None)
        report = export_lerobot(
            store,
            out,
            version=version,
            codec=codec.value,
            collections=tuple(collections or ()),
            fps=fps,
            keep_without_actions=without_actions is WithoutActions.KEEP,
            progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    if json:
        say_json(report)
        return 0
    for text in report.notes:
        note(text)
    if report.without_actions:
        note(f"{count(report.without_actions, 'episode')} left out, without a known action: --without-actions keep")
    done = f"{count(report.episodes, 'episode')} with {count(report.steps, 'step')}, {count(report.tasks, 'task')}"
    say(f"{report.path} has version {report.version} of {report.store_uri}: {done}, {report.bytes:,} bytes")
    return 0


COMMANDS = (inspect, verify, diff, tag, remove, gc, backup, scale, export_dataset)

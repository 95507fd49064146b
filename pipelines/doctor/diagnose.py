"""Examine a source or a dataset and say all that is wrong with it; nothing is changed or stored.

A source is read as ingestion would read it, so what the doctor calls fatal is what ingestion quarantines. A dataset is
verified byte by byte, and its episodes are examined like those of a source.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.checks.content import Finding, check_episode, check_times, picture
from pipelines.checks.duplicates import Seen
from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import printable
from pipelines.options import INGEST_DEFAULTS, IngestOptions
from pipelines.source import SourceReader, SourceRef, Timed, episodes_of
from pipelines.sources.registry import open_source
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.catalog.table import dataset_exists
from storage_schemas.catalog.versions import Version
from storage_schemas.episode import EncodedFrames, Episode, EpisodeMeta, Frames
from storage_schemas.errors import DamagedError
from storage_schemas.location import locate
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import Dataset, open_dataset


@dataclass(frozen=True, kw_only=True)
class DoctorProgress:
    """How far an examination has come."""

    done: int
    total: int
    """References of a source, or episodes of a dataset."""
    findings: int


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What an examination found."""

    target: str
    kind: str
    """`source` or `dataset`."""
    format: str
    """Of a source; `store` of a dataset."""
    version: int | None
    """Of a dataset."""
    references: int
    """Files, records or stored episodes that were looked at."""
    episodes: int
    """Those that can be used."""
    steps: int
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether all of it can be used; there may be doubts."""
        return not any(finding.fatal for finding in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """Findings by reason, the most frequent first."""
        return dict(Counter(finding.reason for finding in self.findings).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without pictures."""
        plain = asdict(self)
        for finding in plain["findings"]:
            del finding["picture"]
        return {**plain, "ok": self.ok, "counts": self.counts}


def diagnose(
    target: str,
    options: IngestOptions = INGEST_DEFAULTS,
    *,
    version: Version = None,
    progress: Callable[[DoctorProgress], None] | None = None,
) -> Diagnosis:
    """Examine a source or a dataset, every frame of it.

    Args:
        target: a dataset, or what ingestion takes as a source.
        options: how a source is read; a dataset is taken for raw data when they name a format.
        version: of a dataset; the newest when None.
        progress: called after every reference or episode.

    Raises:
        UserError: when there is nothing there, or nothing of a known format.
    """
    started = time.monotonic()
    tell = progress or (lambda _: None)
    stored = options.format is None and dataset_exists(target)
    examination = _Examination(
        _Store(open_dataset(target, version)) if stored else _Source(open_source(target, options))
    )
    examination.run(tell)
    return Diagnosis(
        target=printable(locate(target).uri),
        kind="dataset" if stored else "source",
        format=examination.target.format,
        version=examination.target.version,
        references=examination.references,
        episodes=examination.episodes,
        steps=examination.steps,
        findings=tuple(examination.findings),
        seconds=time.monotonic() - started,
    )


class _Examination:
    """One examination: its findings so far, and what was seen."""

    def __init__(self, target: "_Source | _Store") -> None:
        self.target = target
        self.findings: list[Finding] = []
        self.references = self.episodes = self.steps = 0
        self._seen = Seen()
        self._bytes: dict[str, str] = {}
        self._broken: dict[str, Finding] = {}

    def run(self, tell: Callable[[DoctorProgress], None]) -> None:
        """Examine everything."""
        self.findings += self.target.at_first()
        total = len(self.target.items)
        for done, item in enumerate(self.target.items, 1):
            self.references += 1
            self._examine(item)
            tell(DoctorProgress(done=done, total=total, findings=len(self.findings)))

    def _examine(self, item: Any) -> None:
        name, identity = self.target.identity(item)
        first = self._bytes.setdefault(identity, name)
        if first != name and first in self._broken:
            self.findings.append(replace(self._broken[first], source_uri=name))
            return
        if first != name:
            detail = f"byte-identical to {first}"
            self.findings.append(Finding(reason="duplicate", detail=detail, source_uri=name))
            return
        before = self.episodes, self.steps
        try:
            for episode in self.target.read(item):
                if isinstance(episode, LeftOut):
                    self.findings.append(left_out(episode))
                    continue
                self.episodes, self.steps = self.episodes + 1, self.steps + len(episode)
                self.findings += self._check(episode)
            self.findings += self.target.timing(item)
        except (BadDataError, DamagedError) as error:
            self.episodes, self.steps = before
            reason = error.reason if isinstance(error, BadDataError) else "damaged"
            detail = error.detail if isinstance(error, BadDataError) else str(error)
            self._broken[name] = Finding(reason=reason, detail=detail, source_uri=name, fatal=True)
            self.findings.append(self._broken[name])

    def _check(self, episode: Episode) -> Iterator[Finding]:
        """What is wrong with an episode, with pictures of the places."""
        checked = check_episode(episode, cameras=self.target.cameras, space=self.target.space)
        findings = list(checked.findings)
        name = episode.meta.source_uri
        if checked.sketches and (like := self._seen.add(name, checked.sketches)):
            detail = f"looks like {like}"
            findings.append(
                Finding(reason="duplicate", detail=detail, source_uri=name, episode_id=episode.meta.episode_id)
            )
        for finding in findings:
            camera = finding.camera or next(iter(episode.frames), "")
            shot = picture(episode.frames[camera], finding.first or 0) if camera else b""
            yield replace(finding, picture=shot)


def fatal(rejection: Rejection) -> Finding:
    """What a reader turned away, as a finding."""
    return Finding(reason=rejection.reason, detail=rejection.detail, source_uri=rejection.source_uri, fatal=True)


def left_out(item: LeftOut) -> Finding:
    """What is not read of a source, or is odd and read, as a finding."""
    return Finding(reason=item.label.replace(" ", "_"), detail=item.what, source_uri=item.source_uri)


class _Source:
    """A source as a target."""

    version = None

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader
        listed = list(reader.refs())
        self._first = [fatal(item) for item in listed if isinstance(item, Rejection)]
        self._first += [left_out(item) for item in listed if isinstance(item, LeftOut)]
        self.items: Sequence[SourceRef] = [item for item in listed if isinstance(item, SourceRef)]
        self.format = reader.format
        self.cameras: Collection[str] = reader.spec().cameras
        self.space = reader.spec().action

    def at_first(self) -> Iterator[Finding]:
        """What shows while listing."""
        return iter(self._first)

    def identity(self, ref: SourceRef) -> tuple[str, str]:
        """Its name, and what is equal for equal bytes."""
        return ref.uri, ref.content

    def read(self, ref: SourceRef) -> Iterator[Episode | LeftOut]:
        """Its episodes."""
        return episodes_of(self._reader, ref)

    def timing(self, ref: SourceRef) -> Iterator[Finding]:
        """What its clock shows."""
        return check_times(self._reader.times(ref), ref.uri) if isinstance(self._reader, Timed) else iter(())


class _Store:
    """A dataset version as a target."""

    format = "store"

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._names: list[str] = dataset.episodes.column("source_uri")
        self.items: Sequence[int] = range(len(dataset))
        self.version = dataset.version
        self.cameras: Collection[str] = dataset.spec.cameras
        self.space = dataset.spec.action

    def at_first(self) -> Iterator[Finding]:
        """Damage that `verify` sees, and what ingestion has turned away."""
        names = dict(zip(self._dataset.episodes.episode_ids, self._names, strict=True))
        for problem in verify(self._dataset.uri, self.version).problems:
            uri = names.get(problem.episode_id) or f"{self._dataset.uri}/parts/{problem.part}"
            yield Finding(
                reason="damaged", detail=problem.what, source_uri=uri, fatal=True, episode_id=problem.episode_id
            )
        for row in quarantined(self._dataset.uri):
            yield Finding(reason=row.reason, detail=f"in quarantine: {row.detail}", source_uri=row.source_uri)

    def identity(self, number: int) -> tuple[str, str]:
        """Its source, and a checksum of all that is stored of it."""
        rows = self._dataset.episodes
        return self._names[number], f"{rows.checksums[number]:x}-{rows.lengths[number]}"

    def read(self, number: int) -> Iterator[Episode]:
        """The one episode."""
        yield stored_episode(self._dataset, number)

    def timing(self, number: int) -> Iterator[Finding]:
        """A store keeps no clock."""
        return iter(())


def stored_episode(dataset: Dataset, number: int) -> Episode:
    """An episode as it was brought to the store, with its frames in the store's codec.

    Raises:
        DamagedError: when something of it is missing.
    """
    row = dataset.episodes.row(number)
    schema = dataset.schema(number)
    frames: dict[str, Frames] = {}
    for view, camera in enumerate(dataset.spec.cameras):
        if camera in row.cameras and schema.codec == "jpeg":
            height, width = dataset.episodes.sizes[number, view].tolist()
            jpegs = dataset.encoded(number, camera, range(row.length))
            frames[camera] = EncodedFrames(height=height, width=width, jpegs=tuple(jpegs))
        elif camera in row.cameras:
            frames[camera] = dataset.frames(number, camera, range(row.length))
    return Episode(
        meta=EpisodeMeta(
            episode_id=row.episode_id,
            source_uri=row.source_uri,
            source_format=row.source_format,
            source_fingerprint=row.source_fingerprint,
            collection=row.collection,
            fps=row.fps,
            language=tuple(row.language),
            success=row.success,
        ),
        action=dataset.array(number, "action"),
        action_mask=dataset.array(number, "mask/action"),
        frames=frames,
    )

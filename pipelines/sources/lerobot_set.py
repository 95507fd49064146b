"""One LeRobot dataset: which episodes it holds, what they are known by, and what of it is odd."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import SourceFile, printable
from pipelines.source import SourceRef
from pipelines.sources.lerobot_episodes import Listed, Lists, Place, old_path, only, read_lists
from pipelines.sources.lerobot_extra import Extra
from pipelines.sources.lerobot_frames import Slot
from pipelines.sources.lerobot_info import INSTRUCTION, Feature, Info
from pipelines.sources.lerobot_rows import NOWHERE, Rows, Run, scan
from pipelines.video.isolation import frame_times

INFO = "meta/info.json"
EXTRA = "meta/uwm.json"
"""What a store, or whoever knows the robot, says of the numbers; see `pipelines.export`."""
_MAX_EXTRA = 1 << 20


class LeRobotSet:
    """The files of one dataset. Nothing is read before it is asked for.

    Args:
        root: path of its folder.
        files: by their path from the folder on.
        info: what it declares.
        collection: name for all episodes instead of the folder's.
    """

    def __init__(self, root: str, files: Mapping[str, SourceFile], info: Info, collection: str | None) -> None:
        self.root, self.files, self.info = root, files, info
        self.given_collection = collection
        self.collection = collection or printable(root.rpartition("/")[2]) or "lerobot"
        self._hashed: Rows | None = None
        self._extra_error = ""

    @cached_property
    def lists(self) -> Lists:
        """What `meta` lists."""
        return read_lists(self.files, self.info)

    @cached_property
    def extra(self) -> Extra:
        """What `meta/uwm.json` says; nothing when there is none, or none that makes sense."""
        file = self.files.get(EXTRA)
        try:
            return Extra() if file is None else Extra.model_validate_json(file.read(0, _MAX_EXTRA))
        except ValueError as error:
            self._extra_error = f"{EXTRA} can't be understood: {str(error).splitlines()[0]}"
            return Extra()

    @cached_property
    def cameras(self) -> dict[str, str]:
        """Name of each camera by its feature."""
        return {feature: self.extra.cameras.get(feature, camera) for feature, camera in self.info.cameras.items()}

    @property
    def states(self) -> list[Feature]:
        """All numbers that are neither action nor mask."""
        others = {*self.info.actions, *self.extra.masks}
        return [feature for name, feature in self.info.numbers.items() if name not in others]

    @cached_property
    def rows(self) -> Rows:
        """Where the rows lie."""
        return self._hashed or scan(self.files, self.info, hashing=False)

    @cached_property
    def episodes(self) -> dict[int, Listed]:
        """All episodes that `meta` lists, or that the rows show where it lists none, by number."""
        if self.lists.episodes is not None:
            return dict(sorted(self.lists.episodes.items()))
        found = sorted(number for number in self.rows.runs if number != NOWHERE)
        return {number: self._unlisted(number) for number in found}

    def _unlisted(self, number: int) -> Listed:
        places = {}
        for name in self.info.videos:
            old = old_path(self.info, number, name)
            places[name] = Place(file=old if old in self.files else only(self.files, name))
        return Listed(index=number, length=sum(run.count for run in self.rows.runs[number]), videos=places)

    @cached_property
    def slots(self) -> dict[tuple[str, str], list[Slot]]:
        """The episodes of each video in order, by feature and file."""
        found: dict[tuple[str, str], list[Slot]] = {}
        for number, listed in self.episodes.items():
            for name, place in listed.videos.items():
                if place.file is not None:
                    rows = sum(run.count for run in self.rows.runs.get(number, ()))
                    length = min(filter(None, (listed.length, rows)), default=0)  # rows may be lost, or stand twice
                    found.setdefault((name, place.file), []).append(Slot(number, length, place.start, place.end))
        for slots in found.values():
            slots.sort(key=lambda slot: (slot.start is None, slot.start or 0.0, slot.episode))
        return found

    def runs(self, number: int) -> tuple[list[Run], str]:
        """The rows of an episode, and what is odd about where they lie. Raises BadDataError."""
        listed, runs = self.episodes[number], self.rows.runs.get(number, [])
        if not runs:
            raise self._without_rows(listed)
        stated = [run for run in runs if run.file == listed.data]
        total = sum(run.count for run in runs)
        if listed.length is None or total == listed.length:
            remark = "" if stated or listed.data is None else f"a stale index of files: its rows are in {runs[0].file}"
            return runs, remark
        if sum(run.count for run in stated) == listed.length:
            return stated, f"{total - listed.length} more rows with its number in other files"
        raise BadDataError("length_mismatch", f"{total} rows for an episode of {listed.length} steps")

    def _without_rows(self, listed: Listed) -> BadDataError:
        if error := self.rows.unreadable.get(listed.data or ""):
            return BadDataError(error.reason, f"{listed.data}: {error.detail}")
        if listed.data is not None and listed.data not in self.files:
            return BadDataError("missing_rows", f"{listed.data} is not there")
        return BadDataError("missing_rows", "no file has rows of it")

    def video(self, number: int, feature: str) -> SourceFile:
        """The file with the frames of a camera.

        Raises:
            BadDataError: "missing_video".
        """
        place = self.episodes[number].videos.get(feature)
        if place is None or place.file is None:
            raise BadDataError("missing_video", f"nothing says which video of {feature} has its frames")
        if place.file not in self.files:
            remedy = f"bring it, or take {feature} out of {INFO} to go without"
            raise BadDataError("missing_video", f"{place.file} is not there: {remedy}")
        return self.files[place.file]

    def refs(self) -> Iterator[SourceRef | Rejection | LeftOut]:
        """All episodes, and what is odd or broken."""
        self._hashed = scan(self.files, self.info, hashing=True)
        self.__dict__.pop("rows", None)
        yield from self._remarks()
        seen: dict[str, list[str]] = {}
        for number in self.episodes:
            uri = self.uri(number)
            try:
                if number in self.lists.twice:
                    raise BadDataError("duplicate_episode", f"{INFO.partition('/')[0]} lists it twice, and differently")
                runs, _ = self.runs(number)
                videos = self._videos_digest(number)
            except BadDataError as error:
                print_ = f"size={self.files[INFO].size}"
                yield Rejection(source_uri=uri, fingerprint=print_, reason=error.reason, detail=error.detail)
                continue
            yield self._ref(number, uri, runs, videos, seen)
        yield from self._unclaimed()

    def _ref(self, number: int, uri: str, runs: list[Run], videos: str, seen: dict[str, list[str]]) -> SourceRef:
        """The reference of an episode; `seen` has the videos of those before it that have the same numbers."""
        tasks = "\0".join(self.episodes[number].tasks)
        content = hashlib.sha256(f"{self.rows.digests[number]}\0{tasks}".encode()).hexdigest()[:24]
        alike = seen.setdefault(content, [])
        variants = list(dict.fromkeys((*alike, videos)))
        variant, copies = variants.index(videos), alike.count(videos)
        alike.append(videos)
        fingerprint = f"{content}{f'.{variant}' * bool(variant)}-{videos}{f'+{copies}' * bool(copies)}"
        file = self.files[runs[0].file]
        share = sum(run.count for run in runs) / self._file_rows[runs[0].file]
        length = int(self._video_bytes(number) + share * file.size)
        return SourceRef(uri=uri, fingerprint=fingerprint, file=file, length=length)

    @cached_property
    def _file_rows(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for runs in self.rows.runs.values():
            for run in runs:
                counts[run.file] += run.count
        return counts

    def _video_bytes(self, number: int) -> int:
        """Bytes of its part of its videos, about."""
        named = [(name, place.file) for name, place in self.episodes[number].videos.items() if place.file]
        return sum(self.files[file].size // len(self.slots[name, file]) for name, file in named if file in self.files)

    def _videos_digest(self, number: int) -> str:
        """Changes when a file does that holds its frames."""
        facts: list[Any] = []
        for name in self.info.videos:
            place = self.episodes[number].videos.get(name)
            facts.append((name, self.video(number, name).size, place and place.start, place and place.end))
        if self.info.images:
            facts.append([self.files[run.file].size for run in self.rows.runs[number]])
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def uri(self, number: int) -> str:
        """Where an episode's rows are, with its number."""
        runs = self.rows.runs.get(number, ())
        listed = self.episodes[number].data
        path = runs[0].file if runs else listed or INFO
        base = self.files[INFO].uri.removesuffix(INFO)
        return f"{base}{printable(path)}#episode={number}"

    def _remarks(self) -> Iterator[LeftOut]:
        place = self.files[INFO].uri
        for what, tolerated in self.info.remarks:
            yield LeftOut(source_uri=place, what=what, tolerated=tolerated)
        for what in (*self.lists.remarks, *filter(None, (self._extra_error,))):
            yield LeftOut(source_uri=place, what=what, tolerated=True)
        for name in self.info.texts:
            if not INSTRUCTION.fullmatch(name) and name not in self.extra.notes:
                yield LeftOut(source_uri=place, what=f"{name}: text that is no instruction")
        for name in sorted(self.rows.unknown):
            yield LeftOut(source_uri=place, what=f"{name}: a column that it does not declare")
        orphans = {n: sum(run.count for run in runs) for n, runs in self.rows.runs.items() if n not in self.episodes}
        if orphans:
            what = f"{sum(orphans.values())} rows of {len(orphans)} episodes that meta does not list"
            yield LeftOut(source_uri=place, what=what)

    def _unclaimed(self) -> Iterator[Rejection]:
        """Files that can't be read, and that no episode names: what they hold is not known."""
        claimed = {listed.data for listed in self.episodes.values()}
        for path, error in self.rows.unreadable.items():
            if path not in claimed:
                file = self.files[path]
                print_ = f"size={file.size}"
                yield Rejection(source_uri=file.uri, fingerprint=print_, reason=error.reason, detail=error.detail)

    def tasks(self, numbers: NDArray[Any] | None, number: int) -> tuple[tuple[str, ...], str]:
        """The texts of an episode's tasks, and what is odd about them.

        Args:
            numbers: `task_index` of each step; None when there is none.
            number: of the episode.
        """
        listed = self.episodes[number].tasks
        if numbers is None:
            return listed, ""
        known = np.isfinite(numbers) if numbers.dtype.kind == "f" else np.ones(len(numbers), np.bool_)
        told = list(dict.fromkeys(int(value) for value in numbers[known].tolist()))
        texts = tuple(dict.fromkeys(text for one in told if (text := self.lists.tasks.get(one, "").strip())))
        if not known.all() or len(told) > len([one for one in told if one in self.lists.tasks]):
            return listed or texts, "steps whose task has no text: the list of episodes says it"
        if listed and texts and set(listed) != set(texts):
            return texts, "other tasks in its rows than in the list of episodes: those of the rows"
        return texts or listed, ""


@lru_cache(maxsize=16)
def times_of(file: SourceFile) -> NDArray[np.float64]:
    """When the frames of a video appear, which many episodes may ask. Raises as `frame_times` does."""
    return frame_times(file)

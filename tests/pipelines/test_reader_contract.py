"""What every source reader does: one suite, inherited by a class per format."""

import shutil
import zipfile
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import h5py
import numpy as np
import pytest
from hdf5_maker import write_aloha, write_demos, write_droid
from lerobot_maker import Maker
from oxe import fractal
from replay_buffers import pusht, umi, write_store, zipped

from pipelines.checks.quality import BadDataError, Rejection
from pipelines.files import raw_path
from pipelines.ingest import ingest
from pipelines.names import FORMATS
from pipelines.options import IngestOptions
from pipelines.source import SourceReader, SourceRef
from pipelines.sources.registry import detect, open_source
from storage_schemas.catalog.commits import Committer
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.errors import UserError
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset


def read_all(reader: SourceReader) -> tuple[list[Episode], list[Rejection]]:
    episodes, rejections = [], []
    for ref in reader.refs():
        if isinstance(ref, Rejection):
            rejections.append(ref)
        if not isinstance(ref, SourceRef):
            continue
        try:
            episodes += episodes_in(reader, ref)
        except BadDataError as error:
            rejections.append(ref.rejection(error.reason, error.detail))
    return episodes, rejections


def episodes_in(reader: SourceReader, ref: SourceRef) -> list[Episode]:
    return [item for item in reader.read(ref) if isinstance(item, Episode)]


def refs(reader: SourceReader) -> list[SourceRef]:
    return [ref for ref in reader.refs() if isinstance(ref, SourceRef)]


def frames_of(episode: Episode) -> dict[str, Any]:
    return {
        camera: frames.jpegs if isinstance(frames, EncodedFrames) else frames.tobytes()
        for camera, frames in episode.frames.items()
    }


class ReaderContract:
    """Subclasses make a source; all that the protocol promises is tested here."""

    format: str
    given: ClassVar[dict[str, Any]] = {}
    """Options without which the source is not read."""
    named = ""
    """What is named of the folder; all of it when empty."""

    @pytest.fixture
    @abstractmethod
    def source(self, tmp_path: Path) -> Path:
        """A folder with at least two good episodes."""

    @abstractmethod
    def damage(self, source: Path) -> str:
        """Break one reference of the source for good; returns part of its URI."""

    @abstractmethod
    def change(self, source: Path) -> None:
        """Change the content of one reference, which stays good."""

    def open(self, source: Path | str, **options: Any) -> SourceReader:
        return open_source(f"{source}{self.named}", self.options(**options))

    def options(self, **options: Any) -> IngestOptions:
        return IngestOptions(format=self.format, **self.given, **options)

    def test_is_registered_and_detected(self, source: Path) -> None:
        assert self.format in FORMATS
        assert detect(str(source)) == self.format
        reader = open_source(str(source))
        assert isinstance(reader, SourceReader)
        assert reader.format == self.format

    def test_all_is_good(self, source: Path) -> None:
        reader = self.open(source)
        episodes, rejections = read_all(reader)
        assert not rejections
        assert len(episodes) >= 2
        assert len({episode.meta.episode_id for episode in episodes}) == len(episodes)

    def test_episodes_fit_the_spec(self, source: Path) -> None:
        reader = self.open(source)
        spec = reader.spec()
        for episode in read_all(reader)[0]:
            assert set(episode.frames) <= set(spec.cameras)
            assert episode.frames
            assert episode.action.shape[1] == spec.action_dim
            assert np.isfinite(episode.action).all()
            assert not episode.action[~episode.action_mask].any()

    def test_meta_leads_back_to_the_file(self, source: Path) -> None:
        reader = self.open(source)
        for ref in refs(reader):
            assert Path(raw_path(ref.uri)).is_file()
            for episode in episodes_in(reader, ref):
                assert episode.meta.source_uri.startswith(ref.uri)
                assert episode.meta.source_fingerprint == ref.fingerprint
                assert episode.meta.source_format == reader.format
                assert episode.meta.collection
                assert episode.meta.fps > 0

    def test_reading_is_repeatable(self, source: Path) -> None:
        first, second = (read_all(self.open(source))[0] for _ in range(2))
        assert [e.meta for e in first] == [e.meta for e in second]
        assert [frames_of(e) for e in first] == [frames_of(e) for e in second]

    def test_copies_are_the_same_episodes(self, source: Path, tmp_path: Path) -> None:
        shutil.copytree(source, tmp_path / "elsewhere/copy")
        here, there = (read_all(self.open(path))[0] for path in (source, tmp_path / "elsewhere/copy"))
        assert [e.meta.episode_id for e in here] == [e.meta.episode_id for e in there]
        assert [e.meta.source_fingerprint for e in here] == [e.meta.source_fingerprint for e in there]

    def test_damage_is_rejected_alone(self, source: Path) -> None:
        good = {ref.uri for ref in refs(self.open(source))}
        place = self.damage(source)
        reader = self.open(source)
        episodes, rejections = read_all(reader)
        assert len(rejections) == 1
        assert place in rejections[0].source_uri
        assert rejections[0].reason
        assert "\n" not in rejections[0].detail
        survivors = {ref for ref in good if any(e.meta.source_uri.startswith(ref) for e in episodes)}
        assert len(survivors) == len(good) - 1

    def test_change_shows_in_one_fingerprint(self, source: Path) -> None:
        before = {ref.uri: ref.fingerprint for ref in refs(self.open(source))}
        self.change(source)
        after = {ref.uri: ref.fingerprint for ref in refs(self.open(source))}
        assert before.keys() == after.keys()
        assert sum(before[uri] != after[uri] for uri in before) == 1
        assert not read_all(self.open(source))[1]

    def test_collection_can_be_named(self, source: Path) -> None:
        assert {e.meta.collection for e in read_all(self.open(source, collection="mine"))[0]} == {"mine"}

    def test_vanished_file_is_rejected(self, source: Path) -> None:
        reader = self.open(source)
        listed = refs(reader)
        shutil.rmtree(source)
        with pytest.raises(BadDataError, match="unreadable"):
            list(reader.read(listed[0]))

    def test_remote_source_is_equal(self, source: Path) -> None:
        fs = fsspec.filesystem("memory")
        folder = f"/contract/{self.format}/{source.name}"
        files = (path for path in source.rglob("*") if path.is_file())
        fs.pipe({f"{folder}/{file.relative_to(source)}": file.read_bytes() for file in files})
        try:
            remote, rejections = read_all(self.open(f"memory:/{folder}"))
        finally:
            fs.rm("/contract", recursive=True)
        local = read_all(self.open(source))[0]
        assert not rejections
        assert [e.meta.episode_id for e in remote] == [e.meta.episode_id for e in local]
        assert [frames_of(e) for e in remote] == [frames_of(e) for e in local]
        assert all(e.meta.source_uri.startswith("memory://") for e in remote)

    def test_stopped_and_run_again_and_again(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was committed before a stop stays, a second run completes it, and a third finds nothing new."""
        store, whole = str(tmp_path / "store"), len(read_all(self.open(source))[0])
        options = self.options(batch_episodes=1, reject=())
        real, calls = Committer.commit, 0

        def commit(*args: Any, **names: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return real(*args, **names)

        monkeypatch.setattr(Committer, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            ingest(f"{source}{self.named}", store, options)
        monkeypatch.undo()
        kept = len(open_dataset(store))
        assert 0 < kept < whole
        second, third = (ingest(f"{source}{self.named}", store, options) for _ in range(2))
        assert (second.added, second.present, second.quarantined) == (whole - kept, kept, ())
        assert (third.added, third.replaced, third.present) == (0, 0, whole)
        assert third.version == second.version
        assert verify(store).ok

    def test_a_change_takes_the_place_of_what_it_was(self, source: Path, tmp_path: Path) -> None:
        store = str(tmp_path / "store")
        options = self.options(reject=())
        before = set(
            open_dataset(ingest(f"{source}{self.named}", store, options).store_uri).episodes.column(
                "source_fingerprint"
            )
        )
        whole = len(open_dataset(store))
        self.change(source)
        report = ingest(f"{source}{self.named}", store, options)
        after = set(open_dataset(store).episodes.column("source_fingerprint"))
        assert report.added + report.replaced == 1
        assert len(open_dataset(store)) == whole
        assert len(before - after) == len(after - before) == 1
        assert verify(store).ok

    def test_wrong_source_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other/notes.txt").write_text("hello")
        for path in ("other", "absent"):
            with pytest.raises(UserError) as caught:
                self.open(tmp_path / path)
            assert "\n" not in str(caught.value)


class TestDroidRlds(ReaderContract):
    format = "droid-rlds"

    @pytest.fixture
    def source(self, tmp_path: Path, write_rlds: Callable[..., Path], make_features: Callable[..., Any]) -> Path:
        self.features, self.write = make_features, write_rlds
        return write_rlds(tmp_path / "set", [self.episode(0), self.episode(1)], [self.episode(2)])

    def episode(self, number: int, seed: int | None = None) -> Any:
        path = f"LAB{number}/success/day/time{number}/trajectory.h5"
        return self.features(5 + number, path=path, seed=number if seed is None else seed)

    def damage(self, source: Path) -> str:
        shard = sorted(source.glob("*tfrecord*"))[0]
        data = bytearray(shard.read_bytes())
        data[200] ^= 255
        shard.write_bytes(data)
        return f"{shard}#record=0"

    def change(self, source: Path) -> None:
        self.write(source, [self.episode(0), self.episode(1)], [self.episode(2, seed=9)])


class TestRldsByMapping(ReaderContract):
    format = "rlds"

    given: ClassVar[dict[str, Any]] = {"mapping": "fractal"}

    def test_is_registered_and_detected(self, source: Path) -> None:
        """What the fields mean can't be detected: a mapping that fits is named, and decides the format."""
        assert self.format in FORMATS
        reader = open_source(str(source), IngestOptions(mapping="fractal"))
        assert isinstance(reader, SourceReader)
        assert reader.format == self.format
        with pytest.raises(UserError, match="--mapping"):
            open_source(str(source))

    @pytest.fixture
    def source(self, tmp_path: Path, write_rlds: Callable[..., Path]) -> Path:
        self.write = write_rlds
        return write_rlds(tmp_path / "set", [fractal(seed=0), fractal(seed=1)], [fractal(seed=2)])

    def damage(self, source: Path) -> str:
        return TestDroidRlds.damage(TestDroidRlds(), source)

    def change(self, source: Path) -> None:
        self.write(source, [fractal(seed=0), fractal(seed=1)], [fractal(seed=9)])


class TestReplayBuffer(ReaderContract):
    """Of diffusion_policy, in folders; three of the episodes of one store lie in chunks of their own."""

    format = "replay-buffer"
    lengths = (8, 8, 4)

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        write_store(tmp_path / "sets/b.zarr", pusht((5,), seed=60), (5,))
        return write_store(tmp_path / "sets/a.zarr", pusht(self.lengths), self.lengths).parent

    def damage(self, source: Path) -> str:
        chunk = source / "a.zarr/data/img/2.0.0.0"
        chunk.write_bytes(chunk.read_bytes()[:100])
        return f"{source}/a.zarr/meta/.zgroup#episode=1"

    def change(self, source: Path) -> None:
        arrays = pusht(self.lengths)
        arrays["action"][8:16] += 1
        write_store(source / "a.zarr", arrays, self.lengths)


class TestReplayBufferInAZip(TestReplayBuffer):
    """Of UMI."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return zipped(write_store(tmp_path / "sets/a.zarr", umi(self.lengths), self.lengths)).parent

    def damage(self, source: Path) -> str:
        data = bytearray((source / "a.zarr.zip").read_bytes())
        with zipfile.ZipFile(source / "a.zarr.zip") as archive:
            place = archive.getinfo("data/camera0_rgb/9.0.0.0").header_offset
        data[place + 100] ^= 255
        (source / "a.zarr.zip").write_bytes(data)
        return f"{source}/a.zarr.zip#episode=1"

    def change(self, source: Path) -> None:
        arrays = umi(self.lengths)
        arrays["camera0_rgb"][8:16] //= 2
        (source / "a.zarr.zip").unlink()
        zipped(write_store(source / "a.zarr", arrays, self.lengths))


class TestVideo(ReaderContract):
    format = "video"

    @pytest.fixture
    def source(self, tmp_path: Path, write_video: Callable[..., Path]) -> Path:
        self.write = write_video
        for number in range(3):
            write_video(tmp_path / f"clips/{number}.mp4", frames=12, seed=number)
        return tmp_path / "clips"

    def damage(self, source: Path) -> str:
        (source / "1.mp4").write_bytes((source / "1.mp4").read_bytes()[:200])
        return str(source / "1.mp4")

    def change(self, source: Path) -> None:
        self.write(source / "1.mp4", frames=12, seed=50)


class TestVideosOfAList(TestVideo):
    """A list in the folder, which is taken when it is what is named."""

    named = "/list.csv"

    @pytest.fixture
    def source(self, tmp_path: Path, write_video: Callable[..., Path]) -> Path:
        self.write = write_video
        for number in range(3):
            write_video(tmp_path / f"clips/{number}.mp4", frames=24, seed=number)
        lines = ["path,start,end,text", "0.mp4,,,lift", "1.mp4,0.5,1.4,", "2.mp4,,,"]
        (tmp_path / "clips/list.csv").write_text("\n".join(lines))
        return tmp_path / "clips"

    def test_is_registered_and_detected(self, source: Path) -> None:
        assert detect(str(source / "list.csv")) == self.format
        assert open_source(str(source / "list.csv")).format == self.format

    def change(self, source: Path) -> None:
        self.write(source / "1.mp4", frames=24, seed=50)


class TestVideoByDecord(TestVideo):
    given: ClassVar[dict[str, Any]] = {"backend": "decord"}


class TestLeRobot(ReaderContract):
    format = "lerobot"
    version = "v3.0"

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        self.made = Maker(root=tmp_path / "set", version=self.version, splits=(6, 11))
        for number, row in enumerate(self.made.episodes):
            row["data/file_index"] = number
        return self.made.write()

    def damage(self, source: Path) -> str:
        file = self.made.data(1)
        file.write_bytes(file.read_bytes()[:-4])
        return f"{file}#episode=1"

    def change(self, source: Path) -> None:
        self.made.rows["action"][7] += 1
        self.made.write()


class TestLeRobotOfVersion2(TestLeRobot):
    version = "v2.1"


class TestDroidRaw(ReaderContract):
    format = "droid-raw"

    @pytest.fixture
    def source(self, tmp_path: Path, write_video: Callable[..., Path]) -> Path:
        self.write = write_video
        for number in range(3):
            self.episode(tmp_path / "raw", number, seed=number)
        return tmp_path / "raw"

    def episode(self, root: Path, number: int, *, seed: int) -> None:
        write_droid(root / f"LAB{number}/success/day/time{number}", 5 + number, self.write, seed=seed, waited=number)

    def damage(self, source: Path) -> str:
        video = sorted(source.glob("LAB1/**/*[0-9].mp4"))[0]
        video.write_bytes(video.read_bytes()[:400])
        return str(source / "LAB1/success/day/time1/trajectory.h5")

    def change(self, source: Path) -> None:
        self.episode(source, 1, seed=50)


class TestRobomimic(ReaderContract):
    format = "robomimic"
    libero = False

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        write_demos(tmp_path / "demos/a.hdf5", [5, 6], libero=self.libero)
        write_demos(tmp_path / "demos/b.hdf5", [7], libero=self.libero, seed=1)
        return tmp_path / "demos"

    def damage(self, source: Path) -> str:
        with h5py.File(source / "a.hdf5", "a") as file:
            file["data/demo_1/actions"][2, 3] = np.nan
        return f"{source}/a.hdf5#data/demo_1"

    def change(self, source: Path) -> None:
        with h5py.File(source / "a.hdf5", "a") as file:
            file["data/demo_1/actions"][2, 3] = 0.5


class TestLibero(TestRobomimic):
    format = "libero"
    libero = True


class TestAloha(ReaderContract):
    format = "aloha"

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        for number in range(3):
            write_aloha(tmp_path / f"task/episode_{number}.hdf5", 5 + number, seed=number, jpeg=number == 2)
        return tmp_path / "task"

    def damage(self, source: Path) -> str:
        path = source / "episode_1.hdf5"
        path.write_bytes(path.read_bytes()[:-2000])
        return str(path)

    def change(self, source: Path) -> None:
        write_aloha(source / "episode_1.hdf5", 6, seed=50)


def test_nothing_known_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="no file of a known format"):
        detect(str(tmp_path))
    with pytest.raises(UserError, match="nothing at"):
        detect(str(tmp_path / "absent"))

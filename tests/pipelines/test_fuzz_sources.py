"""Flip and cut the bytes of real data: every case is accepted whole or has a reason, and nothing else is touched.

For TFRecords "whole" means bit-identical, for a checksum covers every byte of an episode. Most videos have no checksum:
a flip may leave a legal stream with other pixels. There "whole" means that the decoder, told to be strict, had no
objection to any frame, and that the store holds exactly what it decoded.
"""

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from video_maker import KINDS, Recipe, write

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.doctor.diagnose import diagnose
from pipelines.files import printable
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from pipelines.source import SourceRef
from pipelines.sources.registry import open_source
from pipelines.video.decode import _decode_pyav, probe
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.errors import UserError
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import Dataset, open_dataset
from storage_schemas.store.frames import encode_frames

pytestmark = pytest.mark.ground_truth

CASES = 2000
FAST_CASES = 24
CASES_EACH = int(os.environ.get("UWM_FUZZ_CASES", "50"))
"""Damaged videos of each container; an hour for 2,000."""
BATCH = 50
MAX_VIDEO = 250_000
"""Bytes of the videos that are damaged; larger ones only take longer."""


def damage(data: bytes, seed: int) -> bytes:
    """`data` with some bits flipped, a block overwritten, or its end, start or middle cut off. Never unchanged."""
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    kind = rng.choice(["flip", "flips", "header", "block", "cut", "hole", "start", "double"])
    place = int(rng.integers(len(data)))
    if kind in ("flip", "flips", "header"):
        for _ in range(1 if kind == "flip" else int(rng.integers(2, 30))):
            place = int(rng.integers(len(data) if kind != "header" else min(512, len(data))))
            changed[place] ^= 1 << int(rng.integers(8))
    elif kind == "block":
        changed[place : place + 64] = rng.bytes(len(changed[place : place + 64]))
    elif kind == "cut":
        del changed[place:]
    elif kind == "hole":
        del changed[place : place + int(rng.integers(1, 4096))]
    elif kind == "start":
        del changed[: int(rng.integers(1, 4096))]
    else:
        changed[place:place] = changed[place : place + int(rng.integers(1, 4096))] or b"\0"
    return bytes(changed) if changed != data else bytes(data[:-1])


def content(episode: Episode) -> str:
    """Hash of everything in an episode."""
    digest = hashlib.sha256(repr((episode.meta.language, episode.meta.success, episode.meta.collection)).encode())
    for camera, frames in sorted(episode.frames.items()):
        digest.update(camera.encode())
        digest.update(b"".join(frames.jpegs) if isinstance(frames, EncodedFrames) else frames.tobytes())
    for name, values in {"action": episode.action, "mask": episode.action_mask, **episode.state}.items():
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def read_all(source: Path) -> tuple[dict[str, str], list[Rejection]]:
    """Content by episode id, and what was turned away; a `UserError` is a reason too."""
    found, rejected = {}, []
    try:
        reader = open_source(str(source), IngestOptions(format="droid-rlds"))
    except UserError as error:
        return {}, [Rejection(source_uri=str(source), fingerprint="", reason="refused", detail=str(error))]
    for ref in reader.refs():
        if isinstance(ref, Rejection):
            rejected.append(ref)
            continue
        try:
            found |= {episode.meta.episode_id: content(episode) for episode in reader.read(ref)}
        except BadDataError as error:
            rejected.append(ref.rejection(error.reason, error.detail))
    return found, rejected


def rlds_cases(root: Path, folder: Path, seeds: range) -> Iterator[Path]:
    """Copies of a small set with one file damaged: nine times of ten a shard, else its metadata."""
    originals = sorted((root / "bad/tfrecord/good_small/1.0.0").iterdir())
    if not originals:
        pytest.skip("the fixtures have no small good set")
    shards = [path for path in originals if "tfrecord" in path.name]
    for seed in seeds:
        target = folder / f"{seed:04}"
        target.mkdir(parents=True)
        rng = np.random.default_rng([seed, 1])
        victim = (
            shards[int(rng.integers(len(shards)))]
            if rng.random() < 0.8
            else originals[int(rng.integers(len(originals)))]
        )
        for path in originals:
            data = path.read_bytes()
            (target / path.name).write_bytes(damage(data, seed) if path == victim else data)
        yield target


def fuzz_rlds(root: Path, tmp_path: Path, seeds: range) -> Counter[str]:
    """Run the cases; returns how often each outcome occurred."""
    good, none = read_all(root / "bad/tfrecord/good_small/1.0.0")
    assert good
    assert not none
    outcomes: Counter[str] = Counter()
    for first in range(seeds.start, seeds.stop, BATCH):
        folder, store = tmp_path / f"cases-{first}", str(tmp_path / f"store-{first}")
        for case in rlds_cases(root, folder, range(first, min(first + BATCH, seeds.stop))):
            found, rejected = read_all(case)
            assert found.items() <= good.items(), f"{case} gave other content"
            assert rejected or found == good, f"{case} lost an episode without a reason"
            outcomes.update({rejection.reason for rejection in rejected} or {"accepted"})
            try:
                report = diagnose(str(case), IngestOptions(format="droid-rlds"))
                assert {f.reason for f in report.findings} >= {r.reason for r in rejected}
                ingest(str(case), store, IngestOptions(format="droid-rlds"))
            except UserError:
                assert rejected[0].reason == "refused"
                continue
            held = {(row.source_uri, row.reason) for row in quarantined(store)}
            assert {(r.source_uri, r.reason) for r in rejected if r.reason != "count_mismatch"} <= held | {
                (r.source_uri, r.reason) for r in rejected if _stored(store, r)
            }
        if Path(store).exists():
            dataset = open_dataset(store)
            ids = dataset.episodes.episode_ids
            assert len(ids) == len(set(ids))
            assert set(ids) <= set(good)
            assert verify(store).ok
            shutil.rmtree(store)
        shutil.rmtree(folder)
    return outcomes


def _stored(store: str, rejection: Rejection) -> bool:
    """Whether the same bytes came from another case's file: then there is nothing to lose."""
    return rejection.fingerprint in set(open_dataset(store).episodes.column("source_fingerprint"))


SUFFIXES = {"matroska": "mkv", "mpegts": "ts", "mpeg2video": "m2v", "mpeg1video": "m1v", "yuv4mpegpipe": "y4m"}
"""Of containers whose name is none."""


def suffix_of(container: str) -> str:
    return "." + SUFFIXES.get(container, container)


def whole_videos(root: Path, tmp_path: Path, only: str = "") -> list[Path]:
    """Small fixtures and one video of each kind; `only` those of a container."""
    found = sorted(path for path in (root / "videos").iterdir() if path.suffix != ".json")
    found = [path for path in found if path.stat().st_size <= MAX_VIDEO]
    (tmp_path / "whole").mkdir()
    for container, _, codec in (kind.partition("/") for kind in KINDS):
        if only in ("", container):
            recipe = Recipe(format=container, codec=codec, rate=Fraction(25), numbers=range(1, 31))
            found.append(write(tmp_path / "whole" / f"{codec}{suffix_of(container)}", recipe))
    return [path for path in found if not only or path.suffix == suffix_of(only)]


def fuzz_videos(originals: list[Path], tmp_path: Path, seeds: range) -> Counter[str]:
    """Run the cases, many in one folder, so that a bad one would show in its neighbours."""
    outcomes: Counter[str] = Counter()
    for first in range(seeds.start, seeds.stop, BATCH):
        folder, store = tmp_path / f"clips-{first}", str(tmp_path / f"store-{first}")
        folder.mkdir()
        for seed in range(first, min(first + BATCH, seeds.stop)):
            path = originals[seed % len(originals)]
            (folder / f"{seed:04}{path.suffix}").write_bytes(damage(path.read_bytes(), seed))
        report = ingest(str(folder), store, IngestOptions(format="video", reject=()))
        dataset = open_dataset(store)
        stored = {uri.partition("#")[0] for uri in dataset.episodes.column("source_uri")}
        turned_away = {rejection.source_uri: rejection.reason for rejection in report.quarantined}
        assert stored.isdisjoint(turned_away)
        files = {printable(str(path)) for path in folder.iterdir()}
        assert stored | set(turned_away) == files
        outcomes.update(turned_away.values())
        outcomes["accepted"] += len(stored)
        found = diagnose(str(folder), IngestOptions(format="video"))
        fatal = {finding.source_uri: finding.reason for finding in found.findings if finding.fatal}
        assert fatal == turned_away, set(fatal.items()) ^ set(turned_away.items())
        assert verify(store).ok
        assert {row.source_uri for row in quarantined(store)} == set(turned_away)
        _check_pixels(dataset, folder)
        shutil.rmtree(folder)
        shutil.rmtree(store)
    return outcomes


def _check_pixels(dataset: Dataset, folder: Path) -> None:
    """The store holds, bit for bit, what a second decoding of the same bytes gives."""
    rows = {uri: row for row, uri in enumerate(dataset.episodes.column("source_uri"))}
    stored = {uri.partition("#")[0] for uri in rows}
    reader = open_source(str(folder), IngestOptions(format="video"))
    for ref in reader.refs():
        assert isinstance(ref, SourceRef)
        if ref.uri in stored:
            for episode in reader.read(ref):
                if isinstance(episode, LeftOut):
                    continue
                row = rows.pop(episode.meta.source_uri)
                ((camera, frames),) = episode.frames.items()
                assert isinstance(frames, np.ndarray)
                same = dataset.encoded(row, camera, range(len(episode))) == encode_frames(frames, "jpeg")
                assert same, episode.meta.source_uri
    assert not rows


def test_damaged_tfrecords(fixtures_root: Path, tmp_path: Path) -> None:
    outcomes = fuzz_rlds(fixtures_root, tmp_path, range(FAST_CASES))
    assert len(outcomes) >= 4


def test_damaged_videos(fixtures_root: Path, tmp_path: Path) -> None:
    outcomes = fuzz_videos(whole_videos(fixtures_root, tmp_path), tmp_path, range(FAST_CASES))
    assert len(outcomes) >= 3


@pytest.mark.parametrize(("name", "seed"), [("city_vp8.webm", 1293), ("city_vp8.webm", 2074), ("mjpeg", 10084)])
def test_a_damaged_video_shows_nothing_that_lay_in_memory(
    name: str, seed: int, fixtures_root: Path, tmp_path: Path
) -> None:
    path = fixtures_root / "videos" / name if "." in name else whole_videos(fixtures_root, tmp_path, name)[0]
    if not path.exists():
        pytest.skip(f"no {path.name} among the fixtures")
    file = io.BytesIO(damage(path.read_bytes(), seed))
    info = probe(file)

    def decoded(*, hold: bool) -> list[str]:
        """Hashes of the frames, whose memory is used again for later ones unless they are held."""
        found, held = [], []
        try:
            for frame in _decode_pyav(file, info, info.rate or 25, info.size(180)):
                found.append(hashlib.sha256(frame.pixels().tobytes()).hexdigest())
                held.append(frame if hold else None)
        except BadDataError as error:
            found.append(str(error))
        return found

    assert decoded(hold=True) == decoded(hold=False)


@pytest.mark.slow
def test_many_damaged_tfrecords(fixtures_root: Path, tmp_path: Path) -> None:
    outcomes = fuzz_rlds(fixtures_root, tmp_path, range(1000, 1000 + CASES))
    assert outcomes["crc_mismatch"] > CASES / 10
    (tmp_path / "outcomes.json").write_text(json.dumps(outcomes))


@pytest.mark.slow
def test_many_damaged_videos(fixtures_root: Path, tmp_path: Path) -> None:
    outcomes = fuzz_videos(whole_videos(fixtures_root, tmp_path), tmp_path, range(1000, 1000 + CASES))
    assert outcomes["corrupt"] > CASES / 20
    (tmp_path / "outcomes.json").write_text(json.dumps(outcomes))


@pytest.mark.slow
@pytest.mark.parametrize("container", sorted({kind.partition("/")[0] for kind in KINDS}))
def test_damaged_videos_of_each_container(container: str, fixtures_root: Path, tmp_path: Path) -> None:
    originals = whole_videos(fixtures_root, tmp_path, container)
    outcomes = fuzz_videos(originals, tmp_path, range(10_000, 10_000 + CASES_EACH))
    assert len(outcomes) >= 2
    (tmp_path / "outcomes.json").write_text(json.dumps(outcomes))

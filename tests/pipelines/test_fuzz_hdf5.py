"""Flip and cut the bytes of HDF5 files: every case is stored as a second reading gives it or has a reason.

HDF5 has no checksums where recorders use it, so a flip may leave other numbers or another shade: what is tested is that
nothing crashes or hangs, that no episode vanishes without a reason, and that whole neighbours are untouched.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hdf5_maker import write_aloha, write_demos, write_droid

from pipelines.doctor.diagnose import diagnose
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from pipelines.source import SourceRef
from pipelines.sources.registry import open_source
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import Dataset, open_dataset
from tests.pipelines.test_fuzz_sources import damage

CASES, FAST_CASES, BATCH = 500, 6, 25
Make = Callable[..., Path]


def write_one(folder: Path, format_name: str, seed: int, write_video: Make) -> Path:
    """A small good file of a format; returns it."""
    if format_name == "droid-raw":
        return write_droid(folder / f"LAB/success/day/{seed:04}", 4, write_video, seed=seed) / "trajectory.h5"
    if format_name == "aloha":
        return write_aloha(folder / f"{seed:04}.hdf5", 4, seed=seed, jpeg=seed % 2 == 1, cameras=("cam_high",))
    return write_demos(folder / f"{seed:04}.hdf5", [3, 4], seed=seed, libero=format_name == "libero")


def damaged(folder: Path, format_name: str, seeds: range, write_video: Make) -> Iterator[tuple[str, int]]:
    """Write a file for each seed and break it; yields its path and how many episodes it had."""
    for seed in seeds:
        path = write_one(folder, format_name, seed, write_video)
        path.write_bytes(damage(path.read_bytes(), seed))
        yield str(path), 2 if format_name in ("robomimic", "libero") else 1


def fuzz(format_name: str, tmp_path: Path, seeds: range, write_video: Make) -> Counter[str]:
    """Run the cases, many in one folder beside a good file; returns how often each outcome occurred."""
    outcomes: Counter[str] = Counter()
    options = IngestOptions(format=format_name, reject=())
    for first in range(seeds.start, seeds.stop, BATCH):
        folder, store = tmp_path / f"files-{first}", str(tmp_path / f"store-{first}")
        cases = dict(damaged(folder, format_name, range(first, min(first + BATCH, seeds.stop)), write_video))
        good = str(write_one(folder, format_name, 9999, write_video))
        report = ingest(str(folder), store, options)
        stored = Counter(uri.partition("#")[0] for uri in open_dataset(store).episodes.column("source_uri"))
        reasons: dict[str, list[str]] = {}
        for rejection in report.quarantined:
            reasons.setdefault(rejection.source_uri.partition("#")[0], []).append(rejection.reason)
        assert set(stored) | set(reasons) == {*cases, good}
        assert good not in reasons
        for path, count in cases.items():
            assert stored[path] == count or reasons.get(path), f"{path} lost an episode without a reason"
        outcomes.update(reason for found in reasons.values() for reason in found)
        outcomes["accepted"] += sum(stored.values()) - stored[good]
        fatal = {finding.reason for finding in diagnose(str(folder), options).findings if finding.fatal}
        assert fatal >= {reason for found in reasons.values() for reason in found}
        assert {row.source_uri for row in quarantined(store)} == {r.source_uri for r in report.quarantined}
        assert verify(store).ok
        check_content(open_dataset(store), folder, options)
        shutil.rmtree(folder)
        shutil.rmtree(store)
    return outcomes


def check_content(dataset: Dataset, folder: Path, options: IngestOptions) -> None:
    """The store holds, bit for bit, what a second reading of the same bytes gives."""
    rows = {uri: row for row, uri in enumerate(dataset.episodes.column("source_uri"))}
    reader = open_source(str(folder), options, dataset.spec)
    for ref in reader.refs():
        if not isinstance(ref, SourceRef) or ref.uri not in rows:
            continue
        row = rows.pop(ref.uri)
        (episode,) = (item for item in reader.read(ref) if isinstance(item, Episode))
        for name, values in {"action": episode.action, "mask/action": episode.action_mask}.items():
            np.testing.assert_array_equal(dataset.array(row, name), values)
        for name, values in episode.state.items():
            np.testing.assert_array_equal(dataset.array(row, f"state/{name}"), values)
        for camera, frames in episode.frames.items():
            assert isinstance(frames, EncodedFrames)
            assert list(dataset.encoded(row, camera, range(len(episode)))) == list(frames.jpegs)
    assert not rows


FORMATS = ("droid-raw", "robomimic", "libero", "aloha")


@pytest.mark.parametrize("format_name", FORMATS)
def test_damaged_files(format_name: str, tmp_path: Path, write_video: Make) -> None:
    outcomes = fuzz(format_name, tmp_path, range(FAST_CASES), write_video)
    assert sum(outcomes.values()) >= FAST_CASES


@pytest.mark.slow
@pytest.mark.parametrize("format_name", FORMATS)
def test_many_damaged_files(format_name: str, tmp_path: Path, write_video: Make) -> None:
    outcomes = fuzz(format_name, tmp_path, range(1000, 1000 + CASES), write_video)
    assert len(outcomes) >= 5
    (tmp_path / "outcomes.json").write_text(json.dumps(outcomes))

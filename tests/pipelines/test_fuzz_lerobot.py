"""Damage to LeRobot datasets: no case ends the program, and no episode that is taken shows a frame of another step.

Parquet has no checksum, so a flip may leave another number; what is checked is that each step keeps its own frame, that
every episode is taken or has a reason, and that the store holds what was read.
"""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lerobot_maker import TOP, Maker, numbers_of, png

from pipelines.checks.quality import BadDataError, Rejection
from pipelines.ingest import ingest
from pipelines.source import SourceRef, episodes_of
from pipelines.sources.registry import open_source
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.errors import UserError
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset

CASES, FAST_CASES = 500, 12


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes other than they were, or gone."""
    changed, place = bytearray(data), int(rng.integers(len(data)))
    kind = rng.choice(["bits", "bits", "bits", "block", "end", "hole"])
    if kind == "bits":
        for index in rng.integers(len(data), size=int(rng.integers(1, 12))):
            changed[index] ^= 1 << int(rng.integers(8))
    elif kind == "block":
        changed[place : place + 16] = rng.bytes(len(changed[place : place + 16]))
    elif kind == "end":
        del changed[place:]
    else:
        del changed[place : place + int(rng.integers(1, 100))]
    return bytes(changed)


def originals(folder: Path) -> list[Maker]:
    made = [Maker(root=folder / version, version=version) for version in ("v3.0", "v2.1")]
    images = Maker(root=folder / "images", splits=(6, 11))
    images.info["features"][TOP] = {"dtype": "image", "shape": [48, 64, 3], "names": None}
    images.clips, images.rows[TOP] = {}, [{"bytes": png(number), "path": None} for number in range(images.starts[-1])]
    for one in (*made, images):
        one.write()
    return [*made, images]


def check_case(source: Path, made: Maker, victim: Path) -> set[str]:
    """Read a damaged dataset; returns the reasons of what is refused."""
    reasons: set[str] = set()
    taken = refused = 0
    reader = open_source(str(source))
    for item in reader.refs():
        if isinstance(item, Rejection):
            reasons.add(item.reason)
            refused += 1
        if not isinstance(item, SourceRef):
            continue
        try:
            (episode,) = (found for found in episodes_of(reader, item) if isinstance(found, Episode))
        except BadDataError as error:
            assert "\n" not in error.detail
            reasons.add(error.reason)
            refused += 1
            continue
        taken += 1
        number = int(item.uri.rpartition("=")[2])
        for frames in episode.frames.values():
            assert isinstance(frames, EncodedFrames)
            if victim.suffix != ".mp4" and (made.clips or victim.parent.name != "chunk-000"):
                start, stop = made.starts[number], made.starts[number + 1]
                assert numbers_of(frames) == list(range(start, stop)), item.uri
    assert taken or refused or "meta" in victim.parts
    return reasons


def fuzz(tmp_path: Path, seeds: range) -> Counter[str]:
    """Run the cases; returns how often each outcome occurred."""
    sets, outcomes = originals(tmp_path / "whole"), Counter[str]()
    for seed in seeds:
        rng = np.random.default_rng([seed, 7])
        made = sets[seed % len(sets)]
        case, store = tmp_path / f"case-{seed}", tmp_path / f"store-{seed}"
        shutil.copytree(made.root, case)
        files = sorted(path for path in case.rglob("*") if path.is_file())
        victim = files[int(rng.integers(len(files)))]
        victim.write_bytes(damage(victim.read_bytes(), rng))
        try:
            reasons = check_case(case, made, victim)
            report = ingest(str(case), str(store))
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            outcomes.update(reasons or {"accepted"})
            assert {one.reason for one in report.quarantined} == reasons
            assert len(open_dataset(str(store))) == report.added
            assert verify(str(store)).ok
        shutil.rmtree(case)
        shutil.rmtree(store, ignore_errors=True)
    return outcomes


def test_damaged_datasets(tmp_path: Path) -> None:
    assert len(fuzz(tmp_path, range(FAST_CASES))) >= 3


@pytest.mark.slow
def test_many_damaged_datasets(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, range(1000, 1000 + CASES))
    assert outcomes["accepted"] > CASES / 20
    assert len(outcomes) >= 8

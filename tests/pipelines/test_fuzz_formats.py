"""Damage to mapped RLDS, replay buffers and lists of videos: every case is taken whole or has a reason.

RLDS has a checksum over every byte of an episode, so what is taken is bit-identical. In the others a flip may leave
something legal: a name, a number of a chunk without a checksum. There no case ends the program, and the dataset holds
what the reader reads.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oxe import fractal
from replay_buffers import pusht, umi, write_store, zipped

from pipelines.checks.quality import BadDataError, LeftOut, Rejection
from pipelines.files import printable
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from pipelines.source import SourceRef, episodes_of
from pipelines.sources.registry import open_source
from pipelines.sources.rlds_mapping import load_mapping
from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.errors import UserError
from storage_schemas.maintenance.verify import verify
from storage_schemas.store.dataset import open_dataset

CASES, FAST_CASES = 500, 10
Make = Callable[..., Any]
Original = tuple[Path, IngestOptions]


def damage(data: bytes, seed: int) -> bytes:
    """`data` with some bits flipped, a block overwritten, doubled or gone, or its end cut off."""
    rng = np.random.default_rng(seed)
    changed, place = bytearray(data), int(rng.integers(max(1, len(data))))
    kind = rng.choice(["flip", "flips", "block", "cut", "hole", "double"])
    if kind in ("flip", "flips") and data:
        for _ in range(1 if kind == "flip" else int(rng.integers(2, 30))):
            changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    elif kind == "block":
        changed[place : place + 32] = rng.bytes(len(changed[place : place + 32]))
    elif kind == "cut":
        del changed[place:]
    elif kind == "hole":
        del changed[place : place + int(rng.integers(1, 200))]
    else:
        changed[place:place] = changed[place : place + int(rng.integers(1, 200))]
    return bytes(changed)


@pytest.fixture
def mapped(tmp_path: Path, write_rlds: Make) -> Original:
    folder = write_rlds(tmp_path / "mapped", [fractal(seed=0), fractal(seed=1)], [fractal(seed=2)])
    return folder, IngestOptions(mapping="fractal", batch_episodes=2)


@pytest.fixture
def folder(tmp_path: Path) -> Original:
    return write_store(tmp_path / "plain/p.zarr", pusht((8, 4)), (8, 4)).parent, IngestOptions(format="replay-buffer")


@pytest.fixture
def packed(tmp_path: Path) -> Original:
    made = zipped(write_store(tmp_path / "packed/u.zarr", umi((5, 4)), (5, 4)))
    return made.parent, IngestOptions(format="replay-buffer")


@pytest.fixture
def listed(tmp_path: Path, write_video: Make) -> Original:
    for number in range(2):
        write_video(tmp_path / f"listed/{number}.mp4", frames=20, seed=9 * number)
    lines = ["path,start,end,text,collection", "0.mp4,0.2,1,lift it,lab", "0.mp4,,,look,", '1.mp4,,,"a, b",', "1,,,x,"]
    (tmp_path / "listed/list.csv").write_text("\n".join(lines))
    return tmp_path / "listed", IngestOptions(format="video", reject=())


def content(episode: Episode) -> dict[str, bytes]:
    """All numbers and frames of an episode."""
    frames = {name: b"".join(f.jpegs) if isinstance(f, EncodedFrames) else f.tobytes() for name, f in
              episode.frames.items()}  # fmt: skip
    return {**frames, **{n: v.tobytes() for n, v in episode.state.items()}, "action": episode.action.tobytes()}


def read(source: Path, options: IngestOptions) -> tuple[dict[str, Episode], list[Rejection]]:
    """Episodes by URI, and what was turned away."""
    reader = open_source(str(source), options)
    found: dict[str, Episode] = {}
    rejected: list[Rejection] = []
    for ref in reader.refs():
        if isinstance(ref, SourceRef):
            try:
                episodes = [item for item in episodes_of(reader, ref) if isinstance(item, Episode)]
            except BadDataError as error:
                rejected.append(ref.rejection(error.reason, error.detail))
            else:
                found |= {episode.meta.source_uri: episode for episode in episodes}
        elif not isinstance(ref, LeftOut):
            rejected.append(ref)
    return found, rejected


def cases(original: Path, folder: Path, seeds: range) -> Iterator[Path]:
    """Copies with one file damaged, or gone in one of twenty."""
    files = sorted(path for path in original.rglob("*") if path.is_file())
    for seed in seeds:
        target = folder / f"{seed:04}"
        shutil.copytree(original, target)
        rng = np.random.default_rng([seed, 1])
        victim = target / files[int(rng.integers(len(files)))].relative_to(original)
        if rng.random() < 0.05 and len(files) > 1:
            victim.unlink()
        else:
            victim.write_bytes(damage(victim.read_bytes(), seed))
        yield target
        shutil.rmtree(target)


def fuzz(original: Original, tmp_path: Path, seeds: range, inside: str = "") -> Counter[str]:
    """Run the cases; returns how often each outcome occurred."""
    folder, options = original
    outcomes: Counter[str] = Counter()
    for case in cases(folder, tmp_path / "cases", seeds):
        source, store = case / inside, tmp_path / f"store-{case.name}"
        try:
            found, rejected = read(source, options)
            ingest(str(source), str(store), options)
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
            continue
        assert all(one.reason and "\n" not in one.detail for one in rejected)
        outcomes.update({one.reason for one in rejected} or {"accepted"})
        held = {row.source_uri for row in quarantined(str(store))}
        dataset = open_dataset(str(store))
        stored = set(dataset.episodes.column("source_uri"))
        assert found.keys() <= stored | held | {printable(name) for name in held}, "lost without a reason"
        assert verify(str(store)).ok
        for row, uri in enumerate(dataset.episodes.column("source_uri")):
            np.testing.assert_array_equal(dataset.array(row, "action"), found[uri].action)
        if store.exists():
            shutil.rmtree(store)
        if options.mapping:
            good = {key: content(one) for key, one in originals(original).items()}
            ids = {one.meta.episode_id: content(one) for one in found.values()}
            assert ids.items() <= good.items(), "other content"
    return outcomes


def originals(original: Original) -> dict[str, Episode]:
    """The undamaged episodes by id."""
    return {episode.meta.episode_id: episode for episode in read(*original)[0].values()}


@pytest.mark.parametrize("name", ["mapped", "folder", "packed", "listed"])
def test_damage(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    original: Original = request.getfixturevalue(name)
    inside = "list.csv" if name == "listed" else ""
    assert fuzz(original, tmp_path, range(FAST_CASES), inside)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mapped", "folder", "packed", "listed"])
def test_much_damage(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    original: Original = request.getfixturevalue(name)
    inside = "list.csv" if name == "listed" else ""
    outcomes = fuzz(original, tmp_path, range(1000, 1000 + CASES), inside)
    assert len(outcomes) >= 4, outcomes
    assert outcomes["accepted"] < CASES


@pytest.mark.slow
def test_damaged_mappings(tmp_path: Path) -> None:
    data = (Path(__file__).parents[2] / "pipelines/sources/mappings/droid.toml").read_bytes()
    outcomes: Counter[str] = Counter()
    for seed in range(CASES):
        (tmp_path / "x.toml").write_bytes(damage(data, seed))
        try:
            load_mapping(str(tmp_path / "x.toml"))
            outcomes["accepted"] += 1
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > CASES / 2

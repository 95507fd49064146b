"""`uwm bench ingest`: CPU time per frame of ingesting DROID RLDS with every check, against decoding and re-encoding.

A round writes over what the round before it has freed. Pages that a virtual machine touches for the first time cost it
several times as much (docs/log.md), whoever touches them, and would be charged to the side that writes.
"""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from pipelines.benchmarks.rlds import write_rlds
from pipelines.ingest import ingest
from pipelines.options import IngestOptions
from pipelines.source import SourceRef
from pipelines.sources.registry import open_source
from storage_schemas.episode import EncodedFrames, Episode
from storage_schemas.store.frames import decode_frames, encode_frames
from storage_schemas.synthetic import generate


@dataclass(frozen=True, kw_only=True)
class IngestResult:
    """What `uwm bench ingest` found. A frame is one camera's image of one step."""

    source: str
    frames: int
    cpu_ms_per_frame: dict[str, float]
    """`ingest`: reading, every check, writing, syncing, committing; `reencode`: only decoding and encoding again."""
    ratio: float
    """CPU time of `ingest` over that of `reencode`."""
    bytes_per_frame: float


def bench_ingest(source: str | None = None, *, episodes: int = 8, steps: int = 120, rounds: int = 5) -> IngestResult:
    """Measure on a DROID RLDS source, or on a generated one.

    Args:
        source: path of an RLDS dataset; generated when None.
        episodes: of the generated one.
        steps: of each.
        rounds: of both contenders, in turn; the median is reported.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        rlds = source or str(write_rlds(root / "rlds", generate(episodes, steps)))
        reader = open_source(rlds, IngestOptions(format="droid-rlds"))
        jpegs = [
            frames
            for ref in reader.refs()
            if isinstance(ref, SourceRef)
            for episode in reader.read(ref)
            if isinstance(episode, Episode)
            for frames in episode.frames.values()
            if isinstance(frames, EncodedFrames)
        ]
        count = sum(map(len, jpegs))
        costs: dict[str, list[float]] = {"ingest": [], "reencode": []}
        store = root / "store"
        for _ in range(rounds + 1):
            shutil.rmtree(store, ignore_errors=True)
            began = time.process_time()
            ingest(rlds, str(store), IngestOptions(format="droid-rlds"))
            costs["ingest"].append((time.process_time() - began) * 1000 / count)
            began = time.process_time()
            for frames in jpegs:
                _reencode(frames)
            costs["reencode"].append((time.process_time() - began) * 1000 / count)
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    medians = {name: round(median(values[1:]), 4) for name, values in costs.items()}
    return IngestResult(
        source=source or f"generated: {episodes} episodes of {steps} steps",
        frames=count,
        cpu_ms_per_frame=medians,
        ratio=round(medians["ingest"] / medians["reencode"], 4),
        bytes_per_frame=round(size / count, 1),
    )


def _reencode(frames: EncodedFrames) -> None:
    pixels = np.empty((len(frames), frames.height, frames.width, 3), np.uint8)
    decode_frames(frames.jpegs, "jpeg", pixels)
    encode_frames(pixels, "jpeg")

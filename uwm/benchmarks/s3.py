"""Requests and bytes per sample of reading batches from an S3 emulator that runs beside this process."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.conventions import DROID_ACTION_DIM
from storage_schemas.episode import Episode, frame_size
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part
from uwm.benchmarks.emulator import COUNTS
from uwm.config import DataConfig
from uwm.data.actions import ActionTable
from uwm.data.loader import SegmentReader
from uwm.data.sampler import Pick, SegmentSampler

_BUCKET = "bench"
_REGION = "us-east-1"
_BATCH = 16
_BATCHES = 12


@dataclass(frozen=True, kw_only=True)
class S3Result:
    """What a sample costs on an object store, after the shards' indexes are cached."""

    requests_per_sample: float
    kilobytes_per_sample: float
    samples: int


def bench_s3(content: Sequence[Episode]) -> S3Result:
    """Read shuffled batches from an emulator and count its answers. Needs moto (extra `s3`)."""
    with emulator() as address:
        uri, cameras = f"s3://{_BUCKET}/data", tuple(content[0].frames)
        create_dataset(uri, DatasetSpec(cameras=cameras, action_dim=DROID_ACTION_DIM, val_percent=0))
        commit(uri, write_part(uri, content, run_id="bench"))
        dataset = open_dataset(uri)
        size = frame_size(next(iter(content[0].frames.values())))
        config = DataConfig(cameras=cameras, resize=size, crop=size, action_dim=DROID_ACTION_DIM)
        rows = np.arange(len(dataset))
        reader = SegmentReader([dataset], config, actions=[ActionTable(dataset, rows)])
        sampler = SegmentSampler(rows, dataset.episodes.lengths, (0,))

        def read(batch: int) -> None:
            positions = range(batch * _BATCH, (batch + 1) * _BATCH)
            reader.read([Pick(position, 0, sampler.draw(position)) for position in positions])

        read(0)
        _counts(address)
        for batch in range(1, _BATCHES + 1):
            read(batch)
        counts, samples = _counts(address), _BATCH * _BATCHES
        return S3Result(
            requests_per_sample=round(counts["requests"] / samples, 3),
            kilobytes_per_sample=round(counts["bytes"] / samples / 1000, 1),
            samples=samples,
        )


def _counts(address: str) -> dict[str, int]:
    """Requests and bytes that the emulator answered since the last call."""
    with urllib.request.urlopen(address + COUNTS, timeout=60) as answer:  # noqa: S310 - this machine's own server
        counts: dict[str, int] = json.load(answer)
    return counts


@contextmanager
def emulator() -> Iterator[str]:
    """The address of an emulator with an empty bucket, and the AWS_* variables that lead to it."""
    command = [sys.executable, "-m", "uwm.benchmarks.emulator"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        before = dict(os.environ)
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")  # the emulator takes any
        os.environ.update(dict.fromkeys(keys, _BUCKET))
        os.environ.update(AWS_ENDPOINT_URL=address, AWS_REGION=_REGION, AWS_DEFAULT_REGION=_REGION)
        try:
            import fsspec

            fsspec.filesystem("s3", skip_instance_cache=True).mkdir(_BUCKET)
            yield address
        finally:
            server.terminate()
            os.environ.clear()
            os.environ.update(before)

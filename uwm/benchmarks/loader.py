"""`uwm bench loader`: samples per CPU second of this loader and of the other ways, in one interleaved run."""

import multiprocessing
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.conventions import DROID_ACTION_DIM
from storage_schemas.episode import Episode, SegmentId
from storage_schemas.schema import Codec, DatasetSpec
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part
from storage_schemas.synthetic import generate, take
from uwm.benchmarks.epoch import EpochResult, bench_epoch
from uwm.benchmarks.measure import Cost, Opener, Script, Work, interleave_workers
from uwm.benchmarks.rivals import DecodeOnly, Facts, Lance, LanceBatch, Mp4, Published, Rival, TorchCodec, folder_bytes
from uwm.benchmarks.s3 import S3Result, bench_s3
from uwm.config import DataConfig, DatasetRef
from uwm.data.latents import latent_shape, open_latents
from uwm.data.loader import SegmentReader
from uwm.data.mixture import open_member
from uwm.data.sampler import Pick
from uwm.latents.shards import encode
from uwm.model.tokenizer import Tokenizer

_MARGIN = 20
"""Steps at an episode's end that no sample starts at, for every layout reads past its current step."""
_DOWNSAMPLE = 8


@dataclass(frozen=True, kw_only=True)
class LoaderResult:
    """What `uwm bench loader` found. A sample is 4 frames of every view, and the actions where a layout has them."""

    samples_per_cpu_second: dict[str, float]
    bytes_per_frame: dict[str, float]
    cpu_ms_per_sample: dict[str, float]
    wall_ms_per_sample: dict[str, float]
    files: dict[str, int]
    ratios: dict[str, float]
    resident_mb: dict[str, float]
    """Memory of the contender's process at the end."""
    growth_mb: dict[str, float]
    """Memory that the contender's process grew by after the first counted round."""
    content: str
    frames_per_sample: int
    epoch: EpochResult
    """One worker of this loader over the JPEG dataset."""
    s3: S3Result | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    """Contenders that could not run, and why."""


class _FakeVae(Tokenizer):
    """Latents of SDXL's shape without its weights: what is measured is reading them."""

    channels, downsample, fingerprint, variance = 4, _DOWNSAMPLE, "benchmark", True

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Pool pixels to the size of latents."""
        small = torch.nn.functional.avg_pool2d(images, _DOWNSAMPLE)
        return torch.cat([small, small[:, :1]], dim=1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Enlarge latents to the size of images."""
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=_DOWNSAMPLE)


def bench_loader(
    dataset: str | None = None,
    *,
    episodes: int = 4,
    steps: int = 120,
    rounds: int = 9,
    batch: int = 16,
    s3: bool = False,
    published_python: str | None = None,
    folder: Path | None = None,
) -> LoaderResult:
    """Measure all layouts on the same frames.

    Args:
        dataset: uri of a dataset whose frames are used; generated ones of 180x320 when None.
        episodes: how many.
        steps: of a generated episode.
        rounds: that count; the median is reported.
        batch: samples that are read at once; every contender reads one batch in each round.
        s3: whether to count requests on an S3 emulator too.
        published_python: an interpreter with the published code's zarr 2.18.2 and numcodecs 0.13.1; without it the
            published layout is left out, for today's zarr-python costs more.
        folder: where the layouts are written; a temporary one when None.
    """
    torch.set_num_threads(1)
    content = take(open_dataset(dataset), episodes) if dataset else generate(episodes, steps)
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        result = _measure(content, root, rounds, batch, dataset or "generated", published_python)
    return replace(result, s3=bench_s3(content)) if s3 else result


def _measure(
    content: Sequence[Episode], root: Path, rounds: int, batch: int, name: str, published_python: str | None
) -> LoaderResult:
    missing = _write(content, root)
    job = _Job(root=root, facts=Facts.of(content), cameras=tuple(content[0].frames), batch=batch)
    contenders: dict[str, Opener | Script] = {
        key: partial(_open, key, job) for key in (*_OWN, *_RIVALS) if _FOLDERS[key] not in missing
    }
    if published_python is None:
        missing["published"] = "give --published-python, an interpreter with zarr 2.18.2 and numcodecs 0.13.1"
    else:
        Published.write(root / "published", content)
        contenders["published"] = Script(
            command=(published_python, str(Published.SCRIPT), str(root / "published")),
            version="2.",
            ask=lambda piece: Published.rows(job.chosen(piece), job.facts),
        )
    costs, failed = interleave_workers(contenders, rounds=rounds, size=batch)
    frames = sum(len(episode) * len(episode.frames) for episode in content)
    sizes = {key: folder_bytes(root / _FOLDERS[key]) for key in costs}
    height, width = job.facts.size
    return LoaderResult(
        samples_per_cpu_second={key: round(cost.per_cpu_second, 1) for key, cost in costs.items()},
        bytes_per_frame={key: round(size / frames, 1) for key, (size, _) in sizes.items()},
        cpu_ms_per_sample={key: round(cost.cpu_ms, 3) for key, cost in costs.items()},
        wall_ms_per_sample={key: round(cost.wall_ms, 3) for key, cost in costs.items()},
        files={key: count for key, (_, count) in sizes.items()},
        resident_mb={key: round(cost.resident_mb, 1) for key, cost in costs.items()},
        growth_mb={key: round(cost.growth_mb, 1) for key, cost in costs.items()},
        ratios=_ratios(costs, sizes),
        content=f"{name}: {len(content)} episodes, {frames} frames of {height}x{width}",
        frames_per_sample=4 * job.facts.views,
        epoch=bench_epoch(job.epoch, batch=batch),
        left_out=failed | {key: missing[folder] for key, folder in _FOLDERS.items() if folder in missing},
    )


def _ratios(costs: Mapping[str, Cost], sizes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """The figures that the project promises.

    None of latents over the published layout: it does not agree with that of the published code itself (decision 0005).
    """

    def faster(one: str, other: str) -> float:
        return round(costs[other].cpu_ms / costs[one].cpu_ms, 3)

    ratios = {"jpeg_over_decode_only": faster("jpeg", "decode_only")}
    if "published" in costs:
        ratios |= {f"{own}_over_published": faster(own, "published") for own in ("jpeg", "lossless")}
        ratios["jpeg_bytes_of_published"] = round(sizes["jpeg"][0] / sizes["published"][0], 4)
    return ratios | ({"jpeg_over_lance": faster("jpeg", "lance")} if "lance" in costs else {})


_OWN = ("jpeg", "lossless", "latents", "latents_and_observation")
_RIVALS: dict[str, Callable[[Path, Facts], Rival]] = {
    "decode_only": DecodeOnly,
    "mp4": Mp4,
    "mp4_torchcodec": TorchCodec,
    "lance": Lance,
    "lance_batch": LanceBatch,
}
_FOLDERS = {
    "jpeg": "jpeg/parts",
    "lossless": "lossless/parts",
    "latents": "jpeg/latents",
    "latents_and_observation": "jpeg/latents",
    "published": "published",
    "decode_only": "jpeg/parts",
    "mp4": "mp4",
    "mp4_torchcodec": "mp4",
    "lance": "lance",
    "lance_batch": "lance",
}
"""Where the bytes of each contender lie."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a contender's process has to know."""

    root: Path
    facts: Facts
    cameras: tuple[str, ...]
    batch: int

    def chosen(self, piece: int) -> list[SegmentId]:
        """The places of a batch, from a shuffle of all that a sample can have."""
        return [self._shuffled[(piece * self.batch + i) % len(self._shuffled)] for i in range(self.batch)]

    @cached_property
    def _shuffled(self) -> list[SegmentId]:
        lengths = enumerate(self.facts.lengths)
        segments = [SegmentId(number, step) for number, length in lengths for step in range(1, length - _MARGIN)]
        return [segments[i] for i in np.random.default_rng(0).permutation(len(segments))]

    @property
    def epoch(self) -> DataConfig:
        """All segments of the JPEG dataset."""
        return self.config.model_copy(update={"datasets": (DatasetRef(uri=str(self.root / "jpeg")),), "latents": ""})

    @property
    def config(self) -> DataConfig:
        """Frames pass through in their size; latents are of nearly all of them."""
        crop = (self.facts.size[0] // _DOWNSAMPLE * _DOWNSAMPLE, self.facts.size[1] // _DOWNSAMPLE * _DOWNSAMPLE)
        return DataConfig(
            cameras=self.cameras, resize=self.facts.size, crop=crop, latents="bench", action_dim=DROID_ACTION_DIM
        )


def _write(content: Sequence[Episode], root: Path) -> dict[str, str]:
    """Write all layouts; returns the folders of those that can't be written here, and why."""
    codecs: tuple[Codec, ...] = ("jpeg", "lossless")
    job = _Job(root=root, facts=Facts.of(content), cameras=tuple(content[0].frames), batch=1)
    for codec in codecs:
        uri = str(root / codec)
        create_dataset(uri, DatasetSpec(cameras=job.cameras, action_dim=DROID_ACTION_DIM, val_percent=0))
        commit(uri, write_part(uri, content, run_id="bench", codec=codec))
    member = open_member(DatasetRef(uri=str(root / "jpeg")), job.config)
    encode(member, job.config, _FakeVae(), device=torch.device("cpu"))
    Mp4.write(root / "mp4", content)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # Lance must not be in a process that is forked later
        try:
            pool.submit(Lance.write, root / "lance", content).result()
        except ImportError as error:
            return {"lance": str(error)}
    return {}


def _open(name: str, job: _Job) -> Work:
    """A contender's work, opened in its own process."""
    torch.set_num_threads(1)
    if name in _RIVALS:
        folder = job.root / ("jpeg" if name == "decode_only" else _FOLDERS[name])
        rival = _RIVALS[name](folder, job.facts)
        return lambda piece: rival.read(job.chosen(piece))
    read = _own_reader(name, job)
    return lambda piece: read([Pick(piece, 0, segment) for segment in job.chosen(piece)])


def _own_reader(name: str, job: _Job) -> Callable[[Sequence[Pick]], object]:
    """This loader on JPEG, lossless, latents alone, or latents with the observation frames that training reads.

    Frames go into memory that is used again, as in a worker of the loader.
    """
    if name in ("jpeg", "lossless"):
        reader = SegmentReader([open_dataset(job.root / name)], job.config)
        return partial(reader.read, out=torch.empty(reader.shape(job.batch), dtype=torch.uint8))
    member = open_member(DatasetRef(uri=str(job.root / "jpeg")), job.config)
    shape = latent_shape(job.config, _FakeVae())
    latents = open_latents(member, job.config, _FakeVae.fingerprint, shape, seed=0)
    reader = SegmentReader([member.dataset], job.config, [latents])
    out = torch.empty(reader.shape(job.batch), dtype=torch.uint8)
    return partial(reader.read, images=name != "latents", out=out)

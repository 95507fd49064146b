"""`uwm bench loader`: samples per CPU second of this loader and of the other ways, in one interleaved run."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.content import generate, take
from benchmarks.measure import Cost, Work, interleave
from benchmarks.rivals import DecodeOnly, Lance, LanceBatch, Mp4, Published, Rival, TorchCodec, folder_bytes
from benchmarks.s3 import S3Result, bench_s3
from storage_schemas.conventions import DROID_ACTION_DIM
from storage_schemas.episode import Episode, SegmentId, frame_size
from storage_schemas.schema import Codec, DatasetSpec
from storage_schemas.store import commit, create_dataset, open_dataset, write_part
from uwm.config import DataConfig, DatasetRef
from uwm.data.latents import encode, latent_shape, open_latents
from uwm.data.loader import SegmentReader
from uwm.data.mixture import open_member
from uwm.data.sampler import Pick
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
    content: str
    frames_per_sample: int
    s3: S3Result | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    """Contenders that could not run, and why."""


class _FakeVae(Tokenizer):
    """Latents of SDXL's shape without its weights: what is measured is reading them."""

    channels, downsample, fingerprint, variance = 4, _DOWNSAMPLE, "benchmark", True

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled pixels."""
        small = torch.nn.functional.avg_pool2d(images, _DOWNSAMPLE)
        return torch.cat([small, small[:, :1]], dim=1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Enlarged."""
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=_DOWNSAMPLE)


def bench_loader(
    dataset: str | None = None,
    *,
    episodes: int = 4,
    steps: int = 120,
    rounds: int = 9,
    batch: int = 16,
    s3: bool = False,
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
        folder: where the layouts are written; a temporary one when None.
    """
    torch.set_num_threads(1)
    content = take(open_dataset(dataset), episodes) if dataset else generate(episodes, steps)
    with tempfile.TemporaryDirectory() as temporary:
        found = _measure(content, folder or Path(temporary), rounds, batch, dataset or "generated")
    return replace(found, s3=bench_s3(content)) if s3 else found


def _measure(content: Sequence[Episode], root: Path, rounds: int, batch: int, name: str) -> LoaderResult:
    places = _places(content)
    work, left_out = _contenders(content, root, places, batch)
    costs = interleave(work, rounds=rounds, size=batch)
    frames = sum(len(episode) * len(episode.frames) for episode in content)
    sizes = {key: folder_bytes(path) for key, path in _folders(root).items() if path.exists()}
    for alias, key in (
        ("published_4_frames", "published"),
        ("decode_only", "jpeg"),
        ("mp4_torchcodec", "mp4"),
        ("lance_batch", "lance"),
        ("latents_and_observation", "latents"),
    ):
        if key in sizes:
            sizes[alias] = sizes[key]
    height, width = frame_size(next(iter(content[0].frames.values())))
    return LoaderResult(
        samples_per_cpu_second={key: round(cost.per_cpu_second, 1) for key, cost in costs.items()},
        bytes_per_frame={key: round(sizes[key][0] / frames, 1) for key in costs if key in sizes},
        cpu_ms_per_sample={key: round(cost.cpu_ms, 3) for key, cost in costs.items()},
        wall_ms_per_sample={key: round(cost.wall_ms, 3) for key, cost in costs.items()},
        files={key: sizes[key][1] for key in costs if key in sizes},
        ratios=_ratios(costs, sizes),
        content=f"{name}: {len(content)} episodes, {frames} frames of {height}x{width}",
        frames_per_sample=4 * len(content[0].frames),
        left_out=left_out,
    )


def _ratios(costs: Mapping[str, Cost], sizes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """The figures that the project promises."""

    def faster(one: str, other: str) -> float:
        return round(costs[other].cpu_ms / costs[one].cpu_ms, 3)

    found = {
        "jpeg_over_published": faster("jpeg", "published"),
        "jpeg_over_decode_only": faster("jpeg", "decode_only"),
        "lossless_over_published": faster("lossless", "published"),
        "latents_over_published": faster("latents", "published"),
        "jpeg_bytes_of_published": round(sizes["jpeg"][0] / sizes["published"][0], 4),
    }
    return found | ({"jpeg_over_lance": faster("jpeg", "lance")} if "lance" in costs else {})


def _folders(root: Path) -> dict[str, Path]:
    return {
        "jpeg": root / "jpeg" / "parts",
        "lossless": root / "lossless" / "parts",
        "latents": root / "jpeg" / "latents",
        "published": root / "published",
        "mp4": root / "mp4",
        "lance": root / "lance",
    }


def _places(content: Sequence[Episode]) -> list[SegmentId]:
    """Every place that a sample can have, shuffled."""
    found = [
        SegmentId(number, step) for number, episode in enumerate(content) for step in range(1, len(episode) - _MARGIN)
    ]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order]


def _contenders(
    content: Sequence[Episode], root: Path, places: Sequence[SegmentId], batch: int
) -> tuple[dict[str, Work], dict[str, str]]:
    def chosen(piece: int) -> list[SegmentId]:
        return [places[(piece * batch + i) % len(places)] for i in range(batch)]

    folders = _folders(root)
    readers = _own_readers(content, root)
    mp4 = Mp4(folders["mp4"], content)
    rivals: dict[str, Callable[[], Rival]] = {
        "published": lambda: Published(folders["published"], content, whole=True),
        "published_4_frames": lambda: Published(folders["published"], content, whole=False),
        "decode_only": lambda: DecodeOnly(content),
        "mp4": lambda: mp4,
        "mp4_torchcodec": lambda: TorchCodec(mp4),
        "lance": lambda: Lance(folders["lance"], content),
        "lance_batch": lambda: LanceBatch(folders["lance"], content),
    }
    work: dict[str, Work] = {name: _own(reader, chosen) for name, reader in readers.items()}
    left_out = {}
    for name, make in rivals.items():
        try:
            work[name] = _rival(make(), chosen)
        except (ImportError, OSError, RuntimeError) as error:
            left_out[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return work, left_out


def _own(read: Callable[[Sequence[Pick]], object], chosen: Callable[[int], list[SegmentId]]) -> Work:
    return lambda piece: read([Pick(piece, 0, place) for place in chosen(piece)])


def _rival(rival: Rival, chosen: Callable[[int], list[SegmentId]]) -> Work:
    return lambda piece: rival.read(chosen(piece))


def _own_readers(content: Sequence[Episode], root: Path) -> dict[str, Callable[[Sequence[Pick]], object]]:
    """This loader on JPEG, lossless, latents alone, and latents with the observation frames that training reads."""
    cameras = tuple(content[0].frames)
    size = frame_size(next(iter(content[0].frames.values())))
    crop = (size[0] // _DOWNSAMPLE * _DOWNSAMPLE, size[1] // _DOWNSAMPLE * _DOWNSAMPLE)
    config = DataConfig(cameras=cameras, resize=size, crop=crop, latents="bench", action_dim=DROID_ACTION_DIM)
    codecs: tuple[Codec, ...] = ("jpeg", "lossless")
    for codec in codecs:
        uri = str(root / codec)
        create_dataset(uri, DatasetSpec(cameras=cameras, action_dim=DROID_ACTION_DIM, val_percent=0))
        commit(uri, write_part(uri, content, run_id="bench", codec=codec))
    member = open_member(DatasetRef(uri=str(root / "jpeg")), config)
    encode(member, config, _FakeVae(), device=torch.device("cpu"))
    latents = open_latents(member, config, _FakeVae.fingerprint, latent_shape(config, _FakeVae()), seed=0)
    both = SegmentReader([member.dataset], config, [latents])
    return {
        "jpeg": SegmentReader([member.dataset], config).read,
        "lossless": SegmentReader([open_dataset(root / "lossless")], config).read,
        "latents": partial(both.read, images=False),
        "latents_and_observation": both.read,
    }

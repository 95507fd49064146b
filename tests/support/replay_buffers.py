"""Writes replay buffers as diffusion_policy and UMI have them: Zarr v2 by zarr-python, in a folder or a zip file."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from imagecodecs.numcodecs import Jpegxl, register_codecs
from numcodecs import Blosc

Arrays = Mapping[str, np.ndarray[Any, Any]]
BLOSC = Blosc(cname="zstd", clevel=5, shuffle=2)


def image(seed: int, size: int = 24) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth picture (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size]
    layers = [120 + 60 * np.sin(x / 5 + seed / 4 + c) + 60 * np.cos(y / 4 - seed / 3) for c in range(3)]
    return np.clip(np.stack(layers, axis=-1), 0, 255).astype(np.uint8)


def pusht(lengths: tuple[int, ...], seed: int = 0) -> Arrays:
    """Episodes as diffusion_policy's PushT has them: images as floats from 0 to 255."""
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    return {
        "img": np.stack([image(seed + step) for step in range(steps)]).astype(np.float32),
        "state": rng.uniform(0, 512, (steps, 5)).astype(np.float32),
        "action": rng.uniform(0, 512, (steps, 2)).astype(np.float32),
        "keypoint": rng.uniform(0, 512, (steps, 9, 2)).astype(np.float32),
        "n_contacts": rng.integers(1, 3, (steps, 1)).astype(np.float32),
    }


def umi(lengths: tuple[int, ...], seed: int = 0, robots: int = 1) -> Arrays:
    """Episodes as UMI has them: no action."""
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for robot in range(robots):
        arrays |= {
            f"camera{robot}_rgb": np.stack([image(seed + step + 50 * robot, 32) for step in range(steps)]),
            f"robot{robot}_eef_pos": rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
            f"robot{robot}_eef_rot_axis_angle": rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
            f"robot{robot}_gripper_width": rng.uniform(0.01, 0.08, (steps, 1)).astype(np.float32),
            f"robot{robot}_demo_start_pose": rng.uniform(-1, 1, (steps, 6)),
        }
    return arrays


def write_store(
    folder: Path, arrays: Arrays, lengths: tuple[int, ...], *, chunk: int = 4, compressor: Any = BLOSC
) -> Path:
    """Write a store; UMI's images in one JPEG XL each, others in chunks of `chunk` steps."""
    register_codecs(verbose=False)
    root: Any = zarr.open_group(str(folder), mode="w", zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")

    def put(group: Any, name: str, values: np.ndarray[Any, Any], rows: int, codec: Any) -> None:
        array = group.create_array(name, shape=values.shape, chunks=(rows, *values.shape[1:]), dtype=values.dtype,
                                   compressors=codec, config={"write_empty_chunks": True})  # fmt: skip
        array[:] = values

    for name, values in arrays.items():
        picture = name.endswith("_rgb")
        put(data, name, values, 1 if picture else chunk, Jpegxl(level=99, lossless=False) if picture else compressor)
    put(meta, "episode_ends", np.cumsum(lengths).astype(np.int64), len(lengths), None)
    return folder


def zipped(folder: Path, packed: int = zipfile.ZIP_STORED) -> Path:
    """The store in a zip file beside it, in place of the folder."""
    target = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(target, "w", packed) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
                path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()
    return target

"""The published loader's work, as a script for an interpreter of its own that has the published zarr: see `rivals.py`.

One LZ4 chunk per frame, all episodes of a view in one array. A sample is 19 frames of every view and the actions, read
one after the other as `__getitem__` of a map-style dataset does. A batch is collated whole, for the 4 frames that are
used are cut out behind it, on the GPU; into fresh shared memory, as a worker of torch's DataLoader does. Needs zarr 2
and numpy, nothing of this project.

    python published_layout.py FOLDER

reads lines of JSON: a batch, as first rows of its samples, and answers each with the CPU and wall seconds that reading
it took and the resident megabytes. An empty batch answers with the version of zarr. The layout is made in the first
run from `FOLDER/raw/*.npy`, which it removes.
"""

import json
import mmap
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 19
ACTIONS = 16
ACTION = "action"


def write(zarr: Any, folder: Path) -> None:
    """Write `folder/zarr` from `folder/raw`."""
    from numcodecs import Blosc

    group = zarr.open_group(str(folder / "zarr"), mode="w")
    for path in sorted((folder / "raw").glob("*.npy")):
        values = np.load(path, mmap_mode="r")
        chunk = values.shape if path.stem == ACTION else (1, *values.shape[1:])
        group.create_dataset(path.stem, data=values, chunks=chunk, compressor=Blosc("lz4", 5))
    shutil.rmtree(folder / "raw")


def read(group: Any, rows: list[int]) -> list[np.ndarray[Any, Any]]:
    """A collated batch: frames (B, 19, H, W, 3) of every view, and actions (B, 16, d)."""
    samples = []
    for row in rows:
        frames = {name: array[row : row + STEPS] for name, array in group.items() if name != ACTION}
        samples.append(frames | {ACTION: group[ACTION][row + 1 : row + 1 + ACTIONS]})
    return [_collate([sample[name] for sample in samples]) for name in samples[0]]


def _collate(values: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    memory = mmap.mmap(-1, sum(value.nbytes for value in values))
    out = np.frombuffer(memory, values[0].dtype).reshape(len(values), *values[0].shape)
    return np.stack(values, out=out)


def main() -> None:
    """Serve until the input ends."""
    import zarr

    folder = Path(sys.argv[1])
    if zarr.__version__.startswith("2.") and (folder / "raw").exists():
        write(zarr, folder)
    group: dict[str, Any] = {}
    for line in sys.stdin:
        rows = json.loads(line)
        group = group or dict(zarr.open_group(str(folder / "zarr"), mode="r").arrays() if rows else ())
        cpu, wall = time.process_time(), time.perf_counter()
        if rows:
            read(group, rows)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        status = Path("/proc/self/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        answer = [cpu, wall, resident] if rows else zarr.__version__
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

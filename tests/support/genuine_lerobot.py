"""Run by the Python that has the genuine lerobot: does its own dataset class give what was exported?

Arguments: the exported folder, and an npz with the truth: `frames/<feature>` (N, H, W, 3), other features (N, D).
Prints a line of JSON; ends with an error when anything differs.
"""

import json
import sys

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import DataLoader

CODED = 8.0
"""Mean difference of a frame, of 255, that the codec makes; the next frame of a slow episode is as near."""
NEARER = 0.2
"""By how much less a neighbour would have to differ."""


def main(root: str, path: str) -> None:
    """Compare every item, in the batches of a loader."""
    truth = np.load(path)
    dataset = LeRobotDataset("local/export", root=root, video_backend="pyav")
    total, seen, worst = len(truth["index"]), 0, 0.0
    assert len(dataset) == dataset.num_frames == total
    for batch in DataLoader(dataset, batch_size=16, num_workers=2, multiprocessing_context="spawn"):
        rows = batch["index"].numpy()
        seen += len(rows)
        for name in truth.files:
            if name.startswith("frames/"):
                shown = batch[name.removeprefix("frames/")]
                worst = max(worst, difference((shown.permute(0, 2, 3, 1) * 255).numpy(), truth[name], rows))
            elif truth[name].dtype.kind == "U":
                assert list(batch[name]) == truth[name][rows].tolist(), name
            else:
                np.testing.assert_array_equal(batch[name].numpy().reshape(len(rows), -1), truth[name][rows], name)
    assert seen == total
    assert worst < CODED, worst
    steps = [step / dataset.fps for step in range(4)]
    chunks = LeRobotDataset("local/export", root=root, video_backend="pyav", delta_timestamps={"action": steps})
    assert torch.equal(chunks[0]["action"], torch.from_numpy(truth["action"][:4]))
    counts = {"frames": seen, "episodes": dataset.num_episodes, "tasks": len(dataset.meta.tasks)}
    print(json.dumps(counts | {"worst": round(worst, 2)}))  # noqa: T201 - read by the test


def difference(frames: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> float:
    """The largest mean difference of a frame from its own; none looks more like a neighbour."""

    def apart(others: np.ndarray) -> np.ndarray:
        return np.abs(frames - truth[np.clip(others, 0, len(truth) - 1)]).mean(axis=(1, 2, 3))

    own = apart(rows)
    for others in (rows - 1, rows + 1):
        assert (apart(others) > own - NEARER).all(), f"frames {rows[apart(others) <= own - NEARER]} are another's"
    return float(own.max())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

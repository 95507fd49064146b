"""The genuine lerobot reads an export with its own dataset class: frame for frame, action for action."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipelines.export.lerobot import export_lerobot
from pipelines.export.videos import VideoCodec
from pipelines.ingest import ingest
from storage_schemas.store.dataset import Dataset, open_dataset

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-lerobot/bin/python"
EXAMPLES = ROOT / "examples/data/droid"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.lerobot,
    pytest.mark.skipif(not PYTHON.exists(), reason="no genuine lerobot: run make test-lerobot"),
]


def truth(dataset: Dataset, out: Path, path: Path) -> None:
    """All that the genuine reader is to give, in its terms."""
    rows = range(len(dataset))
    lengths = dataset.episodes.lengths.tolist()
    language = [texts[0] if texts else "" for texts in dataset.episodes.column("language")]
    arrays = {
        "action": np.concatenate([dataset.array(row, "action") for row in rows]),
        "index": np.arange(sum(lengths))[:, None],
        "episode_index": np.repeat(rows, lengths)[:, None],
        "frame_index": np.concatenate([np.arange(n) for n in lengths])[:, None],
        "mask.action": np.concatenate([dataset.array(row, "mask/action") for row in rows])[:, None],
        "task": np.repeat(language, lengths),
        "provenance.source_uri": np.repeat(dataset.episodes.column("source_uri"), lengths),
    }
    for feature, field in json.loads((out / "meta/uwm.json").read_text())["fields"].items():
        arrays[feature] = np.concatenate([dataset.array(row, f"state/{field}") for row in rows])
    for camera in dataset.spec.cameras:
        frames = [dataset.frames(row, camera, range(n)) for row, n in enumerate(lengths)]
        arrays[f"frames/observation.images.{camera}"] = np.concatenate(frames)
    np.savez(path, **arrays)


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_genuine_reader_gives_the_exported_frames_and_actions(tmp_path: Path, codec: VideoCodec) -> None:
    store, out = str(tmp_path / "store"), str(tmp_path / "out")
    ingest(str(EXAMPLES), store)
    report = export_lerobot(store, out, codec=codec)
    truth(open_dataset(store), Path(out), tmp_path / "truth.npz")
    script = ROOT / "tests/support/genuine_lerobot.py"
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        [PYTHON, script, out, tmp_path / "truth.npz"], env=offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["episodes"], facts["frames"], facts["tasks"]) == (report.episodes, report.steps, report.tasks)

"""A command that has done its work ends with 0, also on a machine that is busy (apache/arrow#34314, delta-rs#2184)."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage_schemas.catalog.commits import Committer
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode, EpisodeMeta
from storage_schemas.lineage.records import LineageRecord, lineage_root, write_record
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import open_dataset
from storage_schemas.store.parts import write_part

RUNS, AT_ONCE = 300, 10
"""How often a command runs, and how many at once: Arrow's threads then get to run only when the others wait."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose table has 40 data files, each of which once kept a thread of Arrow's busy, with its lineage."""
    uri = tmp_path_factory.mktemp("lab") / "data"
    create_dataset(uri, DatasetSpec(cameras=("left",), action_dim=1))
    meta = EpisodeMeta(episode_id="", source_uri="", source_format="t", source_fingerprint="", collection="c", fps=5.0)
    episode = Episode(meta=meta, action=np.zeros((1, 1), np.float32), action_mask=np.ones(1, np.bool_), frames={})
    (row,), committer = write_part(uri, [episode], run_id="r"), Committer(uri)
    for commit in range(40):
        names = [f"{commit}-{number}" for number in range(50)]
        committer.commit([replace(row, episode_id=n, source_uri=f"/raw/{n}", source_fingerprint=n) for n in names])
    identity = f"{open_dataset(uri).table_id}@40"
    record = LineageRecord(kind="dataset", name="data", version="40", identity=identity, uri=str(uri))
    write_record(lineage_root(str(uri)), record)
    return uri


@pytest.mark.slow
@pytest.mark.parametrize("command", [["inspect", "{}"], ["diff", "{}", "1", "40"], ["lineage", "{}", "--files"]])
def test_a_finished_command_ends_well(store: Path, command: list[str]) -> None:
    code = "from flows.cli import main; main()"
    arguments = [sys.executable, "-c", code, *(part.format(store) for part in command)]

    def run(_: int) -> tuple[int, str]:
        done = subprocess.run(arguments, cwd=store.parent, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr[-300:]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert set(pool.map(run, range(RUNS))) == {(0, "")}


def test_rows_are_read_without_deltalakes_python_file_system(store: Path) -> None:
    """Arrow's threads call it, and abort a process that ends before they do."""
    code = (
        "import sys\nfrom storage_schemas.store.dataset import open_dataset\n"
        f"assert len(open_dataset({str(store)!r}).episodes) == 2000\nassert 'deltalake.fs' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from robots import MakeEpisode, write_robot

from flows.cli import app, run
from flows.cli.jobs import plans_table
from storage_schemas.conventions import DROID_ACTION
from storage_schemas.spaces import Space
from uwm.events import DatasetPlan

HEAVY = ("torch", "prefect", "zarr", "tensorstore", "deltalake", "av", "decord", "diffusers", "matplotlib", "scipy")
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, flows.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_answers_at_once() -> None:
    script = Path(sys.executable).with_name("uwm")
    before = os.times()
    subprocess.run([script, "--help"], capture_output=True, check=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"Example: uwm {command}" in capsys.readouterr().out


def test_the_commands_that_scripts_rely_on_are_there() -> None:
    assert {"ingest", "inspect", "verify", "train", "evaluate", "sample", "lineage", "ui", "demo"} <= set(COMMANDS)


BAD_CALLS = [
    ("ingest nowhere out", "nowhere"),
    ("ingest data out --format bogus", "bogus"),
    ("ingest data out --format droid-rlds", "data"),
    ("ingest data out --val-percent 200", "--val-percent"),
    ("ingest clip.mp4 out --backend fast", "backend"),
    ("ingest", "SOURCE"),
    ("inspect nowhere", "nowhere does not exist"),
    ("inspect data", "data is not a dataset"),
    ("inspect data/droid --version 99", "no version 99"),
    ("inspect data/droid --version x", "no version or tag 'x'"),
    ("verify data", "data is not a dataset"),
    ("verify data/droid --version 99", "no version 99"),
    ("diff data/droid 0 99", "no version 99"),
    ("diff data/droid nothing", "no version or tag 'nothing'"),
    ("tag data/droid 7up", "can't be a tag"),
    ("tag data/droid first --version 99", "no version 99"),
    ("tag data/droid first --drop", "'first'"),
    ("tag data/droid --move", "name the tag"),
    ("remove data/droid nobody", "no episode 'nobody'"),
    ("gc data", "data is not a dataset"),
    ("backup data copy", "data is not a dataset"),
    ("backup data/droid data", "holds droid"),
    ("gc data/droid --age -1", "--age"),
    ("train debugg", "did you mean 'debug'"),
    ("train debug train.steps", "train.steps"),
    ("train debug train.stepz=3", "did you mean 'steps'"),
    ("train debug train.steps=many", "train.steps"),
    ("train debug data.datasets.0.uri=nowhere", "nowhere does not exist"),
    ("train debug --flow", "PREFECT_API_URL"),
    ("evaluate nowhere data/droid", "nowhere"),
    ("sample nowhere data/droid --mode policy", "nowhere"),
    ("sample nowhere data/droid --mode fly", "fly"),
    ("pretrain-then-finetune debug debugg", "did you mean 'debug'"),
    ("pretrain-then-finetune debug debug x", "key=value"),
    ("pretrain-then-finetune debug debug --evaluate nowhere", "nowhere does not exist"),
    ("lineage nothing", "--root"),
    ("lineage nothing --root data", "no lineage of 'nothing'"),
    ("lineage --root data --files", "--files needs a node"),
    ("lineage --root data --file clip.mp4", "nothing under"),
    ("lineage --root data --format pdf", "--format"),
    ("lineage --root data --kind planet", "--kind"),
    ("lineage --root data --kind source --files", "--kind lists nodes"),
    ("ui --folder nowhere", "nowhere"),
    ("demo --data nowhere", "nowhere"),
    ("frobnicate", "frobnicate"),
]


@pytest.mark.parametrize(("line", "words"), BAD_CALLS, ids=[line for line, _ in BAD_CALLS])
def test_a_bad_call_ends_with_one_clear_line(
    line: str, words: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("clip.mp4").touch()
    code = run(line.split())
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert words in err


def test_a_bad_call_of_the_installed_command_shows_no_traceback(away: Path) -> None:
    script = Path(sys.executable).with_name("uwm")
    done = subprocess.run([script, "inspect", "nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {away / 'nowhere'} does not exist\n"


def test_a_server_that_is_configured_but_down_is_named(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert run(["train", "debug"]) == 2
    assert "no Prefect server answers at http://127.0.0.1:9/api" in capsys.readouterr().err


def test_inspect_prints_the_facts_as_json_alone(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(store), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    names = {"version", "episodes", "steps", "lengths", "actions_available", "cameras", "bytes", "quarantined"}
    assert names <= set(facts)
    assert facts["episodes"] == len(facts["lengths"])
    assert facts["steps"] == sum(facts["lengths"])
    assert run(["inspect", str(store), "--version", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 0
    assert run(["inspect", str(store)]) == 0
    assert str(facts["steps"]) in capsys.readouterr().out


def test_inspect_says_what_the_numbers_mean(
    tmp_path: Path, make_episode: MakeEpisode, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_robot(tmp_path, "droid", make_episode)
    assert run(["inspect", store, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert Space.model_validate_json(json.dumps(facts["action"])) == DROID_ACTION
    assert [view["role"] for view in facts["views"]] == ["exterior", "exterior", "wrist"]
    assert run(["inspect", store]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "actions at 15 Hz" in shown
    assert "gripper_position (1): gripper position" in shown


def test_a_terminal_shows_what_becomes_of_each_dataset() -> None:
    plan = DatasetPlan(
        uri="stores/arm", version=3, robot="arm",
        cameras={"left": "front"}, lacks=("wrist",), dropped_cameras=("depth",),
        same=("gripper",), converted=("move -> velocity",), masked=("turn",), dropped=("effort",),
        states=("gripper",), lacks_states=("pose",), dropped_states=("joints",),
        rate=20.0, stride=2, steps=1000, action_steps=900,
    )  # fmt: skip
    shown = StringIO()
    Console(file=shown, width=160).print(plans_table([plan]))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.getvalue().splitlines() if "│" in line]
    assert rows[0][0] == "stores/arm@3"
    assert {name: text for _, name, text in rows} == plan.facts


def test_verify_says_what_is_damaged_and_exits_with_one(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    shard = max((path for path in (store / "parts").rglob("*") if path.is_file()), key=os.path.getsize)
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.chmod(0o644)
    shard.write_bytes(content)
    assert run(["verify", str(store)]) == 1
    assert "damaged" in capsys.readouterr().out


def test_a_backup_says_what_it_copied(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backup", str(store), "copy", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["version"], report["present"]) == (1, 0)
    assert run(["backup", str(store), "copy"]) == 0
    assert f"0 files with 0 bytes copied, {report['copied']} there already" in capsys.readouterr().out
    assert run(["verify", "copy"]) == 0


def test_an_empty_lineage_is_said(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lineage", "--root", "empty"]) == 0
    assert "no lineage" in capsys.readouterr().out

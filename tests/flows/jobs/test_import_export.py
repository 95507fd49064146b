"""Importing on the command line: what it says, what it refuses, what the lineage knows."""

import json
import pickle
from pathlib import Path

import pytest

from flows.cli import run


def test_a_hostile_file_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models.pt"
    file.write_bytes(b"cos\nsystem\n(Vtouch canary\ntR.")
    assert run(["import-reference", str(file), str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "os.system" in said
    assert [path.name for path in tmp_path.iterdir()] == ["models.pt"]
    file.write_bytes(pickle.dumps({"model": {}}))
    assert run(["import-reference", str(file), str(tmp_path / "run"), "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_a_wrong_setting_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import-reference", "nowhere.pt", str(tmp_path), "data.camera=a"]) == 2
    assert "cameras" in capsys.readouterr().err
    assert run(["import-reference", str(tmp_path / "nowhere.pt"), str(tmp_path / "run")]) == 2
    assert "can't read" in capsys.readouterr().err


def test_the_lineage_leads_to_the_published_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.jobs import import_export as exchange
    from storage_schemas.lineage.records import graph
    from uwm.checkpoint import CheckpointState, save_checkpoint
    from uwm.data.normalize import ActionNormalizer
    from uwm.recipes import get_recipe
    from uwm.reference.importer import Imported

    def made(file: str, out: str, overrides: object) -> Imported:
        path = save_checkpoint(
            Path(out),
            config=get_recipe("debug"),
            normalizer=ActionNormalizer.identity(3),
            state=CheckpointState(name="published", stage="pretrain", step=5, position=0, seed=0, datasets=()),
            tensors={},
            keep=1,
        )
        return Imported(
            path=str(path),
            policy="uwm",
            step=5,
            parameters=7,
            source=file,
            sha256="ab" * 32,
            assumed={"data.cameras": ["a", "b"]},
        )

    monkeypatch.setattr("uwm.reference.importer.import_reference", made)
    file = str(tmp_path / "models.pt")
    assert run(["import-reference", file, str(tmp_path / "run")]) == 0
    assert "data.cameras=a,b" in capsys.readouterr().out
    found = exchange.run_import(file, str(tmp_path / "again"))
    record = graph(found.root).records[found.record.node]
    assert [node.split("@")[0] for node in record.upstream] == ["source/models.pt"]
    assert run(["import-reference", file, str(tmp_path / "third"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 5


def test_export_says_where_the_bundle_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from uwm.checkpoint import CheckpointState, save_checkpoint
    from uwm.data.normalize import ActionNormalizer
    from uwm.policies import build
    from uwm.recipes import get_recipe

    config = get_recipe("debug")
    save_checkpoint(
        tmp_path / "run",
        config=config,
        normalizer=ActionNormalizer.identity(10),
        state=CheckpointState(
            name="debug", stage="pretrain", step=5, position=0, seed=0, datasets=(), tokenizer="identity"
        ),
        tensors={"model": build(config).state_dict()},
        keep=1,
    )
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "bundle"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["path"] == str(tmp_path / "bundle")
    assert set(said["files"]) == {"model.safetensors", "config.json", "normalizer.json"}
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "bundle")]) == 2
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "other"), "--dtype", "int8"]) == 2

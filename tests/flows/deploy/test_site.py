import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from flows.cli import run
from flows.cli.operate import worker_environment
from flows.deploy.site import Site, deployments, load_site, queue
from storage_schemas.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def site(tmp_path: Path, text: str) -> Site:
    (tmp_path / "deploy.toml").write_text(text)
    return load_site(tmp_path / "deploy.toml")


def test_the_shipped_site_offers_every_daily_job() -> None:
    names = {item.name for item in deployments(load_site(ROOT / "deploy.toml"))}
    expected = {"ingest-video", "ingest-robot", "pretrain-then-finetune", "finetune", "train", "evaluate", "latents"}
    assert names >= expected | {"doctor", "gc", "chain-co-train"}


def test_what_needs_a_gpu_goes_into_its_queue_and_nothing_else_does(tmp_path: Path) -> None:
    text = (ROOT / "deploy.toml").read_text()
    assert {queue(item, load_site(ROOT / "deploy.toml")) for item in deployments(site(tmp_path, text))} == {"default"}
    changed = site(tmp_path, text.replace('gpu_queue = "default"', 'gpu_queue = "gpu"'))
    queues = {item.name: queue(item, changed) for item in deployments(changed)}
    learning = {"pretrain-then-finetune", "train", "finetune", "evaluate", "latents", "chain-co-train", "chain-video"}
    assert {name for name, where in queues.items() if where == "gpu"} == learning
    assert {where for name, where in queues.items() if name not in learning} == {"default"}


@pytest.mark.parametrize("item", deployments(load_site(ROOT / "deploy.toml")), ids=lambda item: item.name)
def test_every_deployment_names_a_flow_and_its_parameters(item: Any) -> None:
    flow = getattr(importlib.import_module(item.module), item.function)
    assert set(item.parameters) <= set(inspect.signature(flow.fn).parameters)
    flow.validate_parameters({**_needed(flow), **item.parameters})


def _needed(flow: Any) -> dict[str, str]:
    """Something for every parameter that whoever starts the flow must give."""
    parameters = inspect.signature(flow.fn).parameters.values()
    return {item.name: "debug" for item in parameters if item.default is inspect.Parameter.empty}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus = 2", "gpus"),
        ("[[watch]]\nname='a'\nsource='in'", "watch.0.store"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\ncron='* * * * *'\nevery=60", "not both"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\ncron='hourly'", "no cron line"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\nevery=1", "every"),
        ("[[watch]]\nname='../a'\nsource='in'\nstore='s'", "watch.0.name"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\n" * 2, "same name"),
        ("[[chain]]\ntrack='../x'\ndataset='d'\nrecipe='uwm'", "chain.0.track"),
        ("silence = 30", "silence"),
        ("[[chain]]\ntrack='x'\ndataset='d'\nrecipe='debugg'", "did you mean 'debug'"),
        ("[[chain]]\ntrack='x'\ndataset='d'\nrecipe='debug'\nmetric='speed'", "no measure"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\nevery=inf", "every"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\nformat='vidio'", "did you mean video"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\nreject=['statik']", "did you mean static"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\nfps=nan", "fps"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\nval_percent=101", "val_percent"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\npatience=inf", "patience"),
        ("[[watch]]\nname='a'\nsource='in'\nstore='s'\nworkers=0", "workers"),
        ("[[chain]]\ntrack='x'\ndataset='d'\nrecipe='debug'\nhours=-1", "hours"),
        ("[[chain]]\ntrack='x'\ndataset='d'\nrecipe='debug'\nmargin=inf", "margin"),
        ("[[chain]]\ntrack='x'\ndataset='d'\nrecipe='debug'\nmetric='policy/psnr'", "policy/action_mse"),
        ("[[chain]]\ntrack='x'\ndataset='d'\nrecipe='debug'\noverrides=['train.steps']", "overrides"),
        ("[gc]\nage_hours = inf", "age_hours"),
        ("not toml", "no TOML"),
    ],
)
def test_a_mistake_in_the_site_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        site(tmp_path, text)


def test_a_site_file_that_is_not_there_is_one_line(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["deploy", "nowhere.toml"]) == 2
    assert "can't read the site file nowhere.toml" in capsys.readouterr().err


def test_without_a_server_nothing_is_deployed(away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (away / "deploy.toml").write_text("")
    assert run(["deploy"]) == 2
    assert "PREFECT_API_URL" in capsys.readouterr().err
    assert run(["worker"]) == 2


def test_a_worker_runs_flows_with_its_own_interpreter() -> None:
    made = worker_environment()
    assert (Path(made["PATH"].split(":")[0]) / "python").exists()
    assert made["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"

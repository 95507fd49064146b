"""OpenLineage events of real jobs, received by a server on this machine."""

import json
import logging
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openlineage.client", reason="the extra `openlineage` is not installed")

from flows.jobs.evaluate import run_evaluation
from flows.jobs.ingest import run_ingest
from flows.jobs.train import make_config, run_training
from flows.lineage import openlineage
from flows.lineage.openlineage import Start, emitting, named, public_text
from storage_schemas.errors import UserError
from uwm.eval.options import EvalOptions

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "data"
FLOW_RUN = "0040e02f-6e0c-4b94-9019-3440a19d0337"
RUN_URL = f"http://127.0.0.1:4200/runs/flow-run/{FLOW_RUN}"


class Catalogue(HTTPServer):
    """Takes events and remembers them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.events: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str]] = []
        self.status = 201

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Catalogue)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.events.append(json.loads(body))
        self.server.requests.append((self.path, self.headers.get("Authorization", "")))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogue]:
    for name in ("OPENLINEAGE_ENDPOINT", "OPENLINEAGE_API_KEY", "OPENLINEAGE_NAMESPACE", "OPENLINEAGE_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    openlineage._warn.cache_clear()
    with Catalogue() as server:
        monkeypatch.setenv("OPENLINEAGE_URL", server.url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def check(event: dict[str, Any]) -> None:
    """What the specification (2-0-2) asks of every run event and every facet."""
    assert {"eventTime", "producer", "schemaURL", "run", "job"} <= set(event)
    assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
    assert event["eventType"] in ("START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER")
    assert event["schemaURL"].startswith("https://openlineage.io/spec/2-0-2/OpenLineage.json")
    uuid.UUID(event["run"]["runId"])
    assert event["job"]["namespace"]
    assert event["job"]["name"]
    sets = [event["run"]["facets"], event["job"]["facets"]]
    for dataset in (*event["inputs"], *event["outputs"]):
        assert dataset["namespace"]
        assert dataset["name"]
        sets += [dataset.get("facets", {}), dataset.get("inputFacets", {}), dataset.get("outputFacets", {})]
    for facet in (facet for facets in sets for facet in facets.values()):
        assert facet["_producer"].startswith("https://")
        assert facet["_schemaURL"].startswith("https://openlineage.io/spec/")


def test_an_ingestion_says_what_it_read_and_made(away: Path, catalogue: Catalogue) -> None:
    store = away / "data" / "clips"
    result = run_ingest(str(EXAMPLES / "video"), str(store), run_url=RUN_URL)
    begin, end = catalogue.events
    for event in (begin, end):
        check(event)
    assert (begin["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert begin["run"]["runId"] == end["run"]["runId"]
    assert begin["job"]["name"] == "ingest.clips"
    assert begin["run"]["facets"]["parent"]["run"]["runId"] == FLOW_RUN
    places = [(item["namespace"], item["name"]) for item in (*begin["inputs"], *begin["outputs"])]
    assert places == [("file", str(EXAMPLES / "video")), ("file", str(store))]
    assert [(item["namespace"], item["name"]) for item in (*end["inputs"], *end["outputs"])] == places
    assert result.dataset is not None
    made = end["outputs"][0]
    assert made["facets"]["version"]["datasetVersion"] == result.dataset.identity
    assert made["facets"]["dataSource"]["uri"] == f"file://{store}"
    fields = {field["name"]: field["type"] for field in made["facets"]["schema"]["fields"]}
    assert fields["action"] == "float32[step, 10]"
    assert "wrist_image_left" in fields
    statistics = made["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"]) == (
        result.dataset.facts["episodes"],
        result.dataset.facts["bytes"],
    )


@pytest.mark.slow
def test_training_and_evaluation_link_up_with_the_dataset(store: Path, catalogue: Catalogue) -> None:
    trained = run_training(make_config("debug", (f"data.datasets.0.uri={store}", "train.steps=1")))
    run_evaluation(trained.path, str(store), EvalOptions(samples=2))
    for event in catalogue.events:
        check(event)
    train, evaluate = catalogue.events[1], catalogue.events[3]
    assert [event["eventType"] for event in catalogue.events] == ["START", "COMPLETE"] * 2
    assert [item["name"] for item in catalogue.events[0]["inputs"]] == [str(store)]
    assert [item["name"] for item in train["inputs"]] == [str(store)]
    assert [item["name"] for item in train["outputs"]] == [trained.record.uri]
    assert train["outputs"][0]["facets"]["version"]["datasetVersion"] == trained.record.identity
    assert {item["name"] for item in evaluate["inputs"]} == {trained.record.uri, str(store)}
    versions = {item["facets"]["version"]["datasetVersion"] for item in (*train["inputs"], *evaluate["inputs"])}
    assert len(versions) == 2, "training and evaluation name the same dataset version, and the checkpoint"


def test_a_job_that_fails_says_why_without_secrets(away: Path, catalogue: Catalogue) -> None:
    with pytest.raises(UserError):
        run_ingest(str(away / "nowhere"), str(away / "data" / "clips"))
    begin, end = catalogue.events
    check(end)
    assert (begin["eventType"], end["eventType"]) == ("START", "FAIL")
    assert "nowhere" in end["run"]["facets"]["errorMessage"]["message"]


class Nothing:
    root = ""
    record = None


@pytest.mark.parametrize(("error", "state"), [(ValueError("x"), "FAIL"), (KeyboardInterrupt(), "ABORT")])
def test_how_a_run_ended(catalogue: Catalogue, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), emitting(Start(job="train", about="x"), ""):
        raise error
    assert [event["eventType"] for event in catalogue.events] == ["START", state]


def harmless() -> None:
    with emitting(Start(job="train", about="x"), "") as made:
        made(Nothing())


def test_an_endpoint_that_is_down_is_said_once_and_fails_nothing(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue.status = 400
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "top-secret")
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            harmless()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in warnings] == ["flows.lineage.openlineage"]
    assert "the work goes on" in warnings[0].getMessage()
    assert "top-secret" not in caplog.text


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "not a url", "ftp://127.0.0.1/x"])
def test_an_address_that_cannot_be_right_fails_nothing(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", url)
    harmless()
    assert "the work goes on" in caplog.text


def test_the_standard_variables_are_heeded(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_ENDPOINT", "events")
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "key")
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "lab")
    harmless()
    assert catalogue.requests == [("/events", "Bearer key")] * 2
    assert {event["job"]["namespace"] for event in catalogue.events} == {"lab"}
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    harmless()
    assert len(catalogue.events) == 2


def test_nothing_is_sent_or_imported_when_no_endpoint_is_set(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENLINEAGE_URL")
    monkeypatch.setattr(openlineage, "_Run", None)
    harmless()
    assert catalogue.events == []


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("can't read https://me:word@host/a?X-Amz-Signature=abc&t=1 now", "can't read https://host/a now"),
        ("'https://host/a?token=abc'", "'https://host/a'"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("mail a@b.org? no", "mail a@b.org? no"),
        ("/local/path@1?x", "/local/path@1?x"),
    ],
)
def test_texts_lose_credentials_and_queries(text: str, public: str) -> None:
    assert public_text(text) == public


def test_places_are_named_as_the_standard_has_it() -> None:
    assert named("/data/droid") == ("file", "/data/droid")
    assert named("s3://bucket/lab/droid/") == ("s3://bucket", "lab/droid")

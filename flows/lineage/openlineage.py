"""OpenLineage events of the daily jobs, for catalogues such as Marquez, DataHub or Atlan.

A job that starts sends START, and at its end COMPLETE, FAIL, or ABORT when it was stopped. What it read
and made is taken from its lineage record. The standard variables turn it on: OPENLINEAGE_URL, and if
wanted OPENLINEAGE_ENDPOINT, OPENLINEAGE_API_KEY, OPENLINEAGE_NAMESPACE, OPENLINEAGE_DISABLED. An
endpoint that does not answer never fails a job: it is said once, and the job goes on.
"""

import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from storage_schemas.errors import UserError
from storage_schemas.lineage.records import LineageRecord, graph
from storage_schemas.location import locate

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent, RunState
    from openlineage.client.transport.http import HttpTransport

URL_VARIABLE = "OPENLINEAGE_URL"
PRODUCER = "https://pypi.org/project/uwm-pipeline"
TIMEOUT_SECONDS = 3.0
MAX_MESSAGE_LETTERS = 2000

log = logging.getLogger(__name__)


class JobResult(Protocol):
    """What a job returns: the root of the lineage and the record of what it made, if it made anything."""

    @property
    def root(self) -> str:
        """The root of the lineage."""

    @property
    def record(self) -> LineageRecord | None:
        """The record of what the job made."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is known of a job before it runs."""

    job: str
    """ingest, train or evaluate, as the flows are named."""
    about: str
    """The store or recipe that tells this job from others of its kind."""
    inputs: tuple[str, ...] = ()
    """URIs of the datasets that it will read."""
    outputs: tuple[str, ...] = ()
    """URIs of the datasets that it will write."""


@contextmanager
def emitting(start: Start, run_url: str) -> Iterator[Callable[[JobResult], None]]:
    """The events of a job that runs in the block, when OPENLINEAGE_URL is set.

    Args:
        start: what is known of the job before it runs.
        run_url: the flow run that it belongs to.

    Yields:
        What to call with that which the job has made.
    """
    if not os.environ.get(URL_VARIABLE) or os.environ.get("OPENLINEAGE_DISABLED", "").lower() == "true":
        yield lambda result: None
        return
    run = _Run(start, run_url)
    run.started()
    try:
        yield run.completed
    except BaseException as error:
        run.failed(error)
        raise


class _Run:
    """The events of one run of a job; each is sent or, after a warning, not."""

    def __init__(self, start: Start, run_url: str) -> None:
        import uuid

        self.start = start
        self.run_url = run_url
        self.id = str(uuid.uuid4())

    def started(self) -> None:
        self._send(lambda: self._event("START", *self._known()))

    def completed(self, result: JobResult) -> None:
        self._send(lambda: self._event("COMPLETE", *self._recorded(result)))

    def failed(self, error: BaseException) -> None:
        kind = "FAIL" if isinstance(error, Exception) else "ABORT"
        self._send(lambda: self._event(kind, *self._known(), error=error))

    def _known(self) -> tuple[list["InputDataset"], list["OutputDataset"]]:
        from openlineage.client.event_v2 import InputDataset, OutputDataset

        inputs = [InputDataset(*named(uri)) for uri in self.start.inputs]
        return inputs, [OutputDataset(*named(uri)) for uri in self.start.outputs]

    def _recorded(self, result: JobResult) -> tuple[list["InputDataset"], list["OutputDataset"]]:
        record = result.record
        if record is None:
            return self._known()
        known = graph(result.root).records
        parents = (known[name] for name in record.upstream if name in known)
        return [_input(parent) for parent in parents if parent.uri != record.uri], [_output(record)]

    def _event(
        self,
        state: str,
        inputs: list["InputDataset"],
        outputs: list["OutputDataset"],
        *,
        error: BaseException | None = None,
    ) -> "RunEvent":
        from openlineage.client import event_v2 as v2
        from openlineage.client.facet_v2 import error_message_run, job_type_job, parent_run

        namespace = os.environ.get("OPENLINEAGE_NAMESPACE") or "uwm"
        facets: dict[str, Any] = {}
        if flow_run := re.search(r"/flow-run/([0-9a-f-]{36})", self.run_url):
            facets["parent"] = parent_run.ParentRunFacet(
                run=parent_run.Run(runId=flow_run[1]), job=parent_run.Job(namespace=namespace, name=self.start.job)
            )
        if error is not None:
            message = public_text(str(error) or type(error).__name__)[:MAX_MESSAGE_LETTERS]
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
                message=message, programmingLanguage="PYTHON"
            )
        kind = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="UWM", jobType="JOB")
        chosen: RunState = v2.RunState(state)
        return v2.RunEvent(
            eventType=chosen,
            eventTime=datetime.now(UTC).isoformat(),
            run=v2.Run(runId=self.id, facets=facets),
            job=v2.Job(namespace=namespace, name=f"{self.start.job}.{self.start.about}", facets={"jobType": kind}),
            inputs=inputs,
            outputs=outputs,
            producer=PRODUCER,
        )

    def _send(self, make: Callable[[], "RunEvent"]) -> None:
        try:
            _transport().emit(make())  # type: ignore[no-untyped-call, unused-ignore]
        except ModuleNotFoundError as error:
            _warn(f"{error}: install the extra `openlineage`")
        except (OSError, ValueError, UserError) as error:  # all that requests raises is an OSError
            _warn(str(error))


@functools.cache
def _warn(reason: str) -> None:
    """Once for each reason, so that an endpoint that stays down does not fill the log."""
    log.warning("OpenLineage events are not sent, the work goes on: %s", public_text(reason)[:300])


def _transport() -> "HttpTransport":
    """An own transport instead of the client's: it gives up soon, and reads neither files nor the git remote."""
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport

    config: dict[str, Any] = {
        "url": os.environ[URL_VARIABLE],
        "endpoint": os.environ.get("OPENLINEAGE_ENDPOINT") or "api/v1/lineage",
        "timeout": TIMEOUT_SECONDS,
        "retry": {"total": 1, "backoff_factor": 0.2, "status_forcelist": [502, 503, 504], "allowed_methods": ["POST"]},
    }
    if key := os.environ.get("OPENLINEAGE_API_KEY"):
        config["auth"] = ApiKeyTokenProvider({"apiKey": key})
    return HttpTransport(HttpConfig(**config))


# --- what a job read and wrote -------------------------------------------------------------------


def named(uri: str) -> tuple[str, str]:
    """Namespace and name of a place, as OpenLineage's naming has them; credentials and queries are left out."""
    location = locate(uri)
    if location.is_local:
        return "file", location.path
    parts = urlsplit(location.uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.strip("/") or "/"


def public_text(text: str) -> str:
    """`text` without the credentials and query strings of the URLs in it."""
    return re.sub(r"(\w+://)(?:[^/\s@]*@)?([^\s?]*)(?:\?[^\s'\"]*)?", r"\1\2", text)


def _input(record: LineageRecord) -> "InputDataset":
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import input_statistics_input_dataset as statistics

    counted = statistics.InputStatisticsInputDatasetFacet(_count(record, "episodes"), _count(record, "bytes"))
    return InputDataset(*named(record.uri), facets=_facets(record), inputFacets={"inputStatistics": counted})


def _output(record: LineageRecord) -> "OutputDataset":
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    counted = statistics.OutputStatisticsOutputDatasetFacet(_count(record, "episodes"), _count(record, "bytes"))
    return OutputDataset(*named(record.uri), facets=_facets(record), outputFacets={"outputStatistics": counted})


def _count(record: LineageRecord, name: str) -> int | None:
    """A number among the record's facts: a dataset's rows are its episodes."""
    value = record.facts.get(name)
    return value if isinstance(value, int) else None


def _facets(record: LineageRecord) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_type_dataset, dataset_version_dataset, datasource_dataset

    namespace, name = named(record.uri)
    uri = f"file://{name}" if namespace == "file" else f"{namespace}/{name}"
    facets: dict[str, Any] = {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=record.identity),
        "dataSource": datasource_dataset.DatasourceDatasetFacet(name=namespace, uri=uri),
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(datasetType=record.kind.upper()),
    }
    if record.kind == "dataset":
        facets["schema"] = _schema(record)
    return facets


def _schema(record: LineageRecord) -> Any:
    from openlineage.client.facet_v2 import schema_dataset

    from storage_schemas.catalog.table import dataset_spec

    spec = dataset_spec(locate(record.uri))
    fields: Iterable[tuple[str, str, str]] = (
        *((camera, "uint8[step, y, x, 3]", "frames of a camera") for camera in spec.cameras),
        ("action", f"float32[step, {spec.action_dim}]", "zero where unknown"),
        ("mask/action", "bool[step]", "which actions are known"),
        ("mask/view", f"bool[step, {len(spec.cameras)}]", "which frames are known"),
    )
    named_fields = [
        schema_dataset.SchemaDatasetFacetFields(name=name, type=kind, description=text) for name, kind, text in fields
    ]
    return schema_dataset.SchemaDatasetFacet(fields=named_fields)

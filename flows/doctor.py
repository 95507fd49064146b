"""The flow `doctor`: diagnose a source or a dataset, and keep the report as an artifact."""

import hashlib

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.runtime.user_errors import as_function, failing_on_user_error
from pipelines.doctor.diagnose import Diagnosis, DoctorProgress, diagnose
from pipelines.doctor.page import markdown, verdict
from pipelines.options import INGEST_DEFAULTS, IngestOptions
from storage_schemas.location import locate
from uwm.settings import DatasetVersion


@task(name="diagnose", cache_policy=NO_CACHE)
@failing_on_user_error
def diagnose_target(target: str, options: IngestOptions, version: DatasetVersion) -> Diagnosis:
    """Look at every frame and publish the report."""
    logger = get_run_logger()

    def log(progress: DoctorProgress) -> None:
        if progress.done == progress.total or progress.done % 100 == 0:
            logger.info("%s of %s, %s findings", progress.done, progress.total, progress.findings)

    diagnosis = diagnose(target, options, version=version, progress=log)
    key = artifact_key(target)
    create_markdown_artifact(markdown(diagnosis), key=key, description=verdict(diagnosis))
    logger.info("report at /artifacts/key/%s", key)
    return diagnosis


def artifact_key(target: str) -> str:
    """The key of a target's reports: the same for every run, so that they make a timeline."""
    location = locate(target)
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in location.name.lower())
    digest = hashlib.sha256(location.uri.encode("utf-8", "surrogateescape")).hexdigest()
    return f"doctor-{name.strip('-')[:40] or 'target'}-{digest[:6]}"


@flow(name="doctor", flow_run_name="doctor {target}")
@failing_on_user_error
def doctor(target: str, options: IngestOptions = INGEST_DEFAULTS, version: DatasetVersion = None) -> Diagnosis:
    """Say all that is wrong with a source or a dataset; nothing is changed.

    Args:
        target: raw data or a dataset.
        options: how raw data is read.
        version: of a dataset, its number or a tag; the newest by default.
    """
    return as_function(diagnose_target)(target, options, version)

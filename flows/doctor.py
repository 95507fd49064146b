"""The flow `doctor`: examine a source or a dataset, and keep the report as an artifact."""

import hashlib

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.runtime.user_errors import as_function, failing_on_user_error
from pipelines.doctor.diagnose import Diagnosis, DoctorProgress, diagnose
from pipelines.doctor.page import markdown, verdict
from storage_schemas.location import locate


@task(name="examine", cache_policy=NO_CACHE)
@failing_on_user_error
def examine(target: str, format: str | None, version: int | None) -> Diagnosis:  # noqa: A002 - the option's name
    """Look at every frame and publish what was found."""
    logger = get_run_logger()

    def log(progress: DoctorProgress) -> None:
        if progress.done == progress.total or progress.done % 100 == 0:
            logger.info("%s of %s, %s findings", progress.done, progress.total, progress.findings)

    found = diagnose(target, format=format, version=version, progress=log)
    key = artifact_key(target)
    create_markdown_artifact(markdown(found), key=key, description=verdict(found))
    logger.info("report at /artifacts/key/%s", key)
    return found


def artifact_key(target: str) -> str:
    """The key of a target's reports: the same for every run, so that they make a timeline."""
    place = locate(target)
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in place.name.lower())
    digest = hashlib.sha256(place.uri.encode("utf-8", "surrogateescape")).hexdigest()
    return f"doctor-{name.strip('-')[:40] or 'target'}-{digest[:6]}"


@flow(name="doctor", flow_run_name="doctor {target}")
@failing_on_user_error
def doctor(target: str, format: str | None = None, version: int | None = None) -> Diagnosis:  # noqa: A002
    """Say all that is wrong with a source or a dataset; nothing is changed.

    Args:
        target: raw data or a dataset.
        format: of raw data; found out by default.
        version: of a dataset; the newest by default.
    """
    return as_function(examine)(target, format, version)

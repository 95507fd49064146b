"""GPU slots: so many trainings and evaluations at once as the server's limit says, wherever they run."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from flows.runtime.timeouts import LEASE_SECONDS

GPU_LIMIT = "uwm-gpu"
"""The server's concurrency limit; `uwm deploy` makes it. Without it nobody waits."""


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold a slot within the block, after waiting for it in the order that the server gives them out.

    The slot is a lease that is renewed in a thread. When the server can't be reached for longer than the lease, work
    goes on without it: a lost training step costs more than a GPU that is shared for a while.
    """
    if not _limited():
        yield
        return
    logger = get_run_logger()
    logger.info("waiting for a slot of %s", GPU_LIMIT)
    with concurrency(
        GPU_LIMIT, occupy=1, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    ):
        logger.info("holding a slot of %s", GPU_LIMIT)
        yield


def _limited() -> bool:
    with get_client(sync_client=True) as client:
        try:
            return bool(client.read_global_concurrency_limit_by_name(GPU_LIMIT).active)
        except ObjectNotFound:
            return False

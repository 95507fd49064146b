"""Time-outs that know each other stand in the right order, also where their owners can't import each other."""

import inspect

from prefect.workers.process import ProcessWorker

from flows.deploy.site import Site
from flows.runtime import timeouts
from uwm.train.launch import SHUTDOWN_SECONDS


def test_a_cancelled_run_is_never_taken_for_a_crashed_one() -> None:
    assert timeouts.WORKER_KILL_SECONDS < timeouts.CANCEL_SECONDS < timeouts.MIN_SILENCE_SECONDS <= Site().silence


def test_the_workers_time_is_prefects() -> None:
    assert inspect.signature(ProcessWorker.kill_infrastructure).parameters["grace_seconds"].default == (
        timeouts.WORKER_KILL_SECONDS
    )


def test_processes_of_a_training_end_before_their_starter_kills_them() -> None:
    assert SHUTDOWN_SECONDS < timeouts.GRACE_SECONDS

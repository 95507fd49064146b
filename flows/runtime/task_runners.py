"""Who does the batches of a flow: threads or processes here, or the workers of a Dask cluster. One setting for all.

Prefect's task runners stand behind `concurrent.futures.Executor`, which is all that the code with the batches knows.
Prefect and the engines are imported when the first batch is submitted.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, cast, get_args

from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from prefect import Task
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

P = ParamSpec("P")
R = TypeVar("R")

RunnerName = Literal["threads", "processes", "dask"]
_SCHEMES = ("tcp", "tls", "ws", "wss")
"""Of the addresses of Dask schedulers."""
_RETRY_SECONDS = [2.0, 20.0]
"""Soon, for an answer that broke off; then after as long as a storage may take to come back."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What carries out the tasks of a flow.

    Raises:
        UserError: when the settings make no sense together.
    """

    name: RunnerName = "threads"
    workers: int | None = None
    """Tasks at once: one thread by default, or as many processes as there are cores."""
    cluster: str | None = None
    """Address of a Dask scheduler that runs already; a private cluster on this machine otherwise."""

    def __post_init__(self) -> None:
        if self.name not in get_args(RunnerName):
            raise UserError(f"unknown runner {self.name!r}: use {', '.join(get_args(RunnerName))}")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"{self.workers} workers: give at least 1")
        if self.cluster is None:
            return
        if self.cluster.partition("://")[0] not in _SCHEMES:
            raise UserError(f"{self.cluster!r} is not the address of a Dask scheduler, such as tcp://host:8786")
        if self.name != "dask":
            raise UserError(f"{self.cluster} is the address of a dask cluster, not of {self.name}")
        if self.workers is not None:
            raise UserError("a cluster that runs already has its own number of workers: leave one of the two out")

    @property
    def in_flight(self) -> int:
        """Batches that are given out before the first of them has given its result, see `in_order`."""
        if self.cluster:
            # how many workers a cluster has, or will have, nobody knows here
            return 1024
        # nobody runs dry while results are committed, and what waits for that stays small
        return 8 * (self.workers or 1 if self.name == "threads" else self._processes)

    def start(self) -> "TaskRunner[PrefectFuture[Any]]":
        """Prefect's runner, to be used as a context.

        Raises:
            UserError: when its package is not installed.
        """
        from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

        runner: Any
        if self.name == "threads":
            runner = ThreadPoolTaskRunner(max_workers=self.workers or 1)
        elif self.name == "processes":
            runner = ProcessPoolTaskRunner(max_workers=self._processes)
        else:
            runner = self._dask()
        return cast("TaskRunner[PrefectFuture[Any]]", runner)

    def _dask(self) -> object:
        try:
            from prefect_dask.task_runners import DaskTaskRunner
        except ImportError as error:
            raise UserError(
                f"the runner dask needs more packages: pip install 'uwm-pipeline[dask]' ({error})"
            ) from error
        if self.cluster:
            return DaskTaskRunner(address=self.cluster)
        private = {
            "n_workers": self._processes,
            "threads_per_worker": 1,
            "host": "127.0.0.1",
            "dashboard_address": None,
            "local_directory": tempfile.gettempdir(),
            "silence_logs": "ERROR",
        }
        return DaskTaskRunner(cluster_kwargs=private)

    @property
    def _processes(self) -> int:
        return self.workers or os.cpu_count() or 1


def choose(name: str | None, workers: int | None, cluster: str | None) -> Runner:
    """The runner that is meant: a cluster's address tells its engine.

    Raises:
        UserError: when the settings make no sense together.
    """
    return Runner(name=cast("RunnerName", name or ("dask" if cluster else "threads")), workers=workers, cluster=cluster)


class Sealed(Generic[R]):
    """A call on its way to a task. Prefect walks through parameters for futures, but only through types it knows."""

    def __init__(self, number: int, call: Callable[[], R]) -> None:
        self.number, self.call = number, call


class TaskExecutor(Executor):
    """Has functions called by the tasks of a flow, within which it must be used.

    Prefect tries a task that fails again, and Dask gives one whose worker died to another worker; so it must be
    possible to make a call twice. No runner is started before the first call. What has not begun when the executor
    shuts down is cancelled.

    Args:
        runner: who carries out the tasks.
        name: of the tasks, whose runs are called `<name> batch <number>`.
    """

    def __init__(self, runner: Runner, name: str) -> None:
        self._runner, self._name = runner, name
        self._numbers = count()
        self._started: TaskRunner[PrefectFuture[Any]] | None = None

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Give out a call; function, arguments and result cross to other processes and machines.

        Raises:
            UserError: when the runner's package is not installed.
        """
        if self._started is None:
            self._started = self._runner.start().__enter__()
            self._task = _task(self._name)
        sealed = Sealed(next(self._numbers), partial(fn, *args, **kwargs))
        task_future: Any = self._started.submit(self._task, {"sealed": sealed})
        future: Future[R] = Future()
        future.add_done_callback(lambda done: done.cancelled() and task_future.wrapped_future.cancel())
        task_future.add_done_callback(lambda done: _finish(future, done))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the calls that have begun, and stop the runner."""
        if self._started is not None:
            self._started.__exit__(None, None, None)
            self._started = None


def _task(name: str) -> "Task[[Sealed[Any]], Any]":
    """A task that makes a call, unless the mistake is the user's again and again. Results go to the flow only."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    from flows.runtime.user_errors import failing_on_user_error, may_be_retried

    def call(sealed: Sealed[Any]) -> Any:
        return sealed.call()

    decorate: Any = task(
        name=name,
        task_run_name=f"{name} batch {{sealed.number}}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(_RETRY_SECONDS),
        retry_delay_seconds=_RETRY_SECONDS,
        retry_condition_fn=may_be_retried,
    )
    return cast("Task[[Sealed[Any]], Any]", decorate(failing_on_user_error(call)))


def _finish(future: Future[Any], done: "PrefectFuture[Any]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(done.result())
    except Exception as error:
        future.set_exception(error)

"""Where the tasks of a flow run: threads or processes here, or the workers of Dask or Ray. One setting for all.

Prefect and the engines are imported when a runner starts.
"""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from prefect import Task
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

T = TypeVar("T")
R = TypeVar("R")

RUNNERS = ("threads", "processes", "dask", "ray")
_SCHEMES = {"tcp": "dask", "tls": "dask", "ws": "dask", "wss": "dask", "ray": "ray"}

_RETRY_SECONDS = [2.0, 20.0]


class Sealed(Generic[T]):
    """An item on its way to a task. Prefect walks through parameters for futures, but only through types it knows."""

    def __init__(self, item: T) -> None:
        self.item = item


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What carries out the tasks of a flow.

    Raises:
        UserError: when the settings make no sense together.
    """

    name: str = "threads"
    """One of `RUNNERS`."""
    workers: int | None = None
    """Tasks at once: one thread by default, or as many processes as there are cores."""
    cluster: str | None = None
    """Address of a Dask scheduler or a Ray head that runs already; a private cluster on this machine otherwise."""

    def __post_init__(self) -> None:
        if self.name not in RUNNERS:
            raise UserError(f"unknown runner {self.name!r}: use {', '.join(RUNNERS)}")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"{self.workers} workers: give at least 1")
        if self.cluster is None:
            return
        engine = _SCHEMES.get(self.cluster.partition("://")[0])
        if engine is None:
            raise UserError(f"{self.cluster!r} is no cluster's address, such as tcp://host:8786 or ray://host:10001")
        if engine != self.name:
            raise UserError(f"{self.cluster} is the address of a {engine} cluster, not of {self.name}")
        if self.workers is not None:
            raise UserError("a cluster that runs already has its own number of workers: leave one of the two out")

    def start(self) -> "TaskRunner[PrefectFuture[Any]]":
        """Prefect's runner, to be used as a context.

        Raises:
            UserError: when its package is not installed.
        """
        try:
            found: Any = _STARTS[self.name](self)
        except ImportError as error:
            raise UserError(
                f"the runner {self.name} needs more packages: pip install 'uwm-pipeline[{self.name}]' ({error})"
            ) from error
        return cast("TaskRunner[PrefectFuture[Any]]", found)

    @property
    def processes(self) -> int:
        """Workers of a private cluster."""
        return self.workers or os.cpu_count() or 1

    @property
    def ahead(self) -> int:
        """Task runs that are submitted before the first of them has given its result, which bounds what is in memory.

        Many for each worker, so that one batch that takes long does not leave the others without work.
        """
        return 1024 if self.cluster else 8 * (self.workers or 1 if self.name == "threads" else self.processes)


def choose(name: str | None, workers: int | None, cluster: str | None) -> Runner:
    """The runner that is meant: a cluster's address tells its engine.

    Raises:
        UserError: when the settings make no sense together.
    """
    engine = _SCHEMES.get((cluster or "").partition("://")[0])
    return Runner(name=name or engine or "threads", workers=workers, cluster=cluster)


def batch_task(name: str) -> Callable[[Callable[[Sealed[T]], R]], "Task[[Sealed[T]], R]"]:
    """Decorate the function that does one batch, so that it becomes a task for `carried_by`.

    Its runs are named after the `number` of their item and are tried again, unless the mistake is the user's. Results
    go to the flow and nowhere else.
    """
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    from flows.runtime.user_errors import failing_on_user_error, may_be_retried

    def decorate(function: Callable[[Sealed[T]], R]) -> "Task[[Sealed[T]], R]":
        made: Any = task(
            name=name,
            task_run_name=f"{name} batch {{sealed.item.number}}",
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=len(_RETRY_SECONDS),
            retry_delay_seconds=_RETRY_SECONDS,
            retry_condition_fn=may_be_retried,
        )(failing_on_user_error(function))
        return cast("Task[[Sealed[T]], R]", made)

    return decorate


def carried_by(runner: Runner, task: "Task[[Sealed[T]], R]") -> Callable[[Sequence[T]], Iterator[R]]:
    """A function that has a task done for every item, and hands back the results in the order of the items.

    To be called within a flow; the task has one parameter, `sealed`. A task that fails is tried again by Prefect, one
    whose worker dies is given to another worker by Dask or Ray; so it must be possible to do it twice. When one fails
    for good, the flow fails, and what has not begun is cancelled.
    """

    def carry(items: Sequence[T]) -> Iterator[R]:
        if not items:
            return
        with runner.start() as pool:
            futures = (pool.submit(task, {"sealed": Sealed(item)}) for item in items)
            begun = deque(islice(futures, runner.ahead))
            while begun:
                result = _result(begun.popleft())
                begun.extend(islice(futures, 1))
                yield result

    return carry


def _result(future: "PrefectFuture[Any]") -> Any:
    future.wait()
    data = getattr(future.state, "data", None)
    if isinstance(data, UserError):
        raise data
    return future.result()


def _threads(runner: Runner) -> object:
    from prefect.task_runners import ThreadPoolTaskRunner

    return ThreadPoolTaskRunner(max_workers=runner.workers or 1)


def _processes(runner: Runner) -> object:
    from prefect.task_runners import ProcessPoolTaskRunner

    return ProcessPoolTaskRunner(max_workers=runner.processes)


def _dask(runner: Runner) -> object:
    from prefect_dask.task_runners import DaskTaskRunner

    if runner.cluster:
        return DaskTaskRunner(address=runner.cluster)
    local = {
        "n_workers": runner.processes,
        "threads_per_worker": 1,
        "host": "127.0.0.1",
        "dashboard_address": None,
        "local_directory": tempfile.gettempdir(),
        "silence_logs": "ERROR",
    }
    return DaskTaskRunner(cluster_kwargs=local)


def _ray(runner: Runner) -> object:
    import ray  # noqa: F401 - prefect_ray imports it late, when it is too late for a clear message
    from prefect_ray import RayTaskRunner

    if runner.cluster:
        return RayTaskRunner(address=runner.cluster)
    local = {"num_cpus": runner.processes, "include_dashboard": False, "log_to_driver": False}
    return RayTaskRunner(init_kwargs=local)


_STARTS: dict[str, Callable[[Runner], object]] = {
    "threads": _threads,
    "processes": _processes,
    "dask": _dask,
    "ray": _ray,
}

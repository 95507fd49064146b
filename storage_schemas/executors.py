"""Work that an executor does in any order, and whose results are taken in the order in which it was given out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(executor: Executor, function: Callable[[T], R], items: Iterable[T], in_flight: int) -> Iterator[R]:
    """Results in the order of the items. The first failure is raised, and cancels what has not begun.

    Args:
        executor: who calls the function.
        function: of one item.
        items: consumed only as far as there is room.
        in_flight: most items that are given out before the result of the first is taken, which bounds what is in
            memory. Several for each worker, so that one item that takes long does not leave the others without work.
    """
    futures: deque[Future[R]] = deque()
    try:
        for item in items:
            if len(futures) == in_flight:
                yield futures.popleft().result()
            futures.append(executor.submit(function, item))
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()

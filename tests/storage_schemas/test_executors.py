"""Results of an executor in the order of the items, a bounded number ahead."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage_schemas.executors import in_order


def test_results_come_in_the_order_of_the_items() -> None:
    later = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            later.wait(10)  # the first is the last to end
        if item == 3:
            later.set()
        return item * item

    with ThreadPoolExecutor(4) as executor:
        assert list(in_order(executor, work, range(20), 4)) == [i * i for i in range(20)]


def test_no_more_are_given_out_than_there_is_room_for() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(10):
            taken += 1
            yield item

    with ThreadPoolExecutor(2) as executor:
        results = in_order(executor, str, items(), 3)
        assert taken == 0
        assert next(results) == "0"
        assert taken == 4  # three are under way, and the next is at hand
        assert list(results) == list("123456789")


def test_the_first_failure_cancels_what_has_not_begun() -> None:
    begun: list[int] = []
    raised = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        if item == 2:
            raised.wait(10)

    with ThreadPoolExecutor(1) as executor:
        results = in_order(executor, work, range(10), 8)
        next(results)
        with pytest.raises(ValueError, match="one"):
            next(results)
        raised.set()
    assert begun in ([0, 1], [0, 1, 2])

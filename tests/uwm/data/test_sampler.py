"""The sample order: everything once per epoch, a function of the place alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwm.data.sampler import Permutation, SegmentSampler

keys = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 9))
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=12).filter(lambda values: max(values) > 1)


def sampler(lengths: list[int], key: tuple[int, ...]) -> SegmentSampler:
    rows = np.arange(len(lengths)) * 2 + 5  # rows are chosen ones of a dataset, not 0..n-1
    return SegmentSampler(rows, np.array(lengths), key)


@given(st.integers(1, 600), keys)
def test_permutation_is_a_bijection(size: int, key: tuple[int, ...]) -> None:
    order = Permutation(size, key)
    assert sorted(order[i] for i in range(size)) == list(range(size))


def test_permutation_mixes_and_depends_on_its_key() -> None:
    orders = [[Permutation(1000, (key,))[i] for i in range(1000)] for key in range(3)]
    for order in orders:
        assert abs(np.corrcoef(order, range(1000))[0, 1]) < 0.12
        assert sum(order[i] == i for i in range(1000)) < 10
    assert orders[0] != orders[1] != orders[2]


def test_permutation_of_a_large_range_needs_no_memory() -> None:
    order = Permutation(10**15, (1,))
    found = [order[i] for i in range(1000)]
    assert len(set(found)) == 1000
    assert 9 * 10**14 < max(found) < 10**15


@pytest.mark.parametrize("index", [-1, 5])
def test_permutation_refuses_what_is_outside(index: int) -> None:
    with pytest.raises(IndexError):
        Permutation(5, (0,))[index]


@given(lengths, keys, st.integers(0, 4))
@settings(max_examples=60)
def test_every_segment_once_per_epoch(lengths: list[int], key: tuple[int, ...], epoch: int) -> None:
    order = sampler(lengths, key)
    first = epoch * len(order)
    drawn = [order.draw(first + i) for i in range(len(order))]
    expected = {(2 * row + 5, step) for row, length in enumerate(lengths) for step in range(length - 1)}
    assert len(drawn) == len(expected)
    assert set(drawn) == expected


def test_epochs_differ() -> None:
    order = sampler([50], (0,))
    first, second = ([order.draw(epoch * 49 + i) for i in range(49)] for epoch in (0, 1))
    assert first != second


@given(lengths, keys, st.integers(0, 200))
def test_order_from_any_place_is_the_same(lengths: list[int], key: tuple[int, ...], start: int) -> None:
    straight = sampler(lengths, key)
    resumed = sampler(lengths, key)
    whole = [straight.draw(i) for i in range(start + 20)]
    assert [resumed.draw(start + i) for i in range(20)] == whole[start:]


def test_no_segments() -> None:
    empty = sampler([1, 1], (0,))
    assert len(empty) == 0
    with pytest.raises(IndexError):
        empty.draw(0)
    assert len(SegmentSampler(np.array([], np.int64), np.array([], np.int64), (0,))) == 0

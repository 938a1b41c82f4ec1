"""Waiting queues: order, ties, and those who come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.simulator import FifoQueue, KeyQueue

KEYS = {0: 5.0, 1: 1.0, 2: 5.0, 3: 1.0, 4: -2.0}


def drained(queue) -> list[int]:
    """Take all out, looking at each one first, and through the whole queue once before."""
    through = list(queue)
    out = []
    while queue:
        assert len(queue) == len(through) - len(out)
        out.append(queue.head())
        assert queue.pop() == out[-1]
    assert out == through
    return out


def test_fifo_is_the_order_of_arrival():
    """First come, first served."""
    queue = FifoQueue()
    for request in (0, 1, 2):
        queue.push(request)
    assert drained(queue) == [0, 1, 2]


def test_who_is_thrown_out_goes_to_the_front_the_last_foremost():
    """The last admitted is thrown out first, so the order of admission comes back."""
    queue = FifoQueue()
    queue.push(7)
    for request in (5, 4, 3):
        queue.push_back(request)
    queue.push(8)
    assert drained(queue) == [3, 4, 5, 7, 8]


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 3, 4, 1)])
def test_the_smallest_key_goes_first_and_of_equal_ones_the_lowest_number(order):
    """In whatever order they came."""
    queue = KeyQueue(KEYS.__getitem__)
    for request in order:
        queue.push(request)
    assert drained(queue) == [4, 1, 3, 0, 2]


def test_who_comes_back_is_ordered_by_its_key_now():
    """A key is asked for whenever a request enters."""
    keys = dict(KEYS)
    queue = KeyQueue(keys.__getitem__)
    for request in keys:
        queue.push(request)
    assert queue.pop() == 4
    keys[4] = 3.0
    queue.push_back(4)
    assert drained(queue) == [1, 3, 4, 0, 2]


@pytest.mark.parametrize("empty", [FifoQueue(), KeyQueue(KEYS.__getitem__)])
def test_an_empty_queue_is_false_and_has_no_head(empty):
    """The queue must not be empty: the protocol says so."""
    assert not empty
    assert list(empty) == []
    with pytest.raises(IndexError):
        empty.head()
    with pytest.raises(IndexError):
        empty.pop()


@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=80))
def test_pushes_and_pops_in_any_order_give_the_sorted_order(script):
    """None pops; every pop gives the smallest of what is there."""
    queue, there = KeyQueue(lambda request: request % 7), []
    for request in script:
        if request is not None:
            queue.push(request)
            there.append(request)
        elif there:
            smallest = min(there, key=lambda r: (r % 7, r))
            there.remove(smallest)
            assert queue.pop() == smallest
    assert list(queue) == sorted(there, key=lambda r: (r % 7, r))

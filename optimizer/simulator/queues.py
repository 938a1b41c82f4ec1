"""Waiting queues: first come first served, or by a key."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Protocol


class WaitingQueue(Protocol):
    """What the simulator and the policies need of a queue of waiting requests."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...

    def push(self, request: int, /) -> None:
        """Take in an arrival."""

    def push_back(self, request: int, /) -> None:
        """Take back a preempted request."""

    def head(self) -> int:
        """Show the next request; the queue must not be empty."""

    def pop(self) -> int:
        """Take out the next request."""


class FifoQueue(deque[int]):
    """Arrival order; preempted requests go to the front, the last preempted foremost.

    >>> q = FifoQueue(); q.push(1); q.push(2); q.push_back(0); q.pop(), q.head()
    (0, 1)
    """

    push = deque.append
    push_back = deque.appendleft
    pop = deque.popleft

    def head(self) -> int:
        """Show the next request."""
        return self[0]


class KeyQueue:
    """Smallest key first, ties by request number (that is, by arrival).

    Parameters
    ----------
    key
        From a request to its key, asked when the request enters: keys must not change while it waits.

    Examples
    --------
    >>> q = KeyQueue(key=lambda r: -r); q.push(1); q.push(2); q.pop(), q.head(), len(q)
    (2, 1, 1)
    """

    __slots__ = ("_heap", "_key")

    def __init__(self, key: Callable[[int], float]) -> None:
        self._key = key
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[int]:
        """Go through the requests in order of their keys."""
        return (request for _, request in sorted(self._heap))

    def push(self, request: int) -> None:
        """Take in an arrival."""
        heappush(self._heap, (self._key(request), request))

    push_back = push

    def head(self) -> int:
        """Show the next request."""
        return self._heap[0][1]

    def pop(self) -> int:
        """Take out the next request."""
        return heappop(self._heap)[1]

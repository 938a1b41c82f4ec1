"""The clock of a run: how fast this machine goes through a fixed loop of plain Python, as events per second.

The loop does what an event loop does: it takes the earliest of 512 entries out of a heap, adds a few integers,
and puts the entry back with a later time. It never changes, so figures of two machines, or of a busy and an
idle hour, can be set against each other: divide by the clock that was read next to them.
"""

from __future__ import annotations

import time
from heapq import heapify, heappop, heappush

EVENTS = 100_000


def go_through(events: int) -> int:
    """Do the loop; the checksum is the same everywhere.

    >>> go_through(1000)
    857
    """
    heap = [(37 * entry % 512, entry) for entry in range(512)]
    heapify(heap)
    seen = [0] * 512
    now = 0
    for event in range(events):
        now, entry = heappop(heap)
        seen[entry] += 1
        heappush(heap, (now + 1 + (31 * entry + 7 * event) % 977, entry))
    return now + max(seen)


def events_per_second(events: int = EVENTS) -> float:
    """Read the clock once."""
    start = time.perf_counter()
    go_through(events)
    return events / (time.perf_counter() - start)


if __name__ == "__main__":
    print(events_per_second())

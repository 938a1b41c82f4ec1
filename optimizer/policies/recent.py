"""The last numbers of a stream, and their quantiles."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque


class Recent:
    """Remembers the last numbers, sorted.

    Parameters
    ----------
    size
        How many.

    Examples
    --------
    >>> recent = Recent(3)
    >>> for number in (5.0, 1.0, 2.0, 3.0): recent.add(number)
    >>> recent.quantile(0.99), recent.quantile(0.5, above=1.0), recent.quantile(0.5, above=3.0)
    (3.0, 3.0, None)
    """

    __slots__ = ("_order", "_size", "_sorted")

    def __init__(self, size: int) -> None:
        self._size = size
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._order)

    def add(self, number: float) -> None:
        """Take in a number; the oldest goes."""
        if len(self._order) == self._size:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]
        self._order.append(number)
        insort(self._sorted, number)

    def quantile(self, q: float, above: float | None = None) -> float | None:
        """Give a quantile, of those above a number; None: there is none."""
        first = 0 if above is None else bisect_right(self._sorted, above)
        n = len(self._sorted) - first
        return self._sorted[first + min(int(q * n), n - 1)] if n else None

    def values(self) -> list[float]:
        """Give the numbers, oldest first."""
        return list(self._order)

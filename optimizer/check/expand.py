"""Table rows laid out as the many small things that they stand for, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optimizer.problem.columns import Ints

AT_ONCE = 1 << 21
"""Things laid out in one go: some 100 MB with what is computed from them."""


def expand(counts: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Give (row, place within the row) for `counts[row]` things of every row, in batches of whole rows.

    >>> [(row.tolist(), place.tolist()) for row, place in expand(np.array([2, 0, 3]))]
    [([0, 0, 2, 2, 2], [0, 1, 0, 1, 2])]
    """
    rows = np.flatnonzero(counts > 0)
    ends = np.cumsum(counts[rows])
    begin = 0
    while begin < len(rows):
        before = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, before + AT_ONCE, side="right")))
        batch = rows[begin:stop]
        sizes = counts[batch]
        row = np.repeat(batch, sizes)
        place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield row, place
        begin = stop

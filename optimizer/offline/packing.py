"""Seats as machines: requests dealt out so that all seats are done at about the same time (P||Cmax, arXiv 2502.15763's packing)."""

from __future__ import annotations

import heapq

import numpy as np

from optimizer.problem.columns import Ints


def packed_order(work: Ints, seats: int, *, rounds: int = 20000) -> tuple[int, ...]:
    """Give an order in which seats that fall free take requests, such that the last seats end together.

    Parameters
    ----------
    work
        Of each request, whole numbers >= 0: its decode rounds.
    seats
        Machines, >= 1.
    rounds
        Most exchanges.

    Returns
    -------
    tuple of int
        Requests by the moment at which their seat reaches them; serving them in this order reproduces the packing.

    Notes
    -----
    Longest first (LPT, at most 4/3 of the optimum), then exchanges between the fullest seat and another one: the pair
    whose difference is nearest to half of what separates the two.

    Examples
    --------
    >>> order = packed_order(np.array([5, 5, 4, 4, 3, 3, 3]), 3)  # LPT: 11, optimum: 9
    >>> finished = [0, 0, 0]
    >>> for request in order:
    ...     seat = finished.index(min(finished))
    ...     finished[seat] += [5, 5, 4, 4, 3, 3, 3][request]
    >>> max(finished)
    9
    """
    heap = [(0, seat) for seat in range(seats)]
    dealt: list[list[int]] = [[] for _ in range(seats)]
    for request in np.argsort(-work, kind="stable").tolist():
        load, seat = heapq.heappop(heap)
        dealt[seat].append(request)
        heapq.heappush(heap, (load + int(work[request]), seat))
    _exchange(work, dealt, rounds)
    start = np.zeros(len(work), np.int64)
    for own in dealt:
        # Long ones first: what is left at the end is short, and forgives.
        own.sort(key=lambda request: -int(work[request]))
        start[own] = np.cumsum([0, *work[own[:-1]].tolist()]) if own else start[own]
    return tuple(np.lexsort((-work, start)).tolist())


def _exchange(work: Ints, dealt: list[list[int]], rounds: int) -> None:
    """Even the loads out; ends when no exchange with any seat makes the fullest one less full."""
    loads = np.array([int(work[own].sum()) for own in dealt])
    for _ in range(rounds):
        full = int(loads.argmax())
        for other in np.argsort(loads).tolist():
            found = _best_exchange(work, dealt[full], dealt[other], int(loads[full] - loads[other]))
            if found is None:
                continue
            gone, come, moved = found
            dealt[full] = [r for r in dealt[full] if r != gone] + ([] if come is None else [come])
            dealt[other] = [r for r in dealt[other] if r != come] + [gone]
            loads[full] -= moved
            loads[other] += moved
            break
        else:
            return


def _best_exchange(
    work: Ints, full: list[int], other: list[int], apart: int
) -> tuple[int, int | None, int] | None:
    """Give (request that goes, one that comes back or None, work moved), with 0 < moved < apart; None: there is none."""
    coming = np.concatenate([work[other], [0]])
    moved = work[full][:, None] - coming[None, :]
    fits = (moved > 0) & (moved < apart)
    if not fits.any():
        return None
    best = np.where(fits, np.abs(2 * moved - apart), np.iinfo(np.int64).max)
    i, j = np.unravel_index(int(best.argmin()), best.shape)
    return full[int(i)], other[int(j)] if j < len(other) else None, int(moved[i, j])

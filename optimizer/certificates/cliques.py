"""Cliques of starts: pairs of request and start of which no two can be in one schedule.

Blocks held grow with age, so two ramps that share rounds hold most in the last of them. Request k can therefore not start
at t_k beside j at t_j if and only if -reach(k, j) <= t_k - t_j <= reach(j, k): an interval. If two starts of a request
conflict with a start of another, so do all in between; a clique is an interval of starts for each of its requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps

NEVER = -(2**40)
"""The reach of a pair that always goes together."""


@dataclass(frozen=True, slots=True, eq=False)
class Clique:
    """At most one of these starts is in a schedule: request `requests[k]` in `first[k]`..`last[k]`.

    Attributes
    ----------
    requests
        Different ones.
    first, last
        Rounds, first <= last.
    price
        Whole, >= 0.
    """

    requests: Ints
    first: Ints
    last: Ints
    price: int


def reach(ramps: Ramps) -> Ints:
    """Give by how many rounds at most one request may start after another and still conflict with it.

    Parameters
    ----------
    ramps
        n requests.

    Returns
    -------
    ndarray of int, shape (n, n)
        For j and k: k conflicts with j up to so many rounds after j's start; `NEVER` where they always go
        together. The diagonal means nothing.

    Examples
    --------
    The first holds 2, 3, 4 blocks, the second 2, 3: with 5 blocks in all it cannot be there at the first's end.

    >>> reach(Ramps.of([2, 2], [3, 2], capacity=5))[0, 1]
    np.int64(2)
    >>> reach(Ramps.of([2, 2], [3, 2], capacity=7))[0, 1] == NEVER
    np.True_
    """
    peak, last_age = ramps.peak, ramps.rounds - 1
    if ramps.seats == 1:
        return np.repeat(last_age[:, None], len(ramps), axis=1)
    # The least age at which k holds more than j leaves in its last round.
    room = (ramps.capacity - peak)[:, None]
    age = np.maximum(0, room * ramps.block_tokens - ramps.prompt + 1)
    return np.where(peak[:, None] + peak > ramps.capacity, last_age[:, None] - age, NEVER)


def check_clique(clique: Clique, ramps: Ramps) -> None:
    """Refuse what is no clique.

    Raises
    ------
    ValueError
        If columns are of different length, a request is unknown or named twice, an interval is empty, the
        price is negative, or two of the starts go together.
    """
    chosen, first, last = clique.requests, clique.first, clique.last
    if not len(chosen) == len(first) == len(last):
        raise ValueError("a clique's columns are of different length")
    if (
        len(chosen) == 0
        or chosen.min() < 0
        or chosen.max() >= len(ramps)
        or len(set(chosen.tolist())) < len(chosen)
    ):
        raise ValueError("a clique needs requests of the instance, each once")
    if (first < 0).any() or (last < first).any() or clique.price < 0:
        raise ValueError("a clique has an empty interval, a start before round 0, or a negative price")
    part = Ramps(
        ramps.prompt[chosen], ramps.rounds[chosen], ramps.arrival[chosen], ramps.weight[chosen],
        ramps.capacity, ramps.block_tokens, ramps.seats,
    )  # fmt: skip
    together = last - first[:, None] > reach(part)
    np.fill_diagonal(together, False)
    if together.any():
        j, k = (int(chosen[i]) for i in np.argwhere(together)[0])
        raise ValueError(f"a clique lets requests {j} and {k} start so far apart that they go together")

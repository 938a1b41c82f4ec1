"""Lagrangian bounds: a price on every round's memory proves how small a sum of completions can be.

Let f be any non-negative table on the blocks that one request can hold, and R(f) the most that requests which fit
together can sum up to in one round. Then sum_i f(held by i) <= R(f) in every round of every schedule, and with prices
y_t >= 0 on these inequalities every schedule satisfies

    sum_i w_i C_i >= sum_i min_t [ w_i (t + o_i) + sum_j y_{t+j} f(held_i(j)) ] - R(f) sum_t y_t.

The identity gives the plain memory row, R = capacity; a table that is 1 above half of the capacity says that two such
requests never meet; the table of ones says what the seats say. R is computed by a knapsack, never taken on trust.

A clique of starts (`optimizer.certificates.cliques`) is an inequality across rounds, "at most one of these", and is priced
likewise: its price is charged for each of its starts and is paid back once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from optimizer.certificates.cliques import Clique, check_clique
from optimizer.problem import Instance
from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps
from optimizer.units import TICKS_PER_SECOND, moment_ticks, ticks

_FITS = 2**62
_HALF = 2**24
"""Prices too large for 64 bits are multiplied in two halves."""


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """One table and its prices.

    Attributes
    ----------
    table
        f by blocks held, 0..capacity, whole numbers >= 0 with f(0) = 0; None: the identity.
    prices
        By round from 0 on, whole numbers >= 0; 0 beyond the end.
    """

    table: Ints | None
    prices: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """A certificate: prices of tables in rounds, and of cliques, in units of 1 / `denominator`."""

    rows: Sequence[Priced]
    denominator: int
    cliques: Sequence[Clique] = ()


def most(table: Ints | None, ramps: Ramps) -> int:
    """Give the largest sum of table values of requests that are in one round together: an unbounded knapsack.

    >>> ramps = Ramps.of([3, 3], [1, 1], capacity=5)
    >>> most(np.array([0, 0, 0, 1, 1, 1]), ramps), most(None, ramps)
    (1, 5)
    """
    if table is None:
        return ramps.capacity
    best = [0] * (ramps.capacity + 1)
    useful = [(held, int(table[held])) for held in range(1, ramps.capacity + 1) if table[held]]
    for room in range(1, ramps.capacity + 1):
        best[room] = max((value + best[room - held] for held, value in useful if held <= room), default=0)
        best[room] = max(best[room], best[room - 1])
    return min(best[-1], ramps.seats * max((value for _, value in useful), default=0))


def price_bound(ramps: Ramps, certificate: Prices) -> Fraction:
    """Compute the bound that prices prove, exactly.

    Parameters
    ----------
    ramps
        The problem.
    certificate
        Any prices: good ones make a good bound, no prices make a wrong one.

    Returns
    -------
    Fraction
        At most the weighted sum of completion rounds of any schedule.

    Raises
    ------
    ValueError
        If a price or a table value is negative, the denominator is not positive, a table has another length
        than capacity + 1, or a clique is none.

    Examples
    --------
    Two requests that never meet: the second ends two rounds after the first.

    >>> ramps = Ramps.of([3, 3], [2, 2], capacity=5)
    >>> never = np.array([0, 0, 0, 1, 1, 1])
    >>> price_bound(ramps, Prices([Priced(never, np.array([1, 1]))], denominator=1))
    Fraction(6, 1)
    """
    denominator = int(certificate.denominator)
    if denominator < 1:
        raise ValueError("the denominator is not positive")
    last = max((len(row.prices) for row in certificate.rows), default=0)
    last = max(last, 1 + max((int(clique.last.max()) for clique in certificate.cliques), default=-1))
    # Beyond the last price a later start costs more and saves nothing.
    horizon = max(last, int(ramps.arrival.max()))
    of_cliques = _clique_charges(certificate.cliques, ramps, horizon)
    kinds, kind = np.unique(np.stack([ramps.prompt, ramps.rounds], axis=1), axis=0, return_inverse=True)
    tables = [_checked(row, ramps) for row in certificate.rows]
    rent = sum(
        most(table, ramps) * sum(row.prices.tolist())
        for table, row in zip(tables, certificate.rows, strict=True)
    )
    members: dict[int, list[int]] = {}
    for request, k in enumerate(kind.ravel().tolist()):
        members.setdefault(k, []).append(request)
    starts = np.arange(horizon + 1)
    total = Fraction(-rent - sum(clique.price for clique in certificate.cliques), denominator)
    for k, (prompt, rounds) in enumerate(kinds.tolist()):
        held = -(-(prompt + np.arange(rounds)) // ramps.block_tokens)
        charge = np.zeros(horizon + 1, np.int64)
        for table, row in zip(tables, certificate.rows, strict=True):
            charge = charge + _charge(row.prices, held if table is None else table[held], horizon)
        own: dict[tuple[float, int, int | None], int] = {}
        for request in members[k]:
            alone = request if request in of_cliques else None
            key = (float(ramps.weight[request]), int(ramps.arrival[request]), alone)
            own[key] = own.get(key, 0) + 1
        for (weight, arrival, alone), count in own.items():
            exact = Fraction(weight)
            paid = charge if alone is None else _sum(charge, of_cliques[alone])
            finish, paid = starts[arrival:] + rounds, paid[arrival:]
            scaled = exact.numerator * denominator
            if scaled * (horizon + rounds) >= _FITS or exact.denominator > 1:
                finish, paid = finish.astype(object), paid.astype(object)
            cost = finish * scaled + paid * exact.denominator
            total += count * Fraction(int(cost.min()), exact.denominator * denominator)
    return total


def _checked(row: Priced, ramps: Ramps) -> Ints | None:
    if (np.asarray(row.prices) < 0).any():
        raise ValueError("a price is negative")
    if row.table is None:
        return None
    table = np.asarray(row.table, np.int64)
    if len(table) != ramps.capacity + 1 or (table < 0).any() or table[0]:
        raise ValueError("a table needs capacity + 1 whole numbers >= 0, the first of them 0")
    return table


def _charge(prices: Ints, value: Ints, horizon: int) -> Ints:
    """Give what a request pays for each starting round 0..horizon: sum_j prices[t + j] value[j], exactly."""
    rounds = len(value)
    padded = np.zeros(horizon + rounds, np.int64)
    padded[: len(prices)] = prices
    largest = int(value.max()) * rounds
    if int(padded.max(initial=0)) * largest < _FITS // 2:
        return np.correlate(padded, value, mode="valid")
    high, low = padded // _HALF, padded % _HALF
    parts = (np.correlate(part, value, mode="valid").astype(object) for part in (high, low))
    return np.asarray(next(parts) * _HALF + next(parts))


def _clique_charges(cliques: Sequence[Clique], ramps: Ramps, horizon: int) -> dict[int, Ints]:
    """Give what each request pays to cliques for each starting round 0..horizon, for requests in any."""
    large = sum(clique.price for clique in cliques) >= _FITS // 2
    change: dict[int, Ints] = {}
    for clique in cliques:
        check_clique(clique, ramps)
        for request, first, last in zip(
            clique.requests.tolist(), clique.first.tolist(), clique.last.tolist(), strict=True
        ):
            if request not in change:
                change[request] = np.zeros(horizon + 1, object if large else np.int64)
            change[request][first] += clique.price
            change[request][last + 1] -= clique.price
    return {request: np.cumsum(by_round) for request, by_round in change.items()}


def _sum(one: Ints, other: Ints) -> Ints:
    if int(one.max()) + int(other.max()) >= _FITS:
        one = one.astype(object)
    return one + other


def bounding_ramps(instance: Instance) -> Ramps:
    """Read an instance in equal rounds as ramps of which every schedule's completions, in rounds, are no smaller.

    Raises
    ------
    ValueError
        If steps are not equally long, or what a request computed can be thrown out or shared: then its KV is
        no unbroken ramp, and prices on rounds prove nothing.
    """
    engine, requests = instance.engine, instance.requests
    pieces = [piece for regime in engine.step_time.regimes for piece in regime.pieces]
    bases = {ticks(piece.base_s) for piece in pieces}
    if len(bases) > 1 or any(rate for piece in pieces for name, rate in piece if name != "base_s"):
        raise ValueError("the engine's steps are not equally long")
    if engine.preemption != "none" or engine.prefix_caching:
        raise ValueError("the engine may throw requests out, or share prefixes")
    (base,) = bases
    return Ramps(
        requests.prompt_tokens,
        requests.output_tokens,
        # Steps may be moved to the round in which they start: none begins before that.
        np.array([moment_ticks(a) // base for a in requests.arrival_s.tolist()], np.int64),
        np.ones(len(requests)) if requests.weight is None else requests.weight,
        engine.kv_blocks,
        engine.block_tokens,
        engine.max_num_seqs,
    )


def price_bound_s(instance: Instance, certificate: Prices, *, weighted: bool) -> Fraction:
    """Give the bound of `price_bound` as a mean latency in seconds, by weight if so wanted."""
    ramps = bounding_ramps(instance)
    if not weighted:
        ramps = Ramps(
            ramps.prompt,
            ramps.rounds,
            ramps.arrival,
            np.ones(len(ramps)),
            ramps.capacity,
            ramps.block_tokens,
            ramps.seats,
        )
    base = ticks(instance.engine.step_time.regimes[0].pieces[0].base_s)
    weights = [Fraction(w) for w in ramps.weight.tolist()]
    arrivals = (moment_ticks(a) for a in instance.requests.arrival_s.tolist())
    waited = sum((w * a for w, a in zip(weights, arrivals, strict=True)), Fraction(0))
    return (price_bound(ramps, certificate) * base - waited) / sum(weights) / TICKS_PER_SECOND

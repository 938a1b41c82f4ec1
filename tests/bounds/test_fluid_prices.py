"""Fluid prices prove bounds below every schedule, near the best of them where requests are many."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.bounds.fluid_master import Knots
from optimizer.bounds.fluid_prices import Fluid, fluid_prices
from optimizer.certificates.prices import price_bound
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_greedy import by_area, greedy
from optimizer.traces.ramp_families import ramp_family


@st.composite
def small_ramps(draw: st.DrawFn) -> Ramps:
    n = draw(st.integers(1, 4))

    def column(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    return Ramps.of(
        column(1, 4),
        column(1, 5),
        capacity=draw(st.integers(8, 12)),
        arrival=column(0, 4),
        weight=column(0, 3),
        block_tokens=draw(st.integers(1, 2)),
        seats=draw(st.integers(1, 4)),
    )


def least_total(ramps: Ramps) -> float:
    """Try all starts up to a round by which any order is done."""
    last = int(ramps.arrival.max() + ramps.rounds.sum())
    best = np.inf

    def extend(start: list[int]) -> None:
        nonlocal best
        i = len(start)
        if i == len(ramps):
            best = min(best, ramps.total_completion(np.array(start)))
            return
        part = Ramps.of(
            ramps.prompt[: i + 1],
            ramps.rounds[: i + 1],
            capacity=ramps.capacity,
            block_tokens=ramps.block_tokens,
            seats=ramps.seats,
        )
        for t in range(int(ramps.arrival[i]), last + 1):
            chosen = [*start, t]
            if ramps.total_completion(np.array(chosen + ramps.arrival[i + 1 :].tolist())) >= best:
                break
            if part.feasible(np.array(chosen)):
                extend(chosen)

    extend([])
    return float(best)


@settings(max_examples=40, deadline=None)
@given(small_ramps())
def test_the_bound_is_below_the_optimum(ramps: Ramps) -> None:
    fluid = fluid_prices(ramps, greedy(ramps, by_area(ramps)))
    exact = price_bound(ramps, fluid.certificate)
    assert exact <= least_total(ramps)
    assert fluid.bound == pytest.approx(float(exact), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(small_ramps())
def test_the_fluid_schedule_is_one(ramps: Ramps) -> None:
    fluid = fluid_prices(ramps, greedy(ramps, by_area(ramps)))
    assert fluid.shares.sum(axis=0) == pytest.approx(np.ones(len(ramps)))
    assert (fluid.starts >= ramps.arrival).all()
    early, late = fluid.quantile(0.2), fluid.quantile(1.0)
    assert (early <= late).all()
    mixed = fluid.quantile(np.where(np.arange(len(ramps)) % 2, 0.2, 1.0))
    assert mixed.tolist() == np.where(np.arange(len(ramps)) % 2, early, late).tolist()


@pytest.mark.parametrize(("name", "ratio"), [("chat", 1.06), ("mixed-long", 1.09), ("gsm8k-like", 1.06)])
def test_it_is_near_the_best_known_where_requests_are_many(name: str, ratio: float) -> None:
    from optimizer.solvers.ramp_large import ramp_large

    ramps = ramp_family(name, 500, seed=1)
    fluid = fluid_prices(ramps, greedy(ramps, by_area(ramps)))
    value = ramps.total_completion(ramp_large(ramps, moves=2000, fluid=fluid))
    assert fluid.bound <= value <= ratio * fluid.bound


def test_many_requests_are_bundled_and_the_bound_holds_for_each() -> None:
    one = ramp_family("chat", 4500, seed=1)
    ramps = replace(one, weight=np.where(np.arange(4500) % 3, 1.0, 2.0))
    start = greedy(ramps, by_area(ramps))
    fluid = fluid_prices(ramps, start, time_limit_s=2)
    assert 0.7 * ramps.total_completion(start) < fluid.bound <= ramps.total_completion(start)
    assert fluid.starts.shape == fluid.shares.shape
    assert fluid.starts.shape[1] == 4500


def test_seats_have_prices_where_they_are_scarce() -> None:
    ramps = ramp_family("gsm8k-like", 100, seed=2)
    wide = fluid_prices(ramps, greedy(ramps, by_area(ramps)))
    tight = replace(ramps, seats=8)
    narrow = fluid_prices(tight, greedy(tight, by_area(tight)))
    assert narrow.bound > 1.5 * wide.bound
    assert len(narrow.certificate.rows) == 2
    assert narrow.certificate.rows[1].prices.any()


def test_better_results_are_told_and_the_search_can_be_stopped() -> None:
    ramps = ramp_family("gsm8k-like", 200, seed=2)
    start = greedy(ramps, by_area(ramps))
    told: list[Fluid] = []
    last = fluid_prices(ramps, start, on_bound=told.append)
    assert [f.bound for f in told] == sorted(f.bound for f in told)
    assert told[-1] is last
    stopped = fluid_prices(ramps, start, on_bound=lambda _: True)
    assert stopped.bound == told[0].bound


def test_no_time_gives_a_valid_bound_all_the_same() -> None:
    ramps = ramp_family("chat", 200, seed=2)
    start = greedy(ramps, by_area(ramps))
    fluid = fluid_prices(ramps, start, time_limit_s=1e-9)
    assert 0 < fluid.bound <= ramps.total_completion(start)
    assert fluid.shares.sum(axis=0) == pytest.approx(np.ones(200))


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.lists(st.integers(-5, 5), min_size=48, max_size=48),
    st.lists(st.integers(-5, 5), min_size=8, max_size=8),
)
def test_gather_is_the_transpose_of_spread(gaps: list[int], by_round: list[int], values: list[int]) -> None:
    knots = Knots(np.concatenate([[0], np.cumsum(gaps)]))
    amounts = np.array([by_round[: int(knots.rounds[-1])]], float)
    at = np.array([values[: len(gaps)]], float)
    assert (knots.gather(amounts) * at).sum() == pytest.approx((amounts * knots.spread(at)).sum())


def test_brute_force_itself_knows_an_easy_optimum() -> None:
    # Two never meet: 3 + 6 whichever goes first; the third is beside one of them.
    ramps = Ramps.of([6, 6, 1], [3, 3, 2], capacity=10)
    totals = [ramps.total_completion(greedy(ramps, np.array(order))) for order in permutations(range(3))]
    assert least_total(ramps) == min(totals) == 3 + 6 + 2

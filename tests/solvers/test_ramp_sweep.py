"""The sweep: the optimum of brute force, exact bounds whatever it drops, the root bound of its prices."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.bounds.clique_prices import clique_prices
from optimizer.certificates.prices import Priced, Prices, price_bound
from optimizer.problem.ramps import Ramps
from optimizer.solvers.models import solve_ramps
from optimizer.solvers.ramp_greedy import by_rounds, greedy
from optimizer.solvers.ramp_guide import Guide
from optimizer.solvers.ramp_sweep import can_sweep, ramp_sweep
from tests.bounds.test_fluid_prices import least_total

NOTHING = Prices([Priced(None, np.zeros(1, np.int64))], 1)


@st.composite
def sweepable(draw: st.DrawFn) -> Ramps:
    n = draw(st.integers(1, 5))

    def column(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    return Ramps.of(
        column(1, 4),
        column(1, 6),
        capacity=draw(st.integers(9, 13)),
        arrival=draw(st.sampled_from([[0] * n, column(0, 5)])),
        weight=draw(st.sampled_from([[1] * n, column(1, 3)])),
        block_tokens=draw(st.integers(1, 2)),
    )


@settings(deadline=None, max_examples=150)
@given(sweepable(), st.booleans())
def test_the_optimum_of_brute_force(ramps: Ramps, priced: bool) -> None:
    known = greedy(ramps, by_rounds(ramps))
    prices = clique_prices(ramps, known).certificate if priced else NOTHING
    swept = ramp_sweep(ramps, prices, known)
    assert ramps.feasible(swept.start)
    assert swept.value == swept.bound == ramps.total_completion(swept.start) == least_total(ramps)


@settings(deadline=None, max_examples=60)
@given(sweepable(), st.integers(1, 4))
def test_what_is_dropped_weakens_the_bound_and_no_more(ramps: Ramps, width: int) -> None:
    known = greedy(ramps, by_rounds(ramps))
    swept = ramp_sweep(ramps, NOTHING, known, widths=(width,))
    assert swept.bound <= least_total(ramps) <= swept.value <= ramps.total_completion(known)


@settings(deadline=None, max_examples=60)
@given(sweepable())
def test_the_guide_begins_with_what_the_prices_prove(ramps: Ramps) -> None:
    prices = clique_prices(ramps, greedy(ramps, by_rounds(ramps))).certificate
    guide = Guide(ramps, prices, int(ramps.arrival.max() + ramps.rounds.sum()) + 1)
    root = Fraction(guide.base + guide.least[:, 0].sum()) / guide.unit
    assert root >= price_bound(ramps, prices)


def drawn(n: int, seed: int) -> Ramps:
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(20, 30))
    prompt = rng.integers(2, 7, n)
    return Ramps.of(prompt, rng.integers(1, capacity - prompt + 2), capacity=capacity)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_cp_sat(seed: int) -> None:
    ramps = drawn(6, seed)
    known = greedy(ramps, by_rounds(ramps))
    swept = ramp_sweep(ramps, clique_prices(ramps, known).certificate, known)
    solved = solve_ramps(ramps, known=swept.start, time_limit_s=60, workers=2)
    assert solved.status.value == "optimal"
    assert swept.value == swept.bound == solved.value


def test_twelve_are_proved_and_progress_is_told() -> None:
    ramps = drawn(12, 1)
    known = greedy(ramps, by_rounds(ramps))
    prices = clique_prices(ramps, known).certificate
    told: list[float] = []
    bounds: list[float] = []
    swept = ramp_sweep(
        ramps,
        prices,
        known,
        on_incumbent=lambda found: told.append(found.value),
        on_bound=bounds.append,
        widths=(10, 10**6),
    )
    assert swept.bound == swept.value == bounds[-1]
    assert bounds == sorted(bounds)
    assert told == sorted(told, reverse=True)
    stopped = ramp_sweep(ramps, prices, known, on_incumbent=lambda _: True)
    assert stopped.value in told or not told
    late = ramp_sweep(ramps, prices, known, time_limit_s=1e-6)
    assert late.bound <= swept.value <= late.value


@pytest.mark.parametrize(
    "other",
    [
        {"seats": 2},
        {"weight": [0.5, 1, 1]},
        {"weight": [0, 1, 1]},
        {"capacity": 2**15},
        {"arrival": [0, 0, 10**6]},
    ],
)
def test_what_it_does_not_take(other: dict) -> None:
    assert can_sweep(Ramps.of([1, 2, 3], [3, 2, 1], capacity=9))
    assert not can_sweep(Ramps.of([1, 2, 3], [3, 2, 1], **({"capacity": 9} | other)))
    assert not can_sweep(Ramps.of([1] * 65, [1] * 65, capacity=9))
    assert not can_sweep(Ramps.of([], [], capacity=9))

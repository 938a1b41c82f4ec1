"""Prices with cliques: below every schedule, above what prices of memory prove, the same for a seed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings

from optimizer.bounds.clique_prices import clique_prices
from optimizer.bounds.fluid_prices import fluid_prices
from optimizer.certificates.prices import price_bound
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_greedy import by_rounds, greedy
from tests.certificates.test_prices import optimum, problems


@settings(deadline=None, max_examples=40)
@given(problems())
def test_never_above_the_best_schedule(ramps: Ramps) -> None:
    found = clique_prices(ramps, greedy(ramps, by_rounds(ramps)))
    assert found.bound == price_bound(ramps, found.certificate)
    assert found.bound <= Fraction(optimum(ramps))


def small(seed: int) -> Ramps:
    rng = np.random.default_rng(seed)
    prompt = rng.integers(2, 7, 12)
    return Ramps.of(prompt, rng.integers(1, 32 - prompt), capacity=32)


def test_a_good_part_more_than_memory_alone_proves() -> None:
    for seed in range(3):
        ramps = small(seed)
        start = greedy(ramps, by_rounds(ramps))
        found = clique_prices(ramps, start, time_limit_s=60)
        memory = fluid_prices(ramps, start, time_limit_s=2)
        assert 1.05 * float(memory.bound) < float(found.bound) <= ramps.total_completion(start)
        again = clique_prices(ramps, start, time_limit_s=60)
        assert again.bound == found.bound


def test_a_target_and_a_callback_end_it() -> None:
    ramps = small(0)
    start = greedy(ramps, by_rounds(ramps))
    told: list[Fraction] = []
    found = clique_prices(ramps, start, on_bound=lambda prices: told.append(prices.bound) or True)
    assert told == [found.bound]
    half = float(found.bound) / 2
    assert clique_prices(ramps, start, target=half).bound >= half


def test_seats_are_priced_too() -> None:
    ramps = Ramps.of([1] * 6, [4] * 6, capacity=1000, seats=2)
    found = clique_prices(ramps, np.array([0, 0, 4, 4, 8, 8]))
    assert float(found.bound) > 0.95 * (4 + 8 + 12) * 2

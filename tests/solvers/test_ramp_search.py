"""The search for some ramps: feasible, never worse than its start, optimal where brute force can tell, the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem.ramps import Ramps
from optimizer.solvers.beside import Beside
from optimizer.solvers.ramp_greedy import ORDERS, by_rounds, greedy
from optimizer.solvers.ramp_lanes import Lanes
from optimizer.solvers.ramp_search import ramp_search
from tests.bounds.test_fluid_prices import least_total, small_ramps
from tests.solvers.test_ramp_large import some_ramps

_HORIZON = 120


@settings(max_examples=60, deadline=None)
@given(some_ramps(), st.randoms(use_true_random=False))
def test_the_first_round_in_which_a_request_fits(ramps: Ramps, rng: np.random.Generator) -> None:
    lanes, start = Lanes(ramps, _HORIZON), np.full(len(ramps), -1)
    used = lanes.empty
    for i in range(len(ramps)):
        begin = rng.randrange(0, 20)
        start[i] = begin
        some = start[: i + 1]
        part = Ramps.of(
            ramps.prompt[: i + 1], ramps.rounds[: i + 1], capacity=ramps.capacity,
            block_tokens=ramps.block_tokens, seats=ramps.seats if ramps.seats < len(ramps) else 2**31,
        )  # fmt: skip
        while not part.feasible(some):
            start[i] += 1
        assert lanes.earliest(used, i, begin) == start[i]
        used = lanes.put(used, i, int(start[i]))


@settings(max_examples=40, deadline=None)
@given(some_ramps(), st.integers(0, 3))
def test_it_is_feasible_and_no_worse_than_any_heuristic(ramps: Ramps, seed: int) -> None:
    start = ramp_search(ramps, moves=200, seed=seed)
    assert ramps.feasible(start)
    best = min(ramps.total_completion(greedy(ramps, order(ramps))) for order in ORDERS.values())
    assert ramps.total_completion(start) <= best
    assert start.tolist() == ramp_search(ramps, moves=200, seed=seed).tolist()


@settings(max_examples=25, deadline=None)
@given(small_ramps())
def test_a_few_requests_are_solved(ramps: Ramps) -> None:
    assert ramps.total_completion(ramp_search(ramps, moves=2000)) == least_total(ramps)


def some(n: int) -> Ramps:
    rng = np.random.default_rng(n)
    prompt = rng.integers(2, 7, n)
    return Ramps.of(prompt, rng.integers(1, 40 - prompt), capacity=40)


def test_it_goes_on_from_a_start_and_stops_when_told() -> None:
    ramps = some(20)
    start = greedy(ramps, by_rounds(ramps))
    told: list[float] = []
    better = ramp_search(ramps, start=start, moves=3000, on_incumbent=lambda found: told.append(found.value))
    assert told == sorted(told, reverse=True)
    assert told[0] == ramps.total_completion(start) > told[-1] == ramps.total_completion(better)
    enough = ramps.total_completion(start)
    assert ramps.total_completion(ramp_search(ramps, start=start, moves=3000, target=enough)) == enough
    stopped = ramp_search(ramps, start=start, moves=3000, on_incumbent=lambda found: found.value < enough)
    assert ramps.total_completion(better) <= ramps.total_completion(stopped) < enough
    assert not len(ramp_search(Ramps.of([], [], capacity=3)))
    with pytest.raises(InputError, match="request 0 needs"):
        ramp_search(Ramps.of([9], [1], capacity=3))


def test_beside_something_else() -> None:
    ramps = some(20)
    start = greedy(ramps, by_rounds(ramps))
    with Beside(ramps, start, seed=0, time_limit_s=2.0) as search:
        assert ramps.total_completion(search.best()) <= ramps.total_completion(start)
        found = search.result()
    assert ramps.feasible(found)
    assert ramps.total_completion(found) < ramps.total_completion(start)

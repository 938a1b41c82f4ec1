"""The search for large instances: always feasible, never worse than the heuristics, the same for a seed."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.bounds.fluid_prices import fluid_prices
from optimizer.errors import InputError
from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_greedy import ORDERS, by_area, greedy
from optimizer.solvers.ramp_large import fill, ramp_large
from optimizer.solvers.result import Incumbent
from optimizer.traces.ramp_families import ramp_families, ramp_family


@st.composite
def some_ramps(draw: st.DrawFn) -> Ramps:
    n = draw(st.integers(1, 9))

    def column(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    return Ramps.of(
        column(1, 6),
        column(1, 7),
        capacity=draw(st.integers(12, 20)),
        arrival=column(0, 9),
        weight=draw(st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.5]), min_size=n, max_size=n)),
        block_tokens=draw(st.integers(1, 4)),
        seats=draw(st.integers(1, 6)),
    )


@settings(max_examples=60, deadline=None)
@given(some_ramps(), st.integers(0, 3))
def test_it_is_feasible_and_no_worse_than_any_heuristic(ramps: Ramps, seed: int) -> None:
    start = ramp_large(ramps, moves=100, seed=seed)
    assert ramps.feasible(start)
    best = min(ramps.total_completion(greedy(ramps, order(ramps))) for order in ORDERS.values())
    assert ramps.total_completion(start) <= best


@settings(deadline=None)
@given(some_ramps(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_filling_is_feasible_in_any_order(ramps: Ramps, choice: int, rng: np.random.Generator) -> None:
    order = list(range(len(ramps)))
    rng.shuffle(order)
    assert ramps.feasible(fill(ramps, np.array(order), choice))


@pytest.mark.parametrize("name", ramp_families())
@pytest.mark.parametrize("load", [None, 1.2])
@pytest.mark.parametrize("block_tokens", [1, 16])
def test_families_get_better_and_stay_feasible(name: str, load: float | None, block_tokens: int) -> None:
    ramps = ramp_family(name, 150, seed=5, load=load)
    # A cache of a few blocks has room for hardly anything else.
    blocks = max(ramps.capacity // block_tokens, int(ramps.peak.max()))
    ramps = replace(ramps, capacity=blocks, block_tokens=block_tokens)
    svf = greedy(ramps, by_area(ramps))
    fluid = fluid_prices(ramps, svf, time_limit_s=2)
    start = ramp_large(ramps, moves=3000, fluid=fluid)
    assert ramps.feasible(start)
    assert fluid.bound <= ramps.total_completion(start) <= ramps.total_completion(svf)


def test_it_beats_smallest_volume_first_by_a_tenth_on_long_answers() -> None:
    ramps = ramp_family("gsm8k-like", 1319, seed=0)
    svf = greedy(ramps, by_area(ramps))
    fluid = fluid_prices(ramps, svf, time_limit_s=3)
    start = ramp_large(ramps, moves=5000, fluid=fluid)
    assert ramps.total_completion(start) < 0.9 * ramps.total_completion(svf)


def test_a_seed_gives_the_same_schedule() -> None:
    ramps = ramp_family("kv-ramps", 40, seed=1)
    one, same, other = (ramp_large(ramps, moves=2000, seed=seed) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


def test_ten_thousand_are_answered_at_once() -> None:
    ramps = ramp_family("chat", 10_000, seed=1)
    told: list[float] = []

    def first(incumbent: Incumbent[Ints]) -> bool:
        told.append(incumbent.seconds)
        return True

    cpu = time.process_time()
    start = ramp_large(ramps, time_limit_s=60, on_incumbent=first)
    assert time.process_time() - cpu < 1.0
    assert len(told) == 1
    assert ramps.feasible(start)


def test_incumbents_fall_and_the_last_is_the_answer() -> None:
    ramps = ramp_family("chat", 300, seed=3)
    fluid = fluid_prices(ramps, greedy(ramps, by_area(ramps)), time_limit_s=2)
    told: list[Incumbent[Ints]] = []
    start = ramp_large(ramps, moves=4000, fluid=fluid, on_incumbent=told.append)
    values = [incumbent.value for incumbent in told]
    assert values == sorted(set(values), reverse=True)
    assert values[-1] == ramps.total_completion(start)
    assert {incumbent.bound for incumbent in told} == {fluid.bound}
    assert all(ramps.feasible(incumbent.solution) for incumbent in told)


def test_time_ends_it() -> None:
    ramps = ramp_family("chat", 300, seed=3)
    began = time.monotonic()
    ramp_large(ramps, time_limit_s=0.3)
    assert time.monotonic() - began < 30


def test_no_limit_and_no_room_are_refused() -> None:
    with pytest.raises(InputError, match="give time_limit_s or moves"):
        ramp_large(Ramps.of([1], [1], capacity=5))
    with pytest.raises(InputError, match="request 0 needs 9 blocks"):
        ramp_large(Ramps.of([5], [5], capacity=8), moves=1)

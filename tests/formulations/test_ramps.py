"""`ramps`: the optimum of brute force, whatever the objective; repairs keep what is fixed; nonsense is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.formulations.ramps import build, value_of
from optimizer.problem.ramps import Ramps
from optimizer.solvers.models import solve_ramps
from optimizer.solvers.result import Status


@st.composite
def problems(draw: st.DrawFn) -> Ramps:
    n, capacity, block = draw(st.integers(1, 4)), draw(st.integers(3, 7)), draw(st.sampled_from([1, 2]))
    prompt = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    return Ramps.of(
        prompt,
        [draw(st.integers(1, min(4, capacity * block - p + 1))) for p in prompt],
        capacity=capacity,
        arrival=draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)),
        weight=draw(st.lists(st.sampled_from([1.0, 2.0]), min_size=n, max_size=n)),
        block_tokens=block,
        seats=draw(st.integers(1, 3)),
    )


def every_schedule(ramps: Ramps) -> list[np.ndarray]:
    latest = int(ramps.arrival.max() + ramps.rounds.sum())
    starts = itertools.product(*(range(a, latest) for a in ramps.arrival.tolist()))
    return [start for s in starts if ramps.feasible(start := np.array(s))]


@settings(deadline=None, max_examples=25)
@given(problems(), st.sampled_from(["latency", "makespan", "missed"]), st.data())
def test_the_optimum_is_that_of_brute_force(ramps: Ramps, objective: str, data: st.DataObject) -> None:
    deadline = data.draw(st.lists(st.integers(1, 9), min_size=len(ramps), max_size=len(ramps)))
    done = solve_ramps(ramps, objective=objective, deadline=deadline, workers=1, time_limit_s=120)
    best = min(value_of(ramps, start, objective, deadline) for start in every_schedule(ramps))
    assert done.status is Status.OPTIMAL
    assert done.value == best == done.bound
    assert ramps.feasible(done.solution)


def test_a_repair_keeps_what_is_fixed() -> None:
    ramps = Ramps.of([2, 2, 2], [3, 1, 2], capacity=5)
    done = solve_ramps(ramps, fixed={0: 4}, window={1: (1, 2)}, workers=1)
    assert done.solution[0] == 4
    assert 1 <= done.solution[1] <= 2
    assert ramps.feasible(done.solution)


def test_what_makes_no_sense_is_refused() -> None:
    ramps = Ramps.of([2, 2], [3, 1], capacity=4)
    with pytest.raises(InputError, match="deadline"):
        build(ramps, objective="missed")
    with pytest.raises(InputError, match="grain"):
        build(ramps, grain=0)
    with pytest.raises(InputError, match="feasible"):
        build(Ramps.of([2, 2], [3, 2], capacity=4), known=np.array([0, 0]))
    with pytest.raises(InputError, match="shorten it or give the engine more memory"):
        build(Ramps.of([9], [1], capacity=4))

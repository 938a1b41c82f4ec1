"""The timeline says what `Ramps.feasible` says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_timeline import Timeline


@st.composite
def started(draw: st.DrawFn) -> tuple[Ramps, list[int]]:
    n = draw(st.integers(1, 6))

    def column(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    ramps = Ramps.of(
        column(1, 6),
        column(1, 7),
        capacity=draw(st.integers(12, 20)),
        block_tokens=draw(st.integers(1, 4)),
        seats=draw(st.integers(1, 6)),
    )
    return ramps, column(0, 15)


@given(started())
def test_earliest_is_the_first_round_that_is_feasible(case: tuple[Ramps, list[int]]) -> None:
    ramps, first = case
    timeline, start = Timeline(ramps), []
    for i, t in enumerate(first):
        found = timeline.earliest(i, t)
        part = Ramps.of(
            ramps.prompt[: i + 1],
            ramps.rounds[: i + 1],
            capacity=ramps.capacity,
            block_tokens=ramps.block_tokens,
            seats=ramps.seats,
        )
        assert part.feasible(np.array([*start, found]))
        assert not any(part.feasible(np.array([*start, sooner])) for sooner in range(t, found))
        timeline.put(i, found)
        start.append(found)


@given(started(), st.data())
def test_what_is_taken_out_leaves_no_trace(case: tuple[Ramps, list[int]], data: st.DataObject) -> None:
    ramps, first = case
    timeline, start = Timeline(ramps), []
    for i, t in enumerate(first):
        start.append(timeline.earliest(i, t))
        timeline.put(i, start[-1])
    out = data.draw(st.integers(0, len(ramps) - 1))
    timeline.take(out, start[out])
    assert timeline.earliest(out, start[out]) == start[out]
    timeline.put(out, start[out])
    again = Timeline(ramps, np.array(start))
    for i, t in enumerate(first):
        assert timeline.earliest(i, t) == again.earliest(i, t)


def test_it_grows_with_the_schedule() -> None:
    ramps = Ramps.of([5, 5], [4000, 4000], capacity=4010)
    timeline = Timeline(ramps)
    timeline.put(0, 900)
    timeline.put(1, 50_000)
    assert timeline.earliest(0, 900) == 4898
    assert timeline.earliest(1, 47_000) == 53_998


def test_what_never_fits_is_refused() -> None:
    with pytest.raises(InputError, match="request 0 needs 9 blocks"):
        Timeline(Ramps.of([5], [5], capacity=8))

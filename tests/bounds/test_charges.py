"""The closed forms of ramps under prices say what summing round by round says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.bounds.charges import Charges
from optimizer.problem.ramps import Ramps


@st.composite
def ramps_of(draw: st.DrawFn, most: int = 5) -> Ramps:
    n = draw(st.integers(1, most))

    def column(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    return Ramps.of(
        column(1, 12),
        column(1, 9),
        capacity=100,
        arrival=column(0, 6),
        weight=column(0, 4),
        block_tokens=draw(st.integers(1, 5)),
    )


def charged(ramps: Ramps, i: int, start: int, memory: list[int], seats: list[int]) -> float:
    total = float(ramps.weight[i]) * (start + int(ramps.rounds[i]))
    for j in range(int(ramps.rounds[i])):
        if start + j < len(memory):
            blocks = -(-(int(ramps.prompt[i]) + j) // ramps.block_tokens)
            total += memory[start + j] * blocks + seats[start + j]
    return total


@given(
    ramps_of(),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=15),
    st.integers(1, 4),
)
def test_least_is_the_least_over_all_starts_of_the_grid(
    ramps: Ramps, prices: list[tuple[int, int]], stride: int
) -> None:
    memory, seats = [list(row) for row in zip(*prices, strict=True)]
    horizon = len(memory)
    cost, start = Charges(ramps, horizon, stride).least(np.array(memory, float), np.array(seats, float))
    for i in range(len(ramps)):
        arrival = int(ramps.arrival[i])
        grid = [t for t in range(arrival, max(horizon, arrival) + 1) if t % stride == 0]
        assert cost[i] == pytest.approx(charged(ramps, i, int(start[i]), memory, seats))
        assert start[i] >= arrival
        if grid:
            assert cost[i] <= min(charged(ramps, i, t, memory, seats) for t in grid) + 1e-9


@given(ramps_of(), st.data())
def test_usage_is_the_profile(ramps: Ramps, data: st.DataObject) -> None:
    n = len(ramps)
    start = ramps.arrival + np.array(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)))
    horizon = data.draw(st.integers(1, 30))
    blocks, seats = Charges(ramps, horizon).usage(np.arange(n), start, np.ones(n))
    expected = np.zeros(horizon)
    profile = ramps.profile(start)[:horizon]
    expected[: len(profile)] = profile
    assert blocks.tolist() == expected.tolist()
    running = [int(((start <= u) & (u < start + ramps.rounds)).sum()) for u in range(horizon)]
    assert seats.tolist() == running

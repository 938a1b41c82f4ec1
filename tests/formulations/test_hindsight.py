import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.formulations.hindsight import build, latency
from optimizer.problem.ramps import Ramps
from optimizer.solvers import milp
from optimizer.solvers.result import Status


def solve(ramps, known=None, **options):
    model = build(ramps, known)
    return milp.run(model.problem, model.read, time_limit_s=120, **options)


def by_search(ramps):
    """The least total latency of all schedules."""
    n = len(ramps)
    horizon = int(ramps.arrival.max() + ramps.rounds.sum())
    held = [
        (-(-(p + np.arange(o)) // ramps.block_tokens)).tolist()
        for p, o in zip(ramps.prompt, ramps.rounds, strict=True)
    ]
    use, seated = [0] * horizon, [0] * horizon
    best = float("inf")

    def place(i, cost):
        nonlocal best
        if cost >= best:
            return
        if i == n:
            best = cost
            return
        rounds, arrival = len(held[i]), int(ramps.arrival[i])
        for t in range(arrival, horizon - rounds + 1):
            fits = all(
                use[t + j] + h <= ramps.capacity and seated[t + j] < ramps.seats
                for j, h in enumerate(held[i])
            )
            if fits:
                for j, h in enumerate(held[i]):
                    use[t + j] += h
                    seated[t + j] += 1
                place(i + 1, cost + ramps.weight[i] * (t + rounds - arrival))
                for j, h in enumerate(held[i]):
                    use[t + j] -= h
                    seated[t + j] -= 1

    place(0, 0.0)
    return best


@st.composite
def ramps_of(draw):
    n = draw(st.integers(1, 5))
    prompt = draw(st.lists(st.integers(1, 6), min_size=n, max_size=n))
    rounds = draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))
    block = draw(st.sampled_from([1, 2]))
    peak = max(-(-(p + o - 1) // block) for p, o in zip(prompt, rounds, strict=True))
    return Ramps.of(
        prompt,
        rounds,
        capacity=draw(st.integers(peak, 2 * peak)),
        arrival=draw(st.none() | st.lists(st.integers(0, 4), min_size=n, max_size=n)),
        weight=draw(st.none() | st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=n, max_size=n)),
        block_tokens=block,
        seats=draw(st.sampled_from([1, 2, 99])),
    )


@settings(max_examples=40, deadline=None)
@given(ramps_of())
def test_the_program_finds_what_exhaustive_search_finds(ramps):
    done = solve(ramps)
    assert done.status is Status.OPTIMAL
    assert done.value == pytest.approx(by_search(ramps), abs=1e-6)
    assert ramps.feasible(done.solution)
    assert latency(ramps, done.solution) == pytest.approx(done.value)


@settings(max_examples=15, deadline=None)
@given(ramps_of())
def test_a_start_changes_the_size_and_not_the_optimum(ramps):
    one_after_another = np.zeros(len(ramps), np.int64)
    clock = 0
    for i in np.argsort(ramps.arrival, kind="stable"):
        one_after_another[i] = max(clock, ramps.arrival[i])
        clock = one_after_another[i] + ramps.rounds[i]
    assert solve(ramps, one_after_another).value == pytest.approx(solve(ramps).value)


@settings(max_examples=10, deadline=None)
@given(ramps_of())
def test_cbc_agrees(ramps):
    assert solve(ramps, engine="cbc").value == pytest.approx(solve(ramps).value)


def test_equal_requests_are_one_kind():
    apart = Ramps.of([2, 2, 2], [3, 3, 3], capacity=4, weight=[1.0, 1.5, 2.0])
    alike = Ramps.of([2, 2, 2], [3, 3, 3], capacity=4)
    assert len(build(alike).problem.variables()) < len(build(apart).problem.variables()) / 2
    done = solve(alike)
    assert done.value == 3 + 6 + 9
    assert sorted(done.solution.tolist()) == [0, 3, 6]


def test_a_request_without_weight_may_have_to_go_last():
    # It is known to go first; it should start when the one that counts has ended, after the last arrival.
    ramps = Ramps.of([3, 3], [4, 1], capacity=6, arrival=[0, 3], weight=[0.0, 1.0], seats=1)
    done = solve(ramps, np.array([0, 4]))
    assert (done.value, done.solution.tolist()) == (1.0, [4, 3])


def test_seats_bind_where_one_is_missing():
    done = solve(Ramps.of([1, 1, 1], [2, 2, 3], capacity=99, seats=2))
    assert done.value == 2 + 2 + 5


def test_staggering_beats_the_shortest_first():
    # Each holds up to 4 of 6 tokens: two run together only if one has begun two rounds earlier.
    ramps = Ramps.of([1, 1], [4, 4], capacity=6)
    done = solve(ramps)
    assert (done.value, sorted(done.solution.tolist())) == (4 + 6, [0, 2])


def test_what_does_not_fit_says_so():
    with pytest.raises(InputError, match="request 1 needs 9 blocks"):
        build(Ramps.of([1, 6], [2, 4], capacity=8))


def test_an_infeasible_start_is_refused():
    ramps = Ramps.of([1, 1], [4, 4], capacity=6)
    with pytest.raises(InputError, match="known schedule is not feasible"):
        build(ramps, np.array([0, 0]))

"""The future peak of KV: worked numbers, and a simulation in time by brute force."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from optimizer.policies.peak import future_peak

PAIRS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=9)


def brute_force(pairs):
    """Let everybody hold one token more after each step and leave after its last; look at every step."""
    return max(
        sum(held + t for held, remaining in pairs if remaining >= t)
        for t in range(1, max(remaining for _, remaining in pairs) + 1)
    )


def test_the_worked_numbers_of_the_card():
    """Three requests peak at 38 tokens; with a fourth at 47."""
    three = [(10, 5), (20, 1), (5, 9)]
    assert future_peak(three) == 38
    assert future_peak([*three, (8, 8)]) == 47


def test_nothing_runs_nothing_is_needed():
    """No requests, no memory."""
    assert future_peak([]) == 0


@given(pairs=PAIRS)
def test_equals_a_simulation_in_time(pairs):
    """The closed form over ends is the largest sum over all steps."""
    assert future_peak(pairs) == brute_force(pairs)


@given(pairs=PAIRS, seed=st.randoms())
def test_the_order_of_requests_does_not_matter(pairs, seed):
    """A set of requests has one peak, however it is listed."""
    shuffled = list(pairs)
    seed.shuffle(shuffled)
    assert future_peak(shuffled) == future_peak(pairs)


@given(pairs=PAIRS, one=st.tuples(st.integers(1, 60), st.integers(1, 40)))
def test_one_more_request_never_lowers_the_peak(pairs, one):
    """A newcomer adds at least what it holds after its first step, where it peaks alone."""
    assert future_peak([*pairs, one]) >= max(future_peak(pairs), sum(one))

"""Cliques of starts: no two of one clique fit into a schedule, prices of cliques never prove too much, others are refused."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.bounds.cliques import Grower
from optimizer.certificates import price_certificate, verify
from optimizer.certificates.cliques import Clique, check_clique, reach
from optimizer.certificates.prices import Priced, Prices, price_bound
from optimizer.errors import InputError
from optimizer.problem.ramps import Ramps
from tests.certificates.test_prices import instance, optimum, problems


def grown(ramps: Ramps, request: int, start: int, price: int, horizon: int = 14) -> Clique:
    """The clique around a start."""
    grower = Grower(ramps, horizon)
    found = grower.complete(grower.seed(request, start))
    inside = np.flatnonzero(found.last >= found.first)
    return Clique(inside, found.first[inside], found.last[inside], price)


@settings(deadline=None)
@given(problems(), st.integers(0, 12), st.integers(0, 12))
def test_reach_says_who_goes_together(ramps: Ramps, a: int, b: int) -> None:
    if len(ramps) < 2:
        return
    two = Ramps.of(
        ramps.prompt[:2], ramps.rounds[:2], capacity=ramps.capacity, block_tokens=ramps.block_tokens, seats=ramps.seats
    )  # fmt: skip
    limits = reach(two)
    conflict = -limits[1, 0] <= b - a <= limits[0, 1]
    assert conflict != two.feasible(np.array([a, b]))


@settings(deadline=None, max_examples=60)
@given(problems(), st.data())
def test_no_prices_of_cliques_prove_too_much(ramps: Ramps, data: st.DataObject) -> None:
    cliques = []
    for _ in range(data.draw(st.integers(1, 4))):
        request = data.draw(st.integers(0, len(ramps) - 1))
        start = int(ramps.arrival[request]) + data.draw(st.integers(0, 5))
        cliques.append(grown(ramps, request, start, data.draw(st.integers(0, 9))))
        check_clique(cliques[-1], ramps)
    memory = Priced(None, np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=9))))
    bound = price_bound(ramps, Prices([memory], data.draw(st.integers(1, 9)), cliques))
    assert bound <= Fraction(optimum(ramps))


def document() -> dict:
    """Two requests of which the second waits for the first."""
    clique = Clique(np.array([0, 1]), np.array([0, 1]), np.array([1, 1]), 1)
    return price_certificate(
        instance(), "mean-latency", Prices([Priced(None, np.zeros(1, np.int64))], 1, [clique])
    )


def test_a_clique_is_read_back() -> None:
    # In rounds: 2 + 1 for the first, 3 + 1 or 4 for the second, less the price; two to a second.
    assert verify(document(), instance()).bound == Fraction(3 + 4 - 1, 2) / 2 - Fraction(7, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last": [9, 1]}, "go together"),
        ({"first": [0, 2], "last": [1, 1]}, "empty interval"),
        ({"requests": [0, 0]}, "each once"),
        ({"requests": [0, 7]}, "of the instance"),
        ({"requests": [0]}, "different length"),
        ({"price": -1}, "negative price"),
        ({"first": [-1, 1]}, "before round 0"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_no_clique_is_refused(change: dict, message: str) -> None:
    changed = copy.deepcopy(document())
    changed["cliques"][0] |= change
    with pytest.raises(InputError, match=message):
        verify(changed, instance())

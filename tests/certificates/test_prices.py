"""Prices on rounds: whatever they are, the bound is below the best schedule; and certificates that are wrong are refused."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.bounds.lines import find_lines
from optimizer.certificates import price_certificate, verify, work_certificate
from optimizer.certificates.prices import Priced, Prices, bounding_ramps, price_bound
from optimizer.errors import InputError
from optimizer.problem import Engine, Instance, Requests, StepTime
from optimizer.problem.ramps import Ramps


@st.composite
def problems(draw: st.DrawFn) -> Ramps:
    n, capacity, block = draw(st.integers(1, 3)), draw(st.integers(3, 8)), draw(st.sampled_from([1, 2]))
    prompt = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    return Ramps.of(
        prompt,
        [draw(st.integers(1, capacity * block - p + 1).filter(lambda o: o <= 5)) for p in prompt],
        capacity=capacity,
        arrival=draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)),
        weight=draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=n, max_size=n)),
        block_tokens=block,
        seats=draw(st.integers(1, 3)),
    )


def optimum(ramps: Ramps) -> float:
    latest = int(ramps.arrival.max() + ramps.rounds.sum())
    every = itertools.product(*(range(a, latest + 1) for a in ramps.arrival.tolist()))
    return min(ramps.total_completion(np.array(s)) for s in every if ramps.feasible(np.array(s)))


@settings(deadline=None, max_examples=60)
@given(problems(), st.data())
def test_no_prices_prove_too_much(ramps: Ramps, data: st.DataObject) -> None:
    prices = st.lists(st.integers(0, 6), max_size=12).map(np.array)
    tables = st.lists(st.integers(0, 3), min_size=ramps.capacity, max_size=ramps.capacity)
    rows = [Priced(None, data.draw(prices)), Priced(np.array([0, *data.draw(tables)]), data.draw(prices))]
    bound = price_bound(ramps, Prices(rows, data.draw(st.integers(1, 9))))
    assert bound <= Fraction(optimum(ramps))


def test_huge_prices_are_added_up_exactly() -> None:
    ramps = Ramps.of([3] * 6, [4] * 6, capacity=13, weight=[0.1] * 6)
    small = Prices([Priced(None, np.arange(9)[::-1] % 5)], 7)
    large = Prices([Priced(None, small.rows[0].prices * 2**40)], 7 * 2**40)
    assert price_bound(ramps, small) == price_bound(ramps, large)


def instance(**engine: object) -> Instance:
    values = {
        "kv_blocks": 7,
        "block_tokens": 1,
        "preemption": "none",
        "step_time": StepTime.affine(base_s=0.5),
    } | engine
    requests = Requests.from_columns(
        {"prompt_tokens": [4, 4], "output_tokens": [2, 2], "arrival_s": [0.0, 0.7]}
    )
    return Instance("two", requests, Engine(name="e", **values))


def test_a_certificate_in_seconds() -> None:
    """Two requests that never meet: the second waits for the first, to 2.0 s; its arrival counts from 0.7 s."""
    prices = Prices([Priced(np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([1, 1, 1]))], 1)
    document = price_certificate(instance(), "mean-latency", prices)
    found = verify(document, instance())
    assert found.kind == "prices"
    assert Fraction(1, 2) < found.bound <= Fraction(1 + 2) / 2 - Fraction(7, 20)
    assert bounding_ramps(instance()).arrival.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"preemption": "recompute"}, "may throw requests out"),
        ({"step_time": StepTime.affine(base_s=0.5, per_decode_seq_s=0.1)}, "not equally long"),
        ({"prefix_caching": True}, "share prefixes"),
    ],
)
def test_prices_prove_nothing_elsewhere(engine: dict, message: str) -> None:
    other = instance(**engine)
    document = price_certificate(other, "mean-latency", Prices([Priced(None, np.array([1]))], 1))
    with pytest.raises(InputError, match=message):
        verify(document, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "x"}, "no certificate"),
        ({"kind": "faith"}, "expected work or prices"),
        ({"instance_sha256": "0"}, "another instance"),
        ({"objective": "speed"}, "no objective"),
        ({"denominator": 0}, "denominator"),
        ({"rows": []}, "rows"),
        ({"rows": [{"prices": [-1]}]}, "a price is negative"),
        ({"rows": [{"prices": [1], "table": [0, 1]}]}, "capacity"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_no_certificate_is_refused(change: dict, message: str) -> None:
    document = (
        price_certificate(instance(), "mean-latency", Prices([Priced(None, np.array([1]))], 1)) | change
    )
    with pytest.raises(InputError, match=message):
        verify(document, instance())


def test_a_work_certificate_that_was_tampered_with_is_refused() -> None:
    made = work_certificate(instance(), "makespan", find_lines(instance(), "makespan"))
    assert verify(made, instance()).bound > 0
    for name, value in (("rates", [10**16] + [0] * 6), ("rates", [1]), ("weights", [[1]])):
        broken = made | {"lines": [made["lines"][0] | {name: value}]}
        with pytest.raises(InputError, match="line 0 proves nothing"):
            verify(broken, instance())
    with pytest.raises(InputError, match="fields"):
        verify(made | {"fields": ["base_s"]}, instance())

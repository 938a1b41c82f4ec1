"""Predictors of lengths: quantiles that mean what they say, scores that tell good from bad, and no trust in the broken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.online import Request
from optimizer.online.guesses import Given, Oracle
from optimizer.online.lengths import Lengths, pinball
from optimizer.online.predictors import Bucketed, History, NoPredictor, PerTenant


def oracle():
    return Oracle(lambda request: 200, log_sigma=0.5)


PREDICTORS = [NoPredictor, History, Bucketed, PerTenant, Given, oracle, lambda: Oracle(lambda request: 200)]


def drawn(rng, n, sigma=0.5):
    """Requests with guesses that are off by a log-normal factor, and their true lengths."""
    true = np.maximum(1, rng.lognormal(5.0, 0.9, n)).astype(int)
    guess = true * np.exp(rng.normal(0.0, sigma, n))
    return [
        (Request(f"r{i}", 50, 4000, predicted_tokens=float(g), tenant="t"), int(t))
        for i, (t, g) in enumerate(zip(true, guess, strict=True))
    ]


@pytest.mark.parametrize("make", PREDICTORS)
@given(
    lengths=st.lists(st.integers(1, 3000), min_size=25, max_size=60),
    generated=st.integers(0, 4000),
    guess=st.floats(0, 5000),
)
def test_quantiles_rise_and_lie_above_what_is_out(make, lengths, generated, guess):
    predictor = make()
    request = Request("r", 100, 8000, predicted_tokens=guess, tenant="t")
    for length in lengths:
        predictor.observe(request, length)
    said = [predictor.quantile(request, generated, q) for q in (0.1, 0.5, 0.9)]
    assert all(s > generated for s in said)
    assert said == sorted(said)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.2])
def test_an_oracle_is_as_wrong_as_it_was_told(sigma):
    """Its errors are log-normal, and the quantiles that it gives know how large they are."""
    truth = {f"r{i}": 50 + i for i in range(3000)}
    oracle = Oracle(lambda request: truth[request.id], log_sigma=sigma, seed=4)
    medians = np.array([oracle.quantile(Request(name, 9), 0, 0.5) for name in truth])
    errors = np.log(medians / np.array(list(truth.values())))
    assert errors.std() == pytest.approx(sigma, abs=0.05)
    assert errors.mean() == pytest.approx(0.0, abs=0.06)
    again = Oracle(lambda request: truth[request.id], log_sigma=sigma, seed=4)
    assert again.quantile(Request("r7", 9), 0, 0.5) == medians[7]
    if sigma:
        below = [length <= oracle.quantile(Request(name, 9), 0, 0.8) for name, length in truth.items()]
        assert np.mean(below) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("sigma", [0.2, 0.8])
def test_guesses_are_calibrated_by_what_they_were_worth(sigma):
    """Of those who are told a length with 80 % confidence, 80 % stay below it, also once tokens are out."""
    rng = np.random.default_rng(0)
    given = Given(log_sigma=0.5)
    for request, length in drawn(rng, 3000, sigma):
        given.observe(request, length)
    fresh = drawn(rng, 3000, sigma)
    below = np.mean([length <= given.quantile(request, 0, 0.8) for request, length in fresh])
    assert below == pytest.approx(0.8, abs=0.03)
    longer = [(r, n) for r, n in fresh if n > 200]
    below = np.mean([length <= given.quantile(request, 200, 0.5) for request, length in longer])
    assert below == pytest.approx(0.5, abs=0.12)


def test_a_bias_is_learned():
    given = Given()
    for i in range(500):
        given.observe(Request(f"{i}", 10, predicted_tokens=100.0), 200)
    assert given.quantile(Request("x", 10, predicted_tokens=50.0), 0, 0.5) == pytest.approx(100, rel=0.05)


@given(st.lists(st.integers(1, 500), min_size=30, max_size=200), st.integers(0, 499), st.floats(0.05, 0.95))
def test_history_gives_the_quantile_of_those_that_are_longer(lengths, generated, q):
    history = History(size=100)
    for length in lengths:
        history.observe(Request("r", 5), length)
    longer = sorted(x for x in lengths[-100:] if x > generated)
    if longer:
        said = history.quantile(Request("r", 5), generated, q)
        assert said == longer[min(int(q * len(longer)), len(longer) - 1)]


def test_kinds_have_histories_of_their_own_and_old_ones_are_forgotten():
    tenants = PerTenant()
    tenants._most = 3
    for tenant in "abcd":
        for _ in range(30):
            tenants.observe(Request("r", 5, tenant=tenant), 10 * (ord(tenant) - 96))
    assert tenants.quantile(Request("r", 5, tenant="d"), 0, 0.5) == 40
    assert tenants.quantile(Request("r", 5, tenant="a"), 0, 0.5) is None
    assert tenants.quantile(Request("r", 5), 0, 0.5) is None
    assert len(tenants._kinds) == 3


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.floats(0.05, 0.95))
def test_the_pinball_loss_is_least_at_the_quantile(lengths, q):
    best = sorted(lengths)[min(int(q * len(lengths)), len(lengths) - 1)]
    total = {said: sum(pinball(q, said, n) for n in lengths) for said in {*range(1, 101, 7), best}}
    assert total[best] <= min(total.values()) + 1e-9


def test_a_good_predictor_is_kept_and_one_that_is_worse_than_history_is_dropped():
    rng = np.random.default_rng(1)
    lengths = Lengths()
    for request, length in drawn(rng, 600, sigma=0.2):
        lengths.observe(request, length)
    assert not lengths.scores["given"].dropped
    assert lengths.scores["given"].loss < 0.6 * lengths.scores["given"].against

    class Wild:
        name = "wild"

        def quantile(self, request, generated, q):
            return generated + 5000.0

        def observe(self, request, length):
            pass

        def to_document(self):
            return None

        def load(self, document):
            pass

    wild = Lengths((Wild(),))
    for request, length in drawn(rng, 600, sigma=0.2):
        wild.observe(request, length)
    assert wild.scores["wild"].dropped
    assert wild.quantile(Request("r", 50), 0, 0.5) < 1000


def test_a_predictor_that_becomes_better_is_taken_back():
    rng = np.random.default_rng(2)
    lengths = Lengths(("given",))
    for request, length in drawn(rng, 400, sigma=0.1):
        lengths.observe(
            Request(request.id, 50, predicted_tokens=float(rng.uniform(1, 3000)), log_sigma=0.01), length
        )
    assert lengths.scores["given"].dropped
    for request, length in drawn(rng, 2500, sigma=0.1):
        lengths.observe(request, length)
    assert not lengths.scores["given"].dropped


def test_one_wild_prediction_does_not_cost_the_others_their_predictor():
    lengths = Lengths(("given",))
    for wild in (
        Request("x", 50, predicted_tokens=1e308),
        Request("y", 50, predicted_tokens=9.0, log_sigma=1e300),
    ):
        assert lengths.quantile(wild, 0, 0.9) > 0
        lengths.observe(wild, 100)
    assert not lengths.scores["given"].broken
    assert lengths.quantile(Request("z", 50, predicted_tokens=300.0), 0, 0.5) == pytest.approx(300, rel=0.5)


@pytest.mark.parametrize("said", [float("nan"), float("inf"), -5.0, "much", RuntimeError()])
def test_nonsense_is_passed_over(said):
    class Broken:
        name = "broken"

        def quantile(self, request, generated, q):
            if isinstance(said, Exception):
                raise said
            return said

        def observe(self, request, length):
            raise ValueError

        def to_document(self):
            return None

        def load(self, document):
            pass

    lengths = Lengths((Broken(), "given"))
    request = Request("r", 50, predicted_tokens=100.0)
    assert lengths.quantile(request, 0, 0.5) == pytest.approx(100)
    for _ in range(100):
        lengths.observe(request, 100)
    assert lengths.scores["broken"].broken
    assert not lengths.scores["given"].broken


def test_what_was_learned_is_kept():
    rng = np.random.default_rng(3)
    lengths = Lengths()
    for request, length in drawn(rng, 300):
        lengths.observe(request, length)
    again = Lengths()
    again.load(lengths.to_document())
    request = Request("x", 70, predicted_tokens=90.0, tenant="t")
    for generated in (0, 50, 900):
        assert again.quantile(request, generated, 0.7) == lengths.quantile(request, generated, 0.7)
    assert again.to_document() == lengths.to_document()


def test_unknown_and_doubled_names_are_refused():
    with pytest.raises(InputError, match="no predictor 'oracle'"):
        Lengths(("oracle",))
    with pytest.raises(InputError, match="each name once"):
        Lengths(("given", "given"))

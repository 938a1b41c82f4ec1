"""What may be known of output lengths: each spelling, seeds, and bounds that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem import Requests, with_knowledge
from optimizer.problem.knowledge import default_cap

LENGTHS = [1, 49, 50, 51, 123, 400]


def requests(lengths=LENGTHS, caps=None) -> Requests:
    return Requests.from_columns(
        {"prompt_tokens": [5] * len(lengths), "output_tokens": lengths, "max_output_tokens": caps}
    )


def test_exact_tells_the_truth_and_none_nothing():
    """`none` also takes away what was known before."""
    exact = with_knowledge(requests(), "exact")
    assert exact.known.low.tolist() == exact.known.high.tolist() == LENGTHS
    assert exact.known.estimate.tolist() == LENGTHS
    assert exact.known.exact.all()
    assert with_knowledge(exact, "none").known is None


def test_buckets_are_rounded_up_to_a_multiple():
    """A length at a border belongs to the bucket below it."""
    known = with_knowledge(requests(), "bucket:50").known
    assert known.low.tolist() == [1, 1, 1, 51, 101, 351]
    assert known.high.tolist() == [50, 50, 50, 100, 150, 400]


def test_buckets_end_at_the_cap():
    """Nobody believes in more than the client allowed."""
    known = with_knowledge(requests(caps=[2, 49, 60, 60, 123, 999]), "bucket:50").known
    assert known.high.tolist() == [2, 49, 50, 60, 123, 400]


def test_an_interval_is_twice_the_fraction_wide_wherever_it_lies():
    """Its place around the truth is random, its width is not."""
    lengths = [1000] * 500
    known = with_knowledge(requests(lengths), "interval:0.3", seed=1).known
    assert set((known.high - known.low).tolist()) <= {600, 601}
    assert known.low.min() < 450
    assert known.low.max() > 950
    assert known.mean is None


def test_noise_has_the_sigma_that_was_asked_for():
    """A log-normal factor; the bounds say nothing beyond the cap."""
    lengths = [1000] * 4000
    known = with_knowledge(requests(lengths, caps=[100_000] * 4000), "noise:0.5", seed=2).known
    logs = np.log(known.mean / 1000)
    assert logs.std() == pytest.approx(0.5, rel=0.05)
    assert logs.mean() == pytest.approx(0, abs=0.03)
    assert set(known.log_sigma.tolist()) == {0.5}
    assert (set(known.low.tolist()), set(known.high.tolist())) == ({1}, {100_000})


def test_a_noisy_estimate_stays_between_one_and_the_cap():
    """However large the noise."""
    known = with_knowledge(requests(caps=[400] * 6), "noise:20").known
    assert known.mean.min() >= 1
    assert known.mean.max() <= 400


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=30),
    st.sampled_from(
        [
            "exact",
            "bucket:1",
            "bucket:0.5",
            "bucket:50",
            "bucket:333",
            "interval:0.3",
            "interval:5",
            "noise:1",
        ]
    ),
    st.booleans(),
    st.integers(0, 9),
)
def test_the_truth_lies_within_the_bounds(lengths, spelling, capped, seed):
    """Whatever is told, it is not a lie: the bounds pass the check that requests from outside pass."""
    r = with_knowledge(requests(lengths, [n + 10 for n in lengths] if capped else None), spelling, seed=seed)
    true = np.array(lengths)
    assert (r.known.low >= 1).all()
    assert (r.known.low <= true).all()
    assert (true <= r.known.high).all()
    columns = {"prompt_tokens": r.prompt_tokens, "output_tokens": r.output_tokens}
    checked = Requests.from_columns(columns, known=r.known).known
    for name in ("low", "high", "mean", "log_sigma"):
        np.testing.assert_array_equal(getattr(checked, name), getattr(r.known, name))


@pytest.mark.parametrize("spelling", ["interval:0.3", "noise:0.5"])
def test_a_seed_gives_the_same_knowledge_and_another_seed_another(spelling):
    """Random knowledge is repeatable."""
    first, again, other = (with_knowledge(requests(), spelling, seed=s).known for s in (4, 4, 5))
    np.testing.assert_array_equal(first.estimate, again.estimate)
    assert first.estimate.tolist() != other.estimate.tolist()


def test_what_is_known_is_all_that_changes():
    """The truth and all other columns stay, and the requests that were given know no more than before."""
    r = requests(caps=[400] * 6)
    told = with_knowledge(r, "noise:0.5")
    assert told.output_tokens is r.output_tokens
    assert told.max_output_tokens is r.max_output_tokens
    assert r.known is None


@pytest.mark.parametrize(
    "spelling",
    ["", "exactly", "exact:3", "none:1", "bucket", "bucket:", "bucket:0", "bucket:-5", "bucket:many", "interval:nan",
     "interval:inf", "noise:1e6", "noise:", "guess:3", "bucket:50:60"],
)  # fmt: skip
def test_any_other_spelling_is_refused(spelling):
    """The message shows what was given and what is known."""
    with pytest.raises(
        InputError, match=r"is no knowledge of lengths; expected one of exact, none"
    ) as caught:
        with_knowledge(requests(), spelling)
    assert repr(spelling) in caught.value.problem
    assert caught.value.field == "lengths"


@pytest.mark.parametrize(("longest", "cap"), [(1, 2048), (2048, 2048), (2049, 4096), (5000, 8192)])
def test_the_default_cap_is_one_power_of_two_for_all(longest, cap):
    """It tells one request from another in no way."""
    assert default_cap(requests([1, longest])) == cap

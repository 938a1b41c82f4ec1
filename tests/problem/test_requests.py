"""Requests from columns: every bad number is named with its row and field; rows taken keep what belongs to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem import LengthKnowledge, PrefixHashes, Requests
from optimizer.problem.columns import MOST_TOKENS

GOOD = {
    "arrival_s": [0.0, 1.5, 1.5],
    "prompt_tokens": [10, 20, 30],
    "output_tokens": [3, 4, 5],
    "ids": ["a", "b", "c"],
    "max_output_tokens": [3, 8, 9],
    "weight": [1.0, 0.0, 2.5],
    "deadline_s": [9.0, math.nan, 7.0],
    "ttft_slo_s": [0.1, 0.2, math.nan],
    "tpot_slo_s": [math.nan, 0.05, 0.06],
    "tenant": ["x", "y", "x"],
}
WHOLE = ("prompt_tokens", "output_tokens", "max_output_tokens")
REAL = ("arrival_s", "weight", "deadline_s", "ttft_slo_s", "tpot_slo_s")
OPTIONAL = ("deadline_s", "ttft_slo_s", "tpot_slo_s")


def with_value(field, value):
    """The good columns with another value in the second row of one of them."""
    return GOOD | {field: [GOOD[field][0], value, GOOD[field][2]]}


def complaint(columns, **more) -> InputError:
    with pytest.raises(InputError) as caught:
        Requests.from_columns(columns, **more)
    return caught.value


def test_good_columns_become_arrays_of_one_kind():
    """Every column is there, whole numbers as int64, others as float64, names as text."""
    r = Requests.from_columns(GOOD)
    assert len(r) == 3
    for field, given_column in GOOD.items():
        column = getattr(r, field)
        if field in WHOLE:
            assert column.dtype == np.int64
        elif field in REAL:
            assert column.dtype == np.float64
        np.testing.assert_array_equal(column, given_column)
    assert (r.known, r.prefix) == (None, None)


def test_two_columns_are_enough():
    """Without arrivals all arrive at 0; a request without a name goes by its row."""
    r = Requests.from_columns({"prompt_tokens": [1, 2], "output_tokens": [1, 1], "weight": None})
    assert r.arrival_s.tolist() == [0.0, 0.0]
    assert (r.name(1), r.weight, r.ids) == ("1", None, None)
    assert Requests.from_columns(GOOD).name(1) == "b"


@pytest.mark.parametrize("field", WHOLE)
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-2, "-2"),
        (0, "0"),
        (2.5, "2.5"),
        (MOST_TOKENS + 1, "100000001"),
        (1e300, "1e+300"),
        (10**400, "1000"),
        (-(10**400), "-1000"),
        (2**63, "9223372036854775808"),
        (math.nan, "nothing is given"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        ("many", "'many'"),
        ("12x", "'12x'"),
        ("", "nothing is given"),
        (None, "nothing is given"),
        ([1, 2], "[1, 2]"),
        ({}, "{}"),
        (1j, "1j"),
    ],
    ids=repr,
)
def test_a_bad_whole_number_is_named_with_row_and_field(field, value, shown):
    """What is there, what was expected, which request, which field."""
    error = complaint(with_value(field, value))
    assert error.field == field
    assert error.file == "request 1"
    assert error.problem.startswith(shown)
    assert f"expected a whole number from 1 to {MOST_TOKENS}" in error.problem
    assert str(error).startswith(f"request 1, field {field}: ")


@pytest.mark.parametrize("field", REAL)
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-0.5, "-0.5"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        ("soon", "'soon'"),
        (10**400, "1000"),
        ([], "[]"),
    ],
    ids=repr,
)
def test_a_bad_real_number_is_named_with_row_and_field(field, value, shown):
    """As with whole numbers; a time is said to be in seconds where a text stands in its place."""
    error = complaint(with_value(field, value))
    assert (error.file, error.field) == ("request 1", field)
    assert error.problem.startswith(shown)
    assert "expected a" in error.problem
    assert ">= 0" in error.problem


@pytest.mark.parametrize("value", [math.nan, None], ids=repr)
@pytest.mark.parametrize("field", ["arrival_s", "weight"])
def test_arrivals_and_weights_may_not_be_absent_in_a_row(field, value):
    """A column that is there is there for all rows."""
    error = complaint(with_value(field, value))
    assert str(error) == f"request 1, field {field}: nothing is given; expected a finite number >= 0"


@pytest.mark.parametrize("value", [math.nan, None], ids=repr)
@pytest.mark.parametrize("field", OPTIONAL)
def test_deadlines_and_levels_may_be_absent_in_a_row(field, value):
    """Who names none gets none."""
    assert np.isnan(getattr(Requests.from_columns(with_value(field, value)), field)[1])


@pytest.mark.parametrize("value", [True, np.float64(2.5), np.int64(-3)], ids=repr)
def test_booleans_and_numpy_scalars_are_judged_as_what_they_are(value):
    """True is not 1, and a numpy number is shown as the number it holds."""
    error = complaint(with_value("prompt_tokens", value) | {"prompt_tokens": [value] * 3})
    assert error.file == "request 0"
    assert error.problem.startswith(repr(value.item() if isinstance(value, np.generic) else value))


def test_the_first_bad_row_is_the_one_that_is_named():
    """Of several bad rows, the first."""
    assert complaint(GOOD | {"prompt_tokens": [1, -1, -2]}).problem.startswith("-1")


def test_numbers_as_text_are_numbers():
    """CSV files hold text."""
    r = Requests.from_columns({"prompt_tokens": ["10", "20"], "output_tokens": ["3", 4.0]})
    assert (r.prompt_tokens.tolist(), r.output_tokens.tolist()) == ([10, 20], [3, 4])


@pytest.mark.parametrize("text", ["1_000", "_1"])
def test_a_text_with_underscores_is_no_number(text):
    """Python reads 1_000 as a thousand; no table means it."""
    assert complaint(GOOD | {"prompt_tokens": [text, "2", "3"]}).problem.startswith(f"'{text}'; expected")


def test_an_array_of_booleans_is_no_column_of_numbers():
    """Neither is a numpy boolean in a list."""
    for column in (np.array([True] * 3), [np.True_] * 3):
        assert complaint(GOOD | {"prompt_tokens": column}).problem.startswith("True; expected a whole number")


@pytest.mark.parametrize(
    "value", [5, 2.5, "12", b"123", {0: 1}, {1, 2, 3}, np.float64(5), np.array(5)], ids=repr
)
@pytest.mark.parametrize("name", ["prompt_tokens", "weight", "ids"])
def test_one_value_is_no_column(name, value):
    """Nor is what has no order."""
    error = complaint(GOOD | {name: value})
    assert error.field == name
    assert error.problem.endswith("is no column; expected one value per request")


def test_columns_of_pandas_may_have_an_index_of_their_own():
    """Rows count from 0, in good columns and in messages."""
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(
        {"prompt_tokens": [10, 20], "output_tokens": [3, 4], "ids": ["a", "b"]}, index=[5, 7]
    )
    assert Requests.from_columns(table.to_dict("series")).prompt_tokens.tolist() == [10, 20]
    table.loc[7, "prompt_tokens"] = -2
    error = complaint({name: table[name] for name in table})
    assert (error.file, error.field, error.problem.partition(";")[0]) == ("request 1", "prompt_tokens", "-2")


@pytest.mark.parametrize("name", ["prompts", "known", "prefix", "arrival"])
def test_an_unknown_column_is_named_with_those_that_are_known(name):
    """Knowledge and prefixes are not columns: they have arguments of their own."""
    error = complaint(GOOD | {name: [1, 2, 3]})
    assert error.problem.startswith(f"unknown column '{name}'; known are arrival_s, prompt_tokens")


@pytest.mark.parametrize("name", ["prompt_tokens", "output_tokens"])
@pytest.mark.parametrize("left_out", [True, False], ids=["left out", "None"])
def test_a_missing_column_is_named(name, left_out):
    """Not there, or None: both are missing."""
    columns = {k: v for k, v in GOOD.items() if k != name} if left_out else GOOD | {name: None}
    assert complaint(columns).problem == f"column '{name}' is missing"


@pytest.mark.parametrize("name", [n for n in GOOD if n != "prompt_tokens"])
def test_columns_of_other_lengths_are_refused(name):
    """The prompts say how many rows there are."""
    assert complaint(GOOD | {name: GOOD[name][:2]}).problem == f"column '{name}' has 2 rows; expected 3"


def test_no_requests_are_refused():
    """An empty instance is a mistake, not an easy one."""
    error = complaint({"prompt_tokens": [], "output_tokens": []})
    assert error.problem == "there are no requests; expected at least one"


def test_an_id_that_stands_twice_is_named_at_its_second_place():
    """Ids are compared as text."""
    error = complaint(GOOD | {"ids": ["1", 2, 1]})
    assert str(error) == "request 2, field ids: '1' stands twice; expected every id once"


def test_times_that_run_backwards_are_named_with_both():
    """The row that is too early, and the one above it."""
    error = complaint(GOOD | {"arrival_s": [0.0, 2.0, 1.25]})
    assert (error.file, error.field) == ("request 2", "arrival_s")
    assert error.problem.startswith("1.25 s is before the row above, 2.0 s")


def test_an_output_above_its_cap_is_named_with_the_cap():
    """The truth cannot be longer than what the client allowed; equal is fine."""
    error = complaint(GOOD | {"max_output_tokens": [3, 4, 4]})
    assert (error.file, error.field) == ("request 2", "output_tokens")
    assert error.problem.startswith("5 is above the request's max_output_tokens 4")


def test_a_reader_says_where_rows_come_from():
    """`locate` turns a row into a file and a line, and may name the field as the file does."""
    error = complaint(
        with_value("prompt_tokens", -1),
        locate=lambda row: {"file": "t.csv", "line": row + 2, "field": "ContextTokens"},
    )
    assert str(error).startswith("t.csv, line 3, field ContextTokens: -1; expected")


def knowledge(low, high, **more) -> LengthKnowledge:
    return LengthKnowledge(np.array(low), np.array(high), **more)


@pytest.mark.parametrize(
    ("low", "high", "field"),
    [
        ([3, 5, 5], [3, 9, 5], "output_tokens"),
        ([3, 1, 1], [3, 3, 9], "output_tokens"),
        ([3, 5, 1], [3, 4, 9], "known_low"),
    ],
    ids=["above", "below", "empty"],
)
def test_a_known_interval_holds_the_truth(low, high, field):
    """An interval that misses the true length, or is none, is an error of that row."""
    error = complaint(GOOD, known=knowledge(low, high))
    assert (error.file, error.field) == ("request 1", field)
    assert f"[{low[1]}, {high[1]}]" in error.problem


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"low": [3, 1], "high": [3, 4]}, "column 'known_low' has 2 rows; expected 3"),
        ({"low": [3, 1, 1], "high": [3, 4]}, "column 'known_high' has 2 rows; expected 3"),
        ({"mean": [3.0, 4.0]}, "column 'known_mean' has 2 rows; expected 3"),
        ({"log_sigma": [0.1] * 4}, "column 'known_log_sigma' has 4 rows; expected 3"),
        ({"low": [3, 0, 1]}, "request 1, field known_low: 0; expected a whole number from 1"),
        ({"low": [3, 1.7, 1]}, "request 1, field known_low: 1.7; expected a whole number"),
        ({"high": [3, 4, math.nan]}, "request 2, field known_high: nothing is given; expected a whole number"),
        ({"mean": [3, -4, 5]}, "request 1, field known_mean: -4; expected a finite number >= 0"),
        ({"mean": [3, math.nan, 5]}, "request 1, field known_mean: nothing is given; expected a finite number"),
        ({"log_sigma": [0.1, math.inf, 0.1]}, "request 1, field known_log_sigma: inf; expected a finite number"),
        ({"low": 3}, "field known_low: array(3) is no column; expected one value per request"),
    ],
)  # fmt: skip
def test_what_is_known_is_one_good_number_per_request(known, said):
    """Of all requests, whole where it is a length, and never negative."""
    given = {"low": [3, 1, 1], "high": [3, 4, 9]} | known
    arrays = {name: np.array(column) for name, column in given.items()}
    assert str(complaint(GOOD, known=LengthKnowledge(**arrays))).startswith(said)


def test_what_knowledge_says():
    """The estimate is the mean where there is one, else the middle; exact is where both ends meet."""
    known = knowledge([3, 1], [3, 8])
    assert known.estimate.tolist() == [3.0, 4.5]
    assert known.exact.tolist() == [True, False]
    with_mean = knowledge([1, 1], [9, 9], mean=np.array([2.5, 7.0]), log_sigma=np.array([0.1, 0.2]))
    assert with_mean.estimate.tolist() == [2.5, 7.0]
    taken = with_mean.take([1])
    assert (taken.mean.tolist(), taken.log_sigma.tolist(), taken.high.tolist()) == ([7.0], [0.2], [9])


def hashes(*lists, block_tokens=10, covers_outputs=False) -> PrefixHashes:
    ids = np.array([i for own in lists for i in own], dtype=np.int64)
    return PrefixHashes(ids, np.cumsum([0, *map(len, lists)]), block_tokens, covers_outputs)


def test_a_prompt_has_at_most_one_hash_per_block():
    """The last, partial block may have one; beyond that, the row is named with what would fit."""
    assert Requests.from_columns(GOOD, prefix=hashes([1], [1, 2], [1, 2, 3])).prefix.of(2).tolist() == [
        1, 2, 3,
    ]  # fmt: skip
    error = complaint(GOOD, prefix=hashes([1], [1, 2, 3], []))
    assert (error.file, error.field) == ("request 1", "prefix")
    assert error.problem.startswith("3 block hashes for a prompt of 20 tokens; expected at most 2")


def test_hashes_that_cover_outputs_may_be_longer():
    """Then prompt and output count together."""
    lists = ([1, 2], [1, 2, 3], [1, 2, 3, 4])
    r = Requests.from_columns(GOOD, prefix=hashes(*lists, covers_outputs=True))
    assert r.prefix.hashed_tokens(r).tolist() == [12, 23, 34]  # the last token never enters the cache
    assert hashes(*lists).hashed_tokens(r).tolist() == [10, 20, 30]
    with pytest.raises(InputError, match="2 block hashes for a prompt of 10 tokens"):
        Requests.from_columns(GOOD, prefix=hashes(*lists))


def test_hashes_fit_the_requests():
    """As many lists as requests, and at least one token per hash."""
    assert complaint(GOOD, prefix=hashes([1], [2])).problem == "hashes of 2 requests; expected 3"
    error = complaint(GOOD, prefix=hashes([], [], [], block_tokens=0))
    assert error.problem == "0 tokens per hash; expected at least 1"


def test_a_hash_is_a_whole_number():
    """Cut to whole numbers, different hashes would become equal."""
    fractions = PrefixHashes(np.array([1.5, 1.7, 1.0]), np.array([0, 1, 2, 3]), 10)
    assert complaint(GOOD, prefix=fractions).problem == "hashes of type float64; expected whole numbers"


FULL = Requests.from_columns(
    GOOD,
    known=knowledge([3, 1, 2], [3, 8, 9], mean=np.array([3.0, 2.0, 4.0])),
    prefix=hashes([], [7, 8], [9], covers_outputs=True),
)


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        (slice(1, None), [1, 2]),
        (np.array([True, False, True]), [0, 2]),
        ([0, 2], [0, 2]),
        (slice(0, 1), [0]),
        ([], []),
    ],
    ids=["slice", "mask", "numbers", "one", "none"],
)
def test_rows_taken_keep_all_that_belongs_to_them(rows, left):
    """Columns, names, knowledge and hashes alike."""
    taken = FULL.take(np.array(rows, dtype=np.int64) if isinstance(rows, list) else rows)
    assert len(taken) == len(left)
    for field in GOOD:
        np.testing.assert_array_equal(getattr(taken, field), np.array(GOOD[field])[left])
    np.testing.assert_array_equal(taken.known.high, FULL.known.high[left])
    np.testing.assert_array_equal(taken.known.mean, FULL.known.mean[left])
    assert taken.known.log_sigma is None
    assert [taken.prefix.of(i).tolist() for i in range(len(left))] == [
        FULL.prefix.of(i).tolist() for i in left
    ]
    assert (taken.prefix.block_tokens, taken.prefix.covers_outputs) == (10, True)


def test_replace_changes_one_column_of_a_copy():
    """The original stays as it is: requests are frozen."""
    longer = FULL.replace(output_tokens=np.array([1, 1, 1]))
    assert longer.output_tokens.tolist() == [1, 1, 1]
    assert FULL.output_tokens.tolist() == [3, 4, 5]
    assert longer.prefix is FULL.prefix
    with pytest.raises(AttributeError):
        FULL.weight = None


@given(st.lists(st.integers(1, MOST_TOKENS), min_size=1, max_size=20))
def test_every_whole_number_in_range_comes_back_unchanged(lengths):
    """Up to the largest that is accepted: nothing is rounded on the way."""
    r = Requests.from_columns({"prompt_tokens": lengths, "output_tokens": np.array(lengths)})
    assert r.prompt_tokens.tolist() == r.output_tokens.tolist() == lengths


@given(
    st.lists(
        st.one_of(st.integers(-3, 3), st.floats(), st.booleans(), st.none(), st.text(max_size=3)), min_size=1
    )
)
def test_whatever_stands_in_a_column_is_accepted_or_explained(values):
    """Nothing but an `InputError` comes out, and what is accepted is whole and positive."""
    columns = {"prompt_tokens": values, "output_tokens": [1] * len(values)}
    try:
        taken = Requests.from_columns(columns).prompt_tokens.tolist()
    except InputError as caught:
        error, taken = caught, []
    else:
        error = None
    if error is None:
        assert all(float(value) == number >= 1 for value, number in zip(values, taken, strict=True))
    else:
        assert error.field == "prompt_tokens"
        assert error.file.startswith("request ")

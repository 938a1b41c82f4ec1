"""Shaping: windows, rates, clipping, tenants, ticks, drawn arrivals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem import LengthKnowledge, PrefixHashes, Requests
from optimizer.traces import (
    clip_lengths,
    draw_arrivals,
    only_tenants,
    scale_time,
    spread_ticks,
    to_rate,
    window,
)


def some(n: int = 5, **columns: Any) -> Requests:
    given = {
        "arrival_s": np.arange(n) * 2.0,
        "prompt_tokens": np.arange(n) * 10 + 40,
        "output_tokens": np.arange(n) + 1,
        **columns,
    }
    return Requests.from_columns(given)


def with_prefix(r: Requests, block_tokens: int = 16) -> Requests:
    sizes = -(-r.prompt_tokens // block_tokens)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return r.replace(prefix=PrefixHashes(np.arange(starts[-1]), starts, block_tokens))


def test_a_window_by_count_starts_at_zero() -> None:
    r = window(some(), first=1, count=3)
    assert (r.arrival_s.tolist(), r.output_tokens.tolist()) == ([0, 2, 4], [2, 3, 4])


def test_a_window_in_time_is_closed_on_the_left_and_open_on_the_right() -> None:
    assert window(some(), start_s=2, end_s=6).output_tokens.tolist() == [2, 3]
    assert window(some(), start_s=2, first=1, count=1).output_tokens.tolist() == [3]


@pytest.mark.parametrize(
    "bounds", [{"first": 5}, {"start_s": 100.0}, {"end_s": 0.0}, {"start_s": 4.0, "end_s": 4.0}]
)
def test_an_empty_window_says_what_there_was(bounds: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="leaves nothing: there are 5 requests from 0 to 8 s"):
        window(some(), **bounds)


@pytest.mark.parametrize(
    ("bounds", "field"),
    [
        ({"first": -1}, "first"),
        ({"count": 0}, "count"),
        ({"start_s": -1.0}, "start_s"),
        ({"end_s": np.nan}, "end_s"),
    ],
)
def test_senseless_bounds_are_named(bounds: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        window(some(), **bounds)
    assert error.value.field == field


def test_scaling_keeps_the_slack_of_deadlines() -> None:
    r = scale_time(some(deadline_s=np.arange(5) * 2.0 + 7), 0.5)
    assert r.arrival_s.tolist() == [0, 1, 2, 3, 4]
    assert r.deadline_s is not None
    assert (r.deadline_s - r.arrival_s).tolist() == [7] * 5


@given(rate=st.floats(1e-3, 1e3), n=st.integers(2, 50))
def test_a_rate_is_requests_over_the_span(rate: float, n: int) -> None:
    r = to_rate(some(n), rate)
    assert n / r.arrival_s[-1] == pytest.approx(rate)


def test_a_rate_needs_arrivals_that_differ() -> None:
    with pytest.raises(InputError, match="draw arrivals instead"):
        to_rate(some(arrival_s=np.zeros(5)), 1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_factors_and_rates_are_positive(value: float) -> None:
    for call in (
        lambda: scale_time(some(), value),
        lambda: to_rate(some(), value),
        lambda: draw_arrivals(some(), value),
        lambda: spread_ticks(some(), tick_s=value),
    ):
        with pytest.raises(InputError, match="expected a finite number above 0"):
            call()


def test_the_total_is_cut_from_the_prompt() -> None:
    r = clip_lengths(some(prompt_tokens=[100, 50, 10, 1, 1], output_tokens=[5, 60, 1, 1, 200]), max_total=50)
    assert r.prompt_tokens.tolist() == [45, 1, 10, 1, 1]
    assert r.output_tokens.tolist() == [5, 49, 1, 1, 49]


def test_clipping_an_output_clips_what_is_known_of_it_and_its_cap() -> None:
    r = some(1, output_tokens=[30], max_output_tokens=[100])
    r = r.replace(known=LengthKnowledge(np.array([25]), np.array([60]), np.array([40.0])))
    clipped = clip_lengths(r, max_output=20)
    assert clipped.known is not None
    assert clipped.known.mean is not None
    assert clipped.max_output_tokens is not None
    assert (int(clipped.known.low[0]), int(clipped.known.high[0]), float(clipped.known.mean[0])) == (
        20,
        20,
        20.0,
    )
    assert clipped.max_output_tokens.tolist() == [20]


def test_clipping_a_prompt_drops_the_hashes_of_blocks_that_are_not_whole_any_more() -> None:
    r = with_prefix(some(2, prompt_tokens=[40, 100]))
    prefix = clip_lengths(r, max_prompt=50).prefix
    assert prefix is not None
    # The first is untouched and keeps its partial block; the second is left with three whole ones.
    assert (prefix.of(0).tolist(), prefix.of(1).tolist()) == ([0, 1, 2], [3, 4, 5])


@given(
    prompts=st.lists(st.integers(1, 500), min_size=1, max_size=20),
    most=st.integers(1, 300),
    total=st.integers(2, 300),
)
def test_clipped_requests_keep_every_limit_and_stay_sound(prompts: list[int], most: int, total: int) -> None:
    n = len(prompts)
    r = with_prefix(some(n, prompt_tokens=prompts))
    c = clip_lengths(r, max_prompt=most, max_output=most, max_total=total)
    assert (c.prompt_tokens >= 1).all()
    assert (c.prompt_tokens <= most).all()
    assert (c.output_tokens <= most).all()
    assert (c.prompt_tokens + c.output_tokens <= total).all()
    columns = {"prompt_tokens": c.prompt_tokens, "output_tokens": c.output_tokens}
    Requests.from_columns(columns, prefix=c.prefix)


@pytest.mark.parametrize(("name", "limit"), [("max_prompt", 0), ("max_output", 0), ("max_total", 1)])
def test_limits_leave_room_for_a_token(name: str, limit: int) -> None:
    with pytest.raises(InputError) as error:
        clip_lengths(some(), **{name: limit})
    assert error.value.field == name


def test_tenants_are_chosen_by_name() -> None:
    r = only_tenants(some(tenant=["a", "b", "c", "b", "a"]), ["b", "c"])
    assert (r.tenant, r.arrival_s.tolist()) == (("b", "c", "b"), [0, 2, 4])


def test_tenants_that_are_not_there_are_named() -> None:
    with pytest.raises(InputError, match="'z' is no tenant here; there are a, b"):
        only_tenants(some(tenant=list("abaab")), ["a", "z"])
    with pytest.raises(InputError, match="leaves out all 5 requests"):
        only_tenants(some(tenant=list("abaab")), [])
    with pytest.raises(InputError, match="have no tenants"):
        only_tenants(some(), ["a"])


@given(seed=st.integers(0, 10**6))
def test_spreading_ticks_keeps_rows_together_and_every_request_near_its_tick(seed: int) -> None:
    n = 40
    r = with_prefix(some(n, arrival_s=np.repeat(np.arange(8) * 3.0, 5), ids=[f"r{i}" for i in range(n)]))
    s = spread_ticks(r, tick_s=3.0, seed=seed)
    assert s.arrival_s[0] == 0
    assert (np.diff(s.arrival_s) >= 0).all()
    assert s.ids is not None
    assert s.prefix is not None
    assert r.prefix is not None
    assert sorted(s.ids) == sorted(r.ids or ())
    for row, name in enumerate(s.ids):
        before = int(name[1:])
        assert s.prompt_tokens[row] == r.prompt_tokens[before]
        assert s.prefix.of(row).tolist() == r.prefix.of(before).tolist()
        # The first arrival was moved by less than a tick, and the axis was shifted by as much.
        assert -3 < s.arrival_s[row] - r.arrival_s[before] < 3


def test_the_same_seed_gives_the_same_arrivals() -> None:
    a, b, c = (draw_arrivals(some(200), 3.0, cv=2.0, seed=seed).arrival_s for seed in (7, 7, 8))
    assert a.tobytes() == b.tobytes() != c.tobytes()
    assert (
        spread_ticks(some(), seed=1).arrival_s.tobytes() == spread_ticks(some(), seed=1).arrival_s.tobytes()
    )


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 4.0])
def test_drawn_gaps_have_their_mean_and_variation(cv: float) -> None:
    gaps = np.diff(draw_arrivals(some(200_000), 5.0, cv=cv, seed=3).arrival_s)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-6)


def test_one_request_arrives_at_zero() -> None:
    assert draw_arrivals(some(1), 5.0).arrival_s.tolist() == [0.0]


def test_a_variation_below_zero_is_none() -> None:
    with pytest.raises(InputError) as error:
        draw_arrivals(some(), 1.0, cv=-0.5)
    assert error.value.field == "cv"

"""The outlook against the plain test of the policies, whoever comes and goes and however the clock runs."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.online import Request
from optimizer.online.outlook import Outlook
from optimizer.online.state import State
from optimizer.policies.horizon_rules import kv_is_safe
from tests.online.double import toy_engine

members = st.lists(
    st.tuples(st.integers(1, 80), st.floats(1, 300), st.floats(0.01, 1.0)), min_size=1, max_size=10
)


def entry_of(state, name, prompt, median, sigma):
    entry = state.add(Request(name, prompt, 400), 0.0, 400)
    entry.mu, entry.sigma = log(median), sigma
    entry.most = prompt + 400.0
    return entry


def runs(state, outlook, entry):
    """Admit a request and compute its prompt."""
    state.admit(entry)
    outlook.add(entry)
    state.compute(entry, entry.known)
    outlook.seated(entry)


def plainly(state, entries, capacity, deviations):
    held = np.array([state.tokens(e) + state.block_tokens for e in entries], float)
    mu, sigma = np.array([e.mu for e in entries]), np.array([e.sigma for e in entries])
    generated = np.array([state.generated(e) for e in entries], float)
    return kv_is_safe(held, mu, sigma, generated, capacity, deviations)


@settings(max_examples=150, deadline=None)
@given(members, st.tuples(st.integers(1, 80), st.floats(1, 300), st.floats(0.01, 1.0)), st.integers(100, 900))
def test_what_is_safe_is_what_the_policies_say(rows, own, blocks):
    """As long as it was asked for the first time; the most that each may hold is never enough to say so at once."""
    state = State(toy_engine(kv_blocks=blocks, block_tokens=4, max_num_seqs=16))
    outlook = Outlook(state, 1.64)
    for i, row in enumerate(rows):
        entry = entry_of(state, f"{i}", *row)
        entry.most = 10.0**6
        runs(state, outlook, entry)
    new = entry_of(state, "new", *own)
    # The policies' tail of the normal distribution is an approximation, to 3e-4.
    sure = [plainly(state, [*state.entries.values()], 4.0 * blocks + slack, 1.64) for slack in (-5.0, 5.0)]
    assert outlook.is_safe(new) in sure


@settings(max_examples=60, deadline=None)
@given(members, st.data())
def test_sums_are_kept_as_requests_come_and_go(rows, data):
    state = State(toy_engine(kv_blocks=4000, block_tokens=4, max_num_seqs=16))
    outlook = Outlook(state, 1.64)
    new = entry_of(state, "new", 10, 100.0, 0.5)
    for i, row in enumerate(rows):
        entry = entry_of(state, f"{i}", *row)
        entry.most = 10.0**6
        runs(state, outlook, entry)
        outlook.is_safe(new)
        if data.draw(st.booleans()) and len(outlook) > 1:
            gone = data.draw(st.sampled_from(state.running()))
            outlook.remove(gone)
            state.remove(gone)
        if data.draw(st.booleans()):
            state.decode(data.draw(st.integers(1, 3)))
    kept = list(outlook._members)
    assert {e.serial for e in kept} == {e.serial for e in state.running()}
    assert outlook._promised == pytest.approx(sum(e.most for e in kept))
    outlook.forget()
    sure = [plainly(state, [*kept, new], 16_000.0 + slack, 1.64) for slack in (-5.0, 5.0)]
    assert not kept or outlook.is_safe(new) in sure


def test_between_two_looks_the_future_is_expected_as_it_was():
    """Half of those who run end as foreseen; the sums neither forget the others nor count on them to end as well."""
    state = State(toy_engine(kv_blocks=10_000, block_tokens=4, max_num_seqs=200, max_num_batched_tokens=400))
    outlook = Outlook(state, 0.0)
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(log(20), 0.4, 200)).tolist()
    for i in range(200):
        entry = entry_of(state, f"{i}", 10, 20.0, 0.4)
        entry.most = 10.0**6
        runs(state, outlook, entry)
    new = entry_of(state, "new", 10, 20.0, 0.4)
    outlook.is_safe(new)
    for _ in range(15):
        state.decode()
        for entry in [e for e in state.running() if state.generated(e) >= lengths[e.serial]]:
            outlook.remove(entry)
            state.remove(entry)
    assert len(outlook) < 150
    foreseen = outlook._mean[3]  # 32 steps from the start: 17 from now
    outlook.forget()
    outlook.is_safe(new)
    assert foreseen == pytest.approx(outlook._mean[2], rel=0.25)


def test_alone_everybody_may_run_and_what_fits_at_once_is_safe():
    state = State(toy_engine(kv_blocks=25, block_tokens=4))
    outlook = Outlook(state, 1.64)
    long = entry_of(state, "long", 50, 10_000.0, 1.0)
    assert outlook.is_safe(long)
    runs(state, outlook, long)
    short = entry_of(state, "short", 10, 5.0, 0.1)
    assert not outlook.is_safe(short)
    long.most = 80.0
    outlook.remove(long)
    outlook.add(long)
    short.most = 20.0
    assert outlook.is_safe(short)
    assert long in outlook
    assert short not in outlook


def test_where_nobody_can_be_thrown_out_only_what_is_certain_is_safe():
    state = State(toy_engine(kv_blocks=100, block_tokens=4))
    outlook = Outlook(state, 1.64, certain=True)
    first, second = (entry_of(state, name, 10, 5.0, 0.1) for name in "ab")
    first.most, second.most = 300.0, 101.0
    runs(state, outlook, first)
    assert not outlook.is_safe(second)
    second.most = 100.0
    assert outlook.is_safe(second)

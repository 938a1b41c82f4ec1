"""Who is next: by key, by shares, by levels, and with a plan before them."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from optimizer.online import Request
from optimizer.online.line import DueLine, KeyLine, Order, ShareLine
from optimizer.online.state import DECODE, Entry


def entry(serial, key, tenant="", arrival=0.0):
    made = Entry(Request(str(serial), 10, tenant=tenant), serial, 0, arrival, 100)
    made.key = key
    return made


def serve(line, entry):
    line.gone(entry)
    entry.phase = DECODE


@given(st.lists(st.floats(0, 10), max_size=40), st.data())
def test_a_line_is_sorted_whoever_leaves_and_comes_back(keys, data):
    line = KeyLine()
    there = {}
    for serial, key in enumerate(keys):
        there[serial] = entry(serial, key)
        line.push(there[serial])
        if there and data.draw(st.booleans()):
            one = there[data.draw(st.sampled_from(sorted(there)))]
            line.gone(one)
            if data.draw(st.booleans()):
                one.key = data.draw(st.floats(0, 10))
                line.push(one)
            else:
                del there[one.serial]
    expected = sorted(there.values(), key=lambda e: (e.key, e.serial))
    assert line.first(10**6) == expected
    assert line.first(3) == expected[:3]
    assert len(line) == len(expected)
    for e in expected:
        assert line.head() is e
        line.gone(e)
    assert line.head() is None


def test_many_who_leave_from_the_middle_are_not_kept():
    line = KeyLine()
    entries = [entry(serial, float(serial)) for serial in range(10_000)]
    for e in entries:
        line.push(e)
    for e in entries[1:]:
        line.gone(e)
    assert len(line._heap) < 100


def test_a_plan_goes_first_and_a_better_newcomer_before_it():
    line = KeyLine()
    order = Order(line)
    a, b, c = entry(0, 1.0), entry(1, 2.0), entry(2, 3.0)
    for e in (a, b, c):
        line.push(e)
    order.adopt([c, a])
    assert order.head() is c
    new = entry(3, 2.5)
    line.push(new)
    serve(line, a)
    # b and the newcomer have smaller keys than the planned c, and the plan does not know them.
    assert order.head() is b
    serve(line, b)
    assert order.head() is new
    serve(line, new)
    assert order.head() is c
    serve(line, c)
    assert order.head() is None


def test_what_is_gone_from_a_plan_is_passed_over():
    line = KeyLine()
    order = Order(line)
    a, b = entry(0, 1.0), entry(1, 2.0)
    line.push(a)
    line.push(b)
    order.adopt([b, a])
    serve(line, b)
    assert order.head() is a
    order.adopt([b, a])
    order.drop()
    assert order.head() is a


def test_shares_are_equal_whatever_is_asked():
    """One tenant sends ten times as many; while both wait each is served as much."""
    line = ShareLine()
    for serial in range(200):
        line.push(entry(serial, float(serial), tenant="greedy" if serial % 11 else "modest"))
    served = {"greedy": 0, "modest": 0}
    for _ in range(30):
        e = line.head()
        served[e.request.tenant] += 1
        line.charge(e.request.tenant, 10.0)
        serve(line, e)
    assert abs(served["greedy"] - served["modest"]) <= 1


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(-20, 40)), max_size=80))
def test_the_tenant_served_least_is_next(moves):
    """Whoever comes, goes and is charged: the head is of a tenant that was served least of those that wait."""
    line, waits = ShareLine(), {}
    for serial, (tenant, comes, work) in enumerate(moves):
        name = f"t{tenant}"
        if comes or not waits:
            waits[serial] = entry(serial, float(serial), tenant=name)
            line.push(waits[serial])
        else:
            e = line.head()
            assert line._served[e.request.tenant] == min(
                line._served[w.request.tenant] for w in waits.values()
            )
            serve(line, waits.pop(e.serial))
        line.charge(name, float(work))
        assert (line.head() is None) == (not waits)
        assert {e.serial for e in line.first(200)} == waits.keys()


def test_a_head_is_found_fast_among_many_tenants():
    """Asked for sixty-four times per step: it may not look at all of them."""
    line = ShareLine()
    for serial in range(10_000):
        line.push(entry(serial, float(serial), tenant=f"t{serial}"))
    began = time.thread_time()
    for _ in range(2000):
        e = line.head()
        serve(line, e)
        line.charge(e.request.tenant, 10.0)
    assert time.thread_time() - began < 0.4


def test_nobody_saves_shares_up():
    """A tenant that was away for long goes on like the others; it does not get all it missed."""
    line = ShareLine()
    for serial in range(100):
        line.push(entry(serial, float(serial), tenant="busy"))
    for _ in range(50):
        e = line.head()
        line.charge("busy", 10.0)
        serve(line, e)
    for serial in range(100, 150):
        line.push(entry(serial, float(serial), tenant="back"))
    turns = []
    for _ in range(20):
        e = line.head()
        turns.append(e.request.tenant)
        line.charge(e.request.tenant, 10.0)
        serve(line, e)
    assert 9 <= turns.count("back") <= 11


def test_who_is_due_is_known_beside_the_order_until_it_is_late():
    line = DueLine()
    entries = [entry(serial, float(-serial)) for serial in range(4)]
    for e, due in zip(entries, (3.0, 1.0, 2.0, 4.0), strict=True):
        e.due_s = due
        line.push(e)
    assert line.first(9) == entries[::-1], "the order is by key"
    assert line.due(0.0, 2) == [entries[1], entries[2]]
    serve(line, entries[2])
    assert line.due(1.5, 9) == [entries[0], entries[3]]
    assert line.due(9.0, 9) == []
    assert line.first(9) == [entries[3], entries[1], entries[0]]


def test_who_was_thrown_out_after_its_first_token_is_not_due():
    line = DueLine()
    e = entry(0, 1.0)
    e.due_s, e.known = 5.0, e.known + 1
    line.push(e)
    assert line.due(0.0, 9) == []
    assert line.head() is e

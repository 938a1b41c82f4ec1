"""The recorder: what is laid down on the way is the same as what is laid down at the end."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings

from optimizer.policies import policy_names
from optimizer.simulator import recorder, simulate
from optimizer.simulator.recorder import Recorder
from optimizer.units import TICKS_PER_SECOND
from tests.policies.toy import instances, toy

BUSY = toy(
    [(40, 30), (7, 1), (25, 20), (60, 9), (3, 40), (16, 16)] * 4,
    arrivals=[float(i) for i in range(24)],
    caps=[30, 1, 20, 9, 40, 16] * 4,
    kv_blocks=30,
    block_tokens=4,
    max_num_batched_tokens=32,
    max_num_seqs=5,
)


def as_text(simulation) -> str:
    return json.dumps(simulation.schedule.to_document())


@pytest.mark.parametrize("runs", [1, 2, 7])
@pytest.mark.parametrize("prefix_caching", [False, True], ids=["plain", "caching"])
@pytest.mark.parametrize("policy", policy_names())
def test_flushing_on_the_way_changes_nothing(policy, prefix_caching, runs, monkeypatch):
    """Run numbers go on where the last flush ended, in every table."""
    from optimizer.problem import Instance

    instance = Instance("busy", BUSY.requests, BUSY.engine.replace(prefix_caching=prefix_caching))
    whole = as_text(simulate(instance, policy))
    flushes = []
    flush = Recorder._flush

    def counted(self):
        flushes.append(len(self.runs))
        flush(self)

    monkeypatch.setattr(Recorder, "_flush", counted)
    monkeypatch.setattr(recorder, "_FLUSH", runs)
    assert as_text(simulate(instance, policy)) == whole
    assert len(flushes) > 2


@settings(deadline=None, max_examples=30)
@given(instance=instances())
def test_flushing_on_the_way_changes_nothing_on_any_instance(instance):
    """As above, on instances drawn at random."""
    whole = as_text(simulate(instance))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "_FLUSH", 1)
        assert as_text(simulate(instance)) == whole


def run(book, *, steps=1, decodes=0) -> None:
    book.runs.append((0, TICKS_PER_SECOND, TICKS_PER_SECOND, steps, decodes, 0, 0))


def test_a_segment_of_decodes_goes_from_the_next_run_to_the_last():
    """Who joins and leaves between two runs took part in none, and has no row."""
    book = Recorder(3)
    run(book)
    book.opened[0] = book.opened[1] = book.count
    book.left(1)
    run(book)
    run(book)
    book.left(0)
    assert book.decodes == [0, 1, 2]


def test_notes_bear_the_number_of_the_next_run():
    """Preemptions, hits and reservations happen before a run."""
    book = Recorder(3)
    run(book)
    book.preempted(1)
    book.cached(2, 32)
    book.reserved(0, -1, 64)
    run(book)
    made = book.schedule("p", 16, None, [TICKS_PER_SECOND // 2, -1], [-1, -1])
    assert (made.preempt_run.tolist(), made.preempt_request.tolist()) == ([1], [1])
    assert (made.cached_run.tolist(), made.cached_tokens.tolist()) == ([1], [32])
    assert (made.hold_first_run.tolist(), made.hold_last_run.tolist()) == ([1], [1])  # held to the end
    assert made.first_token_s[0] == 0.5
    assert math.isnan(made.first_token_s[1])


def test_a_schedule_without_runs_has_empty_columns():
    """Of the kinds that a schedule has."""
    made = Recorder(1).schedule("p", 16, 512, [-1], [-1])
    assert len(made.steps) == len(made.chunk_run) == len(made.hold_tokens) == 0
    assert made.chunk_run.dtype == "int64"

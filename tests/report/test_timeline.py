from __future__ import annotations

import numpy as np
import pytest

from optimizer.report.timeline import Episodes, Timeline
from optimizer.simulator import simulate


def test_stays_of_three_requests_by_hand(by_hand):
    stays = Episodes.of(by_hand.schedule, by_hand.instance.requests)
    assert stays.request.tolist() == [0, 1, 2]
    assert stays.queued_s.tolist() == [0.0, 0.005, 1.0]
    assert stays.admitted_s.tolist() == pytest.approx([0.0, 0.01, 1.0])
    assert stays.decode_s.tolist() == pytest.approx([0.02, np.nan, 1.01], nan_ok=True)
    assert stays.left_s.tolist() == pytest.approx(by_hand.schedule.finish_s.tolist())
    assert not stays.preempted.any()


def test_every_preemption_ends_a_stay_and_begins_one(under_pressure):
    s = under_pressure
    stays = Episodes.of(s.schedule, s.instance.requests)
    assert stays.preempted.sum() == len(s.schedule.preempt_run)
    assert len(stays.request) == len(s.instance.requests) + len(s.schedule.preempt_run)
    again = np.flatnonzero(stays.preempted) + 1
    assert np.array_equal(stays.queued_s[again], stays.left_s[again - 1])
    assert np.array_equal(stays.request[again], stays.request[again - 1])
    for earlier, later in ((stays.queued_s, stays.admitted_s), (stays.admitted_s, stays.left_s)):
        assert (earlier <= later).all()
    decoded = ~np.isnan(stays.decode_s)
    assert (stays.decode_s[decoded] <= stays.left_s[decoded]).all()


def test_running_requests_are_those_that_compute_or_wait_for_their_next_chunk(under_pressure):
    s = under_pressure
    t = Timeline.of(s.schedule, s.instance.requests, s.instance.engine)
    computing = s.schedule.decode_seqs + np.bincount(s.schedule.chunk_run, minlength=len(s.schedule.steps))
    assert (t.running >= computing).all()
    assert t.running.max() <= s.instance.engine.max_num_seqs
    assert t.waiting.min() == 0
    assert 0.9 < t.kv_share.max() <= 1.0
    busy = t.end_s - t.start_s
    assert t.kv_share @ busy / busy.sum() == pytest.approx(s.metrics.kv_use_mean)


def test_averages_keep_the_integral(under_pressure):
    s = under_pressure
    t = Timeline.of(s.schedule, s.instance.requests, s.instance.engine)
    whole = float((t.running * (t.end_s - t.start_s)).sum())
    for windows in (1, 7, 600):
        edges = np.linspace(0, t.end_s[-1], windows + 1)
        assert t.averages(t.running, edges) @ np.diff(edges) == pytest.approx(whole)


@pytest.mark.parametrize("policy", ["orca-max", "fastertransformer", "lightllm"])
def test_systems_that_reserve_have_a_timeline_too(under_pressure, policy):
    engine = under_pressure.instance.engine.replace(kv_blocks=5000)
    s = simulate(type(under_pressure.instance)("x", under_pressure.instance.requests, engine), policy)
    t = Timeline.of(s.schedule, s.instance.requests, engine)
    assert 0 < t.kv_share.max() <= 1
    assert t.waiting.min() >= 0

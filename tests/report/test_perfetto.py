"""The trace is read back and held against the rules of the format, and against the schedule."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from optimizer.problem import Engine, Instance, with_knowledge
from optimizer.report.perfetto import write_perfetto
from optimizer.simulator import simulate
from optimizer.traces import generate


def events_of(simulation, path):
    write_perfetto(path, simulation.schedule, simulation.instance.requests, simulation.instance.engine)
    return json.loads(path.read_text())["traceEvents"]


def assert_well_formed(events):
    """Required keys, ascending times, spans that open and close like brackets, runs that do not overlap."""
    now, over = 0.0, 0.0
    open_spans = defaultdict(list)
    for event in events:
        assert event.keys() >= {"name", "ph", "ts", "pid", "tid"}
        assert event["ts"] >= now, "events are in order of time"
        now = event["ts"]
        match event["ph"]:
            case "X":
                assert event["dur"] >= 0
                assert event["ts"] >= over - 1e-3, "runs follow one another"
                over = event["ts"] + event["dur"]
            case "b":
                open_spans[event["cat"], event["id"]].append(event["name"])
            case "e":
                assert open_spans[event["cat"], event["id"]].pop() == event["name"], "spans nest"
            case "n":
                assert open_spans[event["cat"], event["id"]], "an instant lies in its request's span"
            case "C":
                assert all(value >= 0 for value in event["args"].values())
            case "M":
                assert event["args"]["name"]
            case other:
                pytest.fail(f"unexpected phase {other}")
    assert not any(open_spans.values()), "every span ends"


def test_three_requests_by_hand(by_hand, tmp_path):
    events = events_of(by_hand, tmp_path / "t.json")
    assert_well_formed(events)
    spans = {(e["id"], e["ph"], e["name"]): e["ts"] / 1e6 for e in events if e["ph"] in "be"}
    assert spans[0, "b", "request a"] == 0.0
    assert spans[0, "b", "prefill"] == 0.0
    assert (0, "b", "queued") not in spans, "it was admitted at once"
    assert spans[0, "e", "prefill"] == spans[0, "b", "decode"] == pytest.approx(0.02)
    assert spans[1, "b", "queued"] == pytest.approx(0.005)
    assert spans[1, "e", "request b"] == spans[1, "e", "prefill"]
    assert (1, "b", "decode") not in spans, "one output token needs no decode"
    assert spans[2, "b", "request c"] == pytest.approx(1.0)
    runs = [e for e in events if e["ph"] == "X"]
    assert runs[0]["args"]["chunks"] == "a: 20 tokens"
    assert sum(e["args"]["steps"] for e in runs) == by_hand.metrics.steps


def test_preemptions_are_instants_between_two_stays(under_pressure, tmp_path):
    events = events_of(under_pressure, tmp_path / "t.json")
    assert_well_formed(events)
    preempted = [e for e in events if e["ph"] == "n"]
    assert len(preempted) == under_pressure.metrics.summary()["preemptions"]
    queued = sum(e["ph"] == "b" and e["name"] == "queued" for e in events)
    assert queued >= len(preempted), "who was thrown out waits again"
    computed = sum(e["args"]["prefill_tokens"] * e["args"]["steps"] for e in events if e["ph"] == "X")
    assert computed > under_pressure.instance.requests.prompt_tokens.sum(), (
        "what was dropped is computed again"
    )


def test_ten_thousand_requests(tmp_path, under_pressure):
    requests = with_knowledge(generate("chat", 10_000, 2, rate=200.0), "exact")
    engine: Engine = under_pressure.instance.engine.replace(kv_blocks=1000)
    simulation = simulate(Instance("many", requests, engine))
    events = events_of(simulation, tmp_path / "t.json")
    assert_well_formed(events)
    assert sum(e["ph"] == "b" and e["name"].startswith("request ") for e in events) == 10_000
    assert sum(e["ph"] == "X" for e in events) == len(simulation.schedule.steps)

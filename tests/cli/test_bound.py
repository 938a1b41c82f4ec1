"""`optimizer bound`, and `optimizer check` of certificates."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.bounds.lines import find_lines
from optimizer.certificates.step_lines import FIELDS, least_work
from optimizer.certificates.work import work_bound
from optimizer.cli.bound import contributions
from optimizer.problem import Engine, Instance, Requests, StepTime
from optimizer.units import TICKS_PER_SECOND

RATE = st.sampled_from([0.0, 1e-7, 1e-5, 1e-3])


@st.composite
def batches(draw: st.DrawFn) -> Instance:
    """Requests at once, on an engine whose step time is affine."""
    rates = {field: draw(RATE) for field in FIELDS[1:]}
    n = draw(st.integers(1, 8))
    lengths = st.lists(st.integers(1, 40), min_size=n, max_size=n)
    engine = Engine(
        name="toy", kv_blocks=30, max_num_seqs=draw(st.integers(1, 4)), max_num_batched_tokens=64,
        step_time=StepTime.affine(base_s=draw(st.sampled_from([0.001, 0.02])), **rates),
    )  # fmt: skip
    requests = Requests.from_columns({"prompt_tokens": draw(lengths), "output_tokens": draw(lengths)})
    return Instance("batch", requests, engine, "makespan")


@given(batches())
@settings(max_examples=20, deadline=None)
def test_a_makespan_bound_consists_of_rate_times_work(instance):
    lines = find_lines(instance, "makespan")
    best = max(lines, key=lambda line: work_bound(instance, [line], "makespan"))
    parts = contributions(instance, [best], "makespan")
    work = least_work(instance)
    for x, field in enumerate(FIELDS):
        amount = max(w[x] for w in work) if x == 0 else sum(w[x] for w in work)
        exact = Fraction(best.rates[x] * amount, TICKS_PER_SECOND)
        assert float(parts[field]) == pytest.approx(float(exact), rel=2e-3, abs=1e-9)
    assert set(parts) == set(FIELDS)
    assert float(sum(parts.values())) == pytest.approx(
        float(work_bound(instance, [best], "makespan")), rel=2e-3
    )


@given(
    batches(), st.sampled_from(["makespan", "mean-latency", "weighted-latency", "ttft"]), st.integers(0, 3)
)
@settings(max_examples=20, deadline=None)
def test_contributions_are_never_negative_and_leave_nothing_but_arrivals(instance, objective, gap):
    moments = 0.05 * gap * np.arange(len(instance.requests))
    instance = Instance("timed", instance.requests.replace(arrival_s=moments), instance.engine)
    lines = find_lines(instance, objective)
    parts = contributions(instance, lines, objective)
    whole = float(work_bound(instance, lines, objective))
    assert all(parts[field] >= 0 for field in FIELDS)
    # Where two lines are equally high, a lower rate of one of them costs nothing.
    assert float(sum(parts.values())) <= whole * (1 + 5e-3)
    assert ("arrivals" in parts) is bool(moments.any())


@pytest.fixture
def single(tmp_path):
    """One request of three prompt and five output tokens on an engine whose steps take 2 s, and 1 s per prompt token."""
    engine = Engine(name="toy", kv_blocks=9, step_time=StepTime.affine(base_s=2.0, per_prefill_token_s=1.0))
    requests = Requests.from_columns({"prompt_tokens": [3], "output_tokens": [5]})
    Instance("single", requests, engine, "makespan").write(tmp_path / "single.json")
    return tmp_path / "single.json"


def test_a_bound_by_hand_and_what_it_consists_of(run, single, tmp_path):
    ended = run("bound", single, "--json", "b.json", "--certificate", "c.json")
    assert ended.code == 0
    assert "bound: 13 s, by work" in ended.out
    rows = {line.rsplit(None, 3)[0]: line.split()[-3:] for line in ended.out.splitlines() if "a " in line[:2]}
    assert rows["a step"] == ["2,000,000", "10.0", "76.9"]
    assert rows["a prompt token"] == ["1,000,000", "3.00", "23.1"]
    assert "arrivals" not in ended.out
    document = json.loads((tmp_path / "b.json").read_text())
    assert (document["dual"], document["objective"], document["bound_by"]) == (13, "makespan", "work")
    assert document["contributions"]["base_s"] == pytest.approx(10)
    assert document["certificate"] == json.loads((tmp_path / "c.json").read_text())
    checked = run("check", "c.json", "--instance", single)
    assert checked.code == 0
    assert checked.out == "yes: no schedule has a makespan below 13.0 s, proved by work\nexactly: 13 / 1 s\n"


def test_writes_nothing_unasked(run, single, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert run("bound", single).code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_bound_is_that_of_a_solve_and_no_policy_is_below_it(run, trace, tmp_path):
    shared = (trace, "--engine", "llama3.1-8b@h200", "--objective", "ttft")
    assert run("bound", *shared, "--json", "b.json").code == 0
    assert run("solve", *shared, "--time-limit", 1, "--json", "s.json").code == 0
    dual = json.loads((tmp_path / "b.json").read_text())["dual"]
    solved = json.loads((tmp_path / "s.json").read_text())
    assert 0 < dual <= solved["dual"] <= solved["primal"]


def test_several_lines_are_shown_as_a_range(run, tmp_path):
    ended = run("bound", "gsm8k/gsm8k-1319", "--engine", "llama-65b-fp8@h200", "--objective", "mean-latency")
    assert ended.code == 0
    assert "lines is the highest" in ended.out
    row = next(line for line in ended.out.splitlines() if line.startswith("a prompt token"))
    low, _, high = row.split()[3:6]
    assert float(low) < float(high)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["lines"][0]["rates"].__setitem__(0, 10**16), ["line 0 proves nothing"]),
        (lambda d: d["lines"][0]["rates"].pop(), ["line 0 proves nothing", "number of rates"]),
        (lambda d: d["lines"][0].__setitem__("rates", "many"), ["rates"]),
        (lambda d: d.__setitem__("lines", []), ["lines"]),
        (lambda d: d.__setitem__("kind", "faith"), ["'faith'", "work"]),
        (lambda d: d.__setitem__("objective", "speed"), ["speed"]),
        (lambda d: d.__setitem__("instance_sha256", "0"), ["another instance"]),
    ],
    ids=["too high", "too few rates", "no rates", "no lines", "kind", "objective", "instance"],
)
def test_a_certificate_that_proves_nothing_is_told_so(run, single, tmp_path, change, words):
    run("bound", single, "--certificate", "c.json")
    document = json.loads((tmp_path / "c.json").read_text())
    change(document)
    (tmp_path / "c.json").write_text(json.dumps(document))
    ended = run("check", "c.json", "--instance", single)
    assert ended.code == 1
    assert ended.out.startswith("no: c.json")
    assert all(word in ended.out for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--objective", "goodput"), ["goodput", "makespan, mean-latency"]),
        (("--objective", "makespan,ttft"), ["one objective"]),
        (("--objective", "speed"), ["'speed'"]),
        (("--certificate", "nowhere/c.json"), ["nowhere"]),
        (("--json", "single.json"), ["the input"]),
        (("--json", "a.json", "--certificate", "a.json"), ["another output"]),
    ],
)
def test_a_bad_option_is_named(run, single, tmp_path, options, words):
    before = sorted(tmp_path.rglob("*"))
    ended = run("bound", single.name, *options)
    assert (ended.code, ended.out) == (2, "")
    assert all(word in ended.err for word in words)
    assert sorted(tmp_path.rglob("*")) == before

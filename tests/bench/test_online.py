"""The bench of online policies: what it says of given figures, and that it does not run again what is there."""

from __future__ import annotations

import json
import math

import pytest

from optimizer.simulator import simulate
from tests.bench import online
from tests.bench.online_cases import case
from tests.bench.online_table import ERRORS, GOODPUT, HEURISTICS, SLO_RIVALS, VARIANTS, half_width, table


def test_the_half_width_is_students():
    """Two values: 12.71 times their standard error, which is half their distance."""
    assert half_width([1.0, 3.0]) == pytest.approx(12.71)
    assert half_width([5.0]) == 0.0


def _figures(e2e, **others):
    return {
        "e2e_mean_s": e2e, "ttft_p99_s": 2.0, "tpot_p99_s": 0.05, "goodput_per_s": 1.0, "requests_per_s": 10.0,
        "preemptions": 0, **others,
    }  # fmt: skip


def _gsm8k(ours, thrown=0, worst=1.0):
    """Results of one seed: vLLM takes 10 s, other heuristics 8 s, twice as long without a good prediction."""
    policies = ("vllm-v1", *HEURISTICS, *SLO_RIVALS, "horizon", GOODPUT)
    done = {}
    for lengths in ERRORS:
        bad = lengths == ERRORS[-1]
        for name in policies:
            e2e = 16.0 if bad else 8.0
            if name == "vllm-v1":
                e2e = 10.0
            if name == "horizon":
                e2e = ours * (worst if bad else 1.0)
            done[f"gsm8k 4000 {lengths} 0 {name}"] = _figures(
                e2e, preemptions=thrown, requests_per_s=12.0 if name == "horizon" else 10.0
            )
    done["gsm8k 4000 exact 0 hindsight"] = {"bound": 3.0, "best": 5.0, "by": "svf"}
    return table(done, ["gsm8k"], 1, 4000, policies).splitlines()[2:]


def _verdicts(**figures):
    return [row.rstrip(" |").rsplit("| ", 1)[-1] for row in _gsm8k(**figures)]


def test_rows_say_whether_their_target_is_reached():
    """Throughput, latency, preemptions, gap (no target), errors."""
    good = _verdicts(ours=6.0)
    assert [good[0], good[1], good[2], good[4]] == ["yes"] * 4
    slow = _verdicts(ours=7.5, thrown=5, worst=3.0)
    assert [slow[0], slow[1], slow[2], slow[4]] == ["yes", "no", "no", "no"]
    behind = _verdicts(ours=9.0)
    assert behind[1] == "no"


def test_the_gap_is_to_the_bound():
    (gap,) = [row for row in _gsm8k(ours=6.0) if "hindsight gap" in row]
    assert "50.0%, to the bound of 3.00 s (vllm-v1 70.0%); 1.20" in gap


def test_what_is_there_is_not_run_again(tmp_path, capsys):
    """Everything is there but one run: only that is done, and kept."""
    instance = case("gsm8k", 0)
    done = {}
    policies = [name for name in online.policy_names() if name not in online.LEFT_OUT]
    for lengths in ERRORS:
        for name in (*policies, *VARIANTS):
            done[f"gsm8k 4000 {lengths} 0 {name}"] = _figures(8.0, preemptions=1)
    done["gsm8k 4000 exact 0 hindsight"] = {"bound": 3.0, "best": 5.0, "by": "svf"}
    del done["gsm8k 4000 noise:0.5 0 vllm-v1"]
    file = tmp_path / "runs.json"
    file.write_text(json.dumps(done))
    online.main(["--cases", "gsm8k", "--seeds", "1", "--jobs", "1", "--json", str(file)])
    kept = json.loads(file.read_text())
    measured = kept.pop("gsm8k 4000 noise:0.5 0 vllm-v1")
    assert kept == done
    assert math.isclose(measured["e2e_mean_s"], simulate(instance, "vllm-v1").metrics.e2e_s.mean())
    assert "| gsm8k | throughput |" in capsys.readouterr().out

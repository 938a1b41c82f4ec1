from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from optimizer.policies import Policy, base, register
from optimizer.simulator.recorder import Recorder

ENGINE = ("--engine", "llama3.1-8b@h200")
TWO = ("--policies", "vllm-v1,vllm-v0", "--jobs", 1)


def test_prints_a_table_and_writes_it_beside_the_runs(run, trace, tmp_path):
    ended = run("compare", trace, *ENGINE, "--policies", "vllm-v1,vllm-v0", "--jobs", 2)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert "TTFT p99" in lines[0]
    assert "makespan" in lines[0]
    assert {line.split()[0] for line in lines[3:5]} == {"vllm-v1", "vllm-v0"}
    folder = tmp_path / "results/five"
    document = json.loads((folder / "table.json").read_text())
    assert [row["policy"] for row in document["rows"]]
    with (folder / "table.csv").open() as file:
        assert {row["policy"] for row in csv.DictReader(file)} == {"vllm-v1", "vllm-v0"}
    one = json.loads((folder / "runs/vllm-v1-seed0.json").read_text())
    assert one["trace"].endswith("five.csv")
    assert len(one["quantiles"]["ttft"]) == 101


def test_simulate_and_compare_agree(run, trace, tmp_path):
    run("simulate", trace, *ENGINE, "--json", "s.json")
    run("compare", trace, *ENGINE, *TWO)
    a = json.loads((tmp_path / "s.json").read_text())
    b = json.loads((tmp_path / "results/five/runs/vllm-v1-seed0.json").read_text())
    assert {key for key in b if a[key] != b[key]} <= {"loop_seconds", "requests_per_second_simulated"}


def test_seeds_give_means_with_confidence_intervals_where_something_varies(run, lengths, trace, tmp_path):
    drawn = run("compare", lengths, *ENGINE, *TWO, "--rate", 3, "--seeds", 3, "--out", "drawn")
    assert "mean of 3 seeds" in drawn.out
    assert "±" in drawn.out
    row = json.loads((tmp_path / "drawn/table.json").read_text())["rows"][0]
    assert row["runs"] == 3
    assert row["makespan_s_ci"] > 0
    fixed = run("compare", trace, *ENGINE, *TWO, "--seeds", 3, "--out", "fixed")
    assert "3 seeds, all with the same figures" in fixed.out
    assert "±" not in fixed.out


def test_resume_keeps_what_is_there_and_makes_the_rest(run, trace, tmp_path):
    assert run("compare", trace, *ENGINE, "--policies", "vllm-v1", "--jobs", 1).code == 0
    one = tmp_path / "results/five/runs/vllm-v1-seed0.json"
    marked = {**json.loads(one.read_text()), "loop_seconds": 123.0}
    one.write_text(json.dumps(marked))
    ended = run("compare", trace, *ENGINE, *TWO, "--resume")
    assert "1 of 2 runs are there already" in ended.err
    assert json.loads(one.read_text())["loop_seconds"] == 123.0, "it was not made again"
    assert (tmp_path / "results/five/runs/vllm-v0-seed0.json").exists()


@pytest.mark.parametrize(
    "changed",
    [("--kv-blocks", 999), ("--count", 3), ("--policy-option", "vllm-v1.long_prefill_token_threshold=50")],
)
def test_resume_does_not_take_another_runs_result(run, trace, tmp_path, changed):
    alone = ("--policies", "vllm-v1", "--jobs", 1)
    run("compare", trace, *ENGINE, *alone)
    ended = run("compare", trace, *ENGINE, *alone, *changed, "--resume")
    assert "already" not in ended.err


def test_resume_makes_a_broken_result_again(run, trace, tmp_path):
    run("compare", trace, *ENGINE, *TWO)
    one = tmp_path / "results/five/runs/vllm-v1-seed0.json"
    one.write_text("{ half")
    assert run("compare", trace, *ENGINE, *TWO, "--resume").code == 0
    assert json.loads(one.read_text())["policy"] == "vllm-v1"


def test_a_failed_policy_is_listed_and_the_others_go_on(run, trace, monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    @register("raises")
    class Raises(Policy):
        """Raises."""

        def step(self, state):
            raise ZeroDivisionError("by zero")

    ended = run("compare", trace, *ENGINE, "--policies", "raises,vllm-v1", "--jobs", 1)
    assert ended.code == 1
    assert "FAILED raises: raises raised ZeroDivisionError" in ended.out
    assert "Traceback" not in ended.err
    assert any(line.startswith("vllm-v1") for line in ended.out.splitlines())


def test_sorts_by_the_figure_asked_for(run, lengths, tmp_path):
    run("compare", lengths, *ENGINE, *TWO, "--sort", "tpot-p99-s")
    document = json.loads((tmp_path / "results/lengths/table.json").read_text())
    assert document["sorted_by"] == "tpot_p99_s"
    values = [row["tpot_p99_s"] for row in document["rows"]]
    assert values == sorted(values)


def test_draws_the_distributions(run, trace, tmp_path):
    assert run("compare", trace, *ENGINE, *TWO, "--plot", "p.png").code == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_check_makes_a_broken_schedule_its_policys_failure(run, trace, tmp_path, monkeypatch):
    ended = run("compare", trace, *ENGINE, *TWO, "--check")
    assert ended.code == 0
    assert "every schedule in the table was checked" in ended.out
    made = Recorder.schedule

    def later(self, policy, *arguments):
        schedule = made(self, policy, *arguments)
        if policy == "vllm-v0":
            schedule.finish_s[:] += 1.0
        return schedule

    monkeypatch.setattr(Recorder, "schedule", later)
    ended = run("compare", trace, *ENGINE, *TWO, "--check", "--out", "broken")
    assert ended.code == 1
    assert "FAILED vllm-v0: its schedule breaks rules of the engine" in ended.out
    assert "finish, run" in ended.out
    failures = json.loads((tmp_path / "broken/table.json").read_text())["failures"]
    assert [f["policy"] for f in failures] == ["vllm-v0"]
    assert "no: 5 requests" in failures[0]["reason"]


def test_what_was_not_checked_does_not_answer_a_check(run, trace):
    run("compare", trace, *ENGINE, *TWO)
    assert "already" not in run("compare", trace, *ENGINE, *TWO, "--check", "--resume").err
    assert "2 of 2 runs are there already" in run("compare", trace, *ENGINE, *TWO, "--resume").err


def test_says_whose_step_times_these_are(run, trace):
    assert "step times: llama3.1-8b@h200, measured" in run("compare", trace, *ENGINE, *TWO).out


def test_a_narrow_terminal_gets_the_headline_columns(run, trace, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    out = re.sub(r"\x1b\[[0-9;]*m", "", run("compare", trace, *ENGINE, *TWO, "--sort", "kv_use_peak").out)
    assert max(map(len, out.splitlines()[:6])) <= 60
    assert "KV peak" in out, "what it is sorted by stays"
    assert "more columns do not fit into 60 characters; all are in results/five/table.csv" in out


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_what_is_finished_and_resume_goes_on(run, tmp_path):
    seeds = 400
    command = ("compare", "gsm8k/gsm8k-1319", "--engine", "llama-65b-fp8@h200", "--kv-blocks", "300", "--policies", "vllm-v1",
               "--jobs", "2")  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "optimizer", *command, "--seeds", str(seeds)],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    runs = tmp_path / "results/gsm8k-1319/runs"
    deadline = time.monotonic() + 60
    while len(list(runs.glob("*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "--resume" in err
    finished = sorted(runs.glob("*.json"))
    assert 4 <= len(finished) < seeds
    assert all(json.loads(path.read_text())["finished"] == 1319 for path in finished)
    assert not list(tmp_path.rglob("*.part"))
    first_runs = [path for path in finished if int(path.stem.removeprefix("vllm-v1-seed")) < 3]
    ended = run(*command, "--seeds", 3, "--resume")
    assert ended.code == 0
    assert f"{len(first_runs)} of 3 runs are there already" in ended.err

"""`optimizer solve`: what it prints, what it writes, and how it ends; what it finds is tested with the solver."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from typing import get_args

import pytest

from optimizer.cli.solve_output import shown
from optimizer.problem import Engine, Instance, Requests, Schedule, StepTime
from optimizer.problem.instance import Objective
from optimizer.problem.plan import read_plan
from optimizer.simulator.recorder import Recorder

KEYS = {
    "schema", "primal", "dual", "gap", "baseline", "checked", "limit", "heuristic", "found_by", "bound_by", "seconds", "seed",
    "progress", "plan", "certified", "certificate", "trace", "lengths", "engine", "versions",
}  # fmt: skip
FILES = {"solve.json", "schedule.json", "certificate.json", "instance.json", "picture.png"}


@pytest.fixture
def packed(tmp_path):
    """Five jobs of 4, 3, 5, 6 and 10 steps on two seats: first come first served ends at 18, the longest first at 14."""
    engine = Engine(name="two-seats", kv_blocks=1000, max_num_seqs=2, step_time=StepTime.affine(base_s=1.0))
    columns = {"ids": list("abcde"), "prompt_tokens": [1] * 5, "output_tokens": [4, 3, 5, 6, 10]}
    Instance("packed", Requests.from_columns(columns), engine, "makespan").write(tmp_path / "packed.json")
    return tmp_path / "packed.json"


@pytest.fixture
def crowded(tmp_path):
    """Thirty requests on six seats and a small cache: there is always something left to try."""
    engine = Engine(
        name="six-seats", kv_blocks=60, max_num_batched_tokens=128, max_num_seqs=6,
        step_time=StepTime.affine(base_s=0.01, per_prefill_token_s=1e-4, per_decode_seq_s=1e-3, per_decode_context_s=1e-6),
    )  # fmt: skip
    columns = {
        "prompt_tokens": [10 + 37 * i % 110 for i in range(30)],
        "output_tokens": [5 + 83 * i % 195 for i in range(30)],
    }
    Instance("crowded", Requests.from_columns(columns), engine).write(tmp_path / "crowded.json")
    return tmp_path / "crowded.json"


def test_an_optimum_by_hand_is_printed_written_and_checked(run, packed, tmp_path):
    ended = run("solve", packed, "--time-limit", 60)
    assert ended.code == 0, ended.err
    folder = tmp_path / "results/packed"
    assert {path.name for path in folder.iterdir()} == FILES
    document = json.loads((folder / "solve.json").read_text())
    assert document.keys() >= KEYS
    assert (document["primal"], document["baseline"], document["gap"]) == (14, 18, 0)
    assert (document["checked"], document["limit"], document["seed"]) == (True, "optimal", 0)
    assert document["progress"][-1][1:3] == [14, document["dual"]]
    for text in ("baseline       18 s (vllm-v1)", "schedule       14 s", "22.22 % below the baseline", "gap            0.00 %",
                 "checked        yes", "proved optimal", "preemptions    0", "5 requests", "2 seats"):  # fmt: skip
        assert text in ended.out
    assert "slippage" not in ended.out
    schedule = run("check", folder / "schedule.json", "--instance", folder / "instance.json")
    assert (schedule.code, schedule.out[:3]) == (0, "yes")
    assert Schedule.read(folder / "schedule.json").makespan_s == 14
    proof = run("check", folder / "certificate.json", "--instance", packed)
    assert (proof.code, proof.out.split(" s, ")[0]) == (0, "yes: no schedule has a makespan below 14.0")


def test_every_better_schedule_and_bound_has_a_line(run, crowded, tmp_path):
    ended = run("solve", crowded, "--objective", "makespan", "--time-limit", 1, "--json", "s.json")
    lines = ended.err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["seconds", "makespan"])
    progress = json.loads((tmp_path / "s.json").read_text())["progress"]
    assert len(progress) > 3
    for line, (_, primal, dual, source) in zip(lines[start + 1 :], progress, strict=False):
        words = line.split()
        assert words[1:3] == [shown(primal), shown(dual)]
        assert words[-1] == source
    assert "the time limit is over, after " in ended.out


def test_files_go_where_they_are_asked_to(run, crowded, tmp_path):
    names = {"json": "a.json", "schedule": "b.json", "certificate": "c.json", "instance-out": "d.json", "plot": "e.svg",
             "plan": "f.json"}  # fmt: skip
    asked = [part for option, name in names.items() for part in (f"--{option}", name)]
    ended = run("solve", crowded, "--objective", "makespan,mean-latency", "--time-limit", 1, *asked)
    assert ended.code == 0
    assert not (tmp_path / "results").exists(), "nothing goes there, so it is not made"
    assert "wrote b.json, d.json, c.json, f.json, a.json, e.svg" in ended.err
    document = json.loads((tmp_path / "a.json").read_text())
    assert read_plan(tmp_path / "f.json").to_document() == document["plan"]
    assert document["certificate"] == json.loads((tmp_path / "c.json").read_text())
    assert f"mean-latency   {shown(document['second'])} s" in ended.out
    assert (tmp_path / "e.svg").read_text().startswith("<?xml")


def test_a_trace_is_solved_on_an_engine(run, lengths, tmp_path):
    options = ("--engine", "llama3.1-8b@h200", "--max-output", 8, "--time-limit", 1, "--json", "s.json")
    ended = run("solve", lengths, *options)
    assert ended.code == 0
    document = json.loads((tmp_path / "s.json").read_text())
    assert (document["objective"], document["lengths"]) == ("mean-latency", "exact")
    assert document["engine"]["origin"] == "measured"
    assert "step times     measured; median error" in ended.out
    assert Instance.read(tmp_path / "results/lengths/instance.json").sha256 == document["instance_sha256"]


def test_guessed_lengths_are_planned_with_and_the_slippage_is_told(run, crowded, tmp_path):
    options = ("--objective", "makespan", "--time-limit", 1, "--lengths", "noise:0.5", "--json", "s.json")
    ended = run("solve", crowded, *options)
    assert ended.code == 0, ended.err
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["lengths"] == "noise:0.5"
    assert "planned" in ended.err.splitlines()[0]
    assert document["slippage"] == pytest.approx(document["primal"] - document["claimed"])
    sign = "-" if document["slippage"] < 0 else "+"
    assert f"slippage       {sign}{shown(abs(document['slippage']))} s" in ended.out
    assert f"{shown(document['claimed'])} s\n" in ended.out


def test_a_model_that_is_right_has_no_slippage(run, tmp_path):
    ended = run("solve", "toy/packing", "--time-limit", 60)
    document = json.loads((tmp_path / "results/packing/solve.json").read_text())
    assert document["claimed"] == document["primal"] == 9
    assert "slippage       none" in ended.out


def test_what_a_solver_proves_stands_beside_what_a_certificate_does(run, tmp_path):
    ended = run("solve", "toy/two-ramps", "--time-limit", 60)
    document = json.loads((tmp_path / "results/two-ramps/solve.json").read_text())
    assert (document["primal"], document["dual"], document["certified"]) == (5, 5, 4)
    assert "certified      4 s: so much the certificate proves; the rest is the word of CP-SAT" in ended.out
    proof = run("check", "results/two-ramps/certificate.json", "--instance", "toy/two-ramps")
    assert proof.out.startswith("yes: no schedule has a mean-latency below 4.0 s")


def test_ends_at_the_wanted_gap(run, crowded, tmp_path):
    assert run("solve", crowded, "--gap", 0.9, "--json", "s.json").code == 0
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["limit"] == "gap"
    assert document["gap"] <= 0.9


def test_without_a_plan_it_is_said_whose_schedule_it_is(run, packed, tmp_path):
    ended = run("solve", packed, "--plan", "p.json", "--time-limit", 60)
    policy = json.loads((tmp_path / "results/packed/solve.json").read_text())["found_by"]
    assert f"no plan to write: the best schedule is that of the policy {policy}" in ended.err
    assert not (tmp_path / "p.json").exists()


def test_objectives_without_a_bound_say_so(run, crowded, tmp_path):
    ended = run("solve", crowded, "--objective", "goodput", "--ttft-slo", 1, "--time-limit", 1)
    assert ended.code == 0
    document = json.loads((tmp_path / "results/crowded/solve.json").read_text())
    assert (document["dual"], document["gap"], document["certificate"]) == (None, None, None)
    assert f"{100 * document['primal']:.2f} % of all requests miss their levels" in ended.out
    assert "bound          none is known" in ended.out
    assert "misses" in ended.err.splitlines()[0]


def test_an_instance_of_the_folder_itself_stays_as_it_is(run, packed, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    packed.rename(folder / "instance.json")
    before = (folder / "instance.json").stat().st_mtime_ns
    assert run("solve", "there/instance.json", "--out", "there", "--time-limit", 60).code == 0
    assert (folder / "instance.json").stat().st_mtime_ns == before
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_schedule_that_breaks_a_rule_ends_with_1(run, packed, monkeypatch):
    made = Recorder.schedule

    def later(self, *arguments):
        schedule = made(self, *arguments)
        schedule.finish_s[0] += 1.0
        return schedule

    monkeypatch.setattr(Recorder, "schedule", later)
    ended = run("solve", packed, "--time-limit", 60)
    assert ended.code == 1
    assert "checked        no: " in ended.out
    assert "finish, run" in ended.out


def test_without_matplotlib_all_but_the_picture_is_written(run, packed, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else found(name, *a)
    )
    assert run("solve", packed, "--time-limit", 60).code == 0
    assert {path.name for path in (tmp_path / "results/packed").iterdir()} == FILES - {"picture.png"}
    assert run("solve", packed, "--plot", "p.png").code == 2


def test_on_a_terminal_the_time_moves_below_the_lines(run, crowded, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    ended = run("solve", crowded, "--objective", "makespan", "--time-limit", 1)
    assert ended.code == 0
    assert "of 1 s; Ctrl-C ends with the best so far" in ended.err
    assert "\x1b[" in ended.err
    assert "\x1b[" not in ended.out


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_keeps_and_writes_the_best_so_far(tmp_path):
    command = (
        "solve",
        "gsm8k/gsm8k-1319",
        "--engine",
        "llama-65b-fp8@h200",
        "--objective",
        "makespan",
        "--out",
        "o",
    )
    process = subprocess.Popen([sys.executable, "-m", "optimizer", *command], cwd=tmp_path, stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stderr is not None
    while "vllm-v1" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped        Ctrl-C" in out
    document = json.loads((tmp_path / "o/solve.json").read_text())
    assert (document["limit"], document["checked"]) == ("interrupted", True)
    assert Schedule.read(tmp_path / "o/schedule.json").makespan_s == document["primal"]


def test_the_help_says_what_each_objective_means(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run("solve", "--help").out
    for name in get_args(Objective):
        assert f" {name}: the " in text.partition("Arguments")[0]


# ---- whatever is wrong: one message, exit code 2, nothing written


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--objective", "speed"), ["'speed'", "makespan, mean-latency"]),
        (("--objective", "makespan,makespan"), ["makespan,makespan", "two different"]),
        (("--objective", ""), ["no objective"]),
        (("--time-limit", 0), ["--time-limit", "> 0"]),
        (("--time-limit", "nan"), ["--time-limit"]),
        (("--gap", 1), ["--gap", "[0, 1)"]),
        (("--seed", -1), ["--seed"]),
        (("--lengths", "guess"), ["exact, none, bucket"]),
        (("--json", "nowhere/s.json"), ["nowhere"]),
        (("--certificate", "."), ["folder"]),
        (("--schedule", "a.json", "--plan", "a.json"), ["a.json", "another output"]),
        (("--json", "packed.json"), ["packed.json", "the input"]),
        (("--plot", "p.txt"), [".txt", "png"]),
        (("--out", "packed.json"), ["packed.json", "folder"]),
        (("--engine", "llama3.1-9b@h200"), ["llama3.1-8b"]),
    ],
)
def test_a_bad_option_is_named(run, packed, tmp_path, options, words):
    message = _refused(run, tmp_path, "solve", packed.name, *options)
    flat = " ".join(message.replace("│", " ").split())
    assert all(word in flat for word in words), flat


@pytest.mark.parametrize("command", ["solve", "bound"])
def test_an_instance_that_cannot_be_served_says_who_lacks_what_and_what_would_help(
    run, packed, tmp_path, command
):
    message = _refused(run, tmp_path, command, packed.name, "--kv-blocks", 1, "--block-tokens", 8)
    for words in ("request e", "KV blocks", "the engine has 1", "more KV blocks", "1 such"):
        assert words in message
    message = _refused(run, tmp_path, command, packed.name, "--max-model-len", 6)
    for words in ("request d", "7 tokens", "max_model_len is 6", "clip", "2 such"):
        assert words in message


@pytest.mark.parametrize("command", ["solve", "bound"])
def test_a_missing_file_and_a_trace_without_an_engine_are_named(run, lengths, tmp_path, command):
    assert "no such file" in _refused(run, tmp_path, command, "nothing.json")
    assert "--engine" in _refused(run, tmp_path, command, lengths.name)
    (tmp_path / "x.json").write_text('{"schema": "optimizer/instance@1"\n')
    assert "x.json" in _refused(run, tmp_path, command, "x.json")


def test_an_unwritable_folder_is_refused_before_the_work(run, packed, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *a: False)
    assert "cannot be written" in _refused(run, tmp_path, "solve", packed.name)


def _refused(run, tmp_path, *arguments):
    before = sorted(tmp_path.rglob("*"))
    ended = run(*arguments)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err + ended.out
    assert ended.out == ""
    assert sorted(tmp_path.rglob("*")) == before, "something was written"
    return ended.err

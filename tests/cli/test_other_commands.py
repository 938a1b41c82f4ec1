from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from optimizer.policies import policy_names
from optimizer.problem import Instance, Schedule
from optimizer.traces import families, family_options, read_trace

ENGINE = ("--engine", "llama3.1-8b@h200")
COMMANDS = (
    "simulate", "compare", "solve", "bound", "check", "calibrate", "validate", "policies", "engines", "instances",
    "demo", "generate",
)  # fmt: skip


def test_check_says_yes_or_names_the_rule(run, trace, tmp_path):
    run("simulate", trace, *ENGINE, "--schedule", "s.json", "--instance-out", "i.json")
    good = run("check", "s.json", "--instance", "i.json")
    assert (good.code, good.out[:3]) == (0, "yes")
    schedule = Schedule.read(tmp_path / "s.json")
    schedule.finish_s[3] += 1.0
    schedule.write(tmp_path / "bad.json")
    bad = run("check", "bad.json", "--instance", "i.json")
    assert bad.code == 1
    assert "finish" in bad.out
    assert "request 3" in bad.out


def test_check_knows_the_instances_that_are_shipped(run, tmp_path):
    assert run("bound", "toy/packing", "--certificate", "c.json").code == 0
    assert run("check", "c.json", "--instance", "toy/packing").out.startswith(
        "yes: no schedule has a makespan"
    )
    wrong = run("check", "c.json", "--instance", "toy/pakcing")
    assert wrong.code == 2
    assert "did you mean toy/packing" in wrong.err


def test_policies_lists_every_one_with_a_line(run):
    ended = run("policies")
    assert ended.code == 0
    listed = {line.split()[0]: line for line in ended.out.splitlines() if line[:1].strip()}
    assert set(listed) == set(policy_names())
    assert all(len(line.split()) > 3 for line in listed.values())


def test_engines_lists_cards_models_and_gpus(run):
    ended = run("engines")
    for word in ("llama3.1-8b@h200", "measured", "llama3.1-70b-tp4@h100", "estimated", "yi-34b", "b200"):
        assert word in ended.out
    assert "yi-34b" not in run("engines", "--no-models").out


def test_generate_writes_an_instance_or_requests(run, tmp_path):
    for name in ("a.json", "b.json"):
        made = run("generate", "chat", "--n", 50, "--seed", 7, "--rate", 5, *ENGINE, "--out", name)
        assert made.code == 0
        assert "50 requests" in made.err
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    instance = Instance.read(tmp_path / "a.json")
    assert instance.engine.name == "llama3.1-8b@h200"
    assert "seed 7" in instance.source
    assert run("generate", "chat", "--n", 50, "--seed", 7, "--rate", 5, "--out", "c.csv").code == 0
    assert np.array_equal(
        read_trace(tmp_path / "c.csv").requests.prompt_tokens, instance.requests.prompt_tokens
    )
    assert run("simulate", "a.json", "--json", "s.json").code == 0


def test_generate_takes_options_of_the_family(run, tmp_path):
    options = ("--option", "long-share=1", "--option", "shortest=100", "--option", "longest=110")
    assert run("generate", "mixed-long", "--n", 30, *options, *ENGINE, "--out", "m.json").code == 0
    instance = Instance.read(tmp_path / "m.json")
    assert 100 <= instance.requests.prompt_tokens.min() <= instance.requests.prompt_tokens.max() <= 110
    assert "long_share 1.0, shortest 100" in instance.source


def test_the_help_of_generate_names_every_family_with_its_options(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    text = run("generate", "--help").out
    for family in families():
        assert family in text
        assert all(f"{key}={value}" in text for key, value in family_options(family).items())


def test_version(run):
    ended = run("--version")
    assert ended.code == 0
    assert ended.out.startswith("optimizer ")


def test_no_command_shows_the_help(run):
    ended = run()
    assert "simulate" in ended.out + ended.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(run, command):
    ended = run(command, "--help")
    assert ended.code == 0
    assert "Examples:" in ended.out
    assert f"optimizer {command}" in ended.out


@pytest.mark.parametrize("command", ["simulate", "compare", "solve", "bound"])
def test_the_shared_options_are_in_all(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run(command, "--help").out
    for option in ("--rate", "--kv-blocks", "--lengths", "--ttft-slo", "--tenant", "--seed"):
        assert option in text
    assert ("--policy-option" in text) is (command in ("simulate", "compare"))


def best_seconds(*command: str, times: int = 5) -> float:
    """CPU time of the fastest of some runs: what the program needs, not what else the machine does."""

    def used() -> float:
        children = os.times()
        return children.children_user + children.children_system

    best = float("inf")
    for _ in range(times):
        start = used()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        best = min(best, used() - start)
    return best


def test_import_is_light():
    code = "import optimizer, sys; assert not {'numpy', 'pydantic', 'typer', 'rich'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert best_seconds("-c", "import optimizer") - best_seconds("-c", "pass") < 0.2


def test_help_is_fast_and_imports_no_numpy():
    code = "import sys; from optimizer.cli import main; main(['--help']); assert not {'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert best_seconds("-m", "optimizer", "--help") < 1.2  # 0.6 s where nothing else runs


def test_every_public_name_is_there():
    import optimizer

    for name in optimizer._HOME_OF:
        assert getattr(optimizer, name) is not None
        assert name in dir(optimizer)
    assert optimizer.__version__
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = optimizer.nothing_like_it


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_pipe_that_closes_early_costs_no_file(trace, tmp_path, command):
    line = f'"{sys.executable}" -m optimizer {command} five.csv --engine llama3.1-8b@h200 | head -1'
    ended = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" not in ended.stderr
    assert any((tmp_path / "results/five" / name).exists() for name in ("summary.json", "table.json"))


def test_a_pipe_that_closes_early_is_no_error():
    process = subprocess.run(
        f'"{sys.executable}" -m optimizer engines | head -1', shell=True, capture_output=True, text=True
    )
    assert "Traceback" not in process.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_during_a_simulation_writes_nothing(tmp_path):
    command = (
        "simulate",
        "gsm8k/gsm8k-1319",
        "--engine",
        "llama-65b-fp8@h200",
        "--kv-blocks",
        "200",
        "--step-by-step",
    )
    process = subprocess.Popen([sys.executable, "-m", "optimizer", *command], cwd=tmp_path, stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stderr is not None
    process.stderr.readline()  # the note on the trace: it has been read
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip().endswith("interrupted")
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_demo_prints_two_tables_and_a_solve_and_where_the_details_are(run, tmp_path):
    ended = run("demo", "--out", "d", "--time-limit", 15)
    assert ended.code == 0, ended.out
    assert ended.out.count("TTFT p99") == 2
    assert "GSM8K" in ended.out
    assert ended.err.count("wrote d/") == 3
    for name in ("gsm8k-1319", "chats-2000"):
        rows = json.loads((tmp_path / "d" / name / "table.json").read_text())["rows"]
        assert {row["policy"] for row in rows} == set(policy_names())
    solved = json.loads((tmp_path / "d/gsm8k-1319/solve.json").read_text())
    best = min(
        row["makespan_s"] for row in json.loads((tmp_path / "d/gsm8k-1319/table.json").read_text())["rows"]
    )
    assert solved["dual"] < solved["primal"] <= best
    assert f"gap            {100 * solved['gap']:.2f} %" in ended.out

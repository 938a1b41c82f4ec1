"""`optimizer.compare`: rows, failures of any kind, seeds, and processes that die."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import optimizer
from optimizer.comparison import Comparison, Failure
from optimizer.comparison.pool import usable_cores
from optimizer.errors import InputError
from optimizer.policies import make_policy, policy_names
from optimizer.problem import Engine, Instance, StepTime, with_knowledge
from optimizer.traces import generate

STEP = StepTime.affine(base_s=0.01, per_prefill_token_s=1e-5, per_decode_seq_s=1e-4)

BAD_POLICIES = """
import os, signal
from optimizer.policies import Policy
from optimizer.policies.vllm_v1 import VllmV1

class Exits(Policy):
    name = "exits"
    def step(self, state): os._exit(3)

class Killed(Policy):
    name = "killed"
    def step(self, state): os.kill(os.getpid(), signal.SIGKILL)

class Raises(Policy):
    name = "raises"
    def step(self, state): raise KeyError("nothing")

class Idles(Policy):
    name = "idles"
    def step(self, state): pass

class Chats(VllmV1):
    name = "chats"
    def start(self, state): print("to standard output")

class Unloadable(VllmV1):
    name = "unloadable"
    def __reduce__(self): return (int, ("not a number",))
"""


@pytest.fixture
def instance():
    requests = with_knowledge(generate("chat", 60, 1, rate=20.0), "exact")
    return Instance("chats", requests, Engine(name="toy", kv_blocks=400, max_num_seqs=32, step_time=STEP))


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """A module of policies that go wrong, which worker processes can import too."""
    (tmp_path / "bad_policies.py").write_text(BAD_POLICIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bad_policies", raising=False)
    import bad_policies

    return bad_policies


def test_all_policies_have_a_row(instance):
    result = optimizer.compare(instance)
    assert isinstance(result, Comparison)
    assert not result.failures, result.notes()
    assert {row["policy"] for row in result.rows} == set(policy_names())
    assert all(row["finished"] == 60 for row in result.rows)
    values = [row["e2e_mean_s"] for row in result.rows]
    assert values == sorted(values)
    assert result.to_frame().loc["vllm-v1", "finished"] == 60
    assert "vllm-v1" in str(result)


def test_processes_change_nothing(instance):
    names = ["vllm-v1", "vllm-v0", "srpt"]
    near, far = (optimizer.compare(instance, names, jobs=jobs) for jobs in (1, 2))
    timed = ("loop_seconds", "requests_per_second_simulated")
    for a, b in zip(near.runs, far.runs, strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_policy_that_goes_wrong_is_its_own_failure(instance, bad, jobs):
    result = optimizer.compare(instance, [bad.Raises(), "vllm-v1", bad.Idles()], jobs=jobs)
    assert [run["policy"] for run in result.runs] == ["vllm-v1"]
    reasons = {failure.policy: failure.reason for failure in result.failures}
    assert "KeyError" in reasons["raises"]
    assert reasons["idles"]
    assert "FAILED raises" in str(result)


def test_a_process_that_dies_is_its_policys_failure(instance, bad):
    result = optimizer.compare(instance, [bad.Exits(), "vllm-v1", bad.Killed(), "srpt"], seeds=2, jobs=2)
    assert [(run["policy"], run["seed"]) for run in result.runs] == [
        ("vllm-v1", 0), ("srpt", 0), ("vllm-v1", 1), ("srpt", 1),
    ]  # fmt: skip
    reasons = {failure.policy: failure.reason for failure in result.failures}
    assert "exit code 3" in reasons["exits"]
    assert "SIGKILL" in reasons["killed"]
    assert "FAILED exits with seed 0, 1" in str(result)


def test_what_a_policy_prints_does_not_disturb_the_pipe(instance, bad):
    assert not optimizer.compare(instance, [bad.Chats(), "vllm-v1"], jobs=2).failures


def test_a_policy_that_cannot_be_sent_is_a_failure(instance, bad):
    unpicklable = make_policy("vllm-v1")
    unpicklable.hook = lambda: None
    result = optimizer.compare(instance, [bad.Unloadable(), unpicklable, "srpt"], jobs=2)
    assert [run["policy"] for run in result.runs] == ["srpt"]
    assert {failure.policy for failure in result.failures} == {"unloadable", "vllm-v1"}
    assert all("could not be" in failure.reason for failure in result.failures)


def test_a_script_needs_no_main_guard_and_may_bring_its_own_policy(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        import optimizer
        from optimizer.policies import register
        from optimizer.policies.vllm_v1 import VllmV1

        @register("mine")
        @dataclass
        class Mine(VllmV1):
            '''Mine.'''

        engine = optimizer.engine("llama3.1-8b@h200")
        instance = optimizer.Instance("chats", optimizer.generate("chat", 30, 1, rate=10.0), engine)
        print(optimizer.compare(instance, ["mine", "vllm-v1", "vllm-v0"], jobs=2))
    """)
    )
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    assert {line.split()[0] for line in out.stdout.splitlines()[3:6]} == {"mine", "vllm-v1", "vllm-v0"}


def test_an_instance_per_seed(instance):
    def drawn(seed):
        requests = with_knowledge(generate("chat", 60, seed, rate=20.0), "exact")
        return Instance("chats", requests, instance.engine)

    result = optimizer.compare(drawn, ["vllm-v1", "srpt"], seeds=[3, 5, 8], jobs=2)
    assert result.varies
    assert {run["instance_sha256"] for run in result.runs} == {drawn(seed).sha256 for seed in (3, 5, 8)}
    for row in result.rows:
        values = [run["makespan_s"] for run in result.runs if run["policy"] == row["policy"]]
        assert row["makespan_s"] == pytest.approx(sum(values) / 3)
        assert row["makespan_s_ci"] > 0


def test_the_same_seeds_give_the_same_comparison(instance):
    a, b = (optimizer.compare(instance, ["vllm-v1"], seeds=2, jobs=1) for _ in range(2))
    assert a.runs[0]["makespan_s"] == b.runs[0]["makespan_s"]
    assert not a.varies
    assert "makespan_s_ci" not in a.rows[0]
    assert "all with the same figures" in str(a)


def test_options_go_to_the_policies_they_are_for(instance):
    options = {"vllm-v1.long_prefill_token_threshold": 16}
    result = optimizer.compare(instance, "vllm-v1,vllm-v0", jobs=1, options=options)
    assert [run["policy_options"] for run in result.runs] == [{"long_prefill_token_threshold": 16}, {}]
    with pytest.raises(InputError, match="no policy here takes the option 'nothing'"):
        optimizer.compare(instance, "vllm-v1", options={"nothing": 1})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"policies": "vlm"}, "vllm"),
        ({"policies": []}, "no policy"),
        ({"policies": ["vllm-v1"] * 2}, "twice"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({"jobs": 0}, "processes"),
        ({"sort": "beauty"}, "makespan_s"),
    ],
)
def test_wrong_arguments_are_named(instance, arguments, words):
    with pytest.raises(InputError, match=words):
        optimizer.compare(instance, **arguments)


def test_progress_is_told_from_the_start_to_the_end(instance):
    told = []
    optimizer.compare(instance, "vllm-v1,vllm-v0,srpt", jobs=2, progress=lambda *what: told.append(what))
    assert [(done, total) for done, total, _ in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert {last["policy"] for *_, last in told[1:]} == {"vllm-v1", "vllm-v0", "srpt"}


def test_an_interrupt_ends_the_processes(instance, bad):
    def interrupt(done, total, last):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.compare(instance, list(policy_names()), jobs=2, progress=interrupt)


def test_rows_without_a_figure_come_last():
    figures = {
        column.key: 1.0
        for column in __import__("optimizer.comparison.result", fromlist=["COLUMNS"]).COLUMNS[1:]
    }
    runs = ({**figures, "policy": "a", "seed": 0, "tpot_mean_s": None}, {**figures, "policy": "b", "seed": 0})
    result = Comparison(runs, (Failure("c", 0, "why"),), (0,), "tpot_mean_s")
    assert [row["policy"] for row in result.rows] == ["b", "a"]
    assert "FAILED c: why" in str(result)


def test_nothing_finished_is_said():
    assert "no policy finished" in str(Comparison((), (Failure("c", 0, "why"),)))


def test_cores_are_counted():
    assert usable_cores() >= 1

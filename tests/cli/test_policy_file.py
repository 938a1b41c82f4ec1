"""A user's own policies, from a file: run, compared, listed, and named by file and line where they are wrong."""

from __future__ import annotations

import csv
import json

import pytest

from optimizer.comparison import SKELETON, policy_files
from optimizer.errors import InputError
from optimizer.policies import base

ENGINE = ("--engine", "llama3.1-8b@h200")
IMPORTS = "from dataclasses import dataclass\nfrom optimizer.policies import Policy, register\n"


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """Let every test start without policies of files."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    monkeypatch.setattr(policy_files, "_LOADED", {})


@pytest.fixture
def lcfs(tmp_path):
    path = tmp_path / "lcfs.py"
    path.write_text(SKELETON)
    return path


@pytest.fixture
def burst(tmp_path):
    """Three requests at once and seats for one: the order is the policy's."""
    path = tmp_path / "burst.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,500,50\n0.01,100,5\n0.02,100,5\n")
    return path


def test_the_skeleton_is_a_policy_of_twenty_lines(run, lcfs, burst, tmp_path):
    assert len(SKELETON.splitlines()) <= 21
    ended = run(
        "simulate", burst, *ENGINE, "--max-num-seqs", 1, "--policy-file", lcfs, "--policy", "lcfs", "--check"
    )
    assert ended.code == 0, ended.err
    assert "check: yes" in ended.out
    with (tmp_path / "results/burst/requests.csv").open() as file:
        first, second, third = (float(row["finish_s"]) for row in csv.DictReader(file))
    assert first < third < second, "the last that came is served before the one before it"
    assert len(json.loads((tmp_path / "results/burst/summary.json").read_text())["policy_file_sha256"]) == 64


@pytest.mark.parametrize("jobs", [1, 2])
def test_compare_knows_it_in_its_processes(run, lcfs, burst, jobs):
    names = ("--policies", "lcfs,vllm-v1,srpt", "--jobs", jobs)
    ended = run("compare", burst, *ENGINE, "--policy-file", lcfs, *names, "--check")
    assert ended.code == 0, ended.out
    assert {line.split()[0] for line in ended.out.splitlines()[3:6]} == {"lcfs", "vllm-v1", "srpt"}


def test_all_policies_include_those_of_several_files(run, lcfs, burst, tmp_path):
    (tmp_path / "helper.py").write_text("NAME = 'second'\n")
    second = tmp_path / "second.py"
    second.write_text(
        SKELETON.replace('"lcfs"', "NAME").replace("from opt", "from helper import NAME\nfrom opt", 1)
    )
    ended = run("policies", "--policy-file", lcfs, "--policy-file", second)
    assert [line.split()[0] for line in ended.out.splitlines() if line[:1].strip()][-2:] == ["lcfs", "second"]
    ended = run("compare", burst, *ENGINE, "--policy-file", lcfs, "--policy-file", second, "--jobs", 2)
    assert {"lcfs", "second"} <= {line.split()[0] for line in ended.out.splitlines() if line.strip()}


def test_resume_makes_a_policy_whose_file_changed_again(run, lcfs, burst, monkeypatch):
    command = ("compare", burst, *ENGINE, "--policy-file", lcfs, "--policies", "lcfs,vllm-v1", "--jobs", 1)
    run(*command)
    assert "2 of 2 runs are there already" in run(*command, "--resume").err
    lcfs.write_text(SKELETON + "\n# changed\n")
    with pytest.raises(InputError, match="has changed"):
        policy_files.load_policy_file(lcfs)
    monkeypatch.setattr(policy_files, "_LOADED", {})
    base._REGISTRY.pop("lcfs")
    assert "1 of 2 runs are there already" in run(*command, "--resume").err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os\nx = 1 / 0\n", ["line 2", "ZeroDivisionError"]),
        ("import os\n\ndef f(:\n", ["line 3", "SyntaxError"]),
        ("import nothing_like_it\n", ["line 1", "nothing_like_it"]),
        ("def f():\n    raise ValueError('deep')\nf()\n", ["line 2", "deep"]),
        ("import sys\nsys.exit(3)\n", ["line 2", "SystemExit"]),
        ("\x00", ["null bytes"]),
        ("x = 1\n", ["registers no policy", "class LastComeFirstServed(VllmV1)", "def queue(self, state)"]),
        (IMPORTS + "@register('vllm-v1')\nclass A(Policy): pass\n", ["line 3", "vllm-v1"]),
        (IMPORTS + "@register('a')\n@dataclass\nclass A(Policy):\n    x: int\n", ["'a'", "default"]),
    ],
    ids=["raises", "syntax", "import", "deep", "exit", "binary", "nothing", "taken", "no default"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_what_is_wrong_in_a_file_is_named(run, burst, tmp_path, command, text, words):
    (tmp_path / "mine.py").write_text(text)
    ended = run(command, burst, *ENGINE, "--policy-file", "mine.py")
    assert ended.code == 2
    assert ended.err.startswith("error: mine.py")
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("path", "word"), [("nowhere.py", "No such file"), (".", "directory")])
def test_a_file_that_cannot_be_read_is_named(run, burst, path, word):
    ended = run("simulate", burst, *ENGINE, "--policy-file", path)
    assert (ended.code, word in ended.err) == (2, True)


def test_a_policy_that_raises_names_the_line_of_its_file(run, burst, tmp_path):
    text = (
        IMPORTS + "@register('mine')\nclass A(Policy):\n    def step(self, state):\n        state.nothing()\n"
    )
    (tmp_path / "mine.py").write_text(text)
    ended = run("simulate", burst, *ENGINE, "--policy-file", "mine.py", "--policy", "mine")
    assert (ended.code, "(mine.py, line 6)" in ended.err) == (2, True)
    ended = run(
        "compare", burst, *ENGINE, "--policy-file", "mine.py", "--policies", "mine,vllm-v1", "--jobs", 2
    )
    assert ended.code == 1
    assert "FAILED mine: " in ended.out
    assert "(mine.py, line 6)" in ended.out
    assert "has no docstring" in run("policies", "--policy-file", "mine.py").out

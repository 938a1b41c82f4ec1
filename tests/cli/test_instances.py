"""Instances that are shipped, on the command line: listed, and taken wherever a trace is."""

from __future__ import annotations

import json

import pytest

from optimizer.traces import listed_instances


def test_instances_are_listed_with_size_objective_and_engine(run):
    ended = run("instances")
    assert ended.code == 0
    lines = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines()[2:]}
    assert lines["gsm8k/paper-200-case-0..99"] == ["1,319", "makespan", "pang-200-clients"]
    assert lines["kv-ramps/n50-0..9"] == ["40-60", "mean-latency", "equal-rounds"]
    assert lines["gsm8k/gsm8k-1319"] == ["-", "-", "-"]
    assert len(lines) == len(listed_instances()) + 1


def test_one_family_can_be_listed(run):
    ended = run("instances", "toy")
    assert {line.partition("/")[0] for line in ended.out.splitlines()[2:]} == {"toy"}
    wrong = run("instances", "toys")
    assert wrong.code == 2
    assert "did you mean toy" in wrong.err


def test_simulate_takes_an_instance_with_its_engine(run, tmp_path):
    assert run("simulate", "toy/prefill-levels", "--policy", "vllm-v0", "--json", "s.json").code == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["makespan_s"] == pytest.approx(28)
    assert (tmp_path / "results/prefill-levels").is_dir()


def test_another_engine_can_be_given(run):
    ended = run("simulate", "toy/packing", "--engine", "llama3.1-8b@h200")
    assert ended.code == 0
    assert "llama3.1-8b@h200" in ended.out


def test_compare_takes_an_instance(run):
    ended = run("compare", "kv-ramps/n16-3", "--policies", "mc-sf,svf", "--jobs", 1)
    assert ended.code == 0
    assert "mc-sf" in ended.out


def test_what_is_known_of_lengths_can_be_less(run, tmp_path):
    for lengths in ("exact", "noise:0.5"):
        ended = run(
            "simulate",
            "gsm8k/paper-200",
            "--policy",
            "lpt",
            "--lengths",
            lengths,
            "--json",
            f"{lengths}.json",
        )
        assert ended.code == 0
    exact, noisy = (
        json.loads((tmp_path / f"{n}.json").read_text())["makespan_s"] for n in ("exact", "noise:0.5")
    )
    assert exact < noisy


def test_a_wrong_name_is_told_with_near_ones(run):
    ended = run("simulate", "gsm8k/paper200")
    assert ended.code == 2
    assert "did you mean gsm8k/paper-200" in ended.err

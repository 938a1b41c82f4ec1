"""The serving demo: plain lines where nobody watches, a picture on a terminal, and an end."""

from __future__ import annotations

import io
import json

import pytest

QUICK = ("serve-demo", "--speed", 0, "--duration", 6, "--rate", 20)


def test_lines_and_a_summary(run):
    ended = run(*QUICK, "--no-solver")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert "20 per second for 6 s" in lines[0]
    looks = [line for line in lines if " wait " in line and " run " in line]
    assert 15 <= len(looks) <= 20
    assert all("KV" in line for line in looks)
    assert "heuristic 100%" in ended.out
    assert "0 plans of 0 windows" in ended.out


def test_the_same_seed_gives_the_same_lines(run):
    first, again, other = (run(*QUICK, "--no-solver", "--seed", seed).out for seed in (1, 1, 2))

    def looks(text):
        return [line for line in text.splitlines() if " wait " in line]

    assert looks(first) == looks(again) != looks(other)


def test_statistics_are_written(run, tmp_path):
    assert (
        run(*QUICK, "--no-solver", "--noise", 0, "--objective", "goodput", "--json", "stats.json").code == 0
    )
    written = json.loads((tmp_path / "stats.json").read_text())
    counts, there = written["stats"]["counts"], written["stats"]["running"] + written["stats"]["waiting"]
    assert counts["submitted"] == counts["finished"] + there > 50
    assert counts["finished"] == written["finished"]
    assert counts["clock_jumps"] == 0
    assert written["engine_s"] >= 6


def test_a_solver_beside_it_ends_with_it(run, tmp_path):
    assert run(*QUICK, "--json", "stats.json").code == 0
    assert json.loads((tmp_path / "stats.json").read_text())["stats"]["solver"]["garbage"] == 0


def test_on_a_terminal_the_picture_is_live(run, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    seen = Terminal()
    monkeypatch.setattr("sys.stdout", seen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    from optimizer.cli import main

    assert main([str(word) for word in (*QUICK, "--no-solver")]) == 0
    shown = seen.getvalue()
    for word in ("queue", "batch", "KV cache", "latency", "next_step", "served"):
        assert word in shown


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rate", 0),
        ("--rate", "nan"),
        ("--duration", -1),
        ("--duration", 1e9),
        ("--speed", -2),
        ("--noise", "inf"),
        ("--objective", "speed"),
        ("--family", "nobody"),
        ("--engine", "nothing@here"),
    ],
)
def test_bad_options_are_refused_with_a_remedy(run, option, value):
    ended = run("serve-demo", option, value)
    assert ended.code == 2
    assert "error:" in ended.err
    assert "Traceback" not in ended.err


def test_help_teaches(run):
    ended = run("serve-demo", "--help")
    assert ended.code == 0
    for word in ("--duration", "--speed", "--seed", "optimizer serve-demo"):
        assert word in ended.out

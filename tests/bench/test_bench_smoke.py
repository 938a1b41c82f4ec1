"""The benchmark runs, whole and tiny; no time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.clock import events_per_second
from tests.bench.table import Row, Sample, render

ROOT = Path(__file__).parents[2]
FAKE = """#!{python}
import json, sys
if "dynamo.replay" not in sys.argv:
    print("1.4.2")
else:
    rows = [json.loads(line) for line in open(sys.argv[3])]
    assert len(rows) == 20 and set(rows[0]) == {{"timestamp", "input_length", "output_length", "hash_ids"}}
    engine = json.loads(sys.argv[sys.argv.index("--extra-engine-args") + 1])
    assert engine["max_num_seqs"] == engine["max_num_batched_tokens"] == 512 and engine["num_gpu_blocks"] > 1
    with open(sys.argv[sys.argv.index("--report-json") + 1], "w") as out:
        json.dump({{"wall_time_ms": 125.0}}, out)
"""


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench.bench", "--requests", "20", "--runs", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.mark.long
def test_every_measurement_runs_at_a_tiny_size(tmp_path, fake):
    out = tmp_path / "bench.json"
    done = bench("--quick", "--json", str(out), "--rival-python", str(fake))
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    rows = [row for table in document["tables"].values() for row in table]
    names = {row["what"] for row in rows}
    assert all(value > 0 for row in rows for value in row["values"])
    assert {"vllm-v1", "past-future", "import optimizer: whole process"} <= names
    for words in (
        "20 requests of",
        "slowest policy",
        "repeated: loop time per request",
        "--help",
        "simulate",
    ):
        assert any(words in name for name in names), words
    assert document["clock_events_per_second"] > 0
    assert "20 of" not in done.stdout
    assert "starts, 1 of 1" in done.stderr
    (theirs,) = (row for row in rows if "by its own wall time" in row["what"])
    assert theirs["what"].startswith("ai-dynamo 1.4.2")
    assert theirs["values"] == [160.0], "20 requests in 125 ms"


def test_it_goes_without_the_real_traces(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTIMIZER_SHARED", str(tmp_path))
    done = bench("--only", "headline", "--markdown")
    assert done.returncode == 0, done.stderr
    assert "| 20 requests of generated chat at 5.6 requests/s, vllm-v1: in the loop |" in done.stdout


def test_a_rival_that_is_not_there_is_one_line(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no module named dynamo >&2\nexit 1\n")
    broken.chmod(0o755)
    done = bench("--only", "headline", "--rival-python", str(broken))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: python ended with 1: no module named dynamo"


@pytest.mark.parametrize("options", [("--rival-python", "nowhere/python"), ("--core", "100000")])
def test_what_cannot_be_measured_is_one_line(options):
    done = bench("--only", "headline", *options)
    assert done.returncode == 1
    assert not done.stdout
    assert "error: " in done.stderr.splitlines()[-1]


def test_the_median_decides_whether_a_target_is_met():
    sample = Sample((1.0, 3.0, 2.0), (2e6, 2e6, 2e6))
    assert [Row("a", "s", sample, at_most=m).met for m in (2.0, 1.9)] == [True, False]
    assert [Row("a", "s", sample, at_least=m).met for m in (2.0, 2.1)] == [True, False]
    assert Row("a", "s", sample).met is None
    assert render([Row("a", "x", sample)], markdown=True).splitlines()[2].startswith("| a | 2.00 x (1.00 to")


def test_the_clock_counts_events():
    assert events_per_second(1000) > 0

"""Whatever is wrong: one message, exit code 2, no traceback, and no file left behind."""

from __future__ import annotations

import json

import pytest

from optimizer.policies import Policy, base, register
from optimizer.problem import Instance, Requests

ENGINE = ("--engine", "llama3.1-8b@h200")
HEADER = "arrival_s,prompt_tokens,output_tokens\n"


def refused(run, tmp_path, *arguments, code=2):
    """Run a command that must be refused, and give its message."""
    before = sorted(tmp_path.rglob("*"))
    ended = run(*arguments)
    assert ended.code == code, ended
    assert "Traceback" not in ended.err + ended.out
    assert ended.out == ""
    assert sorted(tmp_path.rglob("*")) == before, "something was written"
    return ended.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        (HEADER, ["no re", "t.csv"]),
        (HEADER + "0,-5,3\n", ["line 2", "prompt_tokens", "-5"]),
        (HEADER + "0,5,\n", ["line 2", "output_tokens"]),
        (HEADER + "0,5,2.5\n", ["line 2", "output_tokens", "2.5"]),
        (HEADER + "0,5,999999999999\n", ["line 2", "output_tokens"]),
        (HEADER + "0,5,nan\n", ["line 2", "output_tokens"]),
        (HEADER + "0,5,3\n1,5\n", ["line 3"]),
        (HEADER + "5,5,3\n1,5,3\n", ["line 3", "arrival_s"]),
        ("when,how_long\n1,2\n", ["t.csv"]),
        ("id," + HEADER + "a,0,5,3\na,1,5,3\n", ["line 3", "id", "'a'"]),
        (HEADER + "0,5000000,3\n", ["KV blocks"]),
    ],
    ids=["empty", "no rows", "negative", "missing", "fraction", "absurd", "nan", "truncated", "backwards", "columns",
         "twice", "misfit"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_bad_trace_is_named_with_line_and_field(run, tmp_path, command, content, words):
    (tmp_path / "t.csv").write_text(content)
    message = refused(run, tmp_path, command, "t.csv", *ENGINE)
    assert message.startswith("error: t.csv")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["--engine", "optimizer engines"]),
        (("--engine", "llama3.1-9b@h200"), ["llama3.1-8b"]),
        ((*ENGINE, "--max-num-batched-tokens", 128), ["--max-num-seqs 128", "256"]),
        ((*ENGINE, "--max-num-seqs", 9000), ["--max-num-batched-tokens 9000"]),
        ((*ENGINE, "--kv-blocks", 0), ["--kv-blocks"]),
        ((*ENGINE, "--kv-blocks", 10**30), ["--kv-blocks"]),
        ((*ENGINE, "--kv-blocks", 2), ["KV blocks", "five.csv"]),
        ((*ENGINE, "--max-model-len", 100), ["max_model_len"]),
        ((*ENGINE, "--rate", "nan"), ["--rate"]),
        ((*ENGINE, "--rate", "inf"), ["--rate"]),
        ((*ENGINE, "--rate", -1), ["--rate"]),
        ((*ENGINE, "--cv", 2), ["--rate"]),
        ((*ENGINE, "--rate", 1, "--time-scale", 2), ["--time-scale"]),
        ((*ENGINE, "--start", 3, "--end", 2), ["--end"]),
        ((*ENGINE, "--first", 10), ["nothing"]),
        ((*ENGINE, "--tenant", "nobody"), ["nobody"]),
        ((*ENGINE, "--lengths", "guess"), ["exact, none, bucket"]),
        ((*ENGINE, "--lengths", "noise:-1"), ["noise"]),
        ((*ENGINE, "--max-output-tokens", 10), ["--max-output 10"]),
        ((*ENGINE, "--format", "nonsense"), ["azure"]),
        ((*ENGINE, "--policy-option", "x"), ["KEY=VALUE"]),
        ((*ENGINE, "--policy-option", "nothing=1"), ["nothing"]),
        ((*ENGINE, "--policy-option", "long_prefill_token_threshold=many"), ["many"]),
        ((*ENGINE, "--seed", -1), ["--seed"]),
        ((*ENGINE, "--no-such-option"), ["--no-such-option"]),
        ((*ENGINE, "--plot", "p.txt"), [".txt", "png"]),
        ((*ENGINE, "--plot", "nowhere/p.png"), ["nowhere"]),
        ((*ENGINE, "--out", "five.csv"), ["five.csv", "folder"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_bad_option_is_named(run, trace, tmp_path, command, options, words):
    policy = ("--policies", "vllm-v1") if command == "compare" else ()
    message = refused(run, tmp_path, command, trace.name, *options, *policy)
    # The help of a wrong option is drawn into a frame, which breaks lines.
    flat = " ".join(message.replace("│", " ").split())
    for word in words:
        assert word.lstrip("'") in flat


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--policy", "vlm-v1"), ["vllm-v1"]),
        (("--json", "nowhere/s.json"), ["nowhere"]),
        (("--json", "."), ["folder"]),
        (("--json", "five.csv"), ["five.csv", "the input"]),
        (("--json", "a.json", "--schedule", "a.json"), ["a.json", "another output"]),
    ],
)
def test_a_bad_option_of_simulate_is_named(run, trace, tmp_path, options, words):
    message = refused(run, tmp_path, "simulate", trace.name, *ENGINE, *options)
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--policies", "vllm-v1,vlm"), ["vllm-v1"]),
        (("--policies", ","), ["no policy"]),
        (("--policies", "vllm-v1,vllm-v1"), ["twice"]),
        (("--sort", "beauty"), ["makespan_s"]),
        (("--seeds", 0), ["--seeds"]),
        (("--jobs", 0), ["--jobs"]),
        (("--policy-option", "vllm-v1.nothing=1", "--policies", "vllm-v1"), ["nothing"]),
    ],
)
def test_a_bad_option_of_compare_is_named(run, trace, tmp_path, options, words):
    message = refused(run, tmp_path, "compare", trace.name, *ENGINE, *options)
    assert all(word in message for word in words)


def test_a_file_that_is_not_there_is_named_with_the_workloads_that_are(run, tmp_path):
    message = refused(run, tmp_path, "simulate", "nowhere.csv", *ENGINE)
    assert "nowhere.csv" in message
    assert "gsm8k/gsm8k-1319" in message


def test_a_span_of_time_needs_arrivals(run, lengths, tmp_path):
    assert "--first and --count" in refused(run, tmp_path, "simulate", lengths.name, *ENGINE, "--start", 1)


def test_broken_json_is_named_with_its_line(run, tmp_path):
    (tmp_path / "i.json").write_text('{"schema":\n oops')
    message = refused(run, tmp_path, "check", "s.json", "--instance", "i.json")
    assert "s.json" in message
    (tmp_path / "s.json").write_text("{}")
    assert "no schedule" in refused(run, tmp_path, "check", "s.json", "--instance", "i.json")


def test_check_refuses_a_broken_instance(run, trace, tmp_path):
    run("simulate", trace, *ENGINE, "--schedule", "s.json", "--no-requests-csv", "--json", "sum.json")
    (tmp_path / "i.json").write_text('{"schema":\n oops')
    assert "i.json, line 2" in refused(run, tmp_path, "check", "s.json", "--instance", "i.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tea", "--out", "t.csv"), ["chat"]),
        (("chat", "--out", "t.txt"), [".json or .csv"]),
        (("chat", "--out", "t.json"), ["--engine"]),
        (("chat", "--out", "nowhere/t.csv"), ["nowhere"]),
        (("chat", "--out", "t.csv", "--n", 0), ["--n"]),
        (("chat", "--out", "t.csv", "--rate", -2), ["rate"]),
        (("chat", "--out", "t.json", "--engine", "x@y"), ["x@y"]),
        (("chat", "--out", "t.csv", "--option", "x"), ["KEY=VALUE"]),
        (("chat", "--out", "t.csv", "--option", "x=1"), ["'x'", "max_tokens"]),
        (("chat", "--out", "t.csv", "--option", "max_tokens=2.5"), ["max_tokens", "whole number"]),
        (("mixed-long", "--out", "t.csv", "--option", "long_share=2"), ["long_share", "0 to 1"]),
    ],
)
def test_generate_names_what_is_wrong(run, tmp_path, arguments, words):
    message = refused(run, tmp_path, "generate", *arguments)
    assert all(word in message for word in words)


@pytest.fixture
def failing(monkeypatch):
    """A policy that raises, for the time of a test."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    @register("raises")
    class Raises(Policy):
        """Raises."""

        def step(self, state):
            raise ZeroDivisionError("by zero")

    return "raises"


def test_a_policy_that_raises_is_a_message(run, trace, tmp_path, failing):
    message = refused(run, tmp_path, "simulate", trace.name, *ENGINE, "--policy", failing)
    assert "raises raised ZeroDivisionError" in message


def test_a_defect_is_a_short_message_and_a_traceback_on_demand(run, trace, tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("broken inside")

    monkeypatch.setattr(Instance, "sha256", property(broken))
    message = refused(run, tmp_path, "simulate", trace.name, *ENGINE, code=3)
    assert "broken inside" in message
    assert "report" in message
    monkeypatch.setenv("OPTIMIZER_DEBUG", "1")
    assert "Traceback" in run("simulate", trace.name, *ENGINE).err


def test_nothing_is_half_written_when_writing_fails(run, trace, tmp_path, monkeypatch):
    (tmp_path / "s.json").write_text("what was there")
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(Instance, "sha256", property(lambda self: "x"))
    ended = run("simulate", trace, *ENGINE, "--json", "s.json", "--no-requests-csv")
    assert ended.code == 3
    assert (tmp_path / "s.json").read_text() == "what was there"
    assert not list(tmp_path.rglob("*.part"))


def test_an_unwritable_folder_is_refused_before_the_work(run, trace, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *a: False)
    assert "cannot be written" in refused(run, tmp_path, "simulate", trace.name, *ENGINE)


def test_instances_with_unknown_fields_are_refused(run, toy_engine, tmp_path):
    document = Instance(
        "x", Requests.from_columns({"prompt_tokens": [1], "output_tokens": [1]}), toy_engine
    ).to_document()
    document["requests"]["colour"] = ["red"]
    (tmp_path / "i.json").write_text(json.dumps(document))
    assert "colour" in refused(run, tmp_path, "simulate", "i.json")

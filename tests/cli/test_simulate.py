from __future__ import annotations

import csv
import json

import pytest

from optimizer.capacity import gpu
from optimizer.catalogue import catalogue_path
from optimizer.problem import Instance, Requests, Schedule
from optimizer.simulator.recorder import Recorder

ENGINE = ("--engine", "llama3.1-8b@h200")
KEYS = {
    "requests_per_second_simulated", "loop_seconds", "peak_memory_mb", "makespan_s", "preemptions", "policy", "engine",
    "trace", "seed", "lengths", "versions", "instance_sha256", "limits", "ttft_p99_s", "goodput_per_s", "kv_use_peak",
}  # fmt: skip


def test_prints_figures_and_writes_summary_and_requests(run, trace, tmp_path):
    ended = run("simulate", trace, *ENGINE)
    assert ended.code == 0
    for word in ("makespan", "throughput", "goodput", "KV cache used", "preemptions", "end to end"):
        assert word in ended.out
    assert "\x1b[" not in ended.out, "colours are for terminals"
    summary = json.loads((tmp_path / "results/five/summary.json").read_text())
    assert summary.keys() >= KEYS
    engine = summary["engine"]
    assert (engine["name"], engine["origin"]) == ("llama3.1-8b@h200", "measured")
    assert engine["fit_error"]["all"]["median"] < 0.04
    assert engine["beyond"] == {"share": 0.0, "sums": {}}
    assert "measured; median error of a step" in ended.out
    assert "beyond" not in ended.out
    assert summary["requests"] == summary["finished"] == 5
    assert summary["versions"].keys() == {"optimizer", "python", "numpy"}
    with (tmp_path / "results/five/requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt_tokens"] for row in rows] == ["100", "200", "50", "300", "10"]
    assert rows[2]["tpot_s"] == "", "one output token has no time per further token"
    assert float(rows[3]["finish_s"]) == pytest.approx(summary["makespan_s"]) or float(rows[4]["finish_s"])


def test_writes_everything_it_is_asked_for(run, trace, tmp_path):
    files = {name: tmp_path / f"{name}.json" for name in ("json", "schedule", "instance-out", "trace-out")}
    named = [part for name, path in files.items() for part in (f"--{name}", path)]
    ended = run("simulate", trace, *ENGINE, *named, "--plot", "p.svg", "--out", "there", "--no-requests-csv")
    assert ended.code == 0
    assert not (tmp_path / "there").exists(), "nothing goes there, so it is not made"
    assert all(f"wrote {path}" in ended.err for path in files.values())
    assert Schedule.read(files["schedule"]).policy == "vllm-v1"
    assert len(Instance.read(files["instance-out"]).requests) == 5
    assert json.loads(files["trace-out"].read_text())["traceEvents"]
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    assert run("check", files["schedule"], "--instance", files["instance-out"]).code == 0


def test_an_instance_brings_its_engine_and_its_hash(run, toy_engine, tmp_path):
    requests = Requests.from_columns({"prompt_tokens": [100, 50], "output_tokens": [3, 5]})
    instance = Instance("two", requests, toy_engine)
    instance.write(tmp_path / "two.json")
    assert run("simulate", "two.json", "--json", "s.json").code == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["engine"]["name"] == "toy"
    assert summary["instance_sha256"] == instance.sha256
    assert summary["lengths"] == "as in the instance"


def test_step_by_step_gives_the_same_figures(run, trace, tmp_path):
    for name, *option in (("a.json",), ("b.json", "--step-by-step")):
        assert run("simulate", trace, *ENGINE, "--kv-blocks", 25, "--json", name, *option).code == 0
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    differing = {key for key in a if a[key] != b[key]}
    speed = {"step_by_step", "loop_seconds", "requests_per_second_simulated", "peak_memory_mb", "events"}
    assert differing <= speed | {"kv_use_mean"}, "the mean is an estimate inside runs, which differ"


@pytest.mark.parametrize(
    ("options", "requests", "prompt_tokens", "last_arrival_s"),
    [
        (("--first", 1, "--count", 2), 2, 250, 0.5),
        (("--start", 1, "--end", 4), 2, 350, 1.0),
        (("--tenant", "a"), 3, 160, 4.0),
        (("--tenant", "a", "--tenant", "b"), 5, 660, 4.0),
        (("--rate", 5), 5, 660, 1.0),
        (("--time-scale", 0.5), 5, 660, 2.0),
        (("--max-prompt", 100), 5, 360, 4.0),
        (("--max-total", 102), 5, None, 4.0),
        (("--max-output", 2), 5, 660, 4.0),
    ],
)
def test_takes_part_of_a_trace_and_shapes_it(
    run, trace, tmp_path, options, requests, prompt_tokens, last_arrival_s
):
    assert run("simulate", trace, *ENGINE, *options, "--instance-out", "i.json").code == 0
    made = Instance.read(tmp_path / "i.json").requests
    assert len(made) == requests
    assert prompt_tokens in (None, int(made.prompt_tokens.sum()))
    assert float(made.arrival_s[-1]) == pytest.approx(last_arrival_s)


def test_draws_arrivals_where_there_are_none(run, lengths, tmp_path):
    for seed in (0, 1):
        ended = run(
            "simulate", lengths, *ENGINE, "--rate", 3, "--seed", seed, "--instance-out", f"{seed}.json"
        )
        assert ended.code == 0
    a, b = (Instance.read(tmp_path / f"{seed}.json").requests.arrival_s for seed in (0, 1))
    assert a[-1] > 0
    assert a.tolist() != b.tolist()


def test_lengths_caps_and_levels_reach_the_instance(run, trace, tmp_path):
    options = ("--lengths", "bucket:8", "--max-output-tokens", 64, "--ttft-slo", 1, "--tpot-slo", 0.5)
    assert run("simulate", trace, *ENGINE, *options, "--instance-out", "i.json", "--json", "s.json").code == 0
    requests = Instance.read(tmp_path / "i.json").requests
    assert requests.known.high.tolist() == [8, 8, 8, 24, 8]
    assert set(requests.max_output_tokens.tolist()) == {64}
    assert set(requests.ttft_slo_s.tolist()) == {1.0}
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["slo_attainment"] == 1
    assert summary["lengths"] == "bucket:8"


def test_engine_options_are_the_limits_of_the_summary(run, trace, tmp_path):
    options = {
        "max-num-batched-tokens": 256,
        "max-num-seqs": 8,
        "kv-blocks": 99,
        "block-tokens": 32,
        "max-model-len": 400,
    }
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    assert run("simulate", trace, *ENGINE, *given, "--prefix-caching", "--json", "s.json").code == 0
    limits = json.loads((tmp_path / "s.json").read_text())["limits"]
    assert limits == {**{k.replace("-", "_"): v for k, v in options.items()}, "prefix_caching": True}


def test_policy_options_are_passed_on_and_recorded(run, trace, tmp_path):
    option = ("--policy-option", "long-prefill-token-threshold=64")
    assert run("simulate", trace, *ENGINE, *option, "--json", "s.json").code == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["policy_options"] == {"long_prefill_token_threshold": "64"}


def test_bad_rows_are_counted_and_listed_when_they_may_be_skipped(run, tmp_path):
    (tmp_path / "t.csv").write_text("prompt_tokens,output_tokens\n10,5\n-3,5\n10,x\n")
    ended = run("simulate", "t.csv", *ENGINE, "--skip-bad-rows", "--json", "s.json")
    assert ended.code == 0
    assert "left out 2 bad rows" in ended.err
    assert "line 3" in ended.err
    assert [row["line"] for row in json.loads((tmp_path / "s.json").read_text())["skipped_rows"]] == [3, 4]


def test_a_workload_of_the_package_is_found_by_its_name(run, tmp_path):
    ended = run("simulate", "gsm8k/gsm8k-1319", "--engine", "llama-65b-fp8@h200", "--json", "s.json")
    assert ended.code == 0
    assert json.loads((tmp_path / "s.json").read_text())["requests"] == 1319


def test_says_when_a_run_leaves_what_the_engine_was_measured_on(run, tmp_path):
    rows = "".join("20000,300\n" for _ in range(20))
    (tmp_path / "long.csv").write_text("prompt_tokens,output_tokens\n" + rows)
    ended = run("simulate", "long.csv", *ENGINE, "--json", "s.json")
    beyond = json.loads((tmp_path / "s.json").read_text())["engine"]["beyond"]
    most = beyond["sums"]["decode_context"]["most"]
    assert 129_457 < most <= 20 * 20_300
    assert 0.5 < beyond["share"] <= 1
    assert f"decode_context up to {most:,.0f} (129,457 covered)" in ended.out


@pytest.mark.parametrize(
    ("engine", "words"),
    [("llama3.1-70b-tp4@h100", "estimated from specifications"), ("opt-13b-tp1@a100-80-vllm", "states no error")],
)  # fmt: skip
def test_says_how_far_step_times_can_be_trusted(run, trace, engine, words):
    assert words in run("simulate", trace, "--engine", engine, "--max-prompt", 50).out


def test_a_card_of_ones_own_has_its_error_and_range(run, trace, tmp_path):
    text = (catalogue_path("models") / "engines/llama3.1-8b@h200.yaml").read_text()
    text = text.replace("name: llama3.1-8b@h200", "name: mine").replace("[0, 129457]", "[0, 10]")
    (tmp_path / "mine.yaml").write_text(text)
    for command in ("simulate", "compare"):
        policies = () if command == "simulate" else ("--policies", "vllm-v1", "--jobs", 1)
        ended = run(command, trace, "--engine", "mine.yaml", *policies)
        assert "median error of a step 2.4 %" in ended.out
        assert "(10 covered)" in ended.out


def test_check_judges_the_schedule(run, trace, tmp_path, monkeypatch):
    ended = run("simulate", trace, *ENGINE, "--check", "--json", "s.json")
    assert ended.code == 0
    assert "check: yes" in ended.out
    assert json.loads((tmp_path / "s.json").read_text())["check"].startswith("yes")
    _break_every_schedule(monkeypatch)
    ended = run("simulate", trace, *ENGINE, "--check", "--json", "s.json")
    assert ended.code == 1
    assert "check: no" in ended.out
    assert "finish" in json.loads((tmp_path / "s.json").read_text())["check"]


def _break_every_schedule(monkeypatch):
    made = Recorder.schedule

    def later(self, *arguments):
        schedule = made(self, *arguments)
        schedule.finish_s[0] += 1.0
        return schedule

    monkeypatch.setattr(Recorder, "schedule", later)


def test_hashes_stand_for_as_many_tokens_as_one_says(run, tmp_path):
    line = '{"timestamp": 0, "input_length": 64, "output_length": 3, "hash_ids": [1, 2, 3, 4]}\n'
    (tmp_path / "t.jsonl").write_text(line)
    given = ("--format", "mooncake", "--instance-out", "i.json")
    assert run("simulate", "t.jsonl", *ENGINE, *given, "--hash-block-tokens", 16).code == 0
    assert Instance.read(tmp_path / "i.json").requests.prefix.block_tokens == 16
    ended = run("simulate", "i.json", "--hash-block-tokens", 16)
    assert (ended.code, "leave this out" in ended.err) == (2, True)
    assert run("simulate", "gsm8k/gsm8k-1319", *ENGINE, "--hash-block-tokens", 16).code == 2


def test_figures_have_the_range_that_the_error_of_the_card_gives(run, trace, tmp_path):
    ended = run("simulate", trace, *ENGINE, "--json", "s.json")
    summary = json.loads((tmp_path / "s.json").read_text())
    band = summary["band"]
    assert band["error"] == summary["engine"]["known_error"]["error"]
    assert 0.02 < band["error"] < 0.08
    assert set(band["regimes"]) <= {"prefill", "decode", "mixed"}
    e2e = band["figures"]["e2e_mean_s"]
    assert e2e["low"] < summary["e2e_mean_s"] < e2e["high"]
    assert e2e["high"] / summary["e2e_mean_s"] == pytest.approx(1 + band["error"], rel=0.01), "nobody waits"
    assert f"makespan       {summary['makespan_s']:.2f} (" in ended.out
    assert "mean error of a step by the card" in ended.out
    ended = run("simulate", trace, *ENGINE, "--no-band", "--json", "s.json")
    without = json.loads((tmp_path / "s.json").read_text())["band"]
    assert without == {**band, "figures": None}
    assert "--band simulates it" in ended.out


def test_only_quick_simulations_are_made_again_unasked(run, trace, tmp_path, monkeypatch):
    monkeypatch.setattr("optimizer.cli.simulate._QUICK_S", -1.0)
    for options, figures in (((), False), (("--band",), True)):
        assert run("simulate", trace, *ENGINE, *options, "--json", "s.json").code == 0
        band = json.loads((tmp_path / "s.json").read_text())["band"]
        assert (band["figures"] is not None) is figures


def test_says_when_the_range_is_not_known_or_not_all(run, trace, tmp_path):
    ended = run("simulate", trace, "--engine", "opt-13b-tp1@a100-80-vllm", "--max-prompt", 50)
    assert "how far step times are off is not known (the card states no error)" in ended.out
    assert " to " not in ended.out.partition("makespan")[2].partition("\n")[0]
    ended = run("simulate", trace, "--engine", "llama3.1-70b-tp4@h100")
    assert (
        f"so far off were estimates of {gpu('h100').estimate_error.points} figures of this GPU" in ended.out
    )
    assert "never checked on this GPU" in run("simulate", trace, "--engine", "llama3.1-8b@l40s").out
    text = (catalogue_path("models") / "engines/llama3.1-8b@h200.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("[0, 129457]", "[0, 10]"))
    ended = run("simulate", trace, "--engine", "mine.yaml")
    assert "they may be off by more" in ended.out


def test_says_whether_the_engine_was_saturated(run, trace, lengths, tmp_path):
    assert "too few requests to tell" in run("simulate", trace, *ENGINE).out
    assert "batch: all requests at once" in run("simulate", lengths, *ENGINE).out
    chats = ("generate", "chat", "--n", 600, "--rate", 20, "--out", "chats.csv")
    assert run(*chats).code == 0
    options = ("--max-num-seqs", 4, "--json", "s.json")
    ended = run("simulate", "chats.csv", *ENGINE, *options)
    assert "SATURATED: the queue grew by" in ended.out
    assert ": by seats" in ended.out
    estimated = json.loads((tmp_path / "s.json").read_text())["saturation"]
    ended = run("simulate", "chats.csv", *ENGINE, *options, "--margin")
    simulated = json.loads((tmp_path / "s.json").read_text())["saturation"]
    assert "times the rate (simulated)" in ended.out
    assert (estimated["margin_by"], simulated["margin_by"]) == ("served", "simulated")
    assert simulated["margin"] == pytest.approx(estimated["margin"], rel=0.3)

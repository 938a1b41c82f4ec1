from __future__ import annotations

import json

import pytest

from optimizer.capacity import engine
from optimizer.problem import Instance, Requests
from optimizer.simulator import simulate
from optimizer.validation import find_runs, read_run, validate

KEYS = {
    "run", "wall_error", "e2e_mean_error", "e2e_p50_error", "ttft_mean_error", "ttft_p99_error", "preemptions_real",
    "preemptions_simulated",
}  # fmt: skip
MODEL, CARD = "llama3.1-8b-bf16", "llama3.1-8b@h200"
HEADER = "arrival_s,prompt_tokens,output_tokens,sent_s,first_token_s,finished_s"
ROW = "0,10,5,0.1,0.2,0.3"


def write_run(folder, model=MODEL, workload="made", rows=(ROW,), header=HEADER, **limits):
    """Write the two files of a run."""
    document = {
        "model": model, "workload": workload, "kv_blocks": 1001, "block_tokens": 16, "max_num_batched_tokens": 512,
        "max_num_seqs": 8, "wall_s": 1.0, "steps": 10, "preemptions": 0, **limits,
    }  # fmt: skip
    stem = folder / f"run-{model}-{workload}"
    folder.mkdir(exist_ok=True)
    stem.with_name(f"{stem.name}.json").write_text(
        json.dumps({key: value for key, value in document.items() if value is not None})
    )
    stem.with_name(f"{stem.name}-requests.csv").write_text("\n".join((header, *rows)) + "\n")


@pytest.fixture
def made(tmp_path):
    """A run that the simulator itself made, with little KV cache, so that requests are thrown out."""
    limits = {"max_num_batched_tokens": 512, "max_num_seqs": 32, "kv_blocks": 201}
    sent = [0.003 * i for i in range(60)]
    prompt, output = [40 + 7 * i % 300 for i in range(60)], [30 + 11 * i % 120 for i in range(60)]
    requests = Requests.from_columns({"arrival_s": sent, "prompt_tokens": prompt, "output_tokens": output})
    own = engine(CARD, **(limits | {"kv_blocks": 200}))
    m = simulate(Instance("made", requests, own)).metrics
    assert m.preemptions.sum() > 0
    rows = [
        f"0,{p},{o},{s!r},{first!r},{last!r}"
        for p, o, s, first, last in zip(
            prompt, output, sent, m.first_token_s.tolist(), m.finish_s.tolist(), strict=True
        )
    ]
    # In a file the order of the rows says nothing.
    write_run(
        tmp_path / "made", rows=rows[::-1], steps=m.steps, preemptions=int(m.preemptions.sum()), **limits
    )
    return tmp_path / "made"


def test_a_run_of_the_simulator_is_met_exactly(run, made, tmp_path):
    ended = run("validate", "--data", made, "--json", "v.json", "--out", "out")
    assert ended.code == 0, ended
    (found,) = json.loads((tmp_path / "v.json").read_text())
    assert set(found) >= KEYS
    assert found["run"] == f"{MODEL}-made"
    for key, value in found.items():
        if key.endswith("_error"):
            assert value == pytest.approx(0, abs=1e-9), key
    assert found["preemptions_real"] == found["preemptions_simulated"] > 0
    assert found["part_of_fit"] is False
    assert json.loads((tmp_path / "out" / "validation.json").read_text()) == [found]
    assert len((tmp_path / "out" / f"{MODEL}-made-requests.csv").read_text().splitlines()) == 61
    for word in (CARD, "wall time", "TTFT, p99", "end to end, p50", "preemptions", "0.0 %"):
        assert word in ended.out


def test_two_runs_come_by_name_and_a_picture_is_drawn(run, made, tmp_path):
    pytest.importorskip("matplotlib")
    write_run(made, workload="also")
    assert run("validate", "--data", made, "--plot", "v.png").code == 0
    assert (tmp_path / "v.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in find_runs(made)] == [f"run-{MODEL}-{w}.json" for w in ("also", "made")]


def test_planned_arrivals_stand_in_for_missing_ones(tmp_path):
    write_run(tmp_path, rows=("0.05,10,5,,0.2,0.3", "0,20,5,0.1,0.2,0.3"))
    found = read_run(tmp_path / f"run-{MODEL}-made.json")
    assert not found.sent
    assert found.requests.arrival_s.tolist() == [0, 0.05]
    assert found.requests.prompt_tokens.tolist() == [20, 10]


def test_totals_that_are_not_stated_are_counted_in_the_steps(tmp_path):
    write_run(tmp_path, steps=None, preemptions=None)
    path = tmp_path / f"run-{MODEL}-made.json"
    assert read_run(path).counted() == (None, None)
    assert validate(tmp_path)[0].to_document()["preemptions_error"] is None
    path.with_name(f"run-{MODEL}-made-steps.csv").write_text("start_s,preempted\n0,2\n1,0\n2,1\n")
    assert read_run(path).counted() == (3, 3)


def test_more_seats_than_budget_run_as_many_as_have_a_token(tmp_path):
    write_run(tmp_path, max_num_batched_tokens=64, max_num_seqs=512)
    assert validate(tmp_path)[0].engine.max_num_seqs == 64


@pytest.mark.parametrize(
    ("model", "card"),
    [("llama3.1-8b-bf16", CARD), ("llama2-13b-bf16", "llama2-13b@h200"), ("llama-65b-fp8", "llama-65b-fp8@h200"),
     ("llama2-13b", "llama2-13b@h200")],
)  # fmt: skip
def test_the_card_is_found_by_the_name_of_the_model(tmp_path, model, card):
    write_run(tmp_path, model=model)
    assert validate(tmp_path)[0].card == card


def test_an_engine_can_be_named(run, tmp_path):
    write_run(tmp_path / "d", model="house-model")
    refused = run("validate", "--data", "d")
    assert refused.code == 2
    assert "--engine-for house-model=" in refused.err
    ended = run("validate", "--data", "d", "--engine-for", "house-model=qwen3-8b@h100")
    assert ended.code == 0
    assert "qwen3-8b@h100" in ended.out
    assert run("validate", "--data", "d", "--engine-for", "house-model=qwen9@h100").code == 2
    assert "MODEL=CARD" in run("validate", "--data", "d", "--engine-for", "house-model").err


def test_a_16_bit_card_does_not_stand_for_fp8(run, tmp_path):
    write_run(tmp_path / "d", model="llama3.1-8b-fp8")
    assert "--engine-for" in run("validate", "--data", "d").err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kv_blocks": None}, ["made.json", "kv_blocks"]),
        ({"max_num_seqs": 0}, ["made.json", "max_num_seqs"]),
        ({"model": ""}, ["run-", "model"]),
        ({"kv_blocks": 2, "rows": ("0,100,5,0.1,0.2,0.3",)}, ["KV blocks"]),
        ({"rows": ()}, ["requests.csv", "no requests"]),
        ({"rows": (ROW, "0,10,x,0.1,0.2,0.3")}, ["line 3", "output_tokens", "'x'"]),
        ({"rows": (ROW, "0,-1,5,0.1,0.2,0.3")}, ["line 3", "prompt_tokens"]),
        ({"rows": (ROW, "0,10,5,0.1,nan,0.3")}, ["line 3", "first_token_s"]),
        ({"rows": (ROW, "0,10,5,0.1,0.2,")}, ["line 3", "finished_s"]),
        ({"rows": (ROW, "0,10,5,0.1,0.4,0.3")}, ["line 3", "finished_s", "0.3"]),
        ({"rows": ("0,10,5,0.3,0.2,0.4",)}, ["line 2", "first_token_s", "sent_s"]),
        ({"header": "prompt_tokens,output_tokens"}, ["line 1", "first_token_s"]),
    ],
)
def test_what_is_wrong_is_named(run, tmp_path, change, words):
    write_run(tmp_path / "d", **change)
    ended = run("validate", "--data", "d", "--json", "v.json")
    assert ended.code == 2, ended
    assert ended.out == ""
    assert not (tmp_path / "v.json").exists()
    for word in words:
        assert word in ended.err


def test_a_folder_without_runs_says_what_was_looked_for(run, tmp_path):
    (tmp_path / "d").mkdir()
    assert "run-<engine>-<workload>.json" in run("validate", "--data", "d").err
    assert "no folder" in run("validate", "--data", "nowhere").err
    (tmp_path / "d" / "run-x-y.json").write_text("{")
    assert "run-x-y-requests.csv" in run("validate", "--data", "d").err
    (tmp_path / "d" / "run-x-y-requests.csv").write_text("")
    broken = run("validate", "--data", "d")
    assert (broken.code, "line 1" in broken.err) == (2, True)


def test_a_wrong_policy_is_refused(run, made):
    assert "vllm" in run("validate", "--data", made, "--policy", "vlm").err

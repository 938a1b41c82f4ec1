from __future__ import annotations

import gzip

import numpy as np
import pytest
import yaml

from optimizer.capacity import engine_card
from optimizer.capacity.steplog import StepLog, predict, read_step_log
from optimizer.catalogue import catalogue_path

DATA = catalogue_path("models") / "measurements" / "h200"
SMALL, LARGE = DATA / "steps-llama2-13b-bf16.csv", DATA / "steps-llama3.1-8b-bf16.csv"
WHAT = ("--llm", "llama2-13b", "--gpu", "h200")
HEAD = "workload,start_s,dispatched_s,completed_s,prefill_tokens,prefill_seqs,prefill_attention,decode_seqs,decode_context\n"


def kept(tmp_path, keep, name="part.csv", source=SMALL):
    """A part of a measured log: the rows that `keep` (phase, row) wants."""
    log = read_step_log(source)
    lines = source.read_text().splitlines(keepends=True)
    path = tmp_path / name
    path.write_text(
        lines[0] + "".join(line for row, line in enumerate(lines[1:]) if keep(log.phase[row], row))
    )
    return path


def test_from_a_log_to_an_engine_that_simulates(run, trace, tmp_path):
    ended = run("calibrate", LARGE, "--llm", "llama3.1-8b", "--gpu", "h200", "--kv-blocks", 57488, "--name", "mine",
                "--software", "vLLM 0.26.0", "--out", "mine.yaml")  # fmt: skip
    assert ended.code == 0, ended.err
    assert "5,936 steps, synchronous; 4,753 fitted, 1,183 held out" in ended.out
    for line in ("prefill only", "decode only", "prefill and decode", "prompt tokens: 129 to 512",
                 "requests decoding: 33 to 128", "their context in tokens: 10,001 to 100,000"):  # fmt: skip
        assert line in ended.out
    assert "warning" not in ended.err
    card = engine_card("mine.yaml")
    assert (card.name, card.llm, card.kv_blocks, card.software, card.origin) == (
        "mine", "llama3.1-8b", 57488, "vLLM 0.26.0", "measured",
    )  # fmt: skip
    assert card.max_model_len == 131072
    assert not card.async_scheduling
    assert card.covers["decode_seqs"] == (0, 512)
    # The targets of the calibration.
    found = card.fit_error["all"]
    assert found.median < 0.026
    assert found.mean < 0.04
    assert abs(found.total) < 0.01
    assert "seconds per step" in (tmp_path / "mine.yaml").read_text().splitlines()[0]
    assert run("simulate", trace, "--engine", "mine.yaml").code == 0
    assert "median error of a step 2.4 %" in run("simulate", trace, "--engine", "mine.yaml").out


def test_the_same_seed_gives_the_same_card_and_another_holds_out_others(run, tmp_path):
    for name, seed in (("a.yaml", 0), ("b.yaml", 0), ("c.yaml", 1)):
        assert run("calibrate", SMALL, *WHAT, "--seed", seed, "--out", name).code == 0
    a, b, c = ((tmp_path / f"{name}.yaml").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_several_files_compressed_ones_too(run, tmp_path):
    first, second = (kept(tmp_path, lambda _, row, odd=odd: row % 2 == odd, f"{odd}.csv") for odd in (0, 1))
    packed = tmp_path / "first.csv.gz"
    packed.write_bytes(gzip.compress(first.read_bytes()))
    ended = run("calibrate", packed, second, *WHAT, "--out", "mine.yaml")
    assert ended.code == 0, ended.err
    assert "519 steps" in ended.out
    assert engine_card("mine.yaml").source == "first.csv.gz, 1.csv"
    packed.write_bytes(packed.read_bytes()[:500])
    assert "first.csv.gz: cannot be read" in run("calibrate", packed, *WHAT, "--out", "mine.yaml").err


def test_an_asynchronous_log_is_found_out(run):
    log = DATA / "run-llama-65b-fp8-gsm8k-s200-steps.csv"
    ended = run("calibrate", log, "--llm", "llama-65b", "--gpu", "h200", "--dtype", "fp8", "--out", "a.yaml")
    assert ended.code == 0, ended.err
    assert "asynchronous: totals of ten steps" in ended.out
    card = engine_card("a.yaml")
    assert card.name == "llama-65b-fp8@h200"
    assert card.async_scheduling
    assert card.fit_error["all"].median < 0.05
    assert "asynchronous scheduling" in card.notes
    assert "Few steps that only prefill, 1 in all" in ended.err
    assert "synchronous;" in run("calibrate", log, "--llm", "llama-65b", "--gpu", "h200", "--dtype", "fp8",
                                 "--synchronous", "--out", "b.yaml").out  # fmt: skip


def test_a_log_without_prefills_gets_the_estimate_for_them(run, tmp_path):
    log = kept(tmp_path, lambda phase, _: phase == "decode")
    ended = run("calibrate", log, *WHAT, "--out", "mine.yaml")
    assert ended.code == 0, ended.err
    assert "Too few steps that only prefill, 0 in all: their times are estimated" in ended.err
    card = engine_card("mine.yaml")
    assert card.origin == "fitted"
    assert "estimated from specifications" in card.notes
    assert card.step_time.regimes[0].phase == "decode"
    prefill = np.array([[1000.0, 500500.0, 1.0, 0.0, 0.0]])
    one = np.ones(1)
    assert predict(card.step_time, StepLog(one, one, one, prefill, np.array([""])))[0] > 0.005


def test_a_log_without_decodes_says_so(run, tmp_path):
    log = kept(tmp_path, lambda phase, _: phase == "prefill")
    ended = run("calibrate", log, *WHAT, "--out", "mine.yaml")
    assert ended.code == 0, ended.err
    assert "No steps that only decode" in ended.err
    assert "No steps that prefill and decode" in ended.err


def made_log(tmp_path, rows):
    """A log of (tokens, seqs, attention, decodes, context, seconds)."""
    path = tmp_path / "made.csv"
    now, text = 0.0, HEAD
    for tokens, seqs, attention, decodes, context, seconds in rows:
        text += f"w,{now:.6f},{now:.6f},{now + seconds:.6f},{tokens},{seqs},{attention},{decodes},{context}\n"
        now += seconds + 0.001
    path.write_text(text)
    return path


def test_what_a_log_does_not_tell_is_warned_of(run, tmp_path):
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(150):
        n = int(rng.integers(1, 17))
        steps.append((0, 0, 0, n, 200 * n, 0.005 + 1e-4 * n))
        steps.append((256, 1, 256 * 257 // 2, 0, 0, 0.01))
    ended = run("calibrate", made_log(tmp_path, steps), *WHAT, "--out", "mine.yaml")
    assert ended.code == 0, ended.err
    for part in (
        "No steps that prefill and decode",
        "No large batches: at most 16 requests decoding at once, where the card allows 256",
        "No large batches: at most 256 prompt tokens in a step, where the card allows 8,192",
        "A narrow range of context: 200 to 200 tokens",
        "Attention cannot be told from tokens",
        "Context cannot be told from the number of requests",
    ):
        assert part in ended.err
        assert part in engine_card("mine.yaml").notes
    assert "the form does not fit" not in ended.err
    noisy = [(*step[:5], step[5] * float(rng.choice([0.5, 1.7]))) for step in steps]
    assert (
        "the form does not fit" in run("calibrate", made_log(tmp_path, noisy), *WHAT, "--out", "n.yaml").err
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: has no column 'start_s'"),
        (HEAD, "holds no steps"),
        (HEAD.replace("decode_seqs", "decoders") + "w,0,0,1,1,1,1,0,0\n", "has no column 'decode_seqs'"),
        (HEAD + "w,0,0,1,1,1,1,0,0\nw,2,2,1,1,1,1,0,0\n", "line 3, field completed_s: times run backwards"),
        (HEAD + "w,0,0,0,1,1,1,0,0\n", "line 2, field completed_s: times run backwards"),
        (HEAD + "w,0,-1,1,1,1,1,0,0\n", "line 2, field dispatched_s: '-1' is no number"),
        (HEAD + "w,2,1,3,1,1,1,0,0\n", "line 2, field dispatched_s: times run backwards"),
        (HEAD + "w,0,0,1,0,0,0,0,0\n", "line 2, field prefill_tokens: the step computes nothing"),
        (HEAD + "w,0,0,1,4,5,10,0,0\n", "line 2, field prefill_seqs: more requests"),
        (HEAD + "w,0,0,1,4,0,10,0,0\n", "line 2, field prefill_seqs: nobody prefills"),
        (HEAD + "w,0,0,1,4,1,3,0,0\n", "line 2, field prefill_attention: fewer query-key pairs"),
        (HEAD + "w,0,0,1,0,0,0,4,3\n", "line 2, field decode_context: less context"),
        (HEAD + "w,0,0,1,1,1,1,0,0\nw,1,1,2,1,1,1,0,0\n", "holds 2 steps; about 30 are needed"),
        (HEAD + "w,0,0,1,1,1,1,0,0\n" * 5, "holds 5 steps; about 300 are needed: 3 stretches of 10"),
    ],
)
def test_a_wrong_log_is_named_and_nothing_is_written(run, tmp_path, text, message):
    (tmp_path / "steps.csv").write_text(text)
    ended = run("calibrate", "steps.csv", *WHAT, "--out", "mine.yaml")
    assert ended.code == 2
    assert ended.err.startswith("error: steps.csv")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["steps.csv"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--out", "mine.json"), "expected .yaml"),
        (("--out", "missing/mine.yaml"), "the folder missing is not there"),
        (("--llm", "llama9", "--out", "m.yaml"), "llama9"),
        (("--gpu", "h2000", "--out", "m.yaml"), "h200"),
        (("--tp", "3", "--out", "m.yaml"), "3 GPUs cannot share"),
        (("--dtype", "int3", "--out", "m.yaml"), "field dtype: 'int3'; expected bf16, fp16, fp8"),
        (("--plot", "m.bmp", "--out", "m.yaml"), "'bmp' is no kind of picture"),
        (("--max-num-seqs", "9000", "--out", "m.yaml"), "max_num_seqs 9000"),
    ],
)
def test_wrong_options_are_named(run, tmp_path, changed, message):
    ended = run("calibrate", SMALL, *WHAT, *changed)
    assert ended.code == 2
    assert message in ended.err
    assert not list(tmp_path.iterdir())


def test_a_log_is_never_overwritten(run, tmp_path):
    (tmp_path / "log.yaml").write_text(SMALL.read_text())
    assert "is also the input" in run("calibrate", "log.yaml", *WHAT, "--out", "log.yaml").err


def test_the_plot(run, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("p.png", "p.svg"):
        ended = run("calibrate", SMALL, *WHAT, "--out", "mine.yaml", "--plot", name)
        assert ended.code == 0, ended.err
        assert (tmp_path / name).stat().st_size > 10_000
    assert (
        "Predicted less measured" in (tmp_path / "p.svg").read_text()
        or "<path" in (tmp_path / "p.svg").read_text()
    )


def test_the_card_holds_plain_numbers(run, tmp_path):
    run("calibrate", SMALL, *WHAT, "--out", "mine.yaml")
    values = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert all(isinstance(end, int) for ends in values["covers"].values() for end in ends)
    assert {"decode", "prefill", "mixed", "all"} == set(values["fit_error"])
    assert values["step_time"]["regimes"][0]["pieces"][0]["base_s"] > 0

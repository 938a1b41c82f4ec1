"""Real traces, where they lie beside the checkout: counts, totals, block sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.traces import embedded, read_trace, spread_ticks, to_rate, window

# file: requests, rows skipped, arrivals, tokens per block hash
FILES = {
    "azure2023_code.csv": (8819, 0, True, None),
    "azure2023_conv.csv": (19366, 0, True, None),
    "mooncake_conversation.jsonl": (12031, 0, True, 512),
    "mooncake_arxiv_first1000.jsonl": (1000, 0, True, 512),
    "sharegpt_8k_lengths.csv": (30731, 0, False, None),
    "arxiv_summarization_lengths.csv": (28257, 0, False, None),
    "sharegpt_llama31_300_prefix16.jsonl": (300, 0, True, 16),
    "aibrix_sharegpt_8min_updown.csv": (2024, 2, True, None),
    "claude_code_flat_80sessions.jsonl": (2772, 1, True, 64),
    "exgentic_swebench_agent.csv": (2146, 0, True, None),
    "servegen_deepseek_r1_1h.csv": (10726, 0, True, None),
    "burstgpt_first_rows.csv": (51, 3, True, None),
    "arena_hard_v01_lengths.csv": (500, 1000, False, None),
}


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_is_read_whole(shared: Path, name: str) -> None:
    count, skipped, timed, block = FILES[name]
    path = shared / "traces" / name
    if skipped:
        with pytest.raises(InputError):
            read_trace(path)
    trace = read_trace(path, skip_bad_rows=bool(skipped))
    assert (trace.format, len(trace.requests), len(trace.skipped)) == ("compact", count, skipped)
    assert trace.has_arrivals is timed
    assert trace.requests.arrival_s[0] == 0
    prefix = trace.requests.prefix
    assert (None if prefix is None else prefix.block_tokens) == block


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("azure2024_conv_300s_prefill_only.csv", "nothing is given; expected a whole number"),
        ("claude_code_sessions_prefix64.jsonl", "one session per line"),
        ("gsm8k_test_llama_tokens.csv", "no known format"),
        ("burstgpt1_daily.csv", "no known format"),
    ],
)
def test_a_file_that_holds_no_schedulable_requests_says_why(shared: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_trace(shared / "traces" / name)


def test_the_totals_of_the_azure_conversations(shared: Path) -> None:
    r = window(read_trace(shared / "traces" / "azure2023_conv.csv").requests, count=10_000)
    assert (int(r.prompt_tokens.sum()), int(r.output_tokens.sum())) == (12_424_297, 2_184_052)
    assert r.arrival_s[-1] == pytest.approx(1787.309283)


def test_a_rate_is_what_the_measured_run_took_for_it(shared: Path) -> None:
    planned = read_trace(shared / "h200" / "run-llama3.1-8b-bf16-azure-conv-20rps-requests.csv").requests
    conversations = window(read_trace(shared / "traces" / "azure2023_conv.csv").requests, count=800)
    assert to_rate(conversations, 20.0).arrival_s == pytest.approx(planned.arrival_s, abs=1e-4)


def test_the_embedded_questions_are_those_of_the_measured_run(shared: Path) -> None:
    measured = read_trace(shared / "h200" / "run-llama3.1-8b-bf16-gsm8k-s200-requests.csv").requests
    shipped = embedded("gsm8k/gsm8k-1319").requests
    assert shipped.prompt_tokens.tolist() == measured.prompt_tokens.tolist()
    assert shipped.output_tokens.tolist() == measured.output_tokens.tolist()


def test_the_conversations_read_the_same_from_azures_own_columns(shared: Path, tmp_path: Path) -> None:
    compact = read_trace(shared / "traces" / "azure2023_conv.csv").requests
    # The published file again: naive times with seven decimals, and no end of line after the last row.
    stamps = np.datetime64("2023-11-16T18:15:46.680590", "ns") + np.rint(compact.arrival_s * 1e9).astype(
        "m8[ns]"
    )
    rows = zip(stamps, compact.prompt_tokens, compact.output_tokens, strict=True)
    lines = [f"{str(at).replace('T', ' ')[:27]},{p},{o}" for at, p, o in rows]
    path = tmp_path / "azure.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    again = read_trace(path)
    assert again.format == "azure"
    assert again.requests.arrival_s.tolist() == compact.arrival_s.tolist()


def test_mooncakes_grid_is_spread(shared: Path) -> None:
    r = read_trace(shared / "traces" / "mooncake_conversation.jsonl").requests
    spread = spread_ticks(r, seed=1)
    assert len(np.unique(r.arrival_s)) == 1180
    assert len(np.unique(spread.arrival_s)) == len(r)
    assert spread.prefix is not None
    assert r.prefix is not None
    assert np.array_equal(np.sort(spread.prefix.ids), np.sort(r.prefix.ids))

"""LLMServingSim's JSONL workloads (github.com/casys-kaist/LLMServingSim, MIT)."""

from __future__ import annotations

from optimizer.traces.layout import NANOSECONDS, Layout

_SESSIONS = (
    "this is the session form, whose requests wait for the answers before them; "
    "only the flat form (input_toks, output_toks, arrival_time_ns on every line) can be read"
)

LLMSERVINGSIM = Layout(
    name="llmservingsim",
    kind="jsonl",
    required={
        "arrival_time_ns": "arrival_s",
        "input_toks": "prompt_tokens",
        "output_toks": "output_tokens",
    },
    ignored=("input_tok_ids", "output_tok_ids"),
    refused={"sub_requests": _SESSIONS, "session_id": _SESSIONS},
    clock=NANOSECONDS,
    note="token ids are ignored, and with them the prefixes that prompts share",
)
"""Nanoseconds."""

"""JSONL traces with block hashes: Mooncake (github.com/kvcache-ai/Mooncake) and Qwen-Bailian, both Apache-2.0."""

from __future__ import annotations

from optimizer.traces.layout import MILLISECONDS, HashLayout, Layout

_LENGTHS = {"timestamp": "arrival_s", "input_length": "prompt_tokens", "output_length": "output_tokens"}
_CLOSED_LOOP = (
    "this is a closed-loop trace, whose turns wait for the answers before them; "
    "only traces with arrival times of their own can be read"
)

MOONCAKE = Layout(
    name="mooncake",
    kind="jsonl",
    required=_LENGTHS,
    refused={"delay": _CLOSED_LOOP, "session_id": _CLOSED_LOOP},
    clock=MILLISECONDS,
    hashes=(HashLayout("hash_ids", block_tokens=512),),
)
"""Milliseconds, and blocks of 512 tokens whose ids are chained. Arrivals lie on a grid of about 3 s: see
`optimizer.traces.spread_ticks`."""

BAILIAN = Layout(
    name="bailian",
    kind="jsonl",
    required=_LENGTHS,
    optional={"type": "tenant"},
    ignored=("chat_id", "parent_chat_id", "turn"),
    # The publishers hash every block by itself, so that an id alone does not tell the prefix before it.
    hashes=(HashLayout("hash_ids", block_tokens=16, chained=False),),
    note="turns arrive when they did, whatever became of the turn before; the tenant is the type of request",
)
"""Seconds, and blocks of 16 tokens; arXiv 2506.02634."""

"""The project's own formats: a CSV and a JSONL whose columns are called as the fields of `Requests`."""

from __future__ import annotations

from optimizer.traces.layout import HashLayout, Layout

_LENGTHS = {"prompt_tokens": "prompt_tokens", "output_tokens": "output_tokens"}

_FIELDS = {
    "arrival_s": "arrival_s",
    "id": "ids",
    "max_output_tokens": "max_output_tokens",
    "weight": "weight",
    "deadline_s": "deadline_s",
    "ttft_slo_s": "ttft_slo_s",
    "tpot_slo_s": "tpot_slo_s",
    # Where no tenant is named, the session is the sender that is known, and failing that the model asked for.
    "tenant": "tenant",
    "session_id": "tenant",
    "model": "tenant",
    "known_low": "known_low",
    "known_high": "known_high",
    "known_mean": "known_mean",
    "known_log_sigma": "known_log_sigma",
}

# Columns that compact copies of public traces carry along. Any other is refused: it may be a misspelt one.
_COMPANIONS = (
    "turn", "type", "window", "log_type", "reason_ratio", "span_index", "duration_s", "t_in_session_s", "api_time_s",
    "think_time_s", "ttft_s", "n_blocks64", "lcp_prev_blocks", "reuse_blocks", "dup_of", "sent_s", "first_token_s",
    "finished_s",
)  # fmt: skip

COMPACT_CSV = Layout(
    name="compact",
    kind="csv",
    required=_LENGTHS,
    optional=_FIELDS,
    ignored=_COMPANIONS,
    hashes=(HashLayout("prefix_hashes", "text", block_key="prefix_block_tokens"),),
)
"""`prompt_tokens,output_tokens`, and any of the other fields; `optimizer.traces.write_csv` writes it."""

COMPACT_JSONL = Layout(
    name="compact",
    kind="jsonl",
    required=_LENGTHS,
    optional=_FIELDS,
    ignored=_COMPANIONS,
    refused={
        "turns": "this is one session per line, whose turns wait for the answers before them; "
        "only files with one request per line can be read"
    },
    hashes=(
        HashLayout("hash_ids", block_key="block_tokens"),
        HashLayout("hash_runs", "runs", block_key="block_tokens"),
    ),
)
"""The same with `hash_ids`, or `hash_runs` as pairs [first, last]; `block_tokens` says what an id stands for."""

"""Vidur's and Sarathi-Serve's CSV files (github.com/microsoft/vidur), with and without arrivals."""

from __future__ import annotations

from optimizer.traces.layout import Layout

_TOTALS = ("num_total_tokens", "pd_ratio")

VIDUR = Layout(
    name="vidur",
    kind="csv",
    required={
        "arrived_at": "arrival_s",
        "num_prefill_tokens": "prompt_tokens",
        "num_decode_tokens": "output_tokens",
    },
    ignored=_TOTALS,
)
"""A replay trace: `arrived_at` in seconds."""

VIDUR_LENGTHS = Layout(
    name="vidur-lengths",
    kind="csv",
    required={"num_prefill_tokens": "prompt_tokens", "num_decode_tokens": "output_tokens"},
    ignored=_TOTALS,
    note="lengths alone: all requests arrive at 0 until arrivals are drawn",
)
"""Lengths alone, for which the simulators draw the arrivals."""

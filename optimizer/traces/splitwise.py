"""Splitwise-sim's CSV traces (github.com/Mutinifni/splitwise-sim)."""

from __future__ import annotations

from optimizer.traces.layout import Layout

SPLITWISE = Layout(
    name="splitwise",
    kind="csv",
    required={
        "arrival_timestamp": "arrival_s",
        "prompt_size": "prompt_tokens",
        "token_size": "output_tokens",
    },
    optional={"request_id": "ids", "application_id": "tenant"},
    ignored=("request_type", "batch_size"),
)
"""`arrival_timestamp` in seconds; the application is the tenant."""

"""BurstGPT's CSV traces, all three editions (github.com/HPMLL/BurstGPT, CC-BY-4.0)."""

from __future__ import annotations

from optimizer.traces.layout import Layout

BURSTGPT = Layout(
    name="burstgpt",
    kind="csv",
    required={
        "Timestamp": "arrival_s",
        "Request tokens": "prompt_tokens",
        "Response tokens": "output_tokens",
    },
    optional={"Model": "tenant"},
    # The third edition puts two columns in between, which is why columns go by name and never by place.
    ignored=("Session ID", "Elapsed time", "Total tokens", "Log Type"),
    note="rows with 0 response tokens are requests that failed, and count as bad rows; the tenant is the model",
)
"""`Timestamp` in seconds; the model stands in as tenant, so that one of the two can be chosen."""

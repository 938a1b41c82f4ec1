"""AIBrix's JSONL workloads (github.com/vllm-project/aibrix, Apache-2.0): several requests per line."""

from __future__ import annotations

from typing import Any

from optimizer.errors import InputError
from optimizer.traces.layout import MILLISECONDS, Layout, Source
from optimizer.traces.lines import read_objects, rows_of
from optimizer.traces.rows import Rows
from optimizer.traces.values import show

AIBRIX = Layout(
    name="aibrix",
    kind="jsonl",
    required={
        "timestamp": "arrival_s",
        "Prompt Length": "prompt_tokens",
        "Output Length": "output_tokens",
    },
    clock=MILLISECONDS,
)
"""`{"timestamp": ms, "requests": [{"Prompt Length", "Output Length", ...}]}`; what else a request says (its
text, its model) is not looked at. Newer files write `prompt_length` and `output_length`."""

_SPELLINGS = {
    "Prompt Length": ("Prompt Length", "prompt_length"),
    "Output Length": ("Output Length", "output_length"),
}


def read_aibrix(source: Source) -> Rows:
    """Read an AIBrix workload: every request of a line arrives at the line's time.

    Raises
    ------
    InputError
        At a line without `timestamp` or without a list of `requests`.
    """
    objects, lines, broken = read_objects(source)
    flat: list[dict[str, Any]] = []
    places: list[int] = []
    for tick, line in zip(objects, lines, strict=True):
        for extra in tick.keys() - {"timestamp", "requests"}:
            raise InputError(
                "unknown column; a line of aibrix has timestamp, requests",
                file=source.file,
                line=line,
                field=extra,
            )
        requests = tick.get("requests")
        if not isinstance(requests, list) or not all(isinstance(r, dict) for r in requests):
            reason = f"{show(requests)}; expected a list of objects"
            if not source.skip_bad_rows:
                raise InputError(reason, file=source.file, line=line, field="requests")
            broken.append((line, f"field requests: {reason}"))
            continue
        for request in requests:
            flat.append({"timestamp": tick.get("timestamp"), **_lengths(request)})
            places.append(line)
    return rows_of(source, AIBRIX, flat, places, broken)


def _lengths(request: dict[str, Any]) -> dict[str, Any]:
    return {
        name: next((request[word] for word in words if word in request), None)
        for name, words in _SPELLINGS.items()
    }

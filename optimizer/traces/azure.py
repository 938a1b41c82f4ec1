"""Azure's LLM inference traces of 2023, 2024 and 2025 (github.com/Azure/AzurePublicDataset, CC-BY-4.0)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from optimizer.problem.columns import Floats
from optimizer.traces.layout import Clock, Layout

# 2023 writes naive times with seven decimals, 2024 adds +00:00, 2025 writes T and Z.
_STAMP = re.compile(r"\s*\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)?\s*")
_FIRST_YEAR, _LAST_YEAR = "1970", "2200"


def stamps(values: Sequence[Any]) -> Floats:
    """Turn UTC timestamps into nanoseconds after the first of them; NaN where a cell is none.

    >>> stamps(["2023-11-16 18:17:03.9799600", "2023-11-16T18:17:04.9799601Z", "noon"]).tolist()
    [0.0, 1000000100.0, nan]
    """
    moments = np.full(len(values), np.datetime64("NaT", "ns"))
    # numpy would take "now" and "2023" too, and wrap around beyond 2262, so each cell is looked at first.
    sound = [
        row
        for row, v in enumerate(values)
        if isinstance(v, str) and _STAMP.fullmatch(v) and _FIRST_YEAR <= v.lstrip()[:4] <= _LAST_YEAR
    ]
    texts = [values[row].strip().removesuffix("Z").removesuffix("+00:00") for row in sound]
    try:
        moments[sound] = np.array(texts, dtype="datetime64[ns]")
    except ValueError:
        for row, text in zip(sound, texts, strict=True):
            moments[row] = _stamp(text)
    given = moments[~np.isnat(moments)]
    since = moments - (given[0] if given.size else np.datetime64(0, "ns"))
    return np.where(np.isnat(since), np.nan, since.astype(np.int64).astype(np.float64))


def _stamp(text: str) -> np.datetime64:
    try:
        return np.datetime64(text, "ns")
    except ValueError:
        # The 31st of June has the right shape.
        return np.datetime64("NaT", "ns")


AZURE = Layout(
    name="azure",
    kind="csv",
    required={
        "TIMESTAMP": "arrival_s",
        "ContextTokens": "prompt_tokens",
        "GeneratedTokens": "output_tokens",
    },
    ignored=("NumImages",),
    clock=Clock(
        parse=stamps,
        units_per_second=10**9,
        least=-np.inf,
        expected="a moment in UTC such as 2023-11-16 18:17:03.9799600",
    ),
)
"""`TIMESTAMP,ContextTokens,GeneratedTokens`; the multimodal trace of 2025 has `NumImages` too, which is ignored."""

"""Write requests in the project's own CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.problem import PrefixHashes, Requests
from optimizer.problem.columns import Ints
from optimizer.problem.files import written_whole

_COLUMNS = (
    ("id", "ids"), ("arrival_s", "arrival_s"), ("prompt_tokens", "prompt_tokens"), ("output_tokens", "output_tokens"),
    ("max_output_tokens", "max_output_tokens"), ("weight", "weight"), ("deadline_s", "deadline_s"),
    ("ttft_slo_s", "ttft_slo_s"), ("tpot_slo_s", "tpot_slo_s"), ("tenant", "tenant"),
)  # fmt: skip


def write_csv(requests: Requests, path: str | Path) -> None:
    """Write requests as CSV, whole or not at all; `read_trace` reads the same requests back.

    Only columns that are given are written. Arrivals are left out where all are 0, which is what their
    absence means. Floats are written with all their digits; a moment that is not given is an empty cell.
    Block hashes are written as runs, `0-12 17`.

    Parameters
    ----------
    requests
        Any requests. Ids should not be empty: the reader wants names.
    path
        The file; one that is there is replaced.

    Raises
    ------
    InputError
        If the folder is not there or cannot be written to.
    """
    columns: dict[str, Sequence[Any]] = {}
    for name, what in _COLUMNS:
        column = getattr(requests, what)
        if column is None or (what == "arrival_s" and not column.any()):
            continue
        columns[name] = _cells(column)
    if requests.known is not None:
        for part in ("low", "high", "mean", "log_sigma"):
            column = getattr(requests.known, part)
            if column is not None:
                columns[f"known_{part}"] = _cells(column)
    if requests.prefix is not None:
        columns["prefix_hashes"] = _runs(requests.prefix)
        columns["prefix_block_tokens"] = [requests.prefix.block_tokens] * len(requests)
    names = (*(requests.ids or ()), *(requests.tenant or ()))
    # The csv module quotes the line end that it writes, and forgets that readers take a lone \r for one too.
    all_quoted = any("\r" in name for name in names)
    with written_whole(path) as out:
        writer = csv.writer(
            out, lineterminator="\n", quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
        )
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _cells(column: Any) -> Sequence[Any]:
    if isinstance(column, tuple):
        return column
    listed = column.tolist()
    return ["" if x != x else x for x in listed] if column.dtype.kind == "f" else listed


def _runs(prefix: PrefixHashes) -> list[str]:
    return [_run_text(prefix.of(row)) for row in range(len(prefix.starts) - 1)]


def _run_text(ids: Ints) -> str:
    """Write ids as runs.

    >>> _run_text(np.array([0, 1, 2, 9]))
    '0-2 9'
    """
    if not ids.size:
        return ""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    firsts, lasts = ids[np.concatenate([[0], breaks])], ids[np.concatenate([breaks, [len(ids)]]) - 1]
    return " ".join(
        str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)
    )

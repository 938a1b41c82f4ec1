"""What happened to each request, as CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from optimizer.problem import Metrics, Requests
from optimizer.problem.files import written_whole


def write_requests_csv(path: str | Path, metrics: Metrics, requests: Requests) -> None:
    """Write one row per request, whole or not at all.

    Columns: `id`, `tenant` where there are any, and those of `Metrics.columns`: moments and durations in
    seconds, lengths in tokens, `met_slo` as 0 or 1. A value that does not exist is empty.
    """
    columns: dict[str, list[object]] = {"id": [requests.name(i) for i in range(len(requests))]}
    if requests.tenant is not None:
        columns["tenant"] = list(requests.tenant)
    for name, values in metrics.columns().items():
        if values.dtype.kind == "f":
            # Nanoseconds are below anything that a step-time model knows.
            columns[name] = ["" if x != x else x for x in np.round(values, 9).tolist()]
        else:
            columns[name] = [int(x) for x in values]
    with written_whole(path) as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))

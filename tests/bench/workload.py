"""The requests of the benchmark, as files that both sides read; run as a program of its own.

`python -m tests.bench.workload FOLDER COUNT SIZE...` writes into FOLDER: `first.csv`, the requests;
`first.jsonl`, the same as a Mooncake trace; and `SIZE.csv` for each size, the requests over and over, end to
end. It prints what they are. They are the first of azure2023_conv where the shared folder is there
(`OPTIMIZER_SHARED`, or beside the checkout), else a generated chat workload at the same rate.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from optimizer import Requests, generate, read_trace

RATE = 5.6


def first_requests(count: int) -> tuple[str, Requests]:
    """Give a name and the requests."""
    shared = Path(os.environ.get("OPTIMIZER_SHARED") or Path(__file__).parents[3] / "shared")
    trace = shared / "traces" / "azure2023_conv.csv"
    if trace.is_file():
        return "azure2023_conv", read_trace(trace).requests.take(slice(0, count))
    return f"generated chat at {RATE} requests/s", generate("chat", count, seed=0, rate=RATE)


def write_repeated(requests: Requests, size: int, path: Path) -> None:
    """Write `size` requests in Vidur's format: these, and again after one mean gap, until there are enough."""
    columns = (requests.arrival_s.tolist(), requests.prompt_tokens.tolist(), requests.output_tokens.tolist())
    rows = list(zip(*columns, strict=True))
    period = rows[-1][0] * len(rows) / max(1, len(rows) - 1)
    with path.open("w") as out:
        out.write("arrived_at,num_prefill_tokens,num_decode_tokens\n")
        for start in range(0, size, len(rows)):
            shift = start // len(rows) * period
            out.writelines(f"{a + shift:.6f},{p},{d}\n" for a, p, d in rows[: size - start])


def write_mooncake(requests: Requests, path: Path, block_tokens: int = 512) -> None:
    """Write a Mooncake trace in which no two requests share a block."""
    used = 0
    with path.open("w") as out:
        for arrival, prompt, output in zip(
            requests.arrival_s.tolist(),
            requests.prompt_tokens.tolist(),
            requests.output_tokens.tolist(),
            strict=True,
        ):
            blocks = -(-prompt // block_tokens)
            row = {
                "timestamp": round(arrival * 1000),
                "input_length": prompt,
                "output_length": output,
                "hash_ids": list(range(used, used + blocks)),
            }
            used += blocks
            out.write(json.dumps(row) + "\n")


def main(folder: Path, count: int, sizes: list[int]) -> None:
    """Write the files."""
    name, requests = first_requests(count)
    write_repeated(requests, len(requests), folder / "first.csv")
    write_mooncake(requests, folder / "first.jsonl")
    for size in sizes:
        write_repeated(requests, size, folder / f"{size}.csv")
    facts = {
        "name": name,
        "requests": len(requests),
        "prompt_tokens": int(requests.prompt_tokens.sum()),
        "output_tokens": int(requests.output_tokens.sum()),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [int(size) for size in sys.argv[3:]])

"""The process of an isolated solver: `python -m optimizer.solvers.child`, spoken to through its pipes."""

from __future__ import annotations

import os
import resource
import sys

from optimizer.solvers.worker import serve


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


if __name__ == "__main__":
    # Solvers print to the standard output when they feel like it: the events get a pipe of their own.
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, channel, _limit)

"""The solver's process: `python -m optimizer.online.child`, spoken to through its pipes; it ends when they close."""

from __future__ import annotations

import marshal
import os
import queue
import sys
import threading
import time
from typing import IO, Any

from optimizer.online.channel import Inbox, to_loop
from optimizer.online.window import Effort, solve
from optimizer.problem.engine import Engine

_NICE = 10


def _listen(commands: IO[bytes], messages: queue.SimpleQueue[Any]) -> None:
    inbox = Inbox(marshal.loads)
    while piece := os.read(commands.fileno(), 1 << 20):
        for message in inbox.feed(piece):
            messages.put(message)
    # The loop is gone, whatever is being solved. Nothing here is worth an orderly end.
    os._exit(0)


def _watch(parent: int) -> None:
    """End with the parent, also where somebody else has inherited its end of the pipe."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def serve(commands: IO[bytes], answers: IO[bytes]) -> None:
    """Answer windows until the pipe closes; of several that have piled up only the last counts."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    threading.Thread(target=_listen, args=(commands, messages), daemon=True).start()
    hello = messages.get()
    engine, effort = Engine.model_validate(hello["engine"]), Effort(*hello["effort"])
    seed = 0
    while True:
        seen = messages.get()
        plan = solve(seen, engine, hello["options"], effort, seed)
        seed += 1
        answers.write(to_loop(plan.to_document()))
        answers.flush()


if __name__ == "__main__":
    os.nice(_NICE)
    # Solvers print to the standard output when they feel like it: the answers get a pipe of their own.
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, channel)

"""Records what each step of a running vLLM computed and when: the log that `optimizer calibrate` reads.

    export OPTIMIZER_STEP_LOG=steps.csv
    vllm serve MODEL --no-async-scheduling --scheduler-cls optimizer.integrations.vllm_steps.LoggedScheduler

With asynchronous scheduling, `LoggedAsyncScheduler`: only totals over several steps are then known. Several engines, or a
restart, never share a file: the second writes `steps-2.csv`. `OPTIMIZER_STEP_WORKLOAD` names the workload of the steps.
Nothing else in the engine changes, and if a log cannot be written, it serves on without.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections import deque
from pathlib import Path
from time import perf_counter
from typing import Any

LOG_FILE, WORKLOAD = "OPTIMIZER_STEP_LOG", "OPTIMIZER_STEP_WORKLOAD"
"""Environment variables: where the log goes, and what its steps belong to."""
COLUMNS = (
    "workload", "start_s", "dispatched_s", "completed_s", "prefill_tokens", "prefill_seqs", "prefill_attention",
    "decode_seqs", "decode_context", "preempted", "finished",
)  # fmt: skip

_PIECE_ROWS = 500
_PIECE_S = 5.0
_MOST_IN_FLIGHT = 64
"""Steps that may wait for their tokens; an engine that never says they are there must not fill the memory."""
_logger = logging.getLogger(__name__)


class StepRecorder:
    """Turns scheduler outputs into rows, and writes them in pieces.

    Parameters
    ----------
    path
        Of the log, which is made when the first piece is written; where there is one, its name gets a number.

    Notes
    -----
    In a step a request decodes, or it prefills: until all the tokens it came with, and those that it had
    generated before it was preempted, are computed. Only those that prefill are looked at one by one; what
    decodes is a sum, so that a step of 256 requests costs some ten microseconds.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: Any = None
        self._rows: list[str] = []
        self._origin: float | None = None
        self._written = perf_counter()
        # What each request came with, in tokens, and up to where those that prefill have to go.
        self._prompt: dict[str, int] = {}
        self._goal: dict[str, int] = {}
        self._in_flight: deque[tuple[Any, str, float, float, str]] = deque(maxlen=_MOST_IN_FLIGHT)

    def scheduled(self, output: Any, start: float, end: float) -> None:
        """Take note of a step that the scheduler composed, between two readings of `perf_counter`."""
        preempted = getattr(output, "preempted_req_ids", None) or ()
        for request in preempted:
            self._goal.pop(request, None)
        for request in output.finished_req_ids:
            self._goal.pop(request, None)
            self._prompt.pop(request, None)
        if not output.total_num_scheduled_tokens:
            return
        work = ",".join(map(str, (*self._work(output), len(preempted), len(output.finished_req_ids))))
        if self._origin is None:
            self._origin = start
        self._in_flight.append((output, os.environ.get(WORKLOAD, ""), start, end, work))

    def completed(self, output: Any, now: float) -> None:
        """Take note that the tokens of a step are there."""
        while self._in_flight:
            of, workload, start, end, work = self._in_flight.popleft()
            # Steps end in order; one that was passed over never will.
            if of is output:
                times = ",".join(f"{t - (self._origin or 0.0):.6f}" for t in (start, end, now))
                self._rows.append(f"{_quoted(workload)},{times},{work}\n")
                break
            if not any(other[0] is output for other in self._in_flight):
                # A step without tokens, or from before the log: the one in hand is still to come.
                self._in_flight.appendleft((of, workload, start, end, work))
                break
        if len(self._rows) >= _PIECE_ROWS or (self._rows and now - self._written > _PIECE_S):
            self.flush()

    def flush(self) -> None:
        """Write the rows at hand."""
        self._written = perf_counter()
        if not self._rows:
            return
        if self._file is None:
            self._file = _new_file(self.path)
            self.path = Path(self._file.name)
            self._file.write(",".join(COLUMNS) + "\n")
            _logger.info("step log: %s", self.path)
        self._file.write("".join(self._rows))
        self._file.flush()
        self._rows.clear()

    def close(self) -> None:
        """Write the rows at hand and close the file; more rows would go to another one."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _work(self, output: Any) -> tuple[int, int, int, int, int]:
        scheduled: dict[str, int] = output.num_scheduled_tokens
        cached = output.scheduled_cached_reqs
        tokens = seqs = pairs = context = 0
        prefilling: list[tuple[str, int, int]] = []
        for new in output.scheduled_new_reqs:
            goal = _came_with(new)
            # Where a preempted request comes as a new one, its own outputs are among what it came with.
            self._prompt.setdefault(new.req_id, goal)
            prefilling.append((new.req_id, new.num_computed_tokens, goal))
        resumed = getattr(cached, "resumed_req_ids", ())
        if resumed or self._goal:
            for place, request in enumerate(cached.req_ids):
                before = cached.num_computed_tokens[place]
                if request in resumed:
                    goal = self._prompt.get(request, 0) + cached.num_output_tokens[place]
                    prefilling.append((request, before, goal))
                elif request in self._goal:
                    prefilling.append((request, before, self._goal[request]))
                else:
                    context += before
        else:
            context = sum(cached.num_computed_tokens)
        for request, before, goal in prefilling:
            n = scheduled[request]
            tokens, seqs, pairs = tokens + n, seqs + 1, pairs + n * before + n * (n + 1) // 2
            if before + n < goal:
                self._goal[request] = goal
            else:
                self._goal.pop(request, None)
        # The context counts after the step: with the token that it computes (more under speculation).
        return (
            tokens,
            seqs,
            pairs,
            len(scheduled) - seqs,
            context + output.total_num_scheduled_tokens - tokens,
        )


class StepLogger:
    """A mixin that records the steps of vLLM's `Scheduler` or `AsyncScheduler`, and changes nothing else.

    Put it first: `class Logged(StepLogger, Scheduler)`. `LoggedScheduler` and `LoggedAsyncScheduler` of this module
    are such classes, made when they are first asked for. Without `OPTIMIZER_STEP_LOG` nothing is recorded.
    """

    _recorder: StepRecorder | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        path = os.environ.get(LOG_FILE)
        if path:
            self._recorder = StepRecorder(path)
            # The engine may end without a word to its scheduler.
            atexit.register(self._record, "close")
        else:
            _logger.warning("no step log: %s is not set", LOG_FILE)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule, and take note of the step."""
        start = perf_counter()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        if self._recorder is not None:
            self._record("scheduled", output, start, perf_counter())
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Take note that the tokens of a step are there, and go on."""
        if self._recorder is not None:
            self._record("completed", scheduler_output, perf_counter())
        found = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        if self._recorder is not None and not getattr(self, "requests", True):
            # Nobody waits: the best moment to write.
            self._record("flush")
        return found

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        """Write what is at hand, and shut down."""
        self._record("close")
        ended = getattr(super(), "shutdown", None)
        return None if ended is None else ended(*args, **kwargs)

    def _record(self, event: str, *args: Any) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        try:
            getattr(recorder, event)(*args)
        except Exception as error:  # whatever it is, requests are served on
            self._recorder = None
            _logger.warning("the step log %s ends here: %s: %s", recorder.path, type(error).__name__, error)


def _came_with(new: Any) -> int:
    """Give the tokens that a request has to prefill when it is scheduled as a new one."""
    for name in ("prefill_token_ids", "prompt_token_ids", "prompt_embeds"):
        held = getattr(new, name, None)
        if held is not None:
            return len(held)
    return 0


def _quoted(workload: str) -> str:
    """Make a text safe for a CSV field of one line."""
    text = " ".join(workload.split())
    return '"' + text.replace('"', '""') + '"' if '"' in text or "," in text else text


def _new_file(path: Path) -> Any:
    """Open a file that is not there yet: `steps.csv`, else `steps-2.csv`, ..."""
    number = 1
    while True:
        name = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            return name.open("x", encoding="utf-8", newline="")
        except FileExistsError:
            number += 1


_BASES = {
    "LoggedScheduler": ("vllm.v1.core.sched.scheduler", "Scheduler"),
    "LoggedAsyncScheduler": ("vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
}


def __getattr__(name: str) -> Any:
    """Make the logged schedulers when they are asked for: vLLM is not needed before."""
    if name not in _BASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, base = _BASES[name]
    made = type(name, (StepLogger, getattr(import_module(module), base)), {"__module__": __name__})
    globals()[name] = made
    return made

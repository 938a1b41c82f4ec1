"""Worker processes that may die: a death is the failure of one task, and the others go on.

The workers are plain Python processes that read pickled tasks from a pipe. Unlike those of
`multiprocessing` they do not import the caller's main module again, so a comparison may be called from a
script without `if __name__ == "__main__"`, from a notebook, and from standard input.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from optimizer.comparison.policy_files import PolicyFile, install, loaded_policy_files
from optimizer.comparison.task import Outcome, Task, execute
from optimizer.problem import Instance

_BOOT = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from optimizer.comparison.pool import serve; serve()"
)
_Result = tuple[Task, Outcome]


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(tasks: Sequence[Task], instances: Sequence[Instance], jobs: int) -> Iterator[_Result]:
    """Run tasks and give each with its outcome, in the order in which they finish.

    Parameters
    ----------
    tasks
        What to run; each names its instance by its place in `instances`.
    instances
        Sent to a worker when it first needs one.
    jobs
        Processes; with 1, and for policies that were defined in the main module, it is this process.
    """
    near = [t for t in tasks if jobs == 1 or type(t.policy).__module__ == "__main__"]
    far = [t for t in tasks if t not in near]
    if far:
        yield from _run_in_workers(far, instances, min(jobs, len(far)))
    for task in near:
        yield task, execute(task, instances[task.instance])


def _run_in_workers(tasks: Sequence[Task], instances: Sequence[Instance], jobs: int) -> Iterator[_Result]:
    waiting: SimpleQueue[Task | None] = SimpleQueue()
    for task in [*tasks, *[None] * jobs]:
        waiting.put(task)
    done: SimpleQueue[_Result] = SimpleQueue()
    crews = [_Crew(waiting, done, instances) for _ in range(jobs)]
    try:
        for crew in crews:
            crew.start()
        for _ in tasks:
            yield done.get()
    finally:
        # Also on Ctrl-C, and when the caller loses interest.
        for crew in crews:
            crew.stop()
        for crew in crews:
            crew.join()


class _Crew(threading.Thread):
    """Hands tasks to one worker process, and replaces it when it dies."""

    def __init__(
        self, waiting: SimpleQueue[Task | None], done: SimpleQueue[_Result], instances: Sequence[Instance]
    ) -> None:
        super().__init__(daemon=True)
        self._waiting, self._done, self._instances = waiting, done, instances
        self._worker: _Worker | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def run(self) -> None:
        while (task := self._waiting.get()) is not None and not self._stopped:
            try:
                outcome = self._attempt(task)
            except Exception as error:  # nobody else would hear of it, and the caller would wait for ever
                outcome = Outcome(None, f"could not be sent to a process: {error}")
            self._done.put((task, outcome))
        self.stop()

    def _attempt(self, task: Task) -> Outcome:
        with self._lock:
            if self._stopped:
                return Outcome(None, "stopped")
            if self._worker is None:
                self._worker = _Worker()
            worker = self._worker
        try:
            return worker.ask(task, self._instances[task.instance])
        except (EOFError, OSError, pickle.UnpicklingError):
            with self._lock:
                self._worker = None
            return Outcome(None, worker.last_words())

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._worker is not None:
                self._worker.kill()


class _Worker:
    """One process and the pipes to it."""

    def __init__(self) -> None:
        # A session of its own: Ctrl-C on the terminal is for the parent, who then ends its workers.
        # One thread for linear algebra: there are as many workers as cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=environment,
        )  # fmt: skip
        self._holds: Instance | None = None
        self._send(sys.path)
        for file in loaded_policy_files():
            self._send(("policies", pickle.dumps(file)))

    def ask(self, task: Task, instance: Instance) -> Outcome:
        if self._holds is not instance:
            self._send(("instance", pickle.dumps(instance, protocol=pickle.HIGHEST_PROTOCOL)))
            self._holds = instance
        self._send(("task", pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL)))
        assert self._process.stdout is not None
        outcome: Outcome = pickle.load(self._process.stdout)
        return outcome

    def last_words(self) -> str:
        """Say how it died."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Its pipe was closed a moment ago, and its exit code says why.
            self._process.wait(timeout=2)
        self.kill()
        code = self._process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
                hint = "; was the memory used up?" if name == "SIGKILL" else ""
                return f"its process was ended by {name}{hint}"
        return f"its process ended with exit code {code}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        pickle.dump(message, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()


def serve() -> None:
    """Be a worker: read instances and tasks from standard input, write outcomes, until there are no more."""
    messages: Any = sys.stdin.buffer
    outcomes = os.fdopen(os.dup(1), "wb")
    # What a policy prints must not fall into the pipe.
    os.dup2(2, 1)
    instance: Instance | None = None
    troubles = ""
    while True:
        try:
            kind, content = pickle.load(messages)
        except EOFError:
            return
        if kind == "instance":
            instance = pickle.loads(content)
            continue
        if kind == "policies":
            troubles += _installed(pickle.loads(content))
            continue
        assert instance is not None, "an instance comes before its tasks"
        try:
            outcome = execute(pickle.loads(content), instance)
        except Exception as error:  # a policy that only the caller's process can import
            outcome = Outcome(None, f"could not be loaded in a process: {error}{troubles}")
        pickle.dump(outcome, outcomes, protocol=pickle.HIGHEST_PROTOCOL)
        outcomes.flush()


def _installed(file: PolicyFile) -> str:
    """Load a policy file; say what went wrong, if anything: its own policies fail, the others go on."""
    try:
        install(file)
    except Exception as error:
        return f"; {error}"
    return ""

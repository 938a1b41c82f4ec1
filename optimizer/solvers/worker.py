"""Where a task runs: in a thread, or in a process of its own that may die without harm."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Protocol

from optimizer.solvers.task import Emit, Ended, Event, Task

STOP = b"s"
"""What the caller writes to a child that shall stop."""


def run_guarded(task: Task, emit: Emit) -> None:
    """Run a task; whatever it raises becomes its last event."""
    try:
        task.run(emit)
    except MemoryError:
        emit(Ended("failed", None, "the solver ran out of memory; give it a smaller model, or more memory"))
    except BaseException as error:
        emit(Ended("failed", None, f"the solver broke: {type(error).__name__}: {error}"))


def serve(commands: IO[bytes], events: IO[bytes], limit: Callable[[int], None]) -> None:
    """Be the child: read a task, run it, tell events; end when the caller does."""
    task, memory_bytes = pickle.load(commands)

    def emit(event: Event) -> None:
        pickle.dump(event, events)
        events.flush()

    def work() -> None:
        if memory_bytes is not None:
            limit(memory_bytes)
        run_guarded(task, emit)
        os._exit(0)

    threading.Thread(target=work, daemon=True).start()
    while commands.read(1) == STOP:
        task.stop()
    os._exit(1)  # the caller is gone


class Worker(Protocol):
    """A task that is running somewhere."""

    def next_event(self, patience: float | None) -> Event | None:
        """Wait for an event; None where `patience` seconds pass without one."""

    def stop(self) -> None:
        """Ask the task to end."""

    def abandon(self) -> None:
        """Give the task up; nobody waits for its answer."""


class ThreadWorker:
    """A task in a thread: starts at once, and can be asked to stop but not be made to."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        threading.Thread(target=run_guarded, args=(task, self._events.put), daemon=True).start()

    def next_event(self, patience: float | None) -> Event | None:
        """Wait for an event, however long it takes."""
        return self._events.get()

    def stop(self) -> None:
        """Ask the task to end."""
        self._task.stop()

    abandon = stop


class ProcessWorker:
    """A task in a process of its own, which can be killed and can die."""

    def __init__(self, task: Task, memory_bytes: int | None) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        self._sent = threading.Event()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed where the child's end is read)
        # A new session: Ctrl-C reaches the caller alone, who then asks the solver to stop.
        self._child = subprocess.Popen(
            [sys.executable, "-m", "optimizer.solvers.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": paths},
        )
        threading.Thread(target=self._listen, args=(task, memory_bytes), daemon=True).start()

    def _listen(self, task: Task, memory_bytes: int | None) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            pickle.dump((task, memory_bytes), self._child.stdin)
            self._child.stdin.flush()
            self._sent.set()
            while True:
                event: Event = pickle.load(self._child.stdout)
                if isinstance(event, Ended):
                    self._events.put(_with_allowance(event, memory_bytes))
                    break
                self._events.put(event)
        except (EOFError, OSError, pickle.UnpicklingError):
            self._events.put(_with_allowance(Ended("failed", None, self._death()), memory_bytes))
        finally:
            self._sent.set()
            self._child.wait()
            self._errors.close()

    def _death(self) -> str:
        code = self._child.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f"; its last words: {said[-1]}" if said else ""
        if code >= 0:
            return f"the solver's process ended with exit code {code}{last}"
        memory = ": by the system for want of memory, or by somebody" if -code == signal.SIGKILL else ""
        return f"the solver's process was killed by {signal.Signals(-code).name}{memory}{last}"

    def next_event(self, patience: float | None) -> Event | None:
        """Wait for an event; None where `patience` seconds pass without one."""
        try:
            return self._events.get(timeout=patience)
        except queue.Empty:
            return None

    def stop(self) -> None:
        """Ask the task to end."""
        assert self._child.stdin is not None
        self._sent.wait()  # else the word would stand before the task, or in the middle of it
        with contextlib.suppress(OSError, ValueError):  # it may have ended by itself
            self._child.stdin.write(STOP)
            self._child.stdin.flush()

    def abandon(self) -> None:
        """Kill the process."""
        self._child.kill()
        self._child.wait()


def _with_allowance(ended: Ended, memory_bytes: int | None) -> Ended:
    """Say the limit of memory beside a failure: solvers break in many ways for want of it."""
    if ended.outcome != "failed" or memory_bytes is None:
        return ended
    return replace(ended, message=f"{ended.message} (it was allowed {memory_bytes} bytes of memory)")

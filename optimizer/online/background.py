"""The solver's process, as the loop sees it: asked and polled, never waited for; killed and started anew when it is sick."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

from optimizer.errors import InputError
from optimizer.online.channel import Garbage, Inbox, Outbox, to_solver
from optimizer.online.plan import Snapshot, WindowPlan
from optimizer.online.stats import Mean, SolverStats
from optimizer.online.window import Effort
from optimizer.problem.engine import Engine

_FIRST_BACK_OFF_S, _LAST_BACK_OFF_S = 1.0, 60.0
_START_S = 30.0
"""How long a process may take to answer for the first time: Python and the solvers have to be imported."""

_CHILD = (sys.executable, "-m", "optimizer.online.child")
_alive: WeakSet[ProcessPlanner] = WeakSet()


def _close_all() -> None:
    for planner in list(_alive):
        planner.close()


atexit.register(_close_all)


class ProcessPlanner:
    """Solves windows in a process of its own, with less priority than the loop.

    Parameters
    ----------
    engine, options
        As the horizon's.
    effort
        Of a solve; None: what a tenth of the window gives.
    every_s
        A window is handed over so often at most.
    patience_s
        A solve that takes longer is a hang; None: ten times the effort, at least 5 s.
    command
        The process; for tests.
    clock
        Wall time in seconds. It is not the horizon's clock: a process hangs in real time.
    """

    def __init__(
        self,
        engine: Engine,
        options: Mapping[str, Any],
        *,
        effort: Effort | None = None,
        every_s: float = 1.5,
        patience_s: float | None = None,
        command: Sequence[str] = _CHILD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        effort = effort or Effort(seconds=max(0.1, 0.1 * float(options["window_s"])))
        self._hello = to_solver({
            "engine": engine.model_dump(mode="json"),
            "options": dict(options),
            "effort": [effort.seconds, effort.evaluations, effort.method, effort.scenarios],
        })  # fmt: skip
        self._patience_s = patience_s or max(5.0, 10 * effort.seconds)
        self._command, self._every_s, self._clock = tuple(command), every_s, clock
        self._child: subprocess.Popen[bytes] | None = None
        self._starting: threading.Thread | None = None
        self._inbox, self._outbox = Inbox(json.loads), Outbox(-1)
        self._posted: float | None = None
        self._unsent: Snapshot | None = None
        self._has_answered = False
        self._next = 0.0
        self._back_off = _FIRST_BACK_OFF_S
        self._closed = False
        self._took = Mean()
        self._solves = self._answers = self._deaths = self._hangs = self._garbage = 0
        _alive.add(self)

    # ---- the loop's side

    def wants(self, now_s: float) -> bool:
        """Say whether it is idle, and due; starts the process where there is none."""
        if self._closed or self._posted is not None or self._clock() < self._next:
            return False
        if self._child is None:
            self._start()
            return False
        return True

    def post(self, snapshot: Snapshot, now_s: float) -> None:
        """Hand a window over."""
        self._posted = self._clock()
        self._next = self._posted + self._every_s
        self._solves += 1
        self._unsent = snapshot

    def poll(self, now_s: float) -> WindowPlan | None:
        """Give a plan that has come, once; look after the process otherwise."""
        child = self._child
        if child is None or self._posted is None:
            return None
        # To write a moment down takes as long as to look at it: that is for the next call of the loop.
        unsent, self._unsent = self._unsent, None
        try:
            if unsent is not None:
                self._outbox.put(to_solver(unsent))
                return None
            self._outbox.flush()
            assert child.stdout is not None
            piece = os.read(child.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            allowed = self._patience_s + (0.0 if self._has_answered else _START_S)
            if self._clock() - self._posted > allowed:
                self._hangs += 1
                self._give_up()
            return None
        except OSError:
            piece = b""
        if not piece:
            self._deaths += 1
            self._give_up()
            return None
        return self._read(piece)

    def _read(self, piece: bytes) -> WindowPlan | None:
        try:
            answers = self._inbox.feed(piece)
            if not answers:
                return None
            plan = WindowPlan.from_document(answers[-1])
        except (Garbage, InputError):
            self._garbage += 1
            self._give_up()
            return None
        self._posted = None
        self._has_answered = True
        self._back_off = _FIRST_BACK_OFF_S
        self._answers += 1
        self._took.add(plan.seconds)
        return plan

    def stats(self) -> SolverStats:
        """Say how it fares."""
        if self._posted is not None:
            state = "solving"
        elif self._child is not None:
            state = "idle"
        elif self._starting is not None and self._starting.is_alive():
            state = "starting"
        else:
            state = "waiting" if self._deaths + self._hangs + self._garbage else "off"
        return SolverStats(
            state, self._solves, self._answers, self._deaths, self._hangs, self._garbage, self._took.value
        )

    def close(self) -> None:
        """Kill the process; no answer of it is of use any more."""
        self._closed = True
        starting = self._starting
        if starting is not None:
            starting.join()
        self._kill()

    def __del__(self) -> None:
        """End the process also where nobody closed: a `Popen` that is dropped while its process runs keeps its pipes open."""
        if getattr(self, "_child", None) is not None:
            self._kill()

    # ---- the process

    def _start(self) -> None:
        """Start the process in a thread: a fork of a large program takes milliseconds."""
        if self._starting is None:
            self._starting = threading.Thread(target=self._launch, daemon=True)
            self._starting.start()
        elif not self._starting.is_alive():
            self._starting = None

    def _launch(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        try:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the loop's
                env=os.environ | {"PYTHONPATH": paths},
            )
        except OSError:
            self._deaths += 1
            self._wait_longer()
            return
        assert child.stdin is not None
        assert child.stdout is not None
        os.set_blocking(child.stdin.fileno(), False)
        os.set_blocking(child.stdout.fileno(), False)
        self._inbox, self._outbox = Inbox(json.loads), Outbox(child.stdin.fileno())
        self._has_answered = False
        with contextlib.suppress(OSError):  # should it be dead already, the next write says so
            self._outbox.put(self._hello)
        self._child = child

    def _give_up(self) -> None:
        self._kill()
        self._wait_longer()

    def _wait_longer(self) -> None:
        self._next = self._clock() + self._back_off
        self._back_off = min(2 * self._back_off, _LAST_BACK_OFF_S)

    def _kill(self) -> None:
        child, self._child = self._child, None
        self._posted = self._unsent = None
        if child is None:
            return
        child.kill()
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        child.stdout.close()
        # Who was killed is gone in a moment; the loop does not wait even for that.
        threading.Thread(target=child.wait, daemon=True).start()

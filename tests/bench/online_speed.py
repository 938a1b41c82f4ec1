"""`python -m tests.bench.online_speed`: how long the calls of the online loop take, with and without a solver, sick or well.

512 requests run, 10,000 wait, and as many arrive as end; a step is taken every 10 ms, so that the solver has its time. Wall
time is what a serving loop feels, on whatever else the machine does; CPU time of the calling thread is what the code
costs. The exit code is 1 if a request was lost, or if the CPU time of a call is above what it must reach.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.online import Request, RollingHorizon
from optimizer.online.background import ProcessPlanner
from optimizer.problem import Engine, StepTime

RUNNING, WAITING = 512, 10_000
_PERIOD_S = 0.01
_REACH_US = (("submit", "cpu_p50", 50.0), ("next_step", "cpu_p50", 200.0), ("next_step", "cpu_p99", 1000.0))
_STEP = StepTime.affine(
    base_s=0.005, per_prefill_token_s=2e-5, per_decode_seq_s=2e-5, per_decode_context_s=3e-8
)


def engine() -> Engine:
    """Give an engine of 512 seats whose memory is just enough for them: admission has to look ahead."""
    return Engine(name="bench", kv_blocks=24_000, max_num_seqs=RUNNING, step_time=_STEP)


class Load:
    """Keeps the queue as long as it is."""

    def __init__(self, horizon: RollingHorizon, seed: int) -> None:
        self.horizon = horizon
        self._rng = np.random.default_rng(seed)
        self._left: dict[str, int] = {}
        self.submitted = self.finished = 0
        self._began = time.perf_counter()
        self.took: dict[str, list[tuple[int, int]]] = {"submit": [], "next_step": [], "observe": []}

    @property
    def now(self) -> float:
        """Seconds since the start: plans of a solver are for real time."""
        return time.perf_counter() - self._began

    def _timed(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        answer = call(*arguments)
        self.took[what].append((time.perf_counter_ns() - wall, time.thread_time_ns() - cpu))
        return answer

    def arrive(self, count: int) -> None:
        """Submit."""
        prompts = self._rng.lognormal(6.0, 0.8, count).astype(int) + 1
        outputs = np.minimum(self._rng.lognormal(5.0, 0.8, count).astype(int) + 1, 2000)
        noise = np.exp(self._rng.normal(0, 0.5, count))
        for prompt, output, error in zip(prompts.tolist(), outputs.tolist(), noise.tolist(), strict=True):
            name = f"r{self.submitted}"
            self.submitted += 1
            request = Request(name, min(prompt, 8000), 2048, output * error, 0.5)
            self._timed("submit", self.horizon.submit, request, self.now)
            self._left[name] = output

    def step(self) -> None:
        """Go through one step."""
        step = self._timed("next_step", self.horizon.next_step, self.now)
        left, finished = self._left, []
        computed = self.horizon.loop.state
        for name in step.decode:
            left[name] -= 1
            if left[name] <= 0:
                finished.append(name)
        for name, _ in step.prefill:
            entry = computed.entries[name]
            if computed.generated(entry) > 0:
                left[name] -= 1
                if left[name] <= 0:
                    finished.append(name)
        self.finished += len(self._timed("observe", self.horizon.observe, step, self.now, finished))
        for name in finished:
            del left[name]
        self.arrive(max(0, WAITING - self.horizon.loop.state.waiting))


def measure(
    horizon: RollingHorizon, steps: int, seed: int = 0, every: Callable[[int], None] | None = None
) -> Load:
    """Fill the engine and the queue, then run so many steps and time them."""
    load = Load(horizon, seed)
    load.arrive(RUNNING + WAITING)
    for _ in range(60):
        load.step()
    gc.collect()
    due = time.perf_counter()
    for took in load.took.values():
        took.clear()
    for number in range(steps):
        if every is not None:
            every(number)
        load.step()
        due = max(due + _PERIOD_S, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    return load


def quantiles(took: list[tuple[int, int]]) -> dict[str, float]:
    """Give medians, 99th percentiles and maxima in microseconds, of wall and of CPU time."""
    table = np.array(took, np.float64) / 1000
    return {
        f"{clock}_{name}": float(np.quantile(table[:, column], q))
        for column, clock in enumerate(("wall", "cpu"))
        for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args(arguments)
    rows, good = [], True
    for case, make in CASES.items():
        horizon, every = make()
        with horizon:
            load = measure(horizon, asked.steps, every=every)
            stats = horizon.stats()
            rows += [{"case": case, "call": call, **quantiles(took)} for call, took in load.took.items()]
            held = f"{stats.running} running, {stats.waiting} waiting, KV {stats.kv_share:.0%}"
            good &= all(quantiles(load.took[call])[what] <= most for call, what, most in _REACH_US)
            lost = load.submitted - load.finished - stats.running - stats.waiting
            good &= lost == 0
            print(
                f"{case}: {held}, {lost} lost; steps by {stats.counts.steps}; {stats.solver}", file=sys.stderr
            )
    print(
        f"{'solver':12} {'call':10} {'wall p50':>9} {'p99':>8} {'max':>9} {'CPU p50':>9} {'p99':>8} {'max':>9}   µs"
    )
    for row in rows:
        figures = " ".join(
            f"{row[key]:{width}.0f}"
            for key, width in zip(
                ("wall_p50", "wall_p99", "wall_max", "cpu_p50", "cpu_p99", "cpu_max"),
                (9, 8, 9, 9, 8, 9),
                strict=True,
            )
        )
        print(f"{row['case']:12} {row['call']:10} {figures}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if good else 1


def _with(command: tuple[str, ...] | None = None) -> tuple[RollingHorizon, ProcessPlanner]:
    options = {"objective": "latency", "window_s": 5.0}
    chosen = {} if command is None else {"command": command}
    planner = ProcessPlanner(engine(), options, patience_s=1.0, **chosen)
    return RollingHorizon(engine(), solver=planner), planner


def _well() -> tuple[RollingHorizon, None]:
    return _with()[0], None


def _struck(by: signal.Signals) -> tuple[RollingHorizon, Callable[[int], None]]:
    """Send the solver a signal every 400 steps."""
    horizon, planner = _with()

    def every(number: int) -> None:
        child = planner._child
        if number % 400 == 399 and child is not None:
            child.send_signal(by)

    return horizon, every


def _sick(program: str) -> tuple[RollingHorizon, None]:
    return _with((sys.executable, "-c", program))[0], None


CASES: dict[str, Callable[[], tuple[RollingHorizon, Callable[[int], None] | None]]] = {
    "none": lambda: (RollingHorizon(engine(), solver=None), None),
    "well": _well,
    "killed": lambda: _struck(signal.SIGKILL),
    "hung": lambda: _struck(signal.SIGSTOP),
    "garbage": lambda: _sick("import os, time; os.write(1, b'Traceback!'); time.sleep(600)"),
}

if __name__ == "__main__":
    sys.exit(main())

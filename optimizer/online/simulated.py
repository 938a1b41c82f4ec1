"""An engine to serve against where there is none: it takes as long as its card says, and knows how long outputs are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimizer.capacity.step_time import StepClock
from optimizer.online.horizon import RollingHorizon
from optimizer.online.messages import Request, Step
from optimizer.problem.engine import Engine
from optimizer.problem.requests import Requests
from optimizer.units import TICKS_PER_SECOND


class SimulatedEngine:
    """Executes steps of a horizon.

    Parameters
    ----------
    engine
        For its step times.

    Examples
    --------
    >>> from optimizer.problem import StepTime
    >>> engine = SimulatedEngine(Engine(name="toy", kv_blocks=9, step_time=StepTime.affine(base_s=0.5)))
    >>> engine.add("a", prompt_tokens=3, output_tokens=1)
    >>> engine.execute(Step(0, 0.0, prefill=(("a", 3),)))
    (0.5, ['a'])
    """

    def __init__(self, engine: Engine) -> None:
        self._clock = StepClock(engine.step_time)
        self._prompt: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        """By request: prompt and output so far."""
        self._end: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._cached: dict[str, int] = {}

    def add(self, name: str, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0) -> None:
        """Take a request in that will end of itself after so many tokens, and whose prompt is cached in part."""
        self._cached[name] = min(cached_tokens, prompt_tokens - 1)
        self._prompt[name] = self._tokens[name] = prompt_tokens
        self._held[name] = 0
        self._end[name] = prompt_tokens + output_tokens

    def drop(self, name: str) -> None:
        """Forget a request."""
        del self._prompt[name], self._tokens[name], self._held[name], self._end[name], self._cached[name]

    def has_output(self, name: str) -> bool:
        """Say whether a request has sampled a token."""
        return self._tokens[name] > self._prompt[name]

    def execute(self, step: Step) -> tuple[float, list[str]]:
        """Compute a step; give the seconds that it takes, and who ends with it (and is forgotten)."""
        tokens, held, end = self._tokens, self._held, self._end
        for name in step.preempt:
            held[name] = 0
        chunk = attention = contexts = context = 0
        for name, n in step.prefill:
            before = held[name] or self._cached[name]
            chunk += n
            attention += n * before + n * (n + 1) // 2
            held[name] = before + n
            contexts += before + n
        for name in step.decode:
            held[name] += 1
            context += held[name]
        took = self._clock.step(chunk, attention, len(step.prefill), contexts, len(step.decode), context)
        finished = []
        for name in (*(name for name, _ in step.prefill), *step.decode):
            if held[name] == tokens[name]:
                tokens[name] += 1
                if tokens[name] >= end[name]:
                    finished.append(name)
        for name in finished:
            self.drop(name)
        return took / TICKS_PER_SECOND, finished


@dataclass
class SimulatedServer:
    """A serving loop around a simulated engine.

    Attributes
    ----------
    horizon, engine, requests
        Who decides, who computes, what arrives.
    duration_s
        Of the engine, after which it ends, whoever is still there.
    speed
        Seconds of the engine per second of the clock on the wall; 0: no waiting.
    now_s
        Of the engine.
    """

    horizon: RollingHorizon
    engine: SimulatedEngine
    requests: Requests
    duration_s: float
    speed: float
    now_s: float = 0.0
    step: Step | None = None
    first_s: dict[str, float] = field(default_factory=dict)
    ttft_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    _next: int = 0

    def run(self, frame: Callable[[], None]) -> None:
        """Serve until the time is over; `frame` is called after every step."""
        began = time.monotonic()
        while self.now_s < self.duration_s:
            self._arrive()
            self._one_step()
            if self.speed:
                time.sleep(max(0.0, began + self.now_s / self.speed - time.monotonic()))
            frame()

    def _arrive(self) -> None:
        """Submit who has arrived."""
        r, n = self.requests, len(self.requests)
        known = r.known
        while self._next < n and r.arrival_s[self._next] <= self.now_s:
            i = self._next
            guess = None if known is None or known.mean is None else float(known.mean[i])
            sigma = None if known is None or known.log_sigma is None else float(known.log_sigma[i])
            prompt, output = int(r.prompt_tokens[i]), int(r.output_tokens[i])
            admission = self.horizon.submit(
                Request(r.name(i), prompt, predicted_tokens=guess, log_sigma=sigma), float(r.arrival_s[i])
            )
            if admission.status != "rejected":
                self.engine.add(r.name(i), prompt, min(output, admission.max_output_tokens))
            self._next += 1

    def _one_step(self) -> None:
        step = self.horizon.next_step(self.now_s)
        if not step:
            more = self._next < len(self.requests)
            self.now_s = float(self.requests.arrival_s[self._next]) if more else self.duration_s
            return
        took, finished = self.engine.execute(step)
        self.step = step
        self.now_s += took
        self._arrive()  # who came meanwhile is told of before the end of the step is
        for name in dict.fromkeys(name for name, _ in step.prefill):
            # The engine has forgotten who is finished already.
            if name not in self.first_s and (name in finished or self.engine.has_output(name)):
                self.first_s[name] = self.now_s
        for name in self.horizon.observe(step, self.now_s, finished):
            arrival = self._arrival(name)
            self.ttft_s.append(self.first_s.pop(name, self.now_s) - arrival)
            self.latency_s.append(self.now_s - arrival)

    def _arrival(self, name: str) -> float:
        return float(self.requests.arrival_s[int(name)])

    def figures(self) -> dict[str, Any]:
        """Give what the requests felt, in seconds."""
        found: dict[str, Any] = {"finished": len(self.latency_s), "engine_s": self.now_s}
        for name, values in (("ttft", self.ttft_s), ("latency", self.latency_s)):
            for label, q in (("p50", 0.5), ("p99", 0.99)):
                found[f"{name}_{label}_s"] = float(np.quantile(values, q)) if values else None
            found[f"{name}_mean_s"] = float(np.mean(values)) if values else None
        return found

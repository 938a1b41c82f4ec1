"""An engine to serve against where there is none: it takes as long as its card says, and knows how long outputs are."""

from __future__ import annotations

from optimizer.capacity.step_time import StepClock
from optimizer.online.messages import Step
from optimizer.problem.engine import Engine
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

    def add(self, name: str, prompt_tokens: int, output_tokens: int) -> None:
        """Take a request in that will end of itself after so many tokens."""
        self._prompt[name] = self._tokens[name] = prompt_tokens
        self._held[name] = 0
        self._end[name] = prompt_tokens + output_tokens

    def drop(self, name: str) -> None:
        """Forget a request."""
        del self._prompt[name], self._tokens[name], self._held[name], self._end[name]

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
            before = held[name]
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

"""Online scheduling: `RollingHorizon`, which a serving loop asks what to compute next.

Names are imported when they are first used: the solver's process needs none of them.

Examples
--------
A serving loop. The engine and the clock are simulated; yours are the GPU and `time.monotonic`.

>>> from optimizer import engine
>>> from optimizer.online import Request, RollingHorizon, SimulatedEngine
>>> card, now = engine("llama3.1-8b@h200"), 0.0
>>> gpu = SimulatedEngine(card)
>>> with RollingHorizon(card, objective="latency") as horizon:
...     for i in range(3):
...         request = Request(f"r{i}", prompt_tokens=1000, max_output_tokens=400, predicted_tokens=100.0)
...         if horizon.submit(request, now).status != "rejected":
...             gpu.add(request.id, prompt_tokens=1000, output_tokens=100 * (i + 1))
...     while step := horizon.next_step(now):
...         seconds, ended = gpu.execute(step)  # computes step.prefill and step.decode, drops the KV of step.preempt
...         now += seconds
...         for request_id in horizon.observe(step, now, ended):
...             print(f"{request_id} done at {now:.1f} s")
r0 done at 0.6 s
r1 done at 1.1 s
r2 done at 1.6 s
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizer.online.aio import AsyncHorizon as AsyncHorizon
    from optimizer.online.horizon import RollingHorizon as RollingHorizon
    from optimizer.online.messages import Admission as Admission
    from optimizer.online.messages import Request as Request
    from optimizer.online.messages import Step as Step
    from optimizer.online.simulated import SimulatedEngine as SimulatedEngine
    from optimizer.online.stats import Stats as Stats

_HOME_OF = {
    "Admission": "messages",
    "AsyncHorizon": "aio",
    "Request": "messages",
    "RollingHorizon": "horizon",
    "SimulatedEngine": "simulated",
    "Stats": "stats",
    "Step": "messages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'optimizer.online' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"optimizer.online.{_HOME_OF[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})

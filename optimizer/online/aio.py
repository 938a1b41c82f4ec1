"""The horizon for coroutines: the same calls on a clock of its own, and one that waits for work."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from optimizer.online.horizon import RollingHorizon
from optimizer.online.messages import Admission, Request, Step
from optimizer.online.stats import Stats


class AsyncHorizon:
    """A `RollingHorizon` in an event loop.

    Its calls take microseconds, so they are made where they stand. `next_step` is the one that waits: until there is
    something to compute.

    Parameters
    ----------
    horizon
        What it wraps; closed with it.
    clock
        Seconds, running forward.

    Examples
    --------
    >>> from optimizer.problem import Engine, StepTime
    >>> engine = Engine(name="toy", kv_blocks=100, step_time=StepTime.affine(base_s=0.01))
    >>> async def serve() -> tuple[str, ...]:
    ...     async with AsyncHorizon(RollingHorizon(engine, solver=None)) as horizon:
    ...         step = asyncio.create_task(horizon.next_step())
    ...         await horizon.submit(Request("a", prompt_tokens=20, max_output_tokens=1))
    ...         return await horizon.observe(await step)
    >>> asyncio.run(serve())
    ('a',)
    """

    def __init__(self, horizon: RollingHorizon, clock: Callable[[], float] = time.monotonic) -> None:
        self._horizon, self._clock = horizon, clock
        self._changed = asyncio.Event()

    async def submit(self, request: Request) -> Admission:
        """Take a request in, or say why not."""
        admission = self._horizon.submit(request, self._clock())
        self._changed.set()
        return admission

    async def next_step(self) -> Step:
        """Wait until the engine has something to do, and say what; an empty step after `close`."""
        while True:
            self._changed.clear()
            step = self._horizon.next_step(self._clock())
            if step or self._horizon.closed:
                return step
            # Who waits for the report of a step that is lost is let go by a later call.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._horizon.options["window_s"])

    async def observe(
        self, step: Step, finished: Iterable[str] = (), tokens: Mapping[str, int] | None = None
    ) -> tuple[str, ...]:
        """Learn what became of a step that is done now."""
        done = self._horizon.observe(step, self._clock(), finished, tokens)
        self._changed.set()
        return done

    async def cancel(self, request_id: str) -> bool:
        """Forget a request."""
        there = self._horizon.cancel(request_id)
        self._changed.set()
        return there

    def stats(self) -> Stats:
        """Say how things stand."""
        return self._horizon.stats()

    async def close(self) -> None:
        """End the solver's process, beside the event loop, and let who waits for work go."""
        await asyncio.to_thread(self._horizon.close)
        self._changed.set()

    async def __aenter__(self) -> Self:
        """Give itself; `close` comes at the end of the block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

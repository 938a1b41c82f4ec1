"""`RollingHorizon`: what a serving loop calls; it answers at once, whatever the solver behind it does."""

from __future__ import annotations

import copy
import dataclasses
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Self

from optimizer.errors import InputError
from optimizer.online.knobs import Levels, OnlineObjective
from optimizer.online.lengths import DEFAULT, Lengths
from optimizer.online.loop import Loop
from optimizer.online.messages import Admission, Request, Step, checked, real
from optimizer.online.plan import Planner
from optimizer.online.predictors import Predictor
from optimizer.online.stats import Latencies, SolverStats, Stats
from optimizer.problem.engine import Engine
from optimizer.problem.metrics import TPOT_SLO_S, TTFT_SLO_S


class RollingHorizon:
    """Schedules a stream of requests on an engine, step by step.

    Every call returns at once and takes a lock, so any thread may call; from asyncio see `AsyncHorizon`. A solver in a
    process of its own improves the order of the next seconds; the answers fall back from its fresh plan to a stale one,
    to the heuristic, to first come first served.

    Parameters
    ----------
    engine
        What is scheduled.
    objective
        `latency`, `throughput`, `goodput` or `fair`.
    window_s
        A plan is fresh for so long, and stale for as long again; then it is dropped.
    solver
        `process`: in the background, started when it is first needed. None: the heuristic alone. Or a `Planner`.
    predictors
        Of output lengths, the preferred first: names (`given`, `tenant`, `bucketed`, `history`, `none`) or
        objects (`optimizer.online.predictors.Predictor`, such as `optimizer.online.guesses.Oracle`). One that is worse
        than the history of all lengths is dropped.
    max_waiting
        More requests than these are not taken in.
    confidence, patience_s, exempt, tbt_s, ttft_slo_s, tpot_slo_s
        As in `optimizer.online.knobs.Levels`.

    Raises
    ------
    InputError
        If an option is out of range.

    Notes
    -----
    What is wrong with what it is told never stops the loop; it is answered like this, and counted in `stats()`:

    =============================================  ====================================================================
    fault                                          answer
    =============================================  ====================================================================
    id in use                                      `submit` rejects (`duplicate`)
    id cancelled or finished, submitted again      a new request; late reports on the old one are ignored
    argument of the wrong kind                     `InputError`, and nothing has changed
    request that can never fit                     `submit` rejects (`too-long`)
    output cap beyond the engine's room            cut; `Admission.max_output_tokens` says to what
    own level that an idle engine cannot meet      `submit` rejects (`slo`), with objective `goodput`
    TTFT level that is missed while waiting        served behind all that can still be in time (`goodput`)
    more than `max_waiting` requests wait          `submit` rejects (`overload`); those taken in are kept
    unknown id reported or cancelled               ignored
    step reported twice, or one never handed out   ignored
    steps reported out of order                    taken as they come
    step never reported                            counts as done as planned: requests that reached their cap in it end
                                                   with a later report, after 64 more steps, or after `window_s` in which
                                                   there is nothing to do
    engine computed less than planned              `tokens` says so: the rest is planned again, and what later steps
                                                   that are under way planned for the request counts as not done
    engine computed more than planned              `tokens` says so: believed (prefix cache, speculation); blocks that are
                                                   then missing are made free by preemptions in the next step
    less in the prefix cache than believed         `tokens` says so: the engine has computed less than planned
    request reported finished that waits           believed
    request that reached its cap                   finished with the step that samples the last token
    clock that stands still or runs backwards      the latest moment seen is taken
    clock that jumps ahead                         plans become stale; nothing else depends on it
    predictor that raises or talks nonsense        it is not asked any more
    rule that raises                               the step is first come first served
    solver killed, hung, or talking nonsense       its plan is dropped, it is started anew, ever later (1 s to 60 s)
    planner of one's own that raises               the heuristic goes on
    anything after `close`                         `submit` rejects (`closed`), `next_step` is empty
    =============================================  ====================================================================

    Examples
    --------
    >>> from optimizer.problem import StepTime
    >>> engine = Engine(name="toy", kv_blocks=100, step_time=StepTime.affine(base_s=0.01))
    >>> horizon = RollingHorizon(engine, solver=None)
    >>> horizon.submit(Request("a", prompt_tokens=20, max_output_tokens=2), now_s=0.0).status
    'admitted'
    >>> step = horizon.next_step(0.0)
    >>> step.prefill, step.decode
    ((('a', 20),), ())
    >>> horizon.observe(step, 0.01)
    ()
    >>> horizon.observe(horizon.next_step(0.01), 0.02)
    ('a',)
    """

    def __init__(
        self,
        engine: Engine,
        objective: OnlineObjective = "latency",
        window_s: float = 5.0,
        *,
        solver: Planner | str | None = "process",
        predictors: Sequence[str | Predictor] = DEFAULT,
        max_waiting: int = 100_000,
        confidence: float = 0.95,
        patience_s: float = 48.0,
        exempt: float = 0.0,
        tbt_s: float | None = None,
        ttft_slo_s: float = TTFT_SLO_S,
        tpot_slo_s: float = TPOT_SLO_S,
    ) -> None:
        if not isinstance(engine, Engine):
            raise InputError(
                f"{engine!r}; expected an Engine, such as optimizer.engine gives by name", field="engine"
            )
        if not (real(window_s) and window_s > 0):
            raise InputError(f"{window_s!r}; expected seconds > 0", field="window_s")
        if type(max_waiting) is not int or max_waiting < 1:
            raise InputError(f"{max_waiting!r}; expected a whole number >= 1", field="max_waiting")
        levels = Levels(
            confidence=confidence, patience_s=patience_s, exempt=exempt, tbt_s=tbt_s,
            ttft_slo_s=ttft_slo_s, tpot_slo_s=tpot_slo_s,
        )  # fmt: skip
        self.engine = engine
        self.options: dict[str, Any] = {
            "objective": objective,
            "window_s": window_s,
            "max_waiting": max_waiting,
            **dataclasses.asdict(levels),
        }
        lengths = Lengths(predictors)
        self.loop = Loop(
            engine, objective, levels, lengths, _planner(solver, engine, self.options),
            window_s=window_s, max_waiting=max_waiting,
        )  # fmt: skip
        self.now_s = 0.0
        self._took_step, self._took_submit = Latencies(), Latencies()
        self._lock = threading.RLock()

    # ---- the loop

    def submit(self, request: Request, now_s: float) -> Admission:
        """Take a request in, or say why not.

        Parameters
        ----------
        request
            What is known of it.
        now_s
            Moment of its arrival in seconds, on any clock that runs forward.

        Raises
        ------
        InputError
            If it is no `Request`, or the moment is no number.
        """
        began = perf_counter_ns()
        if not isinstance(request, Request):
            raise InputError(f"{request!r}; expected a Request", field="request")
        with self._lock:
            admission = self.loop.submit(request, self._moment(now_s))
            self._took_submit.add(perf_counter_ns() - began)
            return admission

    def next_step(self, now_s: float) -> Step:
        """Decide what the engine computes next.

        The engine may still be running steps before it: they count as done as they were planned.

        Returns
        -------
        Step
            False in a condition where there is nothing to do. It always fits: seats, token budget, KV blocks.

        Raises
        ------
        InputError
            If the moment is no number.
        """
        began = perf_counter_ns()
        with self._lock:
            step = self.loop.next_step(self._moment(now_s))
            self._took_step.add(perf_counter_ns() - began)
            return step

    def observe(
        self,
        step: Step,
        finished_s: float,
        finished: Iterable[str] = (),
        tokens: Mapping[str, int] | None = None,
    ) -> tuple[str, ...]:
        """Learn what became of a step.

        Parameters
        ----------
        step
            As `next_step` gave it.
        finished_s
            When the engine was done with it.
        finished
            Requests that ended with it: their seats and blocks are free from now on.
        tokens
            What the engine computed otherwise than planned: prompt tokens of a prefill, with those that it found in its
            prefix cache; output tokens of a decode. Who is not named did as planned, with as much in the cache as was
            believed.

        Returns
        -------
        tuple of str
            All requests that ended with it, also those that reached their cap.

        Raises
        ------
        InputError
            If an argument is of another kind than it should be. Then nothing is learned, and the step can be reported again.
        """
        names, computed = checked(step, finished, tokens)
        with self._lock:
            return self.loop.observe(step, self._moment(finished_s), names, computed)

    def cancel(self, request_id: str) -> bool:
        """Forget a request, whatever it does; say whether it was there. Later steps leave it out."""
        if not isinstance(request_id, str):
            raise InputError(f"{request_id!r}; expected the id of a request, a string", field="request_id")
        with self._lock:
            return self.loop.cancel(request_id)

    def stats(self) -> Stats:
        """Say how things stand."""
        with self._lock:
            loop, planner = self.loop, self.loop.advice.planner
            waiting, running, share = self.load()
            return Stats(
                waiting, running, share, copy.deepcopy(loop.counts), SolverStats() if planner is None else planner.stats(),
                copy.deepcopy(loop.lengths.scores), self._took_step.summary(), self._took_submit.summary(), loop.factor,
                loop.ttft.value, loop.latency.value,
            )  # fmt: skip

    def load(self) -> tuple[int, int, float]:
        """Give how many wait, how many run, and the share of the KV blocks that they hold; in a microsecond."""
        with self._lock:
            s = self.loop.state
            return s.waiting, s.taken_seats, s.used_blocks / s.blocks

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.loop.closed

    def close(self) -> None:
        """End the solver's process; may be called again."""
        with self._lock:
            self.loop.closed = True
            if self.loop.advice.planner is not None:
                self.loop.advice.planner.close()

    def __enter__(self) -> Self:
        """Give itself; `close` comes at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    # ---- state kept across processes

    def save(self, path: str | Path) -> None:
        """Write everything to a file: who waits, who runs and how far, what was learned, what is under way."""
        from optimizer.online.saved import write

        with self._lock:
            # What is restored computes it anew; both shall go on alike.
            self.loop.composer.outlook.forget()
            write(self, path)

    @classmethod
    def restore(
        cls,
        path: str | Path,
        *,
        solver: Planner | str | None = "process",
        predictors: Sequence[str | Predictor] = DEFAULT,
        engine_restarted: bool = False,
        now_s: float | None = None,
    ) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        path
            The file.
        solver, predictors
            As in the constructor; predictors take up what those of their names had learned.
        engine_restarted
            Whether the engine's KV cache is lost: then whoever ran waits, and is computed anew.
        now_s
            The moment now, where the clock is another one than before, such as that of a machine that was started anew:
            everything goes on from here as from the last moment before `save`. None: the clock went on.

        Raises
        ------
        InputError
            If the file is no saved horizon.
        """
        from optimizer.online.saved import read

        return read(cls, path, solver, predictors, engine_restarted, now_s)

    def _moment(self, now_s: float) -> float:
        try:
            moment = float(now_s)
        except (TypeError, ValueError):
            raise InputError(f"{now_s!r}; expected seconds", field="now_s") from None
        # Written so that NaN is caught as well.
        if not self.now_s <= moment < math.inf:
            self.loop.counts.clock_jumps += 1
            return self.now_s
        self.now_s = moment
        return moment


def _planner(solver: Planner | str | None, engine: Engine, options: Mapping[str, object]) -> Planner | None:
    if solver is None or isinstance(solver, Planner):
        return solver
    if solver != "process":
        raise InputError(f"{solver!r}; expected 'process', None, or a planner", field="solver")
    from optimizer.online.background import ProcessPlanner

    return ProcessPlanner(engine, options)

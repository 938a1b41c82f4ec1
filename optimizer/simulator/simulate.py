"""`simulate`: one instance, one policy, one schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.capacity.step_time import StepClock
from optimizer.errors import InputError, OptimizerError, PolicyError
from optimizer.problem import Instance, Metrics, Schedule
from optimizer.problem.knowledge import default_cap
from optimizer.problem.metrics import TPOT_SLO_S, TTFT_SLO_S
from optimizer.simulator.decoding import UNLIMITED
from optimizer.simulator.loop import Loop
from optimizer.simulator.state import EngineState
from optimizer.units import moment_ticks

if TYPE_CHECKING:
    from optimizer.policies import Policy


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """What a policy made of an instance.

    Attributes
    ----------
    instance, policy, options, seed
        What was run.
    schedule
        What was executed.
    metrics
        What it was worth.
    loop_seconds
        Wall time of the event loop, recording included.
    events
        Passes of the loop: runs of equal steps, and waits.
    """

    instance: Instance
    policy: str
    options: Mapping[str, Any]
    seed: int
    schedule: Schedule
    metrics: Metrics
    loop_seconds: float
    events: int


def simulate(
    instance: Instance,
    policy: str | Policy = "vllm-v1",
    *,
    seed: int = 0,
    step_by_step: bool = False,
    options: Mapping[str, Any] | None = None,
    ttft_slo_s: float = TTFT_SLO_S,
    tpot_slo_s: float = TPOT_SLO_S,
) -> Simulation:
    """Run a policy on an instance.

    Parameters
    ----------
    instance
        Requests and engine.
    policy
        A name (`optimizer.policies.policy_names()`), or a policy of one's own.
    seed
        For policies that draw random numbers; the same seed gives the same schedule, byte for byte.
    step_by_step
        Use the reference mode: every step, every request, no closed forms. Same schedule, much slower.
    options
        Of a policy that is given by its name, by theirs; a policy of one's own is made with its options.
    ttft_slo_s, tpot_slo_s
        Levels for goodput where a request names none.

    Raises
    ------
    PolicyError
        If the policy deadlocks, livelocks, raises, or asks for what the engine cannot do.
    InputError
        If the instance is not what the policy can work with.

    Examples
    --------
    >>> from optimizer.problem import Engine, Instance, Requests, StepTime
    >>> engine = Engine(name="toy", kv_blocks=100, step_time=StepTime.affine(base_s=0.01))
    >>> requests = Requests.from_columns({"prompt_tokens": [100, 50], "output_tokens": [3, 5]})
    >>> simulate(Instance("two", requests, engine)).metrics.makespan_s
    0.05
    """
    decider = _decider(policy, options or {})
    decider.seed = seed
    state, loop = _set_up(instance, decider, step_by_step=step_by_step)
    name = decider.name or type(decider).__name__
    try:
        decider.start(state)
        loop.run()
    except OptimizerError:
        raise
    except Exception as error:
        raise PolicyError(f"{name} raised {type(error).__name__} at {state.now_s:.6f} s: {error}") from error
    requests, engine = instance.requests, instance.engine
    budget = engine.max_num_batched_tokens if decider.has_budget else None
    schedule = state.recorder.schedule(name, state.block_tokens, budget, loop.first_token, loop.finish)
    metrics = Metrics.of(schedule, requests, engine, ttft_slo_s=ttft_slo_s, tpot_slo_s=tpot_slo_s)
    return Simulation(
        instance, name, dict(options or {}), seed, schedule, metrics, loop.loop_seconds, loop.events
    )


def _decider(policy: str | Policy, options: Mapping[str, Any]) -> Policy:
    from optimizer.policies import make_policy

    if isinstance(policy, str):
        return make_policy(policy, **options)
    if options:
        raise InputError(
            f"{policy.name or type(policy).__name__} is made already; make it with its options: {', '.join(options)}",
            field="options",
        )
    return policy


def _set_up(instance: Instance, decider: Policy, *, step_by_step: bool) -> tuple[EngineState, Loop]:
    """Give an engine on which nothing has happened, and the loop that will run the policy on it."""
    from optimizer.simulator.reference import ReferenceLoop, ReferenceState

    requests, engine = instance.requests, instance.engine
    # Sharing works on blocks: with prefix caching, a system that counts by the token uses the engine's.
    block_tokens = (None if engine.prefix_caching else decider.block_tokens) or engine.block_tokens
    _check_nesting(instance, block_tokens)
    cap = requests.max_output_tokens
    longest = int((requests.prompt_tokens + (requests.output_tokens if cap is None else cap)).max())
    state = (ReferenceState if step_by_step else EngineState)(
        engine,
        requests,
        [moment_ticks(t) for t in requests.arrival_s.tolist()],
        block_tokens=block_tokens,
        pages=decider.pages,
        most_per_step=engine.max_num_batched_tokens + longest,
        cap=[default_cap(requests)] * len(requests) if cap is None else cap.tolist(),
        # A power of two that holds every request: it says no more of one of them than of another.
        model_len=min(engine.max_model_len or UNLIMITED, 1 << (longest - 1).bit_length()),
    )
    state.waiting = decider.queue(state)
    if state.safe_tokens >= 0:
        state.safe_tokens = max(-1, state.safe_tokens - decider.margin_tokens(state))
    clock = StepClock(engine.step_time)
    return state, (ReferenceLoop if step_by_step else Loop)(
        state, decider, clock, lags=engine.async_scheduling
    )


def _check_nesting(instance: Instance, block_tokens: int) -> None:
    prefix = instance.requests.prefix
    if prefix is None or not instance.engine.prefix_caching:
        return
    sizes = sorted((prefix.block_tokens, block_tokens))
    if sizes[1] % sizes[0]:
        raise InputError(
            f"the trace's hashes stand for {prefix.block_tokens} tokens and the engine's blocks hold {block_tokens}; "
            "one must be a multiple of the other: choose another block size",
            field="block_tokens",
        )

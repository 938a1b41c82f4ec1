"""Small engines whose every step takes a second, and a replay of what a schedule did to each request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from optimizer.problem import Engine, Instance, Requests, StepTime, with_knowledge
from optimizer.problem.schedule import Step
from optimizer.simulator import Simulation, simulate


def toy(
    lengths, *, arrivals=None, caps=None, known="exact", prefix=None, deadlines=None, **engine
) -> Instance:
    """An instance of (prompt, output) pairs on an engine with blocks of one token and steps of one second."""
    columns = {
        "arrival_s": arrivals or [0.0] * len(lengths),
        "prompt_tokens": [prompt for prompt, _ in lengths],
        "output_tokens": [output for _, output in lengths],
        "max_output_tokens": caps,
        "deadline_s": deadlines,
    }
    settings = {
        "kv_blocks": 100_000,
        "block_tokens": 1,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 256,
        "step_time": StepTime.affine(base_s=1.0),
    }
    requests = with_knowledge(Requests.from_columns(columns, prefix=prefix), known)
    return Instance("toy", requests, Engine(name="toy", **settings | engine))


def run(lengths, policy, *, options=None, step_by_step=False, **instance) -> Simulation:
    """Simulate a policy on a toy instance."""
    return simulate(toy(lengths, **instance), policy, options=options, step_by_step=step_by_step)


def steps_of(simulation) -> list[Step]:
    return list(simulation.schedule.iterate())


def chunks_of(simulation, request) -> list[int]:
    """The prompt tokens that a request computed, step by step, where it computed any."""
    return [n for step in steps_of(simulation) for r, n in step.prefill if r == request]


def first_service(simulation) -> list[int]:
    """The requests in order of their first chunk."""
    return list(dict.fromkeys(r for step in steps_of(simulation) for r, _ in step.prefill))


@dataclass(frozen=True)
class Moment:
    """One step, and how the requests stand: who could decode in it, and each one's context after it."""

    step: Step
    can_decode: frozenset[int]
    started: frozenset[int]
    generated: dict[int, int]
    context: dict[int, int]

    @property
    def tokens(self) -> int:
        return sum(n for _, n in self.step.prefill) + len(self.step.decode)


def replay(simulation) -> Iterator[Moment]:
    """Go through a schedule without prefix hits step by step, and keep books on each request."""
    requests = simulation.instance.requests
    prompts, outputs = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
    left = dict(enumerate(prompts))
    generated = dict.fromkeys(left, 0)
    context: dict[int, int] = {}
    ready: set[int] = set()
    for step in simulation.schedule.iterate():
        for request in step.preempted:
            left[request] = prompts[request] + generated[request]
            ready.discard(request)
            del context[request]
        could, started = frozenset(ready), frozenset(context)
        for request, tokens in step.prefill:
            left[request] -= tokens
            context[request] = context.get(request, 0) + tokens
            if not left[request]:
                generated[request] += 1
                ready.add(request)
        for request in step.decode:
            context[request] += 1
            generated[request] += 1
        now = Moment(step, could, started, dict(generated), dict(context))
        for request in [r for r in ready if generated[r] == outputs[r]]:
            ready.discard(request)
            del context[request]
        yield now


@st.composite
def instances(draw, *, pressure=True, known="exact", caps="exact", least_budget=8):
    """Random small instances; under pressure the KV cache hardly holds the longest request."""
    n = draw(st.integers(1, 9))
    lengths = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=n, max_size=n))
    gaps = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2.5, 9, 30]), min_size=n, max_size=n))
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    longest = max(-(-(p + o) // block_tokens) for p, o in lengths)
    spare = draw(st.sampled_from([0, 1, 2, 5, 20])) if pressure else 1000
    return toy(
        lengths,
        arrivals=np.cumsum(gaps).tolist(),
        caps=[o for _, o in lengths] if caps == "exact" else None,
        known=known,
        kv_blocks=longest + spare,
        block_tokens=block_tokens,
        max_num_batched_tokens=draw(st.sampled_from([b for b in (8, 32, 512) if b >= least_budget])),
        max_num_seqs=draw(st.integers(1, 8)),
    )


def same_schedule(a, b):
    """Whether two schedules finish every request at the same moments, to the last bit."""
    return np.array_equal(a.finish_s, b.finish_s) and np.array_equal(a.first_token_s, b.first_token_s)

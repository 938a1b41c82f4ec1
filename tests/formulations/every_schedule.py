"""Searches all schedules that the simulator can be made to execute; for instances of two or three short requests.

Shares nothing with the models: states are explored in order of time, with the engine's own exact step times.
"""

from __future__ import annotations

import heapq
from itertools import count, product

from optimizer.capacity.step_time import StepClock
from optimizer.problem.plan import PlanStep, StepsPlan
from optimizer.units import moment_ticks

OUT, PREFILLING, READY, DONE = range(4)


def best(instance, objective, *, preempt=True, hold=True):
    """Give the least value, in ticks (a sum, but for the makespan), and a plan that reaches it."""
    requests, engine = instance.requests, instance.engine
    prompts, outputs = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
    weights = [1] * len(prompts)
    if objective == "weighted-latency" and requests.weight is not None:
        weights = [int(w) for w in requests.weight]
    arrival = [moment_ticks(t) for t in requests.arrival_s.tolist()]
    clock = StepClock(engine.step_time)
    n = len(prompts)

    def milestone(before, after):
        if objective == "ttft":
            return before[2] == 0 and after[2] > 0
        return before[0] != DONE and after[0] == DONE

    def over(state):
        return all(s[0] == DONE for s in state) if objective != "ttft" else all(s[2] for s in state)

    def moves(i, state):
        """(chunk, decodes, thrown out, state after, holds)."""
        phase, context, generated = state
        target = prompts[i] + generated

        def chunks(done, out):
            for tokens in range(1, min(target - done, engine.max_num_batched_tokens) + 1):
                if done + tokens < target:
                    yield tokens, False, out, (PREFILLING, done + tokens, generated), done + tokens
                else:
                    end = DONE if generated + 1 == outputs[i] else READY
                    yield tokens, False, out, (end, target, generated + 1), target

        if phase in (OUT, DONE):
            yield 0, False, False, state, 0
        if phase == OUT:
            yield from chunks(0, False)
        if phase == PREFILLING:
            yield 0, False, False, state, context
            yield from chunks(context, False)
        if phase == READY:
            if hold:
                yield 0, False, False, state, context
            end = DONE if generated + 1 == outputs[i] else READY
            yield 0, True, False, (end, context + 1, generated + 1), context + 1
        if preempt and phase in (PREFILLING, READY):
            yield 0, False, True, (OUT, 0, generated), 0
            yield from chunks(0, True)

    def blocks(context):
        return -(-context // engine.block_tokens)

    ticket = count()
    first = ((OUT, 0, 0),) * n
    queue = [(0, 0, next(ticket), first, None)]
    seen: dict[tuple, list[int]] = {}
    answer = None
    while queue:
        now, cost, _, state, trail = heapq.heappop(queue)
        if answer is not None and (now if objective == "makespan" else cost) >= answer[0]:
            continue
        costs = seen.setdefault(state, [])
        if any(c <= cost for c in costs):  # reached before, no later and no dearer
            continue
        costs.append(cost)
        if over(state):
            answer = (now if objective == "makespan" else cost, trail)
            continue
        for step in product(*(list(moves(i, state[i])) for i in range(n))):
            tokens = sum(move[0] + move[1] for move in step)
            if not tokens or tokens > engine.max_num_batched_tokens:
                continue
            if sum(blocks(move[4]) for move in step) > engine.kv_blocks:
                continue
            if sum(move[4] > 0 for move in step) > engine.max_num_seqs:
                continue
            start = max([now, *(arrival[i] for i in range(n) if step[i][0])])
            filling = [(m[0], m[4]) for m in step if m[0]]
            end = start + clock.step(
                sum(c for c, _ in filling),
                sum(c * (after - c) + c * (c + 1) // 2 for c, after in filling),
                len(filling),
                sum(after for _, after in filling),
                sum(m[1] for m in step),
                sum(m[4] for m in step if m[1]),
            )
            after = tuple(move[3] for move in step)
            more = sum(weights[i] * (end - arrival[i]) for i in range(n) if milestone(state[i], after[i]))
            heapq.heappush(queue, (end, cost + more, next(ticket), after, (trail, step)))
    assert answer is not None
    return answer[0], _plan(answer[1])


def _plan(trail):
    steps = []
    while trail is not None:
        trail, step = trail
        steps.append(
            PlanStep(
                prefill=tuple((i, m[0]) for i, m in enumerate(step) if m[0]),
                decode=tuple(i for i, m in enumerate(step) if m[1]),
                preempt=tuple(i for i, m in enumerate(step) if m[2]),
            )
        )
    return StepsPlan(steps=tuple(reversed(steps)))

"""`chunks`: chunk sizes of prompts under a limit on the time of a step (mathematics: models/formulations/chunks.md).

Requests that decode get a token a step; a time between tokens (TBT) above the limit is not allowed. Prompts are
computed one after another, in chunks that ride on these steps; a step may hold the end of one prompt and the beginning
of the next. A prompt's request decodes from the step after its last chunk on. Nobody ends meanwhile: the worst case.

Sets        d in D positions: tokens computed of all prompts, laid end to end (multiples of a granule, ends of prompts)
State       (d, X): position, and tokens of context of all requests that decode
Step        from d to d' > d: takes tau(d, d', X), the engine's step time; X grows by one token per request that decodes
            and by each prompt that ends
Cost        q(d) tau, where q(d) = 1 for the time of all prefill, and the number of unfinished prompts for the sum of TTFTs
Allowed     tau <= TBT limit, chunk and decodes within the token budget

Solved by labels: cost and X of a way to d, and only those that no other one beats in both (tau never falls in X). A label
is dropped where its cost and the least cost from d on, at the least X that d can have, exceed the known best.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from optimizer.errors import InputError
from optimizer.formulations.chunk_steps import ChunkObjective, ChunkPlan, Label, Road, Work
from optimizer.problem.engine import Engine
from optimizer.solvers.result import Solved, Status
from optimizer.units import seconds, ticks


def solve(
    engine: Engine,
    prompts: Sequence[int],
    *,
    tbt_s: float,
    decoding: Sequence[int] = (),
    cached: Sequence[int] | None = None,
    objective: ChunkObjective = "prefill-time",
    granule: int = 16,
    time_limit_s: float | None = None,
) -> Solved[ChunkPlan]:
    """Choose the chunks.

    Parameters
    ----------
    engine
        Its step-time model, token budget and seats.
    prompts
        Tokens of each, in the order in which they are computed (shortest first is best for `ttft`).
    tbt_s
        Longest allowed step, in seconds.
    decoding
        Tokens in the KV cache of each request that decodes.
    cached
        Of each prompt, tokens that are there already; by default none.
    objective
        `prefill-time`: the end of the last prompt. `ttft`: the sum of the times to the first token.
    granule
        Chunks are multiples of it, but for a prompt's last.
    time_limit_s
        Then the largest chunks that are allowed are the answer, with the bound so far.

    Returns
    -------
    Solved
        Value and bound in seconds. Where nothing is allowed, `infeasible` and the reason.

    Raises
    ------
    InputError
        On a number out of range.

    Examples
    --------
    A step reads the weights in 10 ms, and computes a prompt token in 0.1 ms.

    >>> from optimizer.problem import StepTime
    >>> engine = Engine(name="toy", kv_blocks=9, step_time=StepTime.affine(base_s=0.01, per_prefill_token_s=1e-4))
    >>> done = solve(engine, [100], tbt_s=0.014, granule=10)
    >>> done.status.value, done.value, [n for ((_, n),) in done.solution.steps]
    ('optimal', 0.04, [40, 40, 20])
    """
    began = time.perf_counter()
    road = Road(engine, prompts, decoding, cached or [0] * len(prompts), granule, objective)
    search = _Search(road, ticks(tbt_s), None if time_limit_s is None else began + time_limit_s)

    def answer(
        status: Status, value: int | None, bound: int | None, end: Label | None, message: str
    ) -> Solved[ChunkPlan]:
        return Solved(
            status,
            None if value is None else seconds(value),
            None if bound is None else seconds(bound),
            None if end is None else road.plan(end),
            time.perf_counter() - began,
            "time" if status in (Status.FEASIBLE, Status.UNKNOWN) else "proof",
            "labels",
            None,
            message,
        )

    if not tbt_s > 0:
        raise InputError(f"tbt_s is {tbt_s}; expected seconds > 0")
    if reason := search.obstacle():
        return answer(Status.INFEASIBLE, None, None, None, reason)
    known = search.largest()
    if not search.finish(known):
        if known is None:
            return answer(Status.UNKNOWN, None, search.rest[0], None, "the time limit came first")
        return answer(
            Status.FEASIBLE, known.cost, search.rest[0], known, "largest chunks; the time limit came first"
        )
    best = search.best
    assert best is not None  # the way of least context is allowed, or there had been an obstacle
    return answer(Status.OPTIMAL, best.cost, best.cost, best, "")


class _Search:
    """Labels from place to place."""

    def __init__(self, road: Road, limit: int, deadline: float | None) -> None:
        self._road, self._limit, self._deadline = road, limit, deadline
        self._end = len(road.places) - 1
        self._ways: list[list[tuple[int, Work]]] = [
            [(b, road.work(a, b)) for b in self._within_budget(a)] for a in range(self._end)
        ]
        self._least_context: list[int | None] = [None] * (self._end + 1)
        self._least_context[0] = sum(road.decoding)
        for a in range(self._end):
            context = self._least_context[a]
            for b, _, after in self._steps(a, context) if context is not None else ():
                known = self._least_context[b]
                self._least_context[b] = after if known is None else min(known, after)
        self.best: Label | None = None
        self.rest = self._costs_to_go()

    def _within_budget(self, a: int) -> range:
        room = self._road.budget - self._road.running(a)
        last = a
        while last < self._end and self._road.total[last + 1] - self._road.total[a] <= room:
            last += 1
        return range(a + 1, last + 1)

    def _steps(self, a: int, context: int) -> list[tuple[int, int, int]]:
        """Allowed steps: (where to, ticks, context after)."""
        road, found = self._road, []
        for b, work in self._ways[a]:
            taken = road.time(work, a, context)
            if taken <= self._limit:
                found.append((b, taken, road.context_after(a, b, context)))
        return found

    def _costs_to_go(self) -> dict[int, int]:
        """From each place that can be reached and left, a lower bound on the cost to the end."""
        rest = {self._end: 0}
        for a in range(self._end - 1, -1, -1):
            context = self._least_context[a]
            if context is None:
                continue
            costs = [
                self._road.weight[a] * taken + rest[b] for b, taken, _ in self._steps(a, context) if b in rest
            ]
            if costs:
                rest[a] = min(costs)
        return rest

    def obstacle(self) -> str:
        """Say why no way leads to the end, or nothing if one may."""
        return "" if 0 in self.rest else self.blocked()

    def blocked(self) -> str:
        """Say what stops the way that gets farthest."""
        road = self._road
        place = max(
            p for p, context in enumerate(self._least_context) if context is not None and p < self._end
        )
        context = self._least_context[place]
        assert context is not None
        prompt, done = road.places[place + 1]
        decodes = road.running(place)
        limit = f"the TBT limit is {seconds(self._limit):.6g} s"
        if not self._ways[place]:
            return (
                f"{decodes} requests decode and the token budget is {road.budget}: no chunk fits; "
                "give more max_num_batched_tokens, or a smaller granule"
            )
        if decodes:
            alone = road.clock.step(decode_seqs=decodes, decode_context=context + decodes)
            if alone > self._limit:
                return (
                    f"{decodes} requests that decode take {seconds(alone):.6g} s a step without any prompt, and {limit}; "
                    "let fewer run, or raise the limit"
                )
        fastest = min(road.time(work, place, context) for _, work in self._ways[place])
        return (
            f"a step with a chunk of prompt {prompt} up to token {done} beside {decodes} requests that decode takes "
            f"{seconds(fastest):.6g} s, and {limit}; raise the limit, take a smaller granule, or let fewer run"
        )

    def largest(self) -> Label | None:
        """Take the largest allowed chunk in each step; None where that leads nowhere."""
        label = self._first()
        while label.place < self._end:
            steps = self._steps(label.place, label.context)
            if not steps:
                return None
            label = self._next(label, *steps[-1])
        return label

    def finish(self, known: Label | None) -> bool:
        """Find the best label at the end; False where the time is over first."""
        self.best = known
        labels: dict[int, list[Label]] = {0: [self._first()]}
        for place in range(self._end):
            for label in _undominated(labels.pop(place, [])):
                if self._deadline is not None and time.perf_counter() > self._deadline:
                    return False
                for step in self._steps(label.place, label.context):
                    reached = self._next(label, *step)
                    if reached.place not in self.rest:
                        continue
                    if self.best is not None and reached.cost + self.rest[reached.place] >= self.best.cost:
                        continue
                    if reached.place == self._end:
                        self.best = reached
                    else:
                        labels.setdefault(reached.place, []).append(reached)
        return True

    def _first(self) -> Label:
        return Label(0, sum(self._road.decoding), None, 0)

    def _next(self, label: Label, place: int, taken: int, context: int) -> Label:
        return Label(label.cost + self._road.weight[label.place] * taken, context, label, place)


def _undominated(labels: list[Label]) -> list[Label]:
    kept: list[Label] = []
    for label in sorted(labels, key=lambda one: (one.cost, one.context)):
        if not kept or label.context < kept[-1].context:
            kept.append(label)
    return kept

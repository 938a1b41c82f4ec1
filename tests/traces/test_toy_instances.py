"""The toys have the optima that their README argues for, found here by other means than the solver's."""

from __future__ import annotations

from functools import cache
from itertools import permutations, product

import pytest

from optimizer.bounds.lines import find_lines
from optimizer.certificates import verify, work_certificate
from optimizer.policies.plan import PlanPolicy
from optimizer.problem import Instance
from optimizer.problem.plan import OrderPlan, Plan, PlanStep, StepsPlan
from optimizer.problem.ramps import Ramps, equal_round_s
from optimizer.simulator import Simulation, simulate
from optimizer.traces import instance

# ---- prefill-levels: the worked example of arXiv 2502.15763's setting

LEVELS = instance("toy/prefill-levels")
PROMPT = (60, 50, 40, 60, 30, 20)
ROUNDS = (3, 9, 4, 8, 2, 6)
CLIENTS = 2


def stage_s(tokens: int) -> int:
    """Give the time of a prefill stage."""
    return 2 if tokens <= 64 else 3 if tokens <= 128 else 5


def waiting_for_company(order: list[int], patience: float) -> StepsPlan:
    """Apply the rule: prefill now if stalling those who decode costs less than the idle clients' rounds.

    `patience`: lambda, by which the idle clients' rounds are weighted; infinite: never wait.
    """
    waiting, left, steps = list(order), {}, []
    while waiting or left:
        enter = waiting[: CLIENTS - len(left)]
        cost = stage_s(sum(PROMPT[i] for i in enter))
        if enter and (not left or len(left) * cost <= patience * len(enter) * min(left.values())):
            steps.append(PlanStep(prefill=tuple((i, PROMPT[i]) for i in enter)))
            waiting = waiting[len(enter) :]
            left |= {i: ROUNDS[i] for i in enter}
        else:
            steps.append(PlanStep(decode=tuple(left)))
            left = {i: rounds - 1 for i, rounds in left.items() if rounds > 1}
    return StepsPlan(steps=tuple(steps))


def occupancy(ran: Simulation) -> float:
    """Give the share of client time spent on own prompts and decodes."""
    steps = list(ran.schedule.iterate())
    ends = [*(step.start_s for step in steps[1:]), ran.metrics.makespan_s]
    busy = sum(
        (len(step.prefill) + len(step.decode)) * (end - step.start_s)
        for step, end in zip(steps, ends, strict=True)
    )
    return busy / (CLIENTS * ran.metrics.makespan_s)


def test_the_engine_has_the_examples_levels() -> None:
    assert LEVELS.requests.prompt_tokens.tolist() == list(PROMPT)
    assert (LEVELS.requests.output_tokens - 1).tolist() == list(ROUNDS)
    assert LEVELS.engine.max_num_seqs == CLIENTS


def test_first_come_first_served_takes_28() -> None:
    ran = simulate(LEVELS, "vllm-v0")
    assert ran.metrics.makespan_s == pytest.approx(28)
    assert occupancy(ran) == pytest.approx(46 / 56)


FCFS, LPT = [0, 1, 2, 3, 4, 5], [1, 3, 5, 2, 0, 4]


@pytest.mark.parametrize(
    ("order", "patience", "makespan", "share"),
    [
        (FCFS, float("inf"), 28, 46 / 56),
        (LPT, float("inf"), 27, 46 / 54),
        (FCFS, 0.5, 27, None),
        (LPT, 0.5, 26, 48 / 52),
    ],
)
def test_the_rules_give_the_examples_numbers(
    order: list[int], patience: float, makespan: int, share: float | None
) -> None:
    ran = simulate(LEVELS, PlanPolicy(waiting_for_company(order, patience)))
    assert ran.metrics.makespan_s == pytest.approx(makespan)
    if share is not None:
        assert occupancy(ran) == pytest.approx(share)


def test_a_plan_in_order_form_reaches_26() -> None:
    plan = OrderPlan(order=tuple(LPT), mixing="exclusive", prefill_batch=60)
    assert simulate(LEVELS, PlanPolicy(plan)).metrics.makespan_s == pytest.approx(26)


Seats = tuple[tuple[int, int], ...]
"""Prompt tokens and decode rounds left, of the requests that have a client."""


@cache
def least_s(waiting: Seats, seats: Seats) -> int:
    """Give the least time to finish all, over every admission, every split of prompts, every moment.

    Steps that decode decode all who can; mixed steps are a prefill and a decode, one after the other. A prefill step that
    does not finish all prompts is at the first level (two prompts are within the second) and fills it.
    """
    if not waiting and not seats:
        return 0
    found = []
    if len(seats) < CLIENTS:
        for k in range(len(waiting)):
            found.append(least_s(waiting[:k] + waiting[k + 1 :], tuple(sorted((*seats, waiting[k])))))
    ready, begun = [s for s in seats if not s[0]], [s for s in seats if s[0]]
    if ready:
        after = [(0, rounds - 1) for _, rounds in ready if rounds > 1]
        found.append(1 + least_s(waiting, tuple(sorted(after + begun))))
    if begun:
        tokens = sum(prompt for prompt, _ in begun)
        whole = [(0, rounds) for _, rounds in begun]
        found.append(stage_s(tokens) + least_s(waiting, tuple(sorted(ready + whole))))
        if tokens > 64:
            (a, x), (b, y) = begun
            for part in range(max(0, 64 - b), min(a, 64) + 1):
                rest = [(a - part, x), (b - (64 - part), y)]
                found.append(2 + least_s(waiting, tuple(sorted(rest))))
    return min(found)


def test_no_schedule_takes_less_than_26() -> None:
    assert least_s(tuple(sorted(zip(PROMPT, ROUNDS, strict=True))), ()) == 26


def test_the_work_certificate_is_at_least_the_examples_bound() -> None:
    proved = verify(work_certificate(LEVELS, "makespan", find_lines(LEVELS, "makespan")), LEVELS)
    assert 16 + 5 * 260 / 256 <= proved.bound <= 26


# ---- the others


def value(one: Instance, chosen: str | Plan) -> float:
    """Execute and measure."""
    ran = simulate(one, chosen if isinstance(chosen, str) else PlanPolicy(chosen))
    return ran.metrics.makespan_s if one.objective == "makespan" else float(ran.metrics.e2e_s.mean())


def test_packing_longest_first_11_optimum_9() -> None:
    one = instance("toy/packing")
    work = one.requests.output_tokens.tolist()
    assert value(one, "vllm-v0") == pytest.approx(12)
    assert value(one, "lpt") == pytest.approx(11)
    assert value(one, OrderPlan(order=(0, 1, 4, 5, 2, 3, 6))) == pytest.approx(9)
    loads = [[0, 0, 0] for _ in range(3 ** len(work))]
    for load, seats in zip(loads, product(range(3), repeat=len(work)), strict=True):
        for seat, rounds in zip(seats, work, strict=True):
            load[seat] += rounds
    assert min(map(max, loads)) == 9


def test_two_ramps_may_start_two_rounds_apart() -> None:
    one = instance("toy/two-ramps")
    assert equal_round_s(one) == 1.0
    ramps = Ramps.from_instance(one)
    feasible = [starts for starts in product(range(9), repeat=2) if ramps.feasible(starts)]
    best = min(feasible, key=ramps.total_completion)
    assert ramps.total_completion(best) / 2 == 5
    assert value(one, OrderPlan.of_starts(best)) == pytest.approx(5)
    assert (0, 1) not in feasible


def test_chunks_ride_free() -> None:
    one = instance("toy/free-chunks")
    assert value(one, "vllm-v1") == pytest.approx(20.1)
    assert value(one, OrderPlan(prefill_tokens=10)) == pytest.approx(11)
    # One request decodes in ten of its eleven steps, each of which takes a second at least.
    assert int(one.requests.output_tokens.max()) * 1.0 == 11


def test_the_long_one_gives_way() -> None:
    one = instance("toy/give-way")
    assert value(one, "vllm-v1") == pytest.approx(8.5)
    assert value(one, "srpt") == pytest.approx(6)
    decoding = [PlanStep(decode=(0,))]
    plan = StepsPlan(
        steps=(
            PlanStep(prefill=((0, 1),)),
            *(decoding * 3),
            PlanStep(prefill=((1, 1),), preempt=(0,)),
            PlanStep(prefill=((0, 5),)),
            *(decoding * 5),
        )
    )
    assert value(one, plan) == pytest.approx(6)


def test_without_giving_way_eight_is_the_best() -> None:
    one = instance("toy/give-way")
    arrival, rounds = one.requests.arrival_s.tolist(), one.requests.output_tokens.tolist()

    def total(order: tuple[int, ...], idle: int) -> float:
        end, latencies = float(idle), 0.0
        for i in order:
            end = max(end, arrival[i]) + rounds[i]
            latencies += end - arrival[i]
        return latencies / 2

    assert min(total(order, idle) for order in permutations((0, 1)) for idle in range(6)) == 8

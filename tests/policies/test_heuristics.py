"""The heuristics of the theory: their orders, their promise not to preempt, MC-SF against a plain program."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.check import check
from optimizer.policies.heuristics import BatchQueue
from optimizer.simulator import simulate
from tests.policies.toy import first_service, instances, replay, run, steps_of, toy

FOUR = [(1, 5), (1, 3), (50, 2), (1, 4)]
LOOKING_AHEAD = ["mc-sf", "svf", "sorted-f"]


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("fcfs", [0, 1, 2, 3]),
        ("sjf", [2, 1, 3, 0]),
        ("srpt", [2, 1, 3, 0]),
        ("mc-sf", [2, 1, 3, 0]),
        ("lpt", [0, 3, 1, 2]),
        ("svf", [1, 3, 0, 2]),  # volumes 20, 9, 103, 14
        ("sorted-f", [1, 3, 0, 2]),  # the long prompt fits into no batch with the others
        ("edf", [3, 1, 2, 0]),
    ],
)
def test_order_on_one_seat(policy, order):
    """With one seat and 55 blocks the order of first service is the order of the heuristic."""
    simulation = run(FOUR, policy, deadlines=[90, 30, 70, 10], kv_blocks=55, max_num_seqs=1)
    assert first_service(simulation) == order


def test_edf_without_deadlines_goes_by_arrival_and_expected_length():
    """The deadline that stands in grows with arrival and length, so equal arrivals go shortest first."""
    assert first_service(run(FOUR, "edf", max_num_seqs=1)) == [2, 1, 3, 0]
    late = run([(1, 500), (1, 3), (1, 2)], "edf", arrivals=[0, 0.5, 0.9], max_num_seqs=1)
    assert first_service(late) == [0, 1, 2]


def test_edf_mixes_given_and_derived_deadlines():
    """A request without a deadline of its own stands among the others by its derived one."""
    simulation = run([(1, 9), (1, 3), (1, 9)], "edf", deadlines=[1000.0, None, 0.1], max_num_seqs=1)
    assert first_service(simulation) == [2, 1, 0]


def test_head_of_line_blocking_and_its_cure():
    """One output of 2000 before ten of 20 on one seat: mean completion 2100 s first come, 300 s shortest first."""
    lengths = [(1, 2000)] + [(1, 20)] * 10
    fcfs = run(lengths, "fcfs", max_num_seqs=1).schedule.finish_s
    srpt = run(lengths, "srpt", max_num_seqs=1).schedule.finish_s
    assert fcfs.mean() == 2100
    assert srpt.mean() == pytest.approx((10 * 110 + 2200) / 11)


def test_longest_first_packs_the_makespan():
    """Jobs 5, 5, 4, 4, 3, 3, 3 on three seats: longest first ends at 11 (the optimum is 9)."""
    outputs = [3, 4, 5, 3, 4, 5, 3]
    assert run([(1, o) for o in outputs], "lpt", max_num_seqs=3).metrics.makespan_s == 11


def test_srpt_takes_the_seat_of_a_long_one_that_runs():
    """Ten short ones that come a second later throw the long one out; its prompt and token are computed again."""
    arrivals = [0.0] + [1.0] * 10
    simulation = run([(1, 2000)] + [(1, 20)] * 10, "srpt", arrivals=arrivals, max_num_seqs=1)
    assert [step.preempted for step in steps_of(simulation) if step.preempted] == [(0,)]
    assert simulation.schedule.finish_s[1:].tolist() == [21 + 20 * i for i in range(10)]
    assert simulation.schedule.finish_s[0] == 2200
    assert [n for step in steps_of(simulation) for r, n in step.prefill if r == 0] == [1, 2]


def test_srpt_leaves_the_running_alone_where_there_is_room():
    """With a free seat and blocks the short one joins, and nobody is thrown out."""
    simulation = run([(1, 2000), (1, 20)], "srpt", arrivals=[0, 1], max_num_seqs=2)
    assert not simulation.metrics.preemptions.any()
    assert simulation.schedule.finish_s.tolist() == [2000, 21]


@pytest.mark.parametrize("policy", LOOKING_AHEAD)
@settings(max_examples=150, deadline=None)
@given(instance=instances())
def test_with_exact_lengths_looking_ahead_never_preempts(policy, instance):
    """Whoever is admitted under the future peak of KV runs to the end, also where blocks are scarce."""
    simulation = simulate(instance, policy)
    assert not simulation.metrics.preemptions.any()
    for moment in replay(simulation):
        assert set(moment.step.decode) == moment.can_decode


@pytest.mark.parametrize("policy", ["sjf", "lpt", "srpt", "edf", "mc-sf", "svf", "sorted-f"])
@settings(max_examples=60, deadline=None)
@given(instance=instances(known="noise:0.8", caps=None))
def test_wrong_guesses_and_split_prompts_still_end(policy, instance):
    """With lengths guessed wrong and prompts in pieces everybody is served, within the memory there is."""
    simulation = simulate(instance, policy)
    engine = instance.engine
    for moment in replay(simulation):
        assert set(moment.step.decode) == moment.can_decode
        if policy != "srpt":  # there a request that made room may find that enough is left for it too
            assert {r for r, _ in moment.step.prefill}.isdisjoint(moment.step.preempted)
        assert sum(-(-c // engine.block_tokens) for c in moment.context.values()) <= engine.kv_blocks
    assert check(simulation.schedule, instance)


def naive_mc_sf(lengths, arrivals, memory):
    """arXiv 2502.07115, round by round; a request started at round k holds s + j - 1 tokens at round k + j.

    That is the paper's s + j with prompts of one token more: the last token is never stored.
    """
    waiting, running, finish = set(range(len(lengths))), {}, {}
    now = 0
    while waiting or running:
        for i in [i for i, start in running.items() if start + lengths[i][1] == now]:
            finish[i] = now
            del running[i]
        for i in sorted((i for i in waiting if arrivals[i] <= now), key=lambda i: (lengths[i][1], i)):
            chosen = running | {i: now}
            ends = [start + lengths[j][1] for j, start in chosen.items()]
            held = [
                sum(
                    lengths[j][0] + end - start - 1
                    for j, start in chosen.items()
                    if end <= start + lengths[j][1]
                )
                for end in ends
            ]
            if max(held) > memory:
                break
            running = chosen
            waiting.discard(i)
        now += 1
    return [finish[i] for i in range(len(lengths))]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mc_sf_equals_a_plain_program_of_the_paper(data):
    """Rounds of one second, blocks of one token, prompts of a step: the same completion times, to the round.

    The first token comes with the prompt, so a request is done in as many steps as it has output tokens, as
    in the paper.
    """
    memory = data.draw(st.integers(12, 50))
    n = data.draw(st.integers(1, 12))
    lengths = []
    for _ in range(n):
        prompt = data.draw(st.integers(1, 6))
        lengths.append((prompt, data.draw(st.integers(1, memory - prompt))))
    gaps = data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 3, 10]), min_size=n, max_size=n))
    arrivals = np.cumsum(gaps).tolist() if data.draw(st.booleans()) else [0] * n
    simulation = simulate(toy(lengths, arrivals=arrivals, kv_blocks=memory), "mc-sf")
    assert simulation.schedule.finish_s.tolist() == naive_mc_sf(lengths, arrivals, memory)


def test_mc_sf_stops_at_the_first_misfit():
    """The second would make 53 of 49 tokens at 10 s, so it starts 4 s later; the third would fit and waits."""
    simulation = run([(10, 10), (25, 12), (1, 13)], "mc-sf", kv_blocks=49)
    starts = {r: step.start_s for step in steps_of(simulation) for r, _ in step.prefill}
    assert (starts[0], starts[1]) == (0, 4)
    assert starts[2] > 4
    assert first_service(run([(10, 10), (1, 13)], "mc-sf", kv_blocks=49)) == [0, 1]
    assert len(steps_of(run([(10, 10), (1, 13)], "mc-sf", kv_blocks=49))[0].prefill) == 2


class Lengths:
    """What the queue of batches asks of the engine; counts how often a length is asked for."""

    block_tokens = 1

    def __init__(self, lengths, blocks):
        self.prompt_tokens = [prompt for prompt, _ in lengths]
        self.outputs = [output for _, output in lengths]
        self.blocks = blocks
        self.asked = 0

    def length_guess(self, request):
        self.asked += 1
        return self.outputs[request]


def plain_batch(lengths, blocks, waiting):
    """The best prefix of three orders, each sorted anew."""
    size = [prompt + output for prompt, output in lengths]
    volume = [(prompt + s) * output for (prompt, output), s in zip(lengths, size, strict=True)]
    best, least = [], float("inf")
    for measure in ([output for _, output in lengths], size, volume):
        order = sorted(waiting, key=lambda r: (measure[r], r))
        for count in range(1, len(order) + 1):
            prefix = order[:count]
            if count > 1 and sum(size[r] for r in prefix) > blocks:
                break
            value = sum(lengths[r][1] for r in prefix) / count**2
            if value < least:
                best, least = prefix, value
    return sorted(best, key=lambda r: (lengths[r][1], r))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([1, 1, 2, 5, 20, 60])), min_size=1, max_size=25),
    st.integers(1, 300),
    st.lists(st.sampled_from(["arrival", "return", "pop", "pop"]), max_size=60),
)
def test_the_batches_are_those_of_a_plain_search(lengths, blocks, moves):
    """Whoever comes, and whoever comes back while its batch is still being served."""
    queue = BatchQueue(Lengths(lengths, blocks))
    coming, rest, batch, gone = list(range(len(lengths))), set(), [], []
    for move in [*moves, *["arrival"] * len(lengths), *["pop"] * 2 * len(lengths)]:
        if move == "arrival" and coming:
            rest.add(coming[0])
            queue.push(coming.pop(0))
        elif move == "return" and gone:
            rest.add(gone[0])
            queue.push_back(gone.pop(0))
        elif move == "pop" and (batch or rest):
            if not batch:
                batch = plain_batch(lengths, blocks, rest)
                rest -= set(batch)
            assert queue.head() == batch[0]
            assert queue.pop() == batch[0]
            gone.append(batch.pop(0))
        assert len(queue) == len(batch) + len(rest)
        assert list(queue) == [*batch, *sorted(rest)]
    assert not queue


def test_a_batch_is_found_without_going_through_all_who_wait():
    """The work grows with the requests, not with their square: most wait far behind those that fit."""

    def asked(n):
        state = Lengths([(1 + r * 7919 % 50, 1 + r * 104729 % 97) for r in range(n)], blocks=200)
        queue = BatchQueue(state)
        for request in range(n):
            queue.push(request)
        while queue:
            queue.pop()
        return state.asked

    assert asked(4000) < 2.5 * asked(2000)

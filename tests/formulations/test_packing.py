from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.formulations.packing import Packing, build_cp, build_milp
from optimizer.problem import Engine, Instance, Requests, StepTime
from optimizer.solvers import cpsat, milp
from optimizer.solvers.result import Status


def by_milp(packing, known=None, **options):
    model = build_milp(packing, known)
    return milp.run(model.problem, model.read, time_limit_s=60, **options)


def by_cp(packing, known=None):
    model = build_cp(packing, known)
    return cpsat.run(model.model, model.read, time_limit_s=60)


def by_hand(packing):
    """The least makespan of all assignments."""
    best = sum(packing.loads)
    for clients in product(range(packing.clients), repeat=len(packing.loads)):
        load = [0] * packing.clients
        for own, j in zip(packing.loads, clients, strict=True):
            load[j] += own
        best = min(best, max(load))
    return best


def test_longest_first_gives_11_where_9_is_possible():
    toy = Packing((5, 5, 4, 4, 3, 3, 3), clients=3)
    assert toy.makespan(toy.longest_first()) == 11
    assert toy.bound == 9
    for done in (by_milp(toy), by_cp(toy), by_milp(toy, engine="cbc")):
        assert (done.status, done.value, done.bound) == (Status.OPTIMAL, 9, 9)
        assert toy.makespan(done.solution) == 9
        assert sorted(i for rows in done.solution for i in rows) == list(range(7))


packings = st.builds(
    Packing, st.lists(st.integers(1, 12), min_size=1, max_size=7).map(tuple), st.integers(1, 3)
)


@settings(max_examples=25, deadline=None)
@given(packings)
def test_milp_cp_and_brute_force_agree(packing):
    best = by_hand(packing)
    for done in (by_milp(packing), by_cp(packing)):
        assert (done.status, done.value) == (Status.OPTIMAL, best)
        assert packing.makespan(done.solution) == best
        assert sorted(i for rows in done.solution for i in rows) == list(range(len(packing.loads)))


@given(packings)
def test_bound_and_longest_first_enclose_the_optimum(packing):
    best, longest_first = by_hand(packing), packing.makespan(packing.longest_first())
    assert packing.bound <= best <= longest_first
    assert longest_first <= best * (Fraction(4, 3) - Fraction(1, 3 * packing.clients))  # Graham 1969


@settings(max_examples=10, deadline=None)
@given(packings, st.randoms(use_true_random=False))
def test_any_start_leads_to_the_same_optimum(packing, rng):
    rows = [[] for _ in range(packing.clients)]
    for i in range(len(packing.loads)):
        rng.choice(rows).append(i)
    known = tuple(map(tuple, rows))
    assert by_milp(packing, known).value == by_cp(packing, known).value == by_hand(packing)


def test_loads_of_an_engine_are_prefill_and_rounds():
    instance = Instance(
        "toy",
        Requests.from_columns({"prompt_tokens": [100, 50], "output_tokens": [10, 20]}),
        Engine(
            name="toy",
            kv_blocks=99,
            step_time=StepTime.affine(base_s=0.01, per_prefill_token_s=1e-4, per_decode_seq_s=1e-3),
        ),
    )
    packing = Packing.from_instance(instance, unit_s=1e-3)
    assert (packing.loads, packing.clients) == ((20 + 10 * 12, 15 + 20 * 12), 2)
    assert Packing.from_instance(instance, clients=1, unit_s=1e-3).loads == (20 + 10 * 11, 15 + 20 * 11)


@pytest.mark.parametrize(
    ("loads", "clients", "why"),
    [((), 1, "no loads"), ((1,), 0, "clients is 0"), ((3, 0), 1, "load of request 1 is 0")],
)
def test_bad_input(loads, clients, why):
    with pytest.raises(InputError, match=why):
        Packing(loads, clients)

"""`packing`: requests to clients so that the last client ends early (mathematics: models/formulations/packing.md).

The offline stage of arXiv 2502.15763, "Minimizing Makespan Bin Packing": P || Cmax with the load of request i
p_i = Tpre_i + Td * O_i. Requests of equal load are one kind, so that the model has no names for what is the same.

Sets        v in V kinds, j in 1..J clients
Data        p_v load, m_v requests of the kind
Variables   x_vj whole >= 0, requests of kind v on client j;  C whole
Objective   min C
Constraints (1) sum_j x_vj = m_v                        every request has a client
            (2) sum_v p_v x_vj <= C                     no client ends after C
            (3) sum_v p_v x_vj >= sum_v p_v x_v,j+1     clients are alike: the first is the longest
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from optimizer.capacity.step_time import StepClock
from optimizer.errors import InputError
from optimizer.formulations.model import CpModel, MilpModel
from optimizer.problem.instance import Instance
from optimizer.solvers.cpsat import load_cp_model
from optimizer.solvers.milp import load_pulp
from optimizer.units import TICKS_PER_SECOND

Assignment = tuple[tuple[int, ...], ...]
"""By client, its requests (ascending rows); the longest client first."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Loads for clients.

    Attributes
    ----------
    loads
        By request, whole units of any kind, each at least 1.
    clients
        How many, at least 1.

    Raises
    ------
    InputError
        Without a request or a client, or with a load below 1.

    Examples
    --------
    >>> toy = Packing((5, 5, 4, 4, 3, 3, 3), clients=3)
    >>> toy.makespan(toy.longest_first()), toy.bound
    (11, 9)
    """

    loads: tuple[int, ...]
    clients: int

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise InputError(f"clients is {self.clients}; expected a whole number >= 1")
        if not self.loads:
            raise InputError("there are no loads; expected at least one")
        if min(self.loads) < 1:
            row = self.loads.index(min(self.loads))
            raise InputError(f"the load of request {row} is {self.loads[row]}; expected a whole number >= 1")

    @classmethod
    def from_instance(cls, instance: Instance, *, clients: int | None = None, unit_s: float = 1e-6) -> Self:
        """Read loads off an engine, in units of `unit_s`, rounded up.

        A load is the request's own prefill step and a round per output token; a round is a decode step of all
        clients at their mean context. Default: as many clients as seats, and no more than requests.
        """
        requests, engine = instance.requests, instance.engine
        n_clients = min(engine.max_num_seqs, len(requests)) if clients is None else clients
        clock = StepClock(engine.step_time)
        context = float((requests.prompt_tokens + requests.output_tokens / 2).mean())
        round_ticks = clock.step(decode_seqs=n_clients, decode_context=round(n_clients * context))
        unit = unit_s * TICKS_PER_SECOND
        loads = [
            clock.step(p, p * (p + 1) // 2, 1, p) + round_ticks * o
            for p, o in zip(requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), strict=True)
        ]
        return cls(tuple(max(1, int(-(-load // unit))) for load in loads), n_clients)

    @property
    def bound(self) -> int:
        """No makespan is below it: the mean, the longest, and two of the J + 1 longest on one client."""
        ordered = sorted(self.loads, reverse=True)
        pair = sum(ordered[self.clients - 1 : self.clients + 1]) if len(ordered) > self.clients else 0
        return max(-(-sum(ordered) // self.clients), ordered[0], pair)

    def makespan(self, assignment: Assignment) -> int:
        """Give the load of the longest client."""
        return max(sum(self.loads[i] for i in rows) for rows in assignment)

    def longest_first(self) -> Assignment:
        """Give each request, longest first, to the client that has least (LPT; Graham 1969: at most 4/3 - 1/(3J))."""
        rows: list[list[int]] = [[] for _ in range(self.clients)]
        load = [0] * self.clients
        for i in sorted(range(len(self.loads)), key=lambda i: (-self.loads[i], i)):
            least = load.index(min(load))
            rows[least].append(i)
            load[least] += self.loads[i]
        return self.ordered(rows)

    def ordered(self, rows: list[list[int]]) -> Assignment:
        """Put the longest client first."""
        return tuple(
            tuple(sorted(own)) for own in sorted(rows, key=lambda own: -sum(self.loads[i] for i in own))
        )


def build_milp(packing: Packing, known: Assignment | None = None) -> MilpModel[Assignment]:
    """Write the model for HiGHS.

    Parameters
    ----------
    packing
        Loads and clients.
    known
        An assignment to start from; by default longest first.

    Examples
    --------
    >>> from optimizer.solvers import milp
    >>> model = build_milp(Packing((5, 5, 4, 4, 3, 3, 3), clients=3))
    >>> milp.run(model.problem, model.read).value
    9.0
    """
    pulp = load_pulp()
    known = packing.longest_first() if known is None else packing.ordered([list(own) for own in known])
    kinds = _Kinds(packing)
    counts = kinds.count(known)
    problem = pulp.LpProblem("packing")
    end = problem.add_variable("C", packing.bound, packing.makespan(known), cat="Integer")
    end.setInitialValue(packing.makespan(known))
    x = [
        [problem.add_variable(f"x_{v}_{j}", 0, m, cat="Integer") for j in range(packing.clients)]
        for v, m in enumerate(kinds.requests)
    ]
    for row, given in zip(x, counts, strict=True):
        for variable, value in zip(row, given, strict=True):
            variable.setInitialValue(value)
    problem += 1 * end, "makespan"
    for v, m in enumerate(kinds.requests):
        problem += pulp.lpSum(x[v]) == m, f"every_request_{v}"
    load = [pulp.lpSum(p * x[v][j] for v, p in enumerate(kinds.load)) for j in range(packing.clients)]
    for j in range(packing.clients):
        problem += load[j] <= end, f"ends_by_C_{j}"
    for j in range(packing.clients - 1):
        problem += load[j] - load[j + 1] >= 0, f"longest_first_{j}"
    return MilpModel(problem, lambda value: kinds.read([[round(value(c)) for c in row] for row in x]))


def build_cp(packing: Packing, known: Assignment | None = None) -> CpModel[Assignment]:
    """Write the same model for CP-SAT; parameters as in `build_milp`.

    Examples
    --------
    >>> from optimizer.solvers import cpsat
    >>> model = build_cp(Packing((5, 5, 4, 4, 3, 3, 3), clients=3))
    >>> cpsat.run(model.model, model.read).value
    9.0
    """
    cp_model = load_cp_model()
    known = packing.longest_first() if known is None else packing.ordered([list(own) for own in known])
    kinds = _Kinds(packing)
    counts = kinds.count(known)
    model = cp_model.CpModel()
    model.name = "packing"
    end = model.new_int_var(packing.bound, packing.makespan(known), "C")
    model.add_hint(end, packing.makespan(known))
    x = [
        [model.new_int_var(0, m, f"x_{v}_{j}") for j in range(packing.clients)]
        for v, m in enumerate(kinds.requests)
    ]
    for row, given, m in zip(x, counts, kinds.requests, strict=True):
        model.add(cp_model.LinearExpr.sum(row) == m)
        for variable, value in zip(row, given, strict=True):
            model.add_hint(variable, value)
    load = [
        cp_model.LinearExpr.weighted_sum([row[j] for row in x], kinds.load) for j in range(packing.clients)
    ]
    for j in range(packing.clients):
        model.add(load[j] <= end)
    for j in range(packing.clients - 1):
        model.add(load[j] >= load[j + 1])
    model.minimize(end)
    return CpModel(model, lambda value: kinds.read([[value(c) for c in row] for row in x]))


class _Kinds:
    """Requests of equal load."""

    def __init__(self, packing: Packing) -> None:
        loads = np.asarray(packing.loads)
        found, self._kind = np.unique(loads, return_inverse=True)
        self._packing = packing
        self.load: list[int] = found.tolist()
        self._rows = [np.flatnonzero(self._kind == v).tolist() for v in range(len(found))]
        self.requests = [len(rows) for rows in self._rows]

    def count(self, assignment: Assignment) -> list[list[int]]:
        """By kind and client, how many."""
        return [[sum(self._kind[i] == v for i in own) for own in assignment] for v in range(len(self.load))]

    def read(self, counts: list[list[int]]) -> Assignment:
        """Give the requests of each kind to the clients that count them, in order."""
        rows: list[list[int]] = [[] for _ in range(self._packing.clients)]
        for own, row in zip(self._rows, counts, strict=True):
            left = iter(own)
            for j, many in enumerate(row):
                rows[j] += [next(left) for _ in range(many)]
        return self._packing.ordered(rows)

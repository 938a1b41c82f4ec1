"""`hybrid`: the whole problem of arXiv 2502.15763, bins of prefill and decode (mathematics: models/formulations/hybrid.md).

Reconstructed from the paper's summaries. Clients are alike, so they have no index: requests whose bins overlap number
at most J, and intervals of which at most J overlap can always be given to J clients.

Sets        i in I requests, k in 1..K bins, l in L prefill levels
Data        P_i prompt, O_i output, J clients, Td seconds of a round, N = max O_i; cap_l tokens and Tp_l seconds of a level
Variables   x_ik in {0,1} prefilled in bin k;  f_ik in {0,1} under way until bin k;  w_ik whole, tokens decoded in bin k;
            n_k whole, rounds of bin k;  y_kl in {0,1} level of bin k
            a_ik = sum_{k' <= k} x_ik' - sum_{k' < k} f_ik'  (an expression: under way in bin k)
Objective   min sum_k (sum_l Tp_l y_kl + Td n_k)
Constraints (1) sum_k x_ik = 1,  sum_k f_ik = 1,  a_ik - f_ik >= 0          each begins once and ends once, in this order
            (2) sum_l y_kl <= 1,  sum_i P_i x_ik <= sum_l cap_l y_kl        prompts fit into the level
            (3) sum_k w_ik = O_i,  w_ik <= n_k,  w_ik <= O_i a_ik           all tokens, one a round, while under way
            (4) w_ik >= n_k - N (1 - a_ik + f_ik)                           who is under way decodes in every round
            (5) sum_i a_ik <= J                                             a client each
            (6) sum_i w_ik <= J n_k,  n_k <= N sum_l y_kl,                  valid cuts: rounds need somebody prefilled,
                sum_l y_kl >= sum_l y_k+1,l                                 empty bins come last
            (7) for i < i' alike: sum_{k' <= k} x_ik' >= sum_{k' <= k} x_i'k'   equal requests begin in order
            (8) h_ik >= P_i a_ik + sum_{k' <= k} w_ik' - O_i (1 - a_ik),  h_ik >= 0,  sum_i h_ik <= M    KV, optional

Row (8) counts every request of a bin with what it holds at the end of its own part of the bin: never too little, and a
little too much where one ends early in a bin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimizer.formulations.model import MilpModel
from optimizer.formulations.stages import Bin, Stages
from optimizer.solvers.milp import load_pulp

if TYPE_CHECKING:
    from optimizer.solvers.milp import MilpValues

Bins = tuple[Bin, ...]


def build(stages: Stages, known: Bins | None = None) -> MilpModel[Bins]:
    """Write the model.

    Parameters
    ----------
    stages
        Requests, clients, levels.
    known
        A plan: the warm start, and what says how many bins can be of use; by default longest first.

    Returns
    -------
    MilpModel
        Its objective is the makespan in seconds.

    Raises
    ------
    InputError
        If `known` is no plan for these stages.

    Examples
    --------
    >>> from optimizer.solvers import milp
    >>> model = build(Stages((60, 50), (3, 9), clients=2, round_s=1.0, levels=((64, 2.0), (128, 3.0))))
    >>> milp.run(model.problem, model.read).value
    12.0
    """
    if known is None:
        known = stages.eager(sorted(range(len(stages.prompt)), key=lambda i: -stages.output[i]))
    stages.check(known)
    pulp = load_pulp()
    problem = pulp.LpProblem("hybrid")
    names = _Names(problem, stages, max(len(known), _most_bins(stages, known)))
    bins = names.bins
    problem += (
        pulp.lpSum(time * names.y[k][level] for k in bins for level, (_, time) in enumerate(stages.levels))
        + pulp.lpSum(stages.round_s * names.n[k] for k in bins),
        "makespan",
    )
    _add_requests(problem, pulp, stages, names)
    _add_bins(problem, pulp, stages, names)
    if stages.kv_tokens is not None:
        _add_memory(problem, pulp, stages, names)
    _start(stages, names, known)
    return MilpModel(problem, lambda value: _read(value, stages, names))


def _most_bins(stages: Stages, known: Bins) -> int:
    """Bins of a plan that is no longer than the known one: each takes a prefill stage, beside all the rounds."""
    rounds = max(-(-sum(stages.output) // stages.clients), max(stages.output))
    spare = stages.seconds(known) - stages.round_s * rounds
    return min(len(stages.prompt), int(spare / stages.levels[0][1] + 1e-9))


class _Names:
    """The variables, by the names of the mathematics."""

    def __init__(self, problem: Any, stages: Stages, bins: int) -> None:
        self.requests, self.bins, self.levels = (
            range(len(stages.prompt)),
            range(bins),
            range(len(stages.levels)),
        )
        self.most = max(stages.output)
        add = problem.add_variable
        self.x = [[add(f"x_{i}_{k}", cat="Binary") for k in self.bins] for i in self.requests]
        self.f = [[add(f"f_{i}_{k}", cat="Binary") for k in self.bins] for i in self.requests]
        self.w = [
            [add(f"w_{i}_{k}", 0, stages.output[i], cat="Integer") for k in self.bins] for i in self.requests
        ]
        self.n = [add(f"n_{k}", 0, self.most, cat="Integer") for k in self.bins]
        self.y = [[add(f"y_{k}_{level}", cat="Binary") for level in self.levels] for k in self.bins]

    def under_way(self, i: int, k: int) -> Any:
        """Give the expression a_ik."""
        import pulp

        return pulp.lpSum(self.x[i][: k + 1]) - pulp.lpSum(self.f[i][:k])


def _add_requests(problem: Any, pulp: Any, stages: Stages, v: _Names) -> None:
    for i in v.requests:
        problem += pulp.lpSum(v.x[i]) == 1, f"begins_{i}"
        problem += pulp.lpSum(v.f[i]) == 1, f"ends_{i}"
        problem += pulp.lpSum(v.w[i]) == stages.output[i], f"all_tokens_{i}"
        for k in v.bins:
            a = v.under_way(i, k)
            problem += a - v.f[i][k] >= 0, f"in_order_{i}_{k}"
            problem += v.w[i][k] <= v.n[k], f"one_a_round_{i}_{k}"
            problem += v.w[i][k] <= stages.output[i] * a, f"while_under_way_{i}_{k}"
            problem += v.w[i][k] >= v.n[k] - v.most * (1 - a + v.f[i][k]), f"no_pause_{i}_{k}"
    last_alike: dict[tuple[int, int], int] = {}
    for i in v.requests:
        kind = (stages.prompt[i], stages.output[i])
        if kind in last_alike:
            before = last_alike[kind]
            for k in v.bins:
                problem += pulp.lpSum(v.x[before][: k + 1]) >= pulp.lpSum(v.x[i][: k + 1]), f"alike_{i}_{k}"
        last_alike[kind] = i


def _add_bins(problem: Any, pulp: Any, stages: Stages, v: _Names) -> None:
    for k in v.bins:
        used = pulp.lpSum(v.y[k])
        problem += used <= 1, f"one_level_{k}"
        problem += used <= pulp.lpSum(v.x[i][k] for i in v.requests), f"some_prompt_{k}"
        problem += (
            pulp.lpSum(stages.prompt[i] * v.x[i][k] for i in v.requests)
            <= pulp.lpSum(tokens * v.y[k][level] for level, (tokens, _) in enumerate(stages.levels)),
            f"prompts_fit_{k}",
        )
        problem += pulp.lpSum(v.under_way(i, k) for i in v.requests) <= stages.clients, f"clients_{k}"
        problem += pulp.lpSum(v.w[i][k] for i in v.requests) <= stages.clients * v.n[k], f"work_{k}"
        problem += v.n[k] <= v.most * used, f"rounds_{k}"
        if k:
            problem += pulp.lpSum(v.y[k - 1]) >= used, f"empty_last_{k}"


def _add_memory(problem: Any, pulp: Any, stages: Stages, v: _Names) -> None:
    for k in v.bins:
        held = []
        for i in v.requests:
            h = problem.add_variable(f"h_{i}_{k}", 0, stages.prompt[i] + stages.output[i])
            a = v.under_way(i, k)
            problem += (
                h >= stages.prompt[i] * a + pulp.lpSum(v.w[i][: k + 1]) - stages.output[i] * (1 - a),
                f"holds_{i}_{k}",
            )
            held.append(h)
        problem += pulp.lpSum(held) <= stages.kv_tokens, f"memory_{k}"


def _start(stages: Stages, v: _Names, known: Bins) -> None:
    """Give the known plan to the variables; memory, if any, follows from it."""
    left: dict[int, int] = {}
    for k in v.bins:
        one = known[k] if k < len(known) else None
        if one is not None:
            left |= {i: stages.output[i] for i in one.prefill}
        rounds = 0 if one is None else one.rounds
        v.n[k].setInitialValue(rounds)
        level = None if one is None else stages.level_of(sum(stages.prompt[i] for i in one.prefill))
        for each in v.levels:
            v.y[k][each].setInitialValue(int(each == level))
        for i in v.requests:
            tokens = min(left.get(i, 0), rounds)
            v.x[i][k].setInitialValue(int(one is not None and i in one.prefill))
            v.w[i][k].setInitialValue(tokens)
            v.f[i][k].setInitialValue(int(i in left and left[i] == tokens))
        left = {i: tokens - rounds for i, tokens in left.items() if tokens > rounds}


def _read(value: MilpValues, stages: Stages, v: _Names) -> Bins:
    read = [
        Bin(tuple(i for i in v.requests if round(value(v.x[i][k]))), round(value(v.n[k]))) for k in v.bins
    ]
    return tuple(one for one in read if one.prefill)

"""Writes the `steps` model: variables by request and step, and what ties them together."""

from __future__ import annotations

from collections.abc import Callable
from operator import mul
from typing import Any

from ortools.sat.python import cp_model

from optimizer.formulations.steps_time import PHASES, Rates, WholeStepTime
from optimizer.formulations.steps_trace import Standing, StepsObjective, Trace, arrivals, idle
from optimizer.problem.instance import Instance
from optimizer.problem.plan import PlanStep, StepsPlan

Values = Callable[[cp_model.LinearExprT], int]
Stand = dict[str, Any]
"""The variables of one request in one step, by the names of `Standing`."""

_FLAGS = ("prefills", "decodes", "thrown_out", "keeps", "holds", "could_decode", "ready", "samples")


class StepsWriter:
    """Writes the model into `model`; see `build_steps` for what is given."""

    def __init__(
        self,
        instance: Instance,
        time: WholeStepTime,
        goal: StepsObjective,
        weights: list[int],
        known: Trace,
        earliest: list[tuple[int, int]],
        least: int,
        last: int,
        steps: int,
        preempt: bool,
        hold: bool,
    ) -> None:
        self.model = cp_model.CpModel()
        self.engine, self.time, self.goal, self.weights = instance.engine, time, goal, weights
        self.prompts = instance.requests.prompt_tokens.tolist()
        self.outputs = instance.requests.output_tokens.tolist()
        self.peaks = [p + o - 1 for p, o in zip(self.prompts, self.outputs, strict=True)]
        self.arrival = arrivals(instance, time.unit_ticks)
        self.known, self.earliest, self.least, self.last = known, earliest, least, last
        self.pauses = hold
        longest = range(min(self.prompts) + 1, max(self.peaks) + 1)
        roomy = (
            sum(-(-peak // self.engine.block_tokens) for peak in self.peaks) <= self.engine.kv_blocks
            and len(self.prompts) <= self.engine.max_num_seqs
        )
        # With room for all, to throw somebody out only adds work.
        self.preempts = preempt and not (roomy and time.affine and not time.recomputing_pays(longest))
        self.requests, self.steps = range(len(self.prompts)), range(steps)
        self.milestone = "started" if goal == "ttft" else "finished"
        self.stands: list[list[Stand]] = []
        self.again: dict[tuple[int, int], Any] = {}
        self.regimes: list[list[cp_model.IntVar]] = []
        self.tokens_out: list[list[list[Any]]] = []

    def write(self) -> None:
        """Write everything."""
        self._add_variables()
        for k in self.steps:
            for i in self.requests:
                self._add_tokens(i, k)
                self._add_presence(i, k)
            self._add_limits(k)
            self._add_memory(k)
            self._add_time(k)
            for i in self.requests:
                self._restrict(i, k)
        for i in self.requests:
            self._add_totals(i)
        self._add_order_of_equals()
        self._add_objective()
        self._add_again()
        self._add_work()
        self._hint()

    def read(self, value: Values) -> StepsPlan:
        """Make a plan of a solution."""
        steps = []
        for k in self.steps:
            if not value(self.used[k]):
                break
            now = [{name: value(variable) for name, variable in row[k].items()} for row in self.stands]
            steps.append(
                PlanStep(
                    prefill=tuple((i, stand["chunk"]) for i, stand in enumerate(now) if stand["prefills"]),
                    decode=tuple(i for i, stand in enumerate(now) if stand["decodes"]),
                    preempt=tuple(i for i, stand in enumerate(now) if stand["thrown_out"]),
                )
            )
        return StepsPlan(steps=tuple(steps))

    def _add_variables(self) -> None:
        m, budget = self.model, self.engine.max_num_batched_tokens
        for i in self.requests:
            row: list[Stand] = []
            self.tokens_out.append([])
            most = {
                "chunk": min(budget, self.peaks[i]),
                "context": self.peaks[i],
            }
            for k in self.steps:
                stand: Stand = {name: m.new_bool_var(f"{name}[{i},{k}]") for name in _FLAGS}
                stand |= {name: m.new_int_var(0, top, f"{name}[{i},{k}]") for name, top in most.items()}
                out = [m.new_bool_var(f"out[{i},{t},{k}]") for t in range(self.outputs[i])]
                self.tokens_out[i].append(out)
                stand["started"], stand["finished"], stand["generated"] = out[0], out[-1], sum(out)
                row.append(stand)
            self.stands.append(row)
        self.used = [m.new_bool_var(f"used[{k}]") for k in self.steps]
        self.start = [m.new_int_var(0, self.last, f"start[{k}]") for k in self.steps]
        self.end = [m.new_int_var(0, self.last, f"end[{k}]") for k in self.steps]

    def _before(self, i: int, k: int, name: str) -> Any:
        """Give a variable as it was after step k - 1; nothing has happened before the first."""
        return self.stands[i][k - 1][name] if k > 0 else 0

    def _at(self, k: int) -> list[Stand]:
        return [row[k] for row in self.stands]

    def _add_presence(self, i: int, k: int) -> None:
        """Who keeps KV, and who may do what."""
        m, v = self.model, self.stands[i][k]
        held, ready, done = (self._before(i, k, name) for name in ("holds", "ready", "finished"))
        freed = done - self._before(i, k - 1, "finished")
        m.add(v["keeps"] == held - freed - v["thrown_out"])
        m.add(v["could_decode"] <= ready)
        m.add(v["could_decode"] <= v["keeps"])
        m.add(v["could_decode"] >= ready + v["keeps"] - 1)
        m.add(v["ready"] == v["could_decode"] + v["samples"])
        m.add(v["decodes"] <= v["could_decode"])
        m.add(v["prefills"] + v["could_decode"] + done <= 1)
        m.add(v["samples"] <= v["prefills"])
        m.add(v["holds"] >= v["keeps"])
        m.add(v["holds"] >= v["prefills"])
        m.add(v["holds"] <= v["keeps"] + v["prefills"])

    def _add_tokens(self, i: int, k: int) -> None:
        """Tokens computed, in the cache, and put out."""
        m, v, prompt, output = self.model, self.stands[i][k], self.prompts[i], self.outputs[i]
        generated, context = self._before(i, k, "generated"), self._before(i, k, "context")
        m.add(v["chunk"] >= v["prefills"])
        m.add(v["chunk"] <= min(self.engine.max_num_batched_tokens, self.peaks[i]) * v["prefills"])
        m.add(v["generated"] == generated + v["decodes"] + v["samples"])
        freed = self._before(i, k, "finished") - self._before(i, k - 1, "finished")
        lost = self.peaks[i] * freed
        if self.preempts and k:
            v["lost"] = m.new_int_var(0, self.peaks[i], f"lost[{i},{k}]")
            m.add(v["lost"] <= context)
            m.add(v["lost"] <= self.peaks[i] * v["thrown_out"])
            m.add(v["lost"] >= context - self.peaks[i] * (1 - v["thrown_out"]))
            lost += v["lost"]
        m.add(v["context"] == context - lost + v["chunk"] + v["decodes"])
        # One token, the last one put out, is never in the cache; a prompt that reaches it samples the next.
        m.add(v["context"] <= prompt + generated - 1 + v["samples"] + v["decodes"])
        m.add(v["context"] >= v["generated"] + prompt - 1 - self.peaks[i] * (1 - v["ready"]))
        out = self.tokens_out[i]
        for t in range(output):
            if k:
                m.add_implication(out[k - 1][t], out[k][t])
            if t:
                m.add_implication(out[k][t], out[k - 1][t - 1]) if k else m.add(out[0][t] == 0)

    def _restrict(self, i: int, k: int) -> None:
        """Leave out what is not allowed, and what is never better."""
        m, v = self.model, self.stands[i][k]
        if self.preempts:
            # Right after a token nothing is lost by it that would not be lost later. And where computing more never
            # makes a step shorter, a prompt that is thrown out half computed had better not been begun.
            active = "samples" if self.time.monotone else "prefills"
            m.add(v["thrown_out"] <= self._before(i, k, "decodes") + self._before(i, k, active))
        else:
            m.add(v["thrown_out"] == 0)
            if not self.time.recomputing_pays(range(self.prompts[i] + 1, self.peaks[i] + 1)):
                m.add(v["thrown_out"] + v["samples"] <= 1)
        if not self.pauses:
            m.add(v["decodes"] == v["could_decode"]).only_enforce_if(self.used[k])

    def _add_totals(self, i: int) -> None:
        """What must have happened by the end, and cannot have happened early."""
        m, row = self.model, self.stands[i]
        m.add(row[-1][self.milestone] == 1)
        for k in range(self.earliest[i][0] - 1):
            m.add(row[k][self.milestone] == 0)

    def _add_limits(self, k: int) -> None:
        """Seats and token budget; every step up to the last one does something."""
        m, engine, stands = self.model, self.engine, self._at(k)
        work = [v[name] for v in stands for name in ("prefills", "decodes")]
        m.add_bool_or([*work, ~self.used[k]])
        for literal in (*work, *(v["thrown_out"] for v in stands)):
            m.add_implication(literal, self.used[k])
        if k:
            m.add_implication(self.used[k], self.used[k - 1])
        m.add(self._tokens(k) <= engine.max_num_batched_tokens)
        if engine.max_num_seqs < len(stands):
            m.add(sum(v["holds"] for v in stands) <= engine.max_num_seqs)

    def _tokens(self, k: int) -> Any:
        return sum(v["chunk"] + v["decodes"] for v in self._at(k))

    def _add_memory(self, k: int) -> None:
        """KV blocks, where they can run out at all."""
        m, b = self.model, self.engine.block_tokens
        if sum(-(-peak // b) for peak in self.peaks) <= self.engine.kv_blocks:
            return
        for i, v in enumerate(self._at(k)):
            v["blocks"] = m.new_int_var(0, -(-self.peaks[i] // b), f"blocks[{i},{k}]")
            m.add_linear_constraint(b * v["blocks"] - v["context"], 0, b - 1)
        # When all that counts is first tokens, the last steps may be left empty with KV still held.
        free = self.engine.kv_blocks if self.goal == "ttft" else self.engine.kv_blocks * self.used[k]
        m.add(sum(v["blocks"] for v in self._at(k)) <= free)

    def _add_time(self, k: int) -> None:
        """When a step starts and ends."""
        m, used = self.model, self.used[k]
        before = self.end[k - 1] if k else 0
        m.add(self.start[k] >= before)
        m.add(self.end[k] == before).only_enforce_if(~used)
        m.add(self.end[k] >= self.start[k] + self.time.least * used)
        for i, v in enumerate(self._at(k)):
            if self.arrival[i]:
                m.add(self.start[k] >= self.arrival[i] * v["prefills"])
        load = self._load(k)
        for rates in self.time.floors():
            m.add(2 * (self.end[k] - self.start[k]) >= _price(rates, load))
        if not self.time.monotone:
            self._add_regimes(k, load)

    def _load(self, k: int) -> Stand:
        """What a step computes, by the names of `Rates`; attention twice, as it comes in halves."""
        m, stands = self.model, self._at(k)
        load: Stand = {
            "base": self.used[k],
            "prefill_token": sum(v["chunk"] for v in stands),
            "prefill_seq": sum(v["prefills"] for v in stands),
            "decode_seq": sum(v["decodes"] for v in stands),
        }
        for name, flag in (("prefill_context", "prefills"), ("decode_context", "decodes")):
            if self.time.uses(name):
                for i, v in enumerate(stands):
                    v[name] = m.new_int_var(0, self.peaks[i], f"{name}[{i},{k}]")
                    m.add(v[name] >= v["context"] - self.peaks[i] * (1 - v[flag]))
                load[name] = sum(v[name] for v in stands)
        if self.time.uses("prefill_attention"):
            for i, v in enumerate(stands):
                peak = self.peaks[i]
                v["prefill_attention"] = m.new_int_var(0, peak * (peak + 1), f"prefill_attention[{i},{k}]")
                m.add_multiplication_equality(
                    v["prefill_attention"], [v["chunk"], 2 * v["context"] - v["chunk"] + v["prefills"]]
                )
            load["prefill_attention"] = sum(v["prefill_attention"] for v in stands)
        return load

    def _add_regimes(self, k: int, load: Stand) -> None:
        """Exactly one regime holds in a step: by what is in it, and by how many tokens."""
        m = self.model
        has = {}
        for phase, name in (("prefill", "prefills"), ("decode", "decodes")):
            has[phase] = m.new_bool_var(f"any_{phase}[{k}]")
            m.add_max_equality(has[phase], [v[name] for v in self._at(k)])
        p, d = has["prefill"], has["decode"]
        is_no = {"prefill": [~p, d], "decode": [p, ~d], "mixed": [~p, ~d]}
        row = [m.new_bool_var(f"regime[{k},{number}]") for number in range(len(self.time.regimes))]
        for flag, regime in zip(row, self.time.regimes, strict=True):
            for phase in PHASES:
                if phase not in regime.phases:
                    m.add_bool_or([~flag, *is_no[phase]])
            m.add(self._tokens(k) >= regime.least).only_enforce_if(flag)
            if regime.most is not None:
                m.add(self._tokens(k) <= regime.most).only_enforce_if(flag)
            for rates in regime.pieces:
                m.add(2 * (self.end[k] - self.start[k]) >= _price(rates, load)).only_enforce_if(flag)
        m.add(sum(row) == self.used[k])
        self.regimes.append(row)

    def _add_order_of_equals(self) -> None:
        """Requests that differ in nothing reach their milestones in order of their numbers."""
        for i, j in self._equals():
            for k in self.steps:
                self.model.add_implication(
                    self.stands[j][k][self.milestone], self.stands[i][k][self.milestone]
                )

    def _equals(self) -> list[tuple[int, int]]:
        """Pairs of equal requests, each with the next of its kind."""
        last: dict[tuple[int, ...], int] = {}
        pairs = []
        for i, kind in enumerate(zip(self.prompts, self.outputs, self.arrival, self.weights, strict=True)):
            if kind in last:
                pairs.append((last[kind], i))
            last[kind] = i
        return pairs

    def _add_objective(self) -> None:
        m = self.model
        moments = self.known.milestones(self.goal)
        if self.goal == "makespan":
            value: Any = self.end[-1]
            known = max(moments)
        else:
            self.moment = [
                m.new_int_var(self.earliest[i][1], self.last, f"moment[{i}]") for i in self.requests
            ]
            for i in self.requests:
                for k in self.steps:
                    at_least = m.add(self.moment[i] >= self.end[k])
                    if k:
                        at_least.only_enforce_if(~self.stands[i][k - 1][self.milestone])
            value = sum(w * (t - a) for w, t, a in zip(self.weights, self.moment, self.arrival, strict=True))
            known = sum(w * (t - a) for w, t, a in zip(self.weights, moments, self.arrival, strict=True))
            m.add(sum(map(mul, self.weights, self.moment)) >= self.least)
        m.add(value <= known)
        m.minimize(value)

    def _add_work(self) -> None:
        """Redundant: by its milestone a request's steps have done its work, and what others have done until then.

        Work is counted in time by every floor of the step time, in KV blocks, in seats and in tokens.
        """
        m, n = self.model, self.requests
        if self.goal == "makespan":
            steps = sum(self.used)
            self._add_rooms(steps, [1] * len(n))
            for rates in self.time.floors():
                work = sum(self._work(rates, i) + self._recomputing(rates, i) for i in n)
                m.add(2 * self.end[-1] >= 2 * rates.base * steps + work)
            return
        steps_of = [sum(1 - self._before(i, k, self.milestone) for k in self.steps) for i in n]
        before = {(j, i): m.new_bool_var(f"before[{j},{i}]") for i in n for j in n if i != j}
        began: dict[tuple[int, int], Any] = {}
        put_out: dict[tuple[int, int], Any] = {}
        for j, i in before:
            tokens = self._tokens_to_milestone(j)
            began[j, i] = m.new_bool_var(f"began[{j},{i}]")
            put_out[j, i] = m.new_int_var(0, tokens, f"put_out[{j},{i}]")
            for k in self.steps:
                m.add(before[j, i] >= self.stands[j][k][self.milestone] - self._before(i, k, self.milestone))
            m.add(put_out[j, i] <= tokens * began[j, i])
            m.add(put_out[j, i] >= tokens * before[j, i])
            # Of its steps up to its milestone, j puts out no token in all but as many as it has tokens.
            gap = len(self.steps) * before[j, i]
            m.add(put_out[j, i] >= steps_of[i] - steps_of[j] + tokens - gap)
            if j < i:
                m.add(before[j, i] + before[i, j] >= 1)
        for i in n:
            others = [j for j in n if j != i]
            self._add_rooms(steps_of[i], [1 if j == i else before[j, i] for j in n])
            for rates in self.time.floors():
                done = self._work(rates, i) + self._recomputing(rates, i)
                for j in others:
                    begin = self.time.least_work(rates, self.prompts[j], 1, again=self.preempts)
                    token = self.time.least_work(rates, self.prompts[j], 2, again=self.preempts) - begin
                    rest = self._work(rates, j) - begin - token * (self._tokens_to_milestone(j) - 1)
                    done += begin * began[j, i] + token * (put_out[j, i] - began[j, i]) + rest * before[j, i]
                m.add(2 * self.moment[i] >= 2 * rates.base * steps_of[i] + done)

    def _tokens_to_milestone(self, i: int) -> int:
        return 1 if self.goal == "ttft" else self.outputs[i]

    def _work(self, rates: Rates, i: int) -> int:
        """Twice the least time that a request adds to its steps up to its milestone."""
        return self.time.least_work(rates, self.prompts[i], self._tokens_to_milestone(i), again=self.preempts)

    def _recomputing(self, rates: Rates, i: int) -> Any:
        """Twice the time that a request's recomputing adds beyond decoding."""
        more = 0
        for t in range(self._tokens_to_milestone(i) - 1):
            sizes = (rates, self.prompts[i] + t + 1)
            more += self.again[i, t] * max(0, self.time.prefill(*sizes) - self.time.decode(*sizes))
        return more

    def _add_rooms(self, steps: Any, done: list[Any]) -> None:
        """Steps are many enough for the blocks, seats and tokens of all who have reached their milestones by then."""
        engine, b = self.engine, self.engine.block_tokens
        tokens = [self._tokens_to_milestone(i) for i in self.requests]
        sizes = list(zip(self.prompts, tokens, strict=True))
        held = [[-(-(p + t) // b) for t in range(o)] for p, o in sizes]
        for most, each in (
            *_memory_rows(engine.kv_blocks, held),
            (engine.max_num_seqs, [count for count, _ in self.earliest]),
            (engine.max_num_batched_tokens, [p + o - 1 for p, o in sizes]),
        ):
            self.model.add(most * steps >= sum(map(mul, each, done)))

    def _add_again(self) -> None:
        m = self.model
        for i in self.requests:
            tokens = 1 if self.goal == "ttft" else self.outputs[i]
            for t in range(tokens - 1):
                self.again[i, t] = again = m.new_bool_var(f"again[{i},{t}]")
                for k in self.steps:
                    now = self.tokens_out[i][k][t + 1] - (self.tokens_out[i][k - 1][t + 1] if k else 0)
                    m.add(again >= now + self.stands[i][k]["samples"] - 1)
                    m.add(again + now + self.stands[i][k]["decodes"] <= 2)
            extra = sum(self.again[i, t] * (self.prompts[i] + t + 1) for t in range(tokens - 1))
            if self.goal != "ttft":
                m.add(
                    sum(v["samples"] for v in self.stands[i])
                    == 1 + sum(self.again[i, t] for t in range(tokens - 1))
                )
            chunks = sum(v["chunk"] for v in self.stands[i])
            if self.time.monotone and self.goal != "ttft":
                m.add(chunks == self.prompts[i] + extra)
            else:
                m.add(chunks >= self.prompts[i] + extra)

    def _hint(self) -> None:
        """Start from the known plan, equal requests renamed so that they are in order."""
        moments = self.known.milestones(self.goal)
        until = max(self.known.end.index(moment) for moment in moments) + 1
        renamed = list(self.requests)
        for _ in self.requests:
            for i, j in self._equals():
                if moments[renamed[i]] > moments[renamed[j]]:
                    renamed[i], renamed[j] = renamed[j], renamed[i]
        for i, row in enumerate(self.stands):
            was = Standing()
            for k, stand in enumerate(row):
                was = self.known.standings[renamed[i]][k] if k < until else idle(was)
                self._hint_stand(stand, was)
                for t in range(self.outputs[i]):
                    self.model.add_hint(self.tokens_out[i][k][t], was.generated > t)
        end = 0
        for k in self.steps:
            used = k < until
            self.model.add_hint(self.used[k], used)
            self.model.add_hint(self.start[k], self.known.start[k] if used else end)
            end = self.known.end[k] if used else end
            self.model.add_hint(self.end[k], end)
            for flag, regime in zip(self.regimes[k] if self.regimes else (), self.time.regimes, strict=False):
                self.model.add_hint(flag, used and self.known.loads[k].regime(self.time) == regime)
        if self.goal != "makespan":
            for i in self.requests:
                self.model.add_hint(self.moment[i], moments[renamed[i]])

    def _hint_stand(self, stand: Stand, values: Standing) -> None:
        for name, variable in stand.items():
            if name in ("generated", "started", "finished"):
                continue
            if name == "blocks":
                self.model.add_hint(variable, -(-values.context // self.engine.block_tokens))
            else:
                self.model.add_hint(variable, getattr(values, name))


def _price(rates: Rates, load: Stand) -> Any:
    """Twice the time of a step by one affine piece."""
    return sum(
        (1 if name == "prefill_attention" else 2) * rate * load[name]
        for name, rate in zip(Rates._fields, rates, strict=True)
        if rate
    )


def _memory_rows(capacity: int, held: list[list[int]]) -> list[tuple[int, list[int]]]:
    """Give what one step has room for, and what each request needs in all, by several measures of held blocks.

    A measure that counts a block as all there is above `capacity - least`, as nothing below `least`, and as it is in
    between, still adds up to no more than the capacity over blocks that fit together (a dual feasible function,
    Fekete and Schepers 2001). Only measures by which some request, or all together, need most are kept.
    """
    levels = {0} | {x for row in held for x in row if 2 * x <= capacity}
    levels |= {capacity - x + 1 for row in held for x in row if 2 * x > capacity}
    measured = []
    for least in sorted(level for level in levels if 2 * level <= capacity + 1):

        def measure(x: int, least: int = least) -> int:
            return capacity if x > capacity - least else x if x >= least else 0

        measured.append([sum(map(measure, row)) for row in held])
    kept = [max(measured, key=sum)]
    kept += [max(measured, key=lambda row: (row[i], sum(row))) for i in range(len(held))]
    return [(capacity, row) for row in _distinct(kept)]


def _distinct(rows: list[list[int]]) -> list[list[int]]:
    return [list(row) for row in dict.fromkeys(map(tuple, rows))]

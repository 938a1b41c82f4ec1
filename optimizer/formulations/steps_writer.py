"""Writes the `steps` model: variables by request and step, and what ties them together."""

from __future__ import annotations

from collections.abc import Callable
from operator import mul
from typing import Any

from ortools.sat.python import cp_model

from optimizer.formulations.steps_frame import Frame
from optimizer.formulations.steps_time import PHASES, Rates
from optimizer.formulations.steps_trace import Standing, arrivals, idle
from optimizer.formulations.steps_work import StepsWork
from optimizer.problem.plan import PlanStep, StepsPlan

Values = Callable[[cp_model.LinearExprT], int]
Stand = dict[str, Any]
"""The variables of one request in one step, by the names of `Standing`."""

_FLAGS = ("prefills", "decodes", "thrown_out", "keeps", "holds", "could_decode", "ready", "samples")


class StepsWriter:
    """Writes the model into `model`.

    Parameters
    ----------
    frame
        Units and limits.
    preempt, hold
        What is allowed.
    """

    def __init__(self, frame: Frame, *, preempt: bool, hold: bool) -> None:
        self.model = cp_model.CpModel()
        self.frame, self.engine, self.time = frame, frame.instance.engine, frame.time
        requests = frame.instance.requests
        self.prompts, self.outputs = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
        self.peaks = [p + o - 1 for p, o in zip(self.prompts, self.outputs, strict=True)]
        self.arrival = arrivals(frame.instance, self.time.unit_ticks)
        self.requests, self.steps = range(len(self.prompts)), range(frame.steps)
        self.milestone = "started" if frame.goal == "ttft" else "finished"
        self.has_memory_for_all = (
            sum(-(-peak // self.engine.block_tokens) for peak in self.peaks) <= self.engine.kv_blocks
        )
        roomy = self.has_memory_for_all and len(self.prompts) <= self.engine.max_num_seqs
        contexts = range(min(self.prompts) + 1, max(self.peaks) + 1)
        # With room for all, to throw somebody out only adds work.
        needless = roomy and self.time.is_affine and not self.time.recomputing_pays(contexts)
        self.preempts, self.pauses = preempt and not needless, hold
        self.stands: list[list[Stand]] = []
        self.out: list[list[list[Any]]] = []
        """By request, step and token: whether it is out by then."""
        self.regimes: list[list[Any]] = []

    def write(self) -> None:
        """Write everything."""
        self._add_variables()
        for k in self.steps:
            for i in self.requests:
                self._add_tokens(i, k)
                self._add_presence(i, k)
                self._restrict(i, k)
            self._add_limits(k)
            self._add_time(k)
        for i in self.requests:
            self.model.add(self.stands[i][-1][self.milestone] == 1)
            for k in range(self.frame.earliest[i][0] - 1):
                self.model.add(self.stands[i][k][self.milestone] == 0)
        self._add_order_of_equals()
        self._add_objective()
        self.work = StepsWork(self)
        self.work.add()
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

    def before(self, i: int, k: int, name: str) -> Any:
        """Give a variable as it was after step k - 1; nothing has happened before the first."""
        return self.stands[i][k - 1][name] if k > 0 else 0

    def _at(self, k: int) -> list[Stand]:
        return [row[k] for row in self.stands]

    def _add_variables(self) -> None:
        m, budget, last = self.model, self.engine.max_num_batched_tokens, self.frame.last
        for i in self.requests:
            row: list[Stand] = []
            self.out.append([])
            for k in self.steps:
                stand: Stand = {name: m.new_bool_var(f"{name}[{i},{k}]") for name in _FLAGS}
                stand["chunk"] = m.new_int_var(0, min(budget, self.peaks[i]), f"chunk[{i},{k}]")
                stand["context"] = m.new_int_var(0, self.peaks[i], f"context[{i},{k}]")
                out = [m.new_bool_var(f"out[{i},{t},{k}]") for t in range(self.outputs[i])]
                self.out[i].append(out)
                stand["started"], stand["finished"], stand["generated"] = out[0], out[-1], sum(out)
                row.append(stand)
            self.stands.append(row)
        self.used = [m.new_bool_var(f"used[{k}]") for k in self.steps]
        self.start = [m.new_int_var(0, last, f"start[{k}]") for k in self.steps]
        self.end = [m.new_int_var(0, last, f"end[{k}]") for k in self.steps]

    def _add_presence(self, i: int, k: int) -> None:
        """Who keeps KV, and who may do what."""
        m, v = self.model, self.stands[i][k]
        held, ready, done = (self.before(i, k, name) for name in ("holds", "ready", "finished"))
        freed = done - self.before(i, k - 1, "finished")
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
        m, v, prompt, peak, out = self.model, self.stands[i][k], self.prompts[i], self.peaks[i], self.out[i]
        generated, context = self.before(i, k, "generated"), self.before(i, k, "context")
        m.add(v["chunk"] >= v["prefills"])
        m.add(v["chunk"] <= min(self.engine.max_num_batched_tokens, peak) * v["prefills"])
        m.add(v["generated"] == generated + v["decodes"] + v["samples"])
        for t in range(self.outputs[i]):
            if k:
                m.add_implication(out[k - 1][t], out[k][t])
            if k and t:
                m.add_implication(out[k][t], out[k - 1][t - 1])
            elif t:
                m.add(out[0][t] == 0)
        lost = peak * (self.before(i, k, "finished") - self.before(i, k - 1, "finished"))
        if self.preempts and k:
            v["lost"] = m.new_int_var(0, peak, f"lost[{i},{k}]")
            m.add(v["lost"] <= context)
            m.add(v["lost"] <= peak * v["thrown_out"])
            m.add(v["lost"] >= context - peak * (1 - v["thrown_out"]))
            lost += v["lost"]
        m.add(v["context"] == context - lost + v["chunk"] + v["decodes"])
        # One token, the last one put out, is never in the cache; a prompt that reaches it samples the next.
        m.add(v["context"] <= prompt + generated - 1 + v["samples"] + v["decodes"])
        m.add(v["context"] >= v["generated"] + prompt - 1 - peak * (1 - v["ready"]))

    def _restrict(self, i: int, k: int) -> None:
        """Leave out what is not allowed, and what is never better."""
        m, v = self.model, self.stands[i][k]
        if self.preempts:
            # Right after a token nothing is lost by it that would not be lost later. And where computing more never
            # makes a step shorter, a prompt that is thrown out half computed had better not been begun.
            active = "samples" if self.time.is_monotone else "prefills"
            m.add(v["thrown_out"] <= self.before(i, k, "decodes") + self.before(i, k, active))
            if not self.time.recomputing_pays(range(self.prompts[i] + 1, self.peaks[i] + 1)):
                m.add(v["thrown_out"] + v["samples"] <= 1)
        else:
            m.add(v["thrown_out"] == 0)
        if not self.pauses:
            m.add(v["decodes"] == v["could_decode"]).only_enforce_if(self.used[k])

    def _add_limits(self, k: int) -> None:
        """Token budget, seats, KV blocks; every step up to the last one does something."""
        m, engine, stands, b = self.model, self.engine, self._at(k), self.engine.block_tokens
        work = [v[name] for v in stands for name in ("prefills", "decodes")]
        m.add_bool_or([*work, ~self.used[k]])
        for literal in (*work, *(v["thrown_out"] for v in stands)):
            m.add_implication(literal, self.used[k])
        if k:
            m.add_implication(self.used[k], self.used[k - 1])
        m.add(self._tokens(k) <= engine.max_num_batched_tokens)
        if engine.max_num_seqs < len(stands):
            m.add(sum(v["holds"] for v in stands) <= engine.max_num_seqs)
        if self.has_memory_for_all:
            return
        for i, v in enumerate(stands):
            v["blocks"] = m.new_int_var(0, -(-self.peaks[i] // b), f"blocks[{i},{k}]")
            m.add(b * v["blocks"] >= v["context"])
        # When all that counts is first tokens, the last steps may be left empty with KV still held.
        room = engine.kv_blocks * (1 if self.frame.goal == "ttft" else self.used[k])
        m.add(sum(v["blocks"] for v in stands) <= room)

    def _tokens(self, k: int) -> Any:
        return sum(v["chunk"] + v["decodes"] for v in self._at(k))

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
        if not self.time.is_monotone:
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
                later, sooner = self.stands[j][k][self.milestone], self.stands[i][k][self.milestone]
                self.model.add_implication(later, sooner)

    def _equals(self) -> list[tuple[int, int]]:
        """Pairs of equal requests, each with the next of its kind."""
        last: dict[tuple[int, ...], int] = {}
        pairs = []
        kinds = zip(self.prompts, self.outputs, self.arrival, self.frame.weights, strict=True)
        for i, kind in enumerate(kinds):
            if kind in last:
                pairs.append((last[kind], i))
            last[kind] = i
        return pairs

    def _add_objective(self) -> None:
        m, frame = self.model, self.frame
        known = frame.trace.milestones(frame.goal)
        if frame.goal == "makespan":
            m.add(self.end[-1] <= max(known))
            m.minimize(self.end[-1])
            return
        self.moment = [m.new_int_var(frame.earliest[i][1], frame.last, f"moment[{i}]") for i in self.requests]
        for i in self.requests:
            for k in self.steps:
                at_least = m.add(self.moment[i] >= self.end[k])
                if k:
                    at_least.only_enforce_if(~self.stands[i][k - 1][self.milestone])
        total = sum(map(mul, frame.weights, self.moment))
        m.add(total >= frame.least)
        m.add(total <= sum(map(mul, frame.weights, known)))
        m.minimize(total - sum(map(mul, frame.weights, self.arrival)))

    def _hint(self) -> None:
        """Start from the known plan, equal requests renamed so that they are in order."""
        trace, moments = self.frame.trace, self.frame.trace.milestones(self.frame.goal)
        until = max(trace.end.index(moment) for moment in moments) + 1
        renamed = list(self.requests)
        for _ in self.requests:
            for i, j in self._equals():
                if moments[renamed[i]] > moments[renamed[j]]:
                    renamed[i], renamed[j] = renamed[j], renamed[i]
        rows: list[list[Standing]] = []
        for i in self.requests:
            row = list(trace.standings[renamed[i]][:until])
            while len(row) < len(self.steps):
                row.append(idle(row[-1]))
            rows.append(row)
            for k, stand in enumerate(row):
                self._hint_stand(i, k, stand)
        end = 0
        for k in self.steps:
            used = k < until
            start, end = (trace.start[k], trace.end[k]) if used else (end, end)
            for variable, value in zip(
                (self.used[k], self.start[k], self.end[k]), (used, start, end), strict=True
            ):
                self.model.add_hint(variable, value)
            for number, flag in enumerate(self.regimes[k] if self.regimes else ()):
                holds = used and trace.loads[k].regime(self.time) == self.time.regimes[number]
                self.model.add_hint(flag, holds)
        if self.frame.goal != "makespan":
            for i in self.requests:
                self.model.add_hint(self.moment[i], moments[renamed[i]])
        self.work.hint(rows)

    def _hint_stand(self, i: int, k: int, values: Standing) -> None:
        for name, variable in self.stands[i][k].items():
            if name == "blocks":
                self.model.add_hint(variable, -(-values.context // self.engine.block_tokens))
            elif name not in ("started", "finished", "generated"):
                self.model.add_hint(variable, getattr(values, name))
        for t, variable in enumerate(self.out[i][k]):
            self.model.add_hint(variable, values.generated > t)


def _price(rates: Rates, load: Stand) -> Any:
    """Twice the time of a step by one affine piece."""
    return sum(
        (1 if name == "prefill_attention" else 2) * rate * load[name]
        for name, rate in zip(Rates._fields, rates, strict=True)
        if rate
    )

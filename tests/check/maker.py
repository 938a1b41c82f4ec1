"""Makes schedules one step at a time, slowly and plainly, for the checker to judge; all times in whole ns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from optimizer.problem import (
    Engine,
    Instance,
    PrefixHashes,
    Requests,
    Schedule,
    StepPiece,
    StepRegime,
    StepTime,
)

NS = 10**9
WORK = {
    "base_s": 4_000_000, "per_prefill_token_s": 20_000, "per_prefill_attention_s": 3, "per_prefill_seq_s": 700,
    "per_prefill_context_s": 9, "per_decode_seq_s": 19_000, "per_decode_context_s": 11,
}  # fmt: skip
FLOOR_NS = 4_900_000
"""The step-time model of these tests: the longer of WORK and FLOOR_NS."""


def engine(**changes) -> Engine:
    pieces = StepPiece(**{k: v / NS for k, v in WORK.items()}), StepPiece(base_s=FLOOR_NS / NS)
    limits = {"kv_blocks": 40, "max_num_batched_tokens": 64, "max_num_seqs": 6} | changes
    return Engine(name="toy", step_time=StepTime(regimes=(StepRegime(pieces=pieces),)), **limits)


def instance(rows, prefix: PrefixHashes | None = None, **changes) -> Instance:
    """From (arrival in ns, prompt, output) rows."""
    arrival, prompt, output = zip(*rows, strict=True)
    columns = {"arrival_s": [a / NS for a in arrival], "prompt_tokens": prompt, "output_tokens": output}
    return Instance("made", Requests.from_columns(columns, prefix=prefix), engine(**changes))


def step_ns(chunks, decode_contexts) -> int:
    """What a step takes, from its (tokens, context before) chunks and the contexts after it."""
    work = WORK["base_s"] + WORK["per_decode_seq_s"] * len(decode_contexts)
    work += WORK["per_decode_context_s"] * sum(decode_contexts)
    for n, c in chunks:
        pairs = sum(c + i for i in range(1, n + 1))
        work += WORK["per_prefill_token_s"] * n + WORK["per_prefill_seq_s"]
        work += WORK["per_prefill_attention_s"] * pairs + WORK["per_prefill_context_s"] * (c + n)
    return max(work, FLOOR_NS)


@dataclass
class Recorder:
    """Keeps the books of a schedule in the making: contexts, tokens, times; then writes the tables."""

    instance: Instance
    budget: int | None
    block_tokens: int = 16
    context: dict[int, int] = field(default_factory=dict)
    steps: list[dict] = field(default_factory=list)
    holds: list[list[int]] = field(default_factory=list)

    def __post_init__(self):
        r = self.instance.requests
        self.prompt, self.output = r.prompt_tokens.tolist(), r.output_tokens.tolist()
        self.generated = [0] * len(r)
        self.target = list(self.prompt)
        self.first, self.finish = [np.nan] * len(r), [np.nan] * len(r)
        self.preempted, self.cached = [], []

    def preempt(self, request):
        del self.context[request]
        self.target[request] = self.prompt[request] + self.generated[request]
        self.preempted.append(request)

    def hit(self, request, tokens):
        self.context[request] = tokens
        if tokens:
            self.cached.append((request, tokens))

    def hold(self, request, tokens, offset=-1):
        self.holds.append([request, len(self.steps), -1, offset, tokens])

    def release(self, request):
        next(h for h in self.holds if h[0] == request and h[2] < 0)[2] = len(self.steps) - 1

    def decoding(self, request) -> bool:
        return self.context.get(request, 0) >= self.target[request]

    def step(self, start, chunks, decodes) -> int:
        """Execute a step of (request, tokens) chunks and decodes; give its end. Finished requests leave."""
        chunks = [(r, n, self.context.get(r, 0)) for r, n in chunks]
        for r, n, c in chunks:
            self.context[r] = c + n
        for r in decodes:
            self.context[r] += 1
        time = step_ns([(n, c) for _, n, c in chunks], [self.context[r] for r in decodes])
        self.steps.append({
            "start": start, "time": time, "end": start + time, "chunks": chunks, "decodes": sorted(decodes),
            "context": sum(self.context[r] for r in decodes), "preempted": self.preempted, "cached": self.cached,
        })  # fmt: skip
        self.preempted, self.cached = [], []
        for r in [*decodes, *(r for r, _, _ in chunks if self.context[r] == self.target[r])]:
            if not self.generated[r]:
                self.first[r] = (start + time) / NS
            self.generated[r] += 1
            if self.generated[r] == self.output[r]:
                self.finish[r] = (start + time) / NS
                del self.context[r]
        return start + time

    def _runs(self, merge: bool) -> list[list[dict]]:
        changes = {h[1] for h in self.holds} | {h[2] + 1 for h in self.holds}
        runs: list[list[dict]] = []
        for number, step in enumerate(self.steps):
            last = runs[-1] if runs else None
            if (
                merge and last and number not in changes
                and not step["preempted"] and not step["cached"]
                and step["start"] == last[-1]["end"]
                and step["decodes"] == last[-1]["decodes"]
                and [c[:2] for c in step["chunks"]] == [c[:2] for c in last[-1]["chunks"]]
                and (len(last) == 1 or step["time"] - last[-1]["time"] == last[1]["time"] - last[0]["time"])
            ):  # fmt: skip
                last.append(step)
            else:
                runs.append([step])
        return runs

    def schedule(self, *, merge: bool = True) -> Schedule:
        runs = self._runs(merge)
        run_of = [number for number, run in enumerate(runs) for _ in run]
        chunk, preempt, cached, decode = [], [], [], []
        open_: dict[int, list[int]] = {}
        latest = -1  # the last run in which anybody decoded: a stall does not end a segment
        for number, run in enumerate(runs):
            head = run[0]
            chunk += [(number, r, n, c) for r, n, c in head["chunks"]]
            preempt += [(number, r) for r in head["preempted"]]
            cached += [(number, r, n) for r, n in head["cached"]]
            for r in head["preempted"]:
                open_.pop(r, None)
            for r in head["decodes"]:
                if r in open_ and open_[r][2] == latest:
                    open_[r][2] = number
                else:
                    open_[r] = [r, number, number]
                    decode.append(open_[r])
            latest = number if head["decodes"] else latest
        hold = [[r, run_of[first], run_of[last], offset, n] for r, first, last, offset, n in self.holds]

        def table(name, rows, columns):
            values = np.array(rows, np.int64).reshape(-1, len(columns)).T
            return {f"{name}_{c}": v.copy() for c, v in zip(columns, values, strict=True)}

        def column(value, dtype=np.int64):
            return np.array([value(run) for run in runs], dtype)

        return Schedule(
            policy="made",
            block_tokens=self.block_tokens,
            max_num_batched_tokens=self.budget,
            start_s=column(lambda run: run[0]["start"] / NS, float),
            end_s=column(lambda run: run[-1]["end"] / NS, float),
            first_step_s=column(lambda run: run[0]["time"] / NS, float),
            steps=column(len),
            decode_seqs=column(lambda run: len(run[0]["decodes"])),
            decode_context=column(lambda run: run[0]["context"]),
            prefill_tokens=column(lambda run: sum(n for _, n, _ in run[0]["chunks"])),
            **table("chunk", chunk, ("run", "request", "tokens", "context")),
            **table("decode", decode, ("request", "first_run", "last_run")),
            **table("preempt", preempt, ("run", "request")),
            **table("cached", cached, ("run", "request", "tokens")),
            **table("hold", hold, ("request", "first_run", "last_run", "offset", "tokens")),
            first_token_s=np.array(self.first),
            finish_s=np.array(self.finish),
        )


def make_paged(made: Instance, *, exclusive=False, block_tokens=16, merge=True) -> Schedule:
    """First come, first served: chunks beside decodes, or (exclusive) prefill-only steps; preempts the last."""
    e, r = made.engine, made.requests
    b, blocks = block_tokens, e.kv_tokens // block_tokens
    book = Recorder(made, e.max_num_batched_tokens, b)
    arrivals = [round(a * NS) for a in r.arrival_s]
    waiting, running, now, stuck = list(range(len(r))), [], 0, False
    computed: set = set()
    while waiting or running:
        if not running:
            now = max(now, min(arrivals[i] for i in waiting))
        left, chunks, decodes = e.max_num_batched_tokens, [], []
        taken = {i: -(-book.context[i] // b) for i in running}
        new = next((i for i in waiting if arrivals[i] <= now), None)
        stall = exclusive and not stuck and (
            any(not book.decoding(i) for i in running)
            or (new is not None and len(running) < e.max_num_seqs
                and sum(taken.values()) + -(-book.target[new] // b) <= blocks)
        )  # fmt: skip
        served = 0
        while served < len(running):
            i = running[served]
            served += 1
            if book.decoding(i) and stall:
                continue
            n = min(left, 1 if book.decoding(i) else book.target[i] - book.context[i])
            need = -(-(book.context[i] + n) // b)
            while sum(taken.values()) - taken[i] + need > blocks:
                victim = running.pop()
                book.preempt(victim)
                del taken[victim]
                waiting.insert(0, victim)
                if victim == i:
                    break
            if i in taken and n:
                taken[i], left = need, left - n
                (decodes if book.decoding(i) else chunks).append(i if book.decoding(i) else (i, n))
        while waiting and not book.preempted and left and len(running) < e.max_num_seqs:
            i = waiting[0]
            hit = _longest_hit(made, computed, i, book.target[i]) if e.prefix_caching else 0
            n = min(left, book.target[i] - hit)
            if arrivals[i] > now or sum(taken.values()) + -(-(hit + n) // b) > blocks:
                break
            book.hit(i, hit)
            running.append(waiting.pop(0))
            chunks.append((i, n))
            taken[i], left = -(-(hit + n) // b), left - n
            if e.prefix_caching:
                computed |= {key for q in range((hit + n) // b) if (key := _block_key(made, i, q))}
        stuck = not chunks and not decodes  # a prefill that preempted itself: let the others decode
        if stuck:
            continue
        now = book.step(now, chunks, decodes)
        running = [i for i in running if i in book.context]
        for i in running:
            if e.prefix_caching:
                computed |= {key for q in range(book.context[i] // b) if (key := _block_key(made, i, q))}
    return book.schedule(merge=merge)


def _block_key(made: Instance, i: int, q: int):
    """What makes a block equal to another: the hashes up to its end; private ones are never hit here."""
    b, prefix = made.engine.block_tokens, made.requests.prefix
    end = (q + 1) * b
    hashes = prefix.of(i).tolist()
    whole = -(-end // prefix.block_tokens)
    if end > made.requests.prompt_tokens[i] or whole > len(hashes):
        return None
    return (*hashes[:whole], end)


def _longest_hit(made: Instance, computed: set, i: int, target: int) -> int:
    b, q = made.engine.block_tokens, 0
    while (q + 1) * b < target and (key := _block_key(made, i, q)) and key in computed:
        q += 1
    return q * b


def make_reserved(made: Instance, *, batch: int, contiguous: bool) -> Schedule:
    """Request-level batches: reserve everything, prefill whole prompts, decode until the last has finished."""
    book = Recorder(made, None)
    r, now = made.requests, 0
    for begin in range(0, len(r), batch):
        group = list(range(begin, min(begin + batch, len(r))))
        now = max(now, round(r.arrival_s[group[-1]] * NS))
        offset = 0
        for i in group:
            tokens = book.prompt[i] + book.output[i] - 1
            book.hold(i, tokens, offset if contiguous else -1)
            offset += tokens
        now = book.step(now, [(i, book.prompt[i]) for i in group], [])
        while any(i in book.context for i in group):
            now = book.step(now, [], [i for i in group if i in book.context])
        for i in group:
            book.release(i)
    return book.schedule()

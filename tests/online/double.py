"""An engine to test against: it does what it is told, keeps its own books, and refuses what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.problem import Engine, StepTime


def toy_engine(**limits) -> Engine:
    settings = {
        "kv_blocks": 30,
        "block_tokens": 4,
        "max_num_batched_tokens": 16,
        "max_num_seqs": 4,
        "step_time": StepTime.affine(base_s=0.01, per_prefill_token_s=1e-4, per_decode_seq_s=1e-4),
    }
    return Engine(name="toy", **settings | limits)


class Infeasible(AssertionError):
    """The step cannot be done."""


@dataclass
class Sequence:
    """A request in the engine."""

    prompt: int
    tokens: int
    kv: int = 0
    runs: bool = False
    believed: int = 0
    cached: int = 0


class EngineDouble:
    """Executes steps; who computes all of its tokens samples one more.

    Of a prompt that the horizon believes to be cached in part (`believed`), it finds `cached` tokens.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sequences: dict[str, Sequence] = {}
        self.most_used = 0
        self.differs: dict[str, int] = {}
        self.fell_short: set[str] = set()
        """What was computed otherwise than planned in the last step, with what was cached."""

    def add(self, name: str, prompt: int, believed: int = 0, cached: int = 0) -> None:
        self.sequences[name] = Sequence(prompt, prompt, believed=min(believed, prompt - 1), cached=cached)

    def drop(self, name: str) -> None:
        self.sequences.pop(name, None)

    def generated(self, name: str) -> int:
        s = self.sequences[name]
        return s.tokens - s.prompt

    def used(self) -> int:
        b = self.engine.block_tokens
        return sum(-(-s.kv // b) for s in self.sequences.values())

    def execute(self, step, short=None, skip=(), behind=()) -> None:
        """Do a step.

        `short`: what is computed of a request in place of the plan; `skip`: who is passed over; `behind`: who may have
        fewer tokens than the step says, for the report that said so was under way.
        """
        short = short or {}
        for name in step.preempt:
            if name in self.sequences:
                self.sequences[name].kv = 0
                self.sequences[name].runs = False
        planned = sum(tokens for _, tokens in step.prefill) + len(step.decode)
        if planned > self.engine.max_num_batched_tokens:
            raise Infeasible(f"{planned} tokens")
        self.differs, self.fell_short = {}, set()
        names = [name for name, _ in step.prefill] + list(step.decode)
        if len(set(names)) != len(names):
            raise Infeasible(f"somebody twice: {names}")
        for name, tokens in (*step.prefill, *((name, 1) for name in step.decode)):
            s = self.sequences.get(name)
            if s is None or name in skip:
                continue
            planned, before = tokens + (0 if s.kv else s.believed), s.kv
            if not s.kv:
                # Who is behind fell short already: its cache is as good as believed.
                s.kv = s.believed if name in behind else s.cached
            left = s.tokens - s.kv
            if name in behind:
                tokens = min(tokens, left)
            if tokens > left:
                raise Infeasible(f"{name}: {tokens} tokens, {left} are left")
            if name in step.decode and (left != 1 or s.tokens == s.prompt):
                raise Infeasible(f"{name} cannot decode: {s}")
            s.runs = True
            done = short.get(name, tokens)
            s.kv += done
            if s.kv - before != planned and name not in behind:
                self.differs[name] = s.kv - before
                if self.differs[name] < planned:
                    self.fell_short.add(name)
            if s.kv == s.tokens:
                s.tokens += 1
        running = sum(s.runs for s in self.sequences.values())
        if running > self.engine.max_num_seqs:
            raise Infeasible(f"{running} seats")
        self.most_used = max(self.most_used, self.used())
        if self.used() > self.engine.kv_blocks:
            raise Infeasible(f"{self.used()} of {self.engine.kv_blocks} blocks")


def books_balance(horizon) -> None:
    """What the horizon keeps as sums equals what its requests hold, one by one."""
    from optimizer.online.state import DECODE, ENDED, PREFILL, WAITING

    s = horizon.loop.state
    b = s.block_tokens
    running = s.running()
    assert s.used_blocks == sum(-(-s.context(e) // b) for e in running)
    assert s.decode_need() == sum(s.context(e) % b == 0 for e in s.decoding.values())
    assert s.context_sum == sum(s.context(e) for e in s.decoding.values())
    assert len(running) <= s.seats
    outlook = horizon.loop.composer.outlook
    assert {e.serial for e in running} == set(outlook._place)
    for place, e in enumerate(outlook._members):
        assert outlook._place[e.serial] == place
        if e.phase == DECODE:
            assert outlook._columns[3, place] + s.clock == s.tokens(e)
    assert abs(outlook._promised - sum(e.most for e in running)) < 1e-6 * (1 + outlook._promised)
    assert [e.serial for e in s.entries.values()] == list(s.by_serial)
    for e in s.entries.values():
        assert (e.phase == PREFILL) == (e.serial in s.prefilling)
        assert (e.phase == DECODE) == (s.decoding.get(e.request.id) is e)
        assert (e.phase == ENDED) == (e.serial in s.ended)
        assert 0 <= s.generated(e) <= e.cap
        if e.phase == WAITING:
            assert s.context(e) == 0
        if e.phase == DECODE:
            assert s.generated(e) < e.cap
    waiting = [e for e in s.entries.values() if e.phase == WAITING]
    assert len(waiting) == s.waiting
    assert {e.serial for e in horizon.loop.order.line.first(10**6)} == {e.serial for e in waiting}

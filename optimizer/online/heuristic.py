"""Composes a step in microseconds: decodes, and prompts in order of their places, as far as memory is safe."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

from optimizer.online.line import Order
from optimizer.online.outlook import Outlook
from optimizer.online.rule import Rule
from optimizer.online.state import PREFILL, WAITING, Entry, State

MOST_ADMISSIONS = 64
"""In one step: what is left comes a step later, and the loop does not wait for it."""
_place = attrgetter("key", "serial")


@dataclass(slots=True)
class Draft:
    """A step while it is composed; what stands in it has been done to the state.

    Attributes
    ----------
    preempt, prefill, decode
        As in `Step`.
    chunks
        As `prefill`: (request, tokens with those that are believed to be cached, whether an output token is sampled).
    thrown_out
        How many lost their seat; the engine need not hear of those of whom it had computed nothing.
    """

    preempt: list[str] = field(default_factory=list)
    prefill: list[tuple[str, int]] = field(default_factory=list)
    chunks: list[tuple[Entry, int, bool]] = field(default_factory=list)
    decode: tuple[str, ...] = ()
    thrown_out: int = 0


class Composer:
    """Turns places into steps that the engine can run.

    Parameters
    ----------
    state
        What there is.
    order
        Who waits.
    rule
        What decides.
    """

    def __init__(self, state: State, order: Order, rule: Rule) -> None:
        self._state, self._order, self._rule = state, order, rule
        self.outlook = Outlook(state, rule.deviations, certain=state.engine.preemption == "none")
        self._seats = 0
        """That may still be taken in the step being composed."""
        self._alone = False
        """Whether urgent prompts have the step being composed to themselves."""
        self._alternates = False
        """Whether the last step was for prompts alone: then decodes have their turn."""

    # ---- the step

    def compose(self, draft: Draft, now_s: float) -> None:
        """Decide the next step by the plan and the rule."""
        s = self._state
        self._alone = False
        self._make_room(draft, by_rule=True)
        wanted: list[tuple[Entry, int]] = []
        decodes = len(s.decoding)
        if (s.prefilling or s.waiting) and not (self._alternates and decodes):
            wanted = self._choose(draft, now_s)
        self._alternates = False
        tokens = sum(n for _, n in wanted)
        if (
            tokens
            and decodes
            and (self._alone or self._rule.exclusive(s, tokens, wanted[0][0].computed, decodes))
        ):
            self._alternates = self._rule.knobs.mode == "auto" and not self._alone
            self._compute(draft, wanted, now_s)
            if draft.chunks:
                return
        self._decode(draft)
        self._compute(draft, wanted, now_s)
        self._unblock(draft, now_s, by_rule=True)

    def first_come(self, draft: Draft, now_s: float) -> None:
        """Decide what is left of the step without predictions, plan or rule: everybody by submission."""
        s = self._state
        if not draft.decode and not draft.chunks:
            self._make_room(draft, by_rule=False)
            self._decode(draft)
        budget = s.token_budget - len(draft.decode) - sum(tokens for _, tokens in draft.prefill)
        begun = {entry.serial for entry, _, _ in draft.chunks}
        for entry in list(s.prefilling.values()):
            if budget > 0 and entry.serial not in begun:
                budget -= self._chunk(draft, entry, min(s.work(entry), budget))
        for entry in s.entries.values() if s.waiting and not draft.thrown_out else ():
            if budget <= 0 or s.taken_seats >= s.seats:
                break
            if entry.phase == WAITING:
                if s.blocks_of(entry.known) > s.free_blocks or not self.outlook.is_safe(entry):
                    break
                self._admit(entry)
                budget -= self._chunk(draft, entry, min(s.work(entry), budget))
        self._unblock(draft, now_s, by_rule=False)

    def _make_room(self, draft: Draft, *, by_rule: bool) -> None:
        """Throw out, until all others can decode."""
        s = self._state
        while s.decode_need() > s.free_blocks and (s.decoding or s.prefilling):
            self._throw_out(draft, None, by_rule)

    def _decode(self, draft: Draft) -> None:
        draft.decode = tuple(self._state.decoding)
        if draft.decode:
            self._state.decode()

    def _choose(self, draft: Draft, now_s: float) -> list[tuple[Entry, int]]:
        """Choose whose prompts to compute and how much of each, and admit them."""
        s, rule, order = self._state, self._rule, self._order
        begun = sorted(s.prefilling.values(), key=_place)
        prefix = begun[0].computed if begun else 0
        self._seats = 0
        if s.waiting and not draft.thrown_out:
            self._seats = min(min(rule.seats(), s.seats) - s.taken_seats, MOST_ADMISSIONS)
        if not begun and self._seats <= 0:
            return []
        wanted: list[tuple[Entry, int]] = []
        if rule.objective == "goodput":
            entries, most, alone = rule.urgent(s, order.line, prefix, now_s)
            left = most
            for entry in entries:
                if left > 0 and (entry.phase == PREFILL or self._let_in(entry)):
                    wanted.append((entry, min(s.work(entry), left)))
                    left -= wanted[-1][1]
            self._alone = alone and bool(wanted)
            if self._alone:
                return wanted
            served = {entry.serial for entry, _ in wanted}
            begun = [entry for entry in begun if entry.serial not in served]
            budget = left = rule.prompt_tokens(s, prefix, now_s) - (most - left)
        else:
            budget = left = rule.prompt_tokens(s, prefix, now_s)
        hurries = bool(wanted)
        place = 0
        while left > 0:
            first = order.head() if self._seats > 0 else None
            following = begun[place] if place < len(begun) else None
            if first is not None and following is not None and following.key < first.key:
                first = None
            if first is not None and self._let_in(first):
                following = first
            elif following is None:
                break
            else:
                place += 1
            wanted.append((following, min(s.work(following), left)))
            left -= wanted[-1][1]
        waits = left > 0 and wanted and s.decoding and not hurries
        if waits and rule.wait_for_company(s, budget - left, len(wanted)):
            return []
        return wanted

    def _let_in(self, entry: Entry) -> bool:
        """Admit a waiting request if there is a seat, blocks for its prompt, and memory for what all may become."""
        if self._seats <= 0:
            return False
        if not self.fits(entry):
            self._seats = 0
            return False
        self._rule.started(entry)
        self._admit(entry)
        self._seats -= 1
        return True

    def fits(self, entry: Entry) -> bool:
        """Say whether memory is safe with one more request."""
        s = self._state
        if s.blocks_of(entry.known) + s.decode_need() > s.free_blocks:
            return False
        return self.outlook.is_safe(entry)

    def _admit(self, entry: Entry) -> None:
        self._order.line.gone(entry)
        self._state.admit(entry)
        self.outlook.add(entry)

    def _compute(self, draft: Draft, wanted: list[tuple[Entry, int]], now_s: float) -> None:
        """Compute chunks as far as there are blocks."""
        for entry, tokens in wanted:
            first = entry.known == entry.request.prompt_tokens
            if not self._chunk(draft, entry, tokens):
                return
            if first and draft.chunks[-1][2]:
                self._rule.begun(entry, now_s)

    def _chunk(self, draft: Draft, entry: Entry, tokens: int) -> int:
        """Compute as much of a prompt as blocks allow, behind what is cached, which takes blocks as well; give how much."""
        s = self._state
        skipped = s.skipped(entry)
        if s.chunk_need(entry, skipped + tokens) > s.free_blocks:
            room = (s.blocks_of(entry.computed) + s.free_blocks) * s.block_tokens - entry.computed
            tokens = min(tokens, room - skipped)
            if tokens <= 0:
                return 0
        sampled = s.compute(entry, skipped + tokens)
        if sampled:
            self.outlook.seated(entry)
        draft.prefill.append((entry.request.id, tokens))
        draft.chunks.append((entry, skipped + tokens, sampled))
        return tokens

    def _unblock(self, draft: Draft, now_s: float, *, by_rule: bool) -> None:
        """Throw out until something can be computed, where prompts that have begun hold all blocks."""
        s = self._state
        while not draft.chunks and not draft.decode and s.prefilling:
            entry = min(s.prefilling.values(), key=_place)
            self._compute(draft, [(entry, min(s.work(entry), s.token_budget))], now_s)
            if draft.chunks or len(s.prefilling) == 1:
                return
            self._throw_out(draft, entry, by_rule)

    def _throw_out(self, draft: Draft, keep: Entry | None, by_rule: bool) -> None:
        """Preempt whoever comes last."""
        s = self._state
        running = [e for e in (*s.prefilling.values(), *s.decoding.values()) if e is not keep]
        entry = max(running, key=_place if by_rule else attrgetter("life", "serial"))
        if s.context(entry):
            draft.preempt.append(entry.request.id)
        draft.thrown_out += 1
        self.leave(entry)
        self.outlook.forget()
        s.preempt(entry)
        self._order.line.push(entry)
        self._rule.stopped(entry, s.generated(entry))

    def enter(self, entry: Entry) -> None:
        """Take a request that holds a seat into the outlook, or anew where it was moved."""
        self.outlook.remove(entry)
        self.outlook.add(entry)

    def leave(self, entry: Entry) -> None:
        """Take a request out of the outlook."""
        self.outlook.remove(entry)

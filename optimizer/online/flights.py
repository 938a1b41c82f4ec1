"""Steps that were handed out and not reported yet, and what a report changes.

A step counts as done as soon as it is composed. So a report that says the same changes nothing, reports may come in any
order, and one that says something else moves a request by the difference.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from optimizer.online.heuristic import Composer
from optimizer.online.messages import Step
from optimizer.online.state import ENDED, WAITING, Entry, State
from optimizer.online.stats import Counts

_MOST = 64
"""Steps whose report is waited for."""


@dataclass(slots=True)
class Flight:
    """A step that is under way.

    Attributes
    ----------
    chunks
        (request, tokens, whether a token is sampled).
    expected_ticks
        How long it takes by the engine's card.
    void
        Serials of requests for which it did nothing, because a step before it had fallen short.
    """

    step: Step
    chunks: list[tuple[Entry, int, bool]]
    expected_ticks: int
    void: set[int] = field(default_factory=set)
    _decoded: frozenset[str] | None = field(default=None)

    def part(self, entry: Entry) -> tuple[int, int]:
        """Give the tokens of a request that the step was to compute, and how many it samples."""
        if entry.serial in self.void:
            return 0, 0
        for chunk, tokens, sampled in self.chunks:
            if chunk is entry:
                return tokens, int(sampled)
        return (1, 1) if self.decodes(entry) else (0, 0)

    def decodes(self, entry: Entry) -> bool:
        """Say whether a request was to decode in the step."""
        if self._decoded is None:
            self._decoded = frozenset(self.step.decode)
        named = entry.request.id in self._decoded and entry.born <= self.step.number
        return named and entry.serial not in self.void


class Flights:
    """All steps that are under way.

    Parameters
    ----------
    state, composer
        What reports move.
    counts
        Where reports are counted that are on nobody, on no step, or of less than was planned.
    """

    def __init__(self, state: State, composer: Composer, counts: Counts) -> None:
        self._state, self._composer, self.counts = state, composer, counts
        self._flights: OrderedDict[int, Flight] = OrderedDict()

    def add(self, flight: Flight) -> int | None:
        """Enter a step; give the number of an old one that is not waited for any more."""
        self._flights[flight.step.number] = flight
        return self._flights.popitem(last=False)[0] if len(self._flights) > _MOST else None

    def take(self, step: Step) -> Flight | None:
        """Give a step that is reported, once."""
        flight = self._flights.get(step.number)
        if flight is None or flight.step != step:
            self.counts.repeated_reports += bool(step)
            return None
        return self._flights.pop(step.number)

    def all(self) -> list[Flight]:
        """Give them, oldest first."""
        return list(self._flights.values())

    def forget(self) -> None:
        """Wait for no report any more."""
        self._flights.clear()

    def ahead(self, number: int, entry: Entry) -> int:
        """Give the output tokens that steps after this one are to sample for a request."""
        return sum(later.part(entry)[1] for later in self._later(number))

    def _later(self, number: int) -> list[Flight]:
        return [flight for n, flight in self._flights.items() if n > number]

    def find(self, number: int, name: str) -> Entry | None:
        """Give the request that a step knew by this name; None: it is gone, or another one has its name."""
        entry = self._state.entries.get(name)
        if entry is None or entry.born > number:
            self.counts.unknown_ids += 1
            return None
        return entry

    def correct(self, flight: Flight, name: str, computed: int) -> None:
        """Move a request to where the engine says that it is.

        Parameters
        ----------
        flight
            Which the engine is done with.
        computed
            Tokens of the request that it computed in it.
        """
        s, number = self._state, flight.step.number
        entry = self.find(number, name)
        if entry is None or entry.life < 0:
            self.counts.unknown_ids += entry is not None
            return
        planned, sampled = flight.part(entry)
        difference = max(0, computed) - planned
        if not difference:
            return
        # Of a request that was thrown out since only the tokens count, not its KV.
        kept = entry.phase != WAITING and entry.life <= number
        known, held = s.tokens(entry), s.context(entry)
        if difference < 0:
            self.counts.short_steps += 1
            # What was to follow in steps that are under way cannot have been done either.
            until = s.number if kept or entry.phase == WAITING else entry.life
            known, held = known - sampled, held + difference
            for later in self._later(number):
                if later.step.number < until:
                    tokens, samples = later.part(entry)
                    known, held = known - samples, held - tokens
                    later.void.add(entry.serial)
        elif flight.decodes(entry) or (not planned and known - held == 1):
            known, held = known + difference, held + difference
        elif not sampled:
            held = min(held + difference, known)
            known += kept and held == known
        self._composer.leave(entry)
        s.move(entry, known, held if kept else s.context(entry))
        if entry.phase == WAITING:
            return
        self._composer.enter(entry)
        if entry.phase == ENDED:
            entry.ended = max([number, *(f.step.number for f in self._later(number) if f.part(entry)[1])])

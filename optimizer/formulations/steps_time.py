"""The step-time model in whole numbers small enough for CP-SAT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from optimizer.problem.engine import StepPiece, StepTime
from optimizer.units import TICKS_PER_SECOND, ticks

LARGEST = 1 << 42
"""Times in units stay below this, so that sums of them with weights and counts fit into 62 bits."""

PHASES = ("prefill", "decode", "mixed")


class Rates(NamedTuple):
    """One affine piece of a step's time, in units; see `StepPiece` for what they are rates of."""

    base: int
    prefill_token: int
    prefill_attention: int
    prefill_seq: int
    prefill_context: int
    decode_seq: int
    decode_context: int


class Regime(NamedTuple):
    """Where pieces hold: in these phases, from `least` to `most` tokens (None: no end)."""

    phases: tuple[str, ...]
    least: int
    most: int | None
    pieces: tuple[Rates, ...]


@dataclass(frozen=True, slots=True)
class WholeStepTime:
    """A `StepTime` in units of `unit_ticks`, every rate rounded down.

    Attributes
    ----------
    unit_ticks
        Length of the unit; see `choose_unit`.
    regimes
        Disjoint, and together all steps.
    """

    unit_ticks: int
    regimes: tuple[Regime, ...]

    @classmethod
    def of(cls, model: StepTime, unit_ticks: int) -> WholeStepTime:
        """Round a model down to units."""
        found: dict[tuple[int, int | None, tuple[Rates, ...]], list[str]] = {}
        for phase in PHASES:
            for regime in _of_phase(model, phase, unit_ticks):
                found.setdefault(regime, []).append(phase)
        return cls(unit_ticks, tuple(Regime(tuple(phases), *regime) for regime, phases in found.items()))

    def least_work(self, rates: Rates, prompt: int, tokens: int, *, again: bool) -> int:
        """Give twice the units that a request adds to its steps until it has put out some tokens, by one floor.

        Parameters
        ----------
        rates
            One of `floors()`.
        prompt, tokens
            Of the prompt; put out.
        again
            Whether a token may also come of computing the whole context anew.
        """
        work = self.prefill(rates, prompt)
        for context in range(prompt + 1, prompt + tokens):
            decode = self.decode(rates, context)
            work += min(decode, self.prefill(rates, context)) if again else decode
        return work

    @property
    def least(self) -> int:
        """Units that a step takes at least: one token, in the regime where that is cheapest."""
        return min(
            max(
                piece.base
                + min(
                    piece.prefill_token + piece.prefill_attention + piece.prefill_seq + piece.prefill_context
                    if phase != "decode"
                    else piece.decode_seq + piece.decode_context
                    for phase in regime.phases
                )
                for piece in regime.pieces
            )
            for regime in self.regimes
        )

    @property
    def monotone(self) -> bool:
        """Whether a step never becomes shorter by computing more."""
        return len(self.regimes) == 1

    @property
    def affine(self) -> bool:
        """Whether one affine function gives the time of every step: then work costs the same in whatever step it is."""
        return self.monotone and len(self.regimes[0].pieces) == 1

    def recomputing_pays(self, contexts: range) -> bool:
        """Say whether computing a whole context anew may be cheaper than one decode with it."""
        return not self.monotone or any(
            self.decode(rates, context) > self.prefill(rates, context)
            for rates in self.regimes[0].pieces
            for context in contexts
        )

    @staticmethod
    def prefill(rates: Rates, context: int) -> int:
        """Give twice the units that a prompt adds that is computed at once."""
        linear = rates.prefill_seq + (rates.prefill_token + rates.prefill_context) * context
        return 2 * linear + rates.prefill_attention * context * (context + 1)

    @staticmethod
    def decode(rates: Rates, context: int) -> int:
        """Give twice the units that a decode adds, by the context after it."""
        return 2 * (rates.decode_seq + rates.decode_context * context)

    def uses(self, rate: str) -> bool:
        """Say whether any piece has this rate."""
        return any(getattr(piece, rate) for regime in self.regimes for piece in regime.pieces)

    def floors(self) -> tuple[Rates, ...]:
        """Give affine functions that are at most the time of every step, whatever its regime.

        Of one regime they are all its pieces: the largest of them is the time.
        """
        if self.monotone:
            return self.regimes[0].pieces
        chosen = {
            tuple(max(regime.pieces, key=lambda piece: (piece[rate], piece)) for regime in self.regimes)
            for rate in range(len(Rates._fields))
        }
        return tuple(sorted({Rates(*map(min, zip(*pieces, strict=True))) for pieces in chosen}))


def choose_unit(model: StepTime, moments: list[int], horizon: int) -> tuple[int, bool]:
    """Choose the length of the unit, in ticks, and say whether nothing is rounded with it.

    Parameters
    ----------
    model
        Step times.
    moments
        Arrivals, in ticks.
    horizon
        Moment in ticks by which everything is over.

    Returns
    -------
    tuple
        The greatest common divisor of all rates and moments, if the horizon is below `LARGEST` of it: then
        nothing is rounded. Else the least power of ten with which it is.

    Examples
    --------
    >>> choose_unit(StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5), [0], 10**15)
    (20000000000, True)
    """
    rates = [ticks(rate) for regime in model.regimes for piece in regime.pieces for _, rate in piece]
    divisor = math.gcd(*rates, *moments)
    if horizon // divisor < LARGEST:
        return divisor, True
    unit = 1
    while horizon // unit >= LARGEST:
        unit *= 10
    return unit, divisor % unit == 0


def to_seconds(units: float, unit_ticks: int) -> float:
    """Give units as seconds.

    >>> to_seconds(3, 10**12)
    0.003
    """
    return units * unit_ticks / TICKS_PER_SECOND


def _of_phase(model: StepTime, phase: str, unit: int) -> list[tuple[int, int | None, tuple[Rates, ...]]]:
    """Regimes of a phase with the tokens for which they hold; as `StepClock` reads them."""
    exact = {r.min_tokens: r for r in model.regimes if r.phase == phase}
    any_phase = {} if 0 in exact else {r.min_tokens: r for r in model.regimes if r.phase == "any"}
    by_least = sorted((any_phase | exact).items())
    ends = [least - 1 for least, _ in by_least[1:]]
    return [
        (least, most, _maximal([_floored(piece, unit) for piece in regime.pieces]))
        for (least, regime), most in zip(by_least, [*ends, None], strict=True)
    ]


def _floored(piece: StepPiece, unit: int) -> Rates:
    return Rates(*(ticks(rate) // unit for _, rate in piece))


def _maximal(pieces: list[Rates]) -> tuple[Rates, ...]:
    """Leave out pieces that another one is never below."""
    distinct = sorted(set(pieces))
    return tuple(
        piece
        for piece in distinct
        if not any(
            other != piece and all(a <= b for a, b in zip(piece, other, strict=True)) for other in distinct
        )
    )

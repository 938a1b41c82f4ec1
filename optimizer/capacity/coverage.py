"""What a step log does not tell of its engine: gaps, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from optimizer.capacity.cards import EngineCard, FitError
from optimizer.capacity.steplog import PHASES, WORK, Floats, StepLog

_FEW = 30
"""Steps of a phase below which its error says little."""
_NARROW = 2.0
"""Spread of the context of a request (95th over 5th percentile) below which its cost cannot be told."""
_ALIKE = 0.05
"""Share of a quantity that others do not explain, below which the two cannot be told apart."""
_POOR = 0.1
"""Median error of a step above which the card is not worth much."""

_NAMES = {"decode": "only decode", "prefill": "only prefill", "mixed": "prefill and decode"}


def gaps(
    log: StepLog, fit_error: Mapping[str, FitError], card: EngineCard, estimated: Sequence[str] = ()
) -> list[str]:
    """Say what to be wary of in a card, a sentence each.

    Parameters
    ----------
    log
        What the card was fitted to.
    fit_error
        On steps held out.
    card
        Its limits are compared with what the log has seen, and its rates with zero.
    estimated
        Phases that the log could not tell.
    """
    return [
        *_phases(log, estimated),
        *_sizes(log, card),
        *_apart(log, card),
        *_quality(fit_error),
    ]


def _phases(log: StepLog, estimated: Sequence[str]) -> Iterator[str]:
    for phase in PHASES:
        steps = int((log.phase == phase).sum())
        if phase in estimated:
            yield (
                f"Too few steps that {_NAMES[phase]}, {steps} in all: their times are estimated from specifications."
            )
        elif not steps:
            yield f"No steps that {_NAMES[phase]}: their times follow from the others."
        elif steps < _FEW:
            yield f"Few steps that {_NAMES[phase]}, {steps} in all: their times rest on little."


def _sizes(log: StepLog, card: EngineCard) -> Iterator[str]:
    for name, limit, noun in (
        ("decode_seqs", card.max_num_seqs, "requests decoding at once"),
        ("prefill_tokens", card.max_num_batched_tokens, "prompt tokens in a step"),
    ):
        most = int(_column(log, name).max())
        if 0 < most < limit / 2:
            yield (
                f"No large batches: at most {most:,} {noun}, where the card allows {limit:,}; beyond is extrapolation."
            )
    decodes = _column(log, "decode_seqs") > 0
    if decodes.any():
        mean = _column(log, "decode_context")[decodes] / _column(log, "decode_seqs")[decodes]
        low, high = np.quantile(mean, (0.05, 0.95))
        if high < _NARROW * low:
            yield (
                f"A narrow range of context: {low:,.0f} to {high:,.0f} tokens per decoding request in nine of ten "
                "steps; what longer ones cost is a guess."
            )


def _apart(log: StepLog, card: EngineCard) -> Iterator[str]:
    pieces = [piece for regime in card.step_time.regimes for piece in regime.pieces]
    prefills = log.work[:, 0] > 0
    if prefills.any():
        others = [_column(log, name)[prefills] for name in ("prefill_tokens", "prefill_seqs")]
        if _unexplained(_column(log, "prefill_attention")[prefills], others) < _ALIKE:
            yield (
                "Attention cannot be told from tokens: prompts are all alike; log some that are long, and cut into chunks."
            )
        elif not any(piece.per_prefill_attention_s for piece in pieces):
            yield "Attention of prompts came out as free: they are too short to show it; log longer ones."
    decodes = log.work[:, 3] > 0
    if decodes.any():
        context, seqs = (_column(log, name)[decodes] for name in ("decode_context", "decode_seqs"))
        if _unexplained(context, [seqs]) < _ALIKE:
            yield (
                "Context cannot be told from the number of requests: it grows in step with it; log several lengths."
            )
        elif not any(piece.per_decode_context_s for piece in pieces):
            yield "Context of decoding requests came out as free; log longer ones."


def _quality(fit_error: Mapping[str, FitError]) -> Iterator[str]:
    if fit_error["all"].steps < _FEW:
        yield f"Few measurements are held out, {fit_error['all'].steps} in all: the error itself is uncertain."
    poor = [name for name, of in fit_error.items() if of.median > _POOR and name != "all"]
    for name in poor:
        yield (
            f"A median error of {100 * fit_error[name].median:.0f} % of steps that {_NAMES[name]}: the form does not fit; "
            "was it one engine, with one setting, and nothing else on the GPU and its host?"
        )


def _unexplained(target: Floats, others: Sequence[Floats]) -> float:
    """Share of a quantity (root mean square, after scaling by its size) that others do not explain linearly."""
    matrix = np.stack([np.ones_like(target), *others], axis=1) / np.maximum(target, 1.0)[:, None]
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)
    one = target / np.maximum(target, 1.0)
    found = np.linalg.lstsq(matrix / scale, one, rcond=None)[0]
    return float(np.sqrt(np.mean((one - matrix / scale @ found) ** 2)))


def _column(log: StepLog, name: str) -> Floats:
    column: Floats = log.work[:, WORK.index(name)]
    return column

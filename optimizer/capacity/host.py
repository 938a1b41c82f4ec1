"""What asynchronous scheduling hides: from step times of a synchronous engine to those of the engine as users run it.

In a synchronous step the host prepares the inputs, waits for the GPU, and takes the tokens over, one after the other. An
asynchronous engine prepares the next step meanwhile: a step takes the longer of what the GPU and the host need.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from optimizer.capacity.steplog import StepLog, predict, windows
from optimizer.problem.engine import StepPiece, StepRegime, StepTime

_LEAST_BASE_S = 1e-6


@dataclass(frozen=True, slots=True)
class Host:
    """The host's part of a step, in seconds.

    Attributes
    ----------
    hidden_decode_s, hidden_prefill_s
        What a synchronous step takes longer: one that only decodes (a single captured graph), any other.
    hidden_context_s
        The same for each token of context of a step that only decodes.
    busy_s, busy_seq_s
        What the host itself needs for a step that prefills: fixed, and for each decoding request. The GPU
        hides it unless many requests decode beside a short prefill.
    """

    hidden_decode_s: float
    hidden_prefill_s: float
    hidden_context_s: float
    busy_s: float = 0.0
    busy_seq_s: float = 0.0


def asynchronous(model: StepTime, host: Host) -> StepTime:
    """Turn a model of synchronous steps into one of asynchronous steps: max(GPU, host).

    Examples
    --------
    >>> host = Host(0.001, 0.002, 0.0, busy_s=0.005, busy_seq_s=5e-5)
    >>> changed = asynchronous(StepTime.affine(base_s=0.006), host)
    >>> [(r.phase, len(r.pieces), round(r.pieces[0].base_s, 4)) for r in changed.regimes]
    [('decode', 1, 0.005), ('any', 2, 0.004)]
    """
    own_decode = any(r.phase == "decode" and r.min_tokens == 0 for r in model.regimes)
    found = []
    for regime in model.regimes:
        if regime.phase == "decode" or (regime.phase == "any" and not own_decode):
            found.append(_decoding(regime, host))
        if regime.phase != "decode":
            found.append(_prefilling(regime, host))
    return StepTime(regimes=tuple(found))


def _decoding(regime: StepRegime, host: Host) -> StepRegime:
    pieces = tuple(
        piece.model_copy(
            update={
                "base_s": max(_LEAST_BASE_S, piece.base_s - host.hidden_decode_s),
                "per_decode_context_s": max(0.0, piece.per_decode_context_s - host.hidden_context_s),
            }
        )
        for piece in regime.pieces
    )
    return StepRegime(phase="decode", min_tokens=regime.min_tokens, pieces=pieces)


def _prefilling(regime: StepRegime, host: Host) -> StepRegime:
    pieces = [
        piece.model_copy(update={"base_s": max(_LEAST_BASE_S, piece.base_s - host.hidden_prefill_s)})
        for piece in regime.pieces
    ]
    if host.busy_s:
        pieces.append(StepPiece(base_s=host.busy_s, per_decode_seq_s=host.busy_seq_s))
    return StepRegime(phase=regime.phase, min_tokens=regime.min_tokens, pieces=tuple(pieces))


def fit_hidden(synchronous: StepTime, log: StepLog, window: int = 25) -> Host:
    """Fit what an asynchronous engine hides of synchronous step times, on the log of one run.

    Parameters
    ----------
    synchronous
        Fitted to synchronous steps of the same engine.
    log
        Steps of a run whose host was not the bottleneck.
    window
        Steps whose total is compared (`windows`).

    Returns
    -------
    Host
        With the `hidden_*` figures; `busy_*` are 0.
    """
    first, _, seconds = windows(log, window)
    rows = first[:, None] + np.arange(window)
    decodes = (log.phase == "decode").astype(float)
    causes = np.stack([decodes, 1 - decodes, decodes * log.work[:, 4]], axis=1)[rows].sum(axis=1)
    surplus = predict(synchronous, log)[rows].sum(axis=1) - seconds
    found = np.linalg.lstsq(causes / seconds[:, None], surplus / seconds, rcond=None)[0]
    decode_s, prefill_s, context_s = (max(0.0, float(x)) for x in found)
    return Host(decode_s, prefill_s, context_s)


def fit_busy(synchronous: StepTime, host: Host, log: StepLog, busy_s: float, window: int = 25) -> Host:
    """Fit the host's time per decoding request, on a run in which the host was the bottleneck.

    Parameters
    ----------
    synchronous, host
        As fitted before.
    log
        Many requests that decode, short prefills beside them.
    busy_s
        The fixed part, from elsewhere: one run tells only one of the two.
    window
        Steps whose total is compared.

    Returns
    -------
    Host
        With the rate, in steps of a microsecond, at which the total time of the run is right.
    """
    first, end, seconds = windows(log, window)

    def missing(rate: float) -> float:
        model = asynchronous(synchronous, replace(host, busy_s=busy_s, busy_seq_s=rate))
        until = np.concatenate([[0.0], np.cumsum(predict(model, log))])
        return abs(float((until[end] - until[first]).sum() / seconds.sum() - 1))

    rates = [n * 1e-6 for n in range(0, 151)]
    return replace(host, busy_s=busy_s, busy_seq_s=min(rates, key=missing))

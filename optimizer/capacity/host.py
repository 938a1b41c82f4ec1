"""The host's part of a step: what it costs when the engine waits for it, what of it asynchronous scheduling hides.

In a synchronous step the host composes the batch, prepares the inputs, launches the kernels, waits for the GPU, and takes
the tokens over, one after the other. An asynchronous engine composes and prepares the next step meanwhile: a
step takes the longer of what the GPU and the host need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.capacity.least_squares import robust_weights
from optimizer.capacity.specifications import GPU, LLM
from optimizer.capacity.steplog import StepLog, predict, windows
from optimizer.problem.engine import StepPiece, StepRegime, StepTime

KV_READ = 0.92
"""Share of the memory bandwidth at which a large batch of decodes reads its KV cache (H200, FlashAttention 3)."""

_LEAST_BASE_S = 1e-6
# Beyond the range that makes sense the grid only costs time: a step hides some milliseconds of host time at most.
_HIDDEN_S = tuple(n * 5e-5 for n in range(61))
_BUSY_SEQ_S = tuple(n * 1e-6 for n in range(101))


@dataclass(frozen=True, slots=True)
class Host:
    """The host's part of a step of an asynchronous engine, in seconds.

    Attributes
    ----------
    hidden_s
        What a synchronous step takes longer than the GPU needs.
    busy_seq_s
        What the host needs for each request of a step to compose it and to take its tokens over. The GPU hides it
        unless many requests take part in a small step.
    """

    hidden_s: float
    busy_seq_s: float


def kv_read_s(llm: LLM, gpu: GPU, share: float = KV_READ) -> float:
    """Give the seconds for reading one token of context when the memory bandwidth limits.

    >>> from optimizer.capacity import gpu, llm
    >>> round(1e9 * kv_read_s(llm("llama3.1-8b"), gpu("h200")), 1)  # ns
    29.7
    """
    return llm.kv_bytes_per_token() / (gpu.bandwidth_bytes_s * share)


def asynchronous(model: StepTime, host: Host, context_s: float) -> StepTime:
    """Turn a model of synchronous steps into one of asynchronous steps: max(GPU, host).

    Parameters
    ----------
    model
        Fitted to synchronous steps. A piece of a step with prefills that does not grow with the tokens is the
        time of preparing and launching it: that is the host's.
    host
        The host's part.
    context_s
        Seconds for a token of context of a decode (`kv_read_s`). Synchronously it shows more: copying the block
        tables is part of it.

    Examples
    --------
    >>> changed = asynchronous(StepTime.affine(base_s=0.006), Host(0.001, 5e-5), context_s=3e-8)
    >>> [(r.phase, [round(p.base_s, 4) for p in r.pieces]) for r in changed.regimes]
    [('decode', [0.005, 0.001]), ('any', [0.006])]
    """
    own_decode = any(r.phase == "decode" and r.min_tokens == 0 for r in model.regimes)
    found = []
    for regime in model.regimes:
        if regime.phase == "decode" or (regime.phase == "any" and not own_decode):
            found.append(_decoding(regime, host, context_s))
        if regime.phase != "decode":
            found.append(_prefilling(regime, host, context_s))
    return StepTime(regimes=tuple(found))


def _on_gpu(piece: StepPiece, host: Host, context_s: float) -> StepPiece:
    return piece.model_copy(
        update={
            "base_s": max(_LEAST_BASE_S, piece.base_s - host.hidden_s),
            "per_decode_context_s": min(context_s, piece.per_decode_context_s),
        }
    )


def _decoding(regime: StepRegime, host: Host, context_s: float) -> StepRegime:
    pieces = (_on_gpu(piece, host, context_s) for piece in regime.pieces)
    # One captured graph is launched at once; what is left to the host is what it hides, and the requests.
    own = StepPiece(base_s=max(_LEAST_BASE_S, host.hidden_s), per_decode_seq_s=host.busy_seq_s)
    return StepRegime(phase="decode", min_tokens=regime.min_tokens, pieces=(*pieces, own))


def _prefilling(regime: StepRegime, host: Host, context_s: float) -> StepRegime:
    pieces = []
    for piece in regime.pieces:
        if piece.per_prefill_token_s:
            pieces.append(_on_gpu(piece, host, context_s))
        else:
            pieces.append(
                StepPiece(
                    base_s=piece.base_s,
                    per_prefill_seq_s=piece.per_prefill_seq_s + host.busy_seq_s,
                    per_decode_seq_s=piece.per_decode_seq_s + host.busy_seq_s,
                )
            )
    return StepRegime(phase=regime.phase, min_tokens=regime.min_tokens, pieces=tuple(pieces))


def fit_host(synchronous: StepTime, context_s: float, log: StepLog, window: int = 10) -> Host:
    """Fit the host's part on the log of one asynchronous run, by least squares of the time of stretches of steps.

    Parameters
    ----------
    synchronous, context_s
        As in `asynchronous`.
    log
        A run in which the host is the bottleneck for a time (many requests, short prefills beside them), and is not for
        another (few requests that only decode).
    window
        Steps whose total is compared (`windows`).

    Returns
    -------
    Host
        On a grid of 50 and 1 microseconds.

    Notes
    -----
    Seconds, not relative errors: a host that is now fast, now slow (other processes on its cores) has a mean, and it
    is the mean that a whole run feels.
    """
    first, end, seconds = windows(log, window)

    def squares(host: Host) -> float:
        until = np.concatenate([[0.0], np.cumsum(predict(asynchronous(synchronous, host, context_s), log))])
        return float(((until[end] - until[first] - seconds) ** 2).sum())

    best = Host(0.0, 0.0)
    # The two hardly depend on each other: a few rounds, one at a time, instead of the whole grid.
    for _ in range(4):
        best = min((Host(hidden, best.busy_seq_s) for hidden in _HIDDEN_S), key=squares)
        best = min((Host(best.hidden_s, rate) for rate in _BUSY_SEQ_S), key=squares)
    return best


def fit_loop(log: StepLog) -> tuple[float, float]:
    """Fit what a synchronous engine needs between two steps: from one step's tokens to the dispatch of the next.

    Taking over the tokens of the last step and composing the next one are in it.

    Returns
    -------
    base_s, per_seq_s
        A fixed part, and one for each request of the next step. 0 where the log does not tell: only pairs of
        steps count of which the second goes on with requests of the first.
    """
    seqs = log.work[1:, 2] + log.work[1:, 3]
    follows = (log.workload[1:] == log.workload[:-1]) & (log.work[1:, 3] > 0)
    if follows.sum() < 3:
        return 0.0, 0.0
    between = (log.dispatched_s[1:] - log.completed_s[:-1])[follows]
    columns = np.stack([np.ones(len(between)), seqs[follows]], axis=1)
    if columns[:, 1].min() == columns[:, 1].max():
        return max(0.0, float(np.median(between))), 0.0
    weights = np.ones(len(between))
    for _ in range(30):
        found = np.linalg.lstsq(columns * weights[:, None], between * weights, rcond=None)[0]
        weights = robust_weights(columns @ found - between, floor=1e-5)
    base, rate = (max(0.0, float(x)) for x in found)
    return base, rate


def with_loop(model: StepTime, base_s: float, per_seq_s: float) -> StepTime:
    """Add to each step of a synchronous engine what the host needs before it (`fit_loop`).

    >>> loaded = with_loop(StepTime.affine(base_s=0.004), 0.0002, 1e-5)
    >>> loaded.regimes[0].pieces[0].base_s, loaded.regimes[0].pieces[0].per_decode_seq_s
    (0.0042, 1e-05)
    """

    def slower(piece: StepPiece) -> StepPiece:
        return piece.model_copy(
            update={
                "base_s": piece.base_s + base_s,
                "per_prefill_seq_s": piece.per_prefill_seq_s + per_seq_s,
                "per_decode_seq_s": piece.per_decode_seq_s + per_seq_s,
            }
        )

    return StepTime(
        regimes=tuple(r.model_copy(update={"pieces": tuple(map(slower, r.pieces))}) for r in model.regimes)
    )

"""What a scheduler is told of output lengths: exact, a bucket, an interval, a noisy estimate, or nothing."""

from __future__ import annotations

import numpy as np

from optimizer.errors import InputError
from optimizer.problem.columns import Floats
from optimizer.problem.requests import LengthKnowledge, Requests

SPELLINGS = "exact, none, bucket:TOKENS, interval:FRACTION, noise:SIGMA"


def default_cap(requests: Requests) -> int:
    """Give the cap that stands in where clients gave none: one for all, a power of two, at least 2,048.

    It says no more of one request than of another.
    """
    longest = int(requests.output_tokens.max())
    return max(2048, 1 << (longest - 1).bit_length())


def with_knowledge(requests: Requests, spelling: str, *, seed: int = 0) -> Requests:
    """Give the requests with what may be known of their output lengths.

    Parameters
    ----------
    requests
        Any requests; what they knew before is replaced.
    spelling
        `exact`; `none`; `bucket:50` (rounded up to a multiple of 50, as Sequence-Scheduling does);
        `interval:0.3` (an interval 60 % as wide as the length, placed at random around it);
        `noise:0.5` (an estimate off by a log-normal factor of that sigma, as predictors are measured).
    seed
        For the interval and the noise.

    Raises
    ------
    InputError
        On any other spelling.

    Examples
    --------
    >>> r = Requests.from_columns({"prompt_tokens": [5], "output_tokens": [123]})
    >>> with_knowledge(r, "bucket:50").known.high.tolist()
    [150]
    """
    kind, _, number = spelling.partition(":")
    true = requests.output_tokens
    cap = requests.max_output_tokens
    most = np.full(len(requests), default_cap(requests), dtype=np.int64) if cap is None else cap
    least = np.ones(len(requests), dtype=np.int64)
    if kind in ("exact", "none") and not number:
        return requests.replace(known=LengthKnowledge(true, true) if kind == "exact" else None)
    try:
        amount = float(number)
        if not 0 < amount < 1e6:
            raise ValueError
    except ValueError:
        raise InputError(
            f"{spelling!r} is no knowledge of lengths; expected one of {SPELLINGS}", field="lengths"
        ) from None
    rng = np.random.default_rng(seed)
    if kind == "bucket":
        high = np.minimum((np.ceil(true / amount) * amount).astype(np.int64), np.maximum(most, true))
        low = np.maximum(least, (np.floor((true - 1) / amount) * amount).astype(np.int64) + 1)
        return requests.replace(known=LengthKnowledge(low, np.maximum(high, true)))
    if kind == "interval":
        place: Floats = rng.random(len(requests))
        low = np.clip(np.floor(true * (1 - 2 * amount * place)), 1, true).astype(np.int64)
        high = np.maximum(true, np.ceil(true * (1 + 2 * amount * (1 - place))).astype(np.int64))
        return requests.replace(known=LengthKnowledge(low, high))
    if kind == "noise":
        mean: Floats = np.clip(true * np.exp(rng.normal(0.0, amount, len(requests))), 1.0, most).astype(
            np.float64
        )
        return requests.replace(known=LengthKnowledge(least, most, mean, np.full(len(requests), amount)))
    raise InputError(f"{spelling!r} is no knowledge of lengths; expected one of {SPELLINGS}", field="lengths")

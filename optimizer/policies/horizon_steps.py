"""What a card's step times say about steps: what they cost, how large chunks and batches had better be.

Pure functions of `StepClock`, so that any serving loop can use them; `StepRule` remembers what they gave. Times are
in seconds, sizes in tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from optimizer.capacity.step_time import StepClock
from optimizer.problem.engine import StepTime
from optimizer.units import seconds

USUAL, LATE, LEVELS = 1.3, 2.6, 4
"""Time limits of a mixed step, in efficient prompt steps: usually, and under the most pressure; the levels from one to
the other."""
LEAST = 0.65
"""What prompts get beside decodes that take long by themselves, in efficient prompt steps."""


def step_s(clock: StepClock, tokens: int, prefix: int, decodes: int = 0, context: int = 0) -> float:
    """Give the time of a step: one chunk of a prompt behind a prefix, beside requests that decode.

    >>> from optimizer.problem import StepTime
    >>> clock = StepClock(StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5, per_decode_seq_s=2e-5))
    >>> step_s(clock, 100, 0, 10), step_s(clock, 0, 0, 10)
    (0.0062, 0.0042)
    """
    if not tokens:
        return seconds(clock.step(0, 0, 0, 0, decodes, context)) if decodes else 0.0
    attention = tokens * prefix + tokens * (tokens + 1) // 2
    return seconds(clock.step(tokens, attention, 1, prefix + tokens, decodes, context))


def efficient_step_s(clock: StepClock, budget: int, slack: float = 0.05) -> float:
    """Give the time of the shortest prompt step whose tokens cost at most `slack` more than in any other one.

    Shorter steps waste the engine's fixed costs; longer ones only make others wait.

    >>> from optimizer.problem import StepTime
    >>> clock = StepClock(StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5))
    >>> round(efficient_step_s(clock, 8192), 4)
    0.0618
    """
    times = [(tokens, step_s(clock, tokens, 0)) for tokens in _sizes(budget)]
    least = min(time / tokens for tokens, time in times)
    return next(time for tokens, time in times if time <= (1 + slack) * least * tokens)


def jumps(model: StepTime) -> list[int]:
    """Give the step sizes in tokens after which another regime of the step times begins.

    >>> from optimizer.problem import StepPiece, StepRegime
    >>> later = StepRegime(min_tokens=65, pieces=(StepPiece(base_s=0.03),))
    >>> jumps(StepTime(regimes=(StepRegime(pieces=(StepPiece(base_s=0.01),)), later)))
    [64]
    """
    return sorted({regime.min_tokens - 1 for regime in model.regimes if regime.min_tokens > 1})


def best_batch(clock: StepClock, seats: int, mean_context: float) -> int:
    """Give how many requests decode together at the highest rate of tokens.

    Mostly that is all seats, but step times that jump where a kernel needs another tile have better places.

    >>> from optimizer.problem import StepPiece, StepRegime, StepTime
    >>> jump = StepTime(regimes=(
    ...     StepRegime(pieces=(StepPiece(base_s=0.01),)),
    ...     StepRegime(min_tokens=65, pieces=(StepPiece(base_s=0.03),))))
    >>> best_batch(StepClock(jump), 100, 500.0)
    64
    """
    return max(range(1, seats + 1), key=lambda n: n / step_s(clock, 0, 0, n, round(n * mean_context)))


def chunk_within(
    clock: StepClock, limit_s: float, most: int, prefix: int = 0, decodes: int = 0, context: int = 0
) -> int:
    """Give the most prompt tokens, from 1 up to `most`, with which a step stays within a time limit.

    >>> from optimizer.problem import StepTime
    >>> clock = StepClock(StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5, per_decode_seq_s=2e-5))
    >>> chunk_within(clock, 0.0101, 8192, decodes=5)
    300
    """
    low, high = 1, max(most, 1)
    if step_s(clock, high, prefix, decodes, context) <= limit_s:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if step_s(clock, middle, prefix, decodes, context) <= limit_s:
            low = middle
        else:
            high = middle
    return low


class WorkPrices(NamedTuple):
    """What tokens cost of the time of a busy engine, in seconds.

    Attributes
    ----------
    token_s, pair_s
        A prompt token in a full step; and what attention adds for each token before it.
    base_s
        A step of which a request bears its share: of the batch, or of the KV cache if that is more.
    seq_s, context_s
        A decoded token, and what each token of its context adds.
    share, kv_tokens
        Of the batch, per request; and all of the KV cache.
    """

    token_s: float
    pair_s: float
    base_s: float
    seq_s: float
    context_s: float
    share: float
    kv_tokens: float

    @classmethod
    def of(cls, clock: StepClock, budget: int, seats: int, kv_tokens: float) -> WorkPrices:
        """Read the prices off step times.

        >>> from optimizer.problem import StepTime
        >>> model = StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5, per_decode_seq_s=1e-5)
        >>> prices = WorkPrices.of(StepClock(model), budget=8192, seats=100, kv_tokens=1e6)
        >>> round(prices.prefill_s(1000), 4), round(prices.decode_s(1000, 100), 4)
        (0.0205, 0.005)
        """
        full = step_s(clock, budget, 0)
        batch = best_batch(clock, seats, 1.0)
        one, many = step_s(clock, 0, 0, 1, 1), step_s(clock, 0, 0, batch, batch)
        far = step_s(clock, 0, 0, batch, 1000 * batch)
        return cls(
            token_s=full / budget,
            pair_s=(step_s(clock, budget, 1000) - full) / (1000 * budget),
            base_s=one,
            seq_s=max(many - one, 0.0) / batch,
            context_s=(far - many) / (999 * batch),
            share=1 / batch,
            kv_tokens=kv_tokens,
        )

    def prefill_s(self, prompt: int) -> float:
        """Price a prompt."""
        return prompt * self.token_s + prompt * prompt / 2 * self.pair_s

    def decode_s(self, prompt: int, output: float) -> float:
        """Price the decoding of an output behind a prompt."""
        context = prompt + output / 2
        share = max(self.share, context / self.kv_tokens)
        return output * (share * self.base_s + self.seq_s + context * self.context_s)


class StallCosts:
    """What it costs those who decode that prompt tokens are computed, by how many are computed in one step.

    Parameters
    ----------
    clock
        Step times.
    budget
        Most tokens of a step.
    decodes, context
        Requests that decode, at least 1, and the tokens that they hold.
    edges
        Step sizes after which the time jumps (`jumps`).

    Examples
    --------
    Up to 128 tokens a step takes 10 ms, then 30 ms; 100 requests decode. 28 tokens are for nothing. 40 take 20 ms, as
    900 do: in such company they would take 0.9 ms.

    >>> from optimizer.problem import StepPiece, StepRegime, StepTime
    >>> model = StepTime(regimes=(
    ...     StepRegime(pieces=(StepPiece(base_s=0.01),)),
    ...     StepRegime(min_tokens=129, pieces=(StepPiece(base_s=0.03),))))
    >>> costs = StallCosts(StepClock(model), 1000, 100, 10_000, jumps(model))
    >>> [round(costs.excess_s(tokens), 2) for tokens in (28, 40, 900)]
    [0.0, 1.91, 0.0]
    """

    __slots__ = ("_excess", "_tokens")

    WORTH_WAITING = 1 / 3
    """Company must be able to save this share of the cost, or nobody waits for it."""

    def __init__(
        self, clock: StepClock, budget: int, decodes: int, context: int, edges: Sequence[int]
    ) -> None:
        most = max(budget - decodes, 1)
        near = {edge - decodes + beyond for edge in edges for beyond in (0, 1)}
        self._tokens = sorted({*_sizes(most), *(size for size in near if 0 < size <= most)})
        alone = step_s(clock, 0, 0, decodes, context)
        stalls = [step_s(clock, tokens, 0, decodes, context) - alone for tokens in self._tokens]
        self._excess = [0.0] * len(stalls)
        least = math.inf
        for i in reversed(range(len(stalls))):
            least = min(least, stalls[i] / self._tokens[i])
            excess = stalls[i] - least * self._tokens[i]
            if excess > self.WORTH_WAITING * stalls[i]:
                self._excess[i] = excess * decodes

    def excess_s(self, tokens: int) -> float:
        """Give the request-seconds that those who decode would be spared if the tokens came together with more."""
        return self._excess[bisect_left(self._tokens, tokens, hi=len(self._tokens) - 1)]


class StepRule:
    """Chunks, batches and stalls by an engine's step times; what was found is kept, by coarse contexts.

    Parameters
    ----------
    model
        Step times.
    budget, seats
        Most tokens of a step, and most requests that run.

    Attributes
    ----------
    clock
        Step times.
    limit_s
        Usual time limit of a mixed step.
    """

    def __init__(self, model: StepTime, budget: int, seats: int) -> None:
        self.clock = StepClock(model)
        self._budget, self._seats, self._edges = budget, seats, jumps(model)
        efficient = efficient_step_s(self.clock, budget)
        self._limits = [efficient * (USUAL + (LATE - USUAL) * i / LEVELS) for i in range(LEVELS + 1)]
        self.limit_s = self._limits[0]
        self._least_s = LEAST * efficient
        self._tokens: dict[tuple[int, int, int, int], int] = {}
        self._costs: dict[tuple[int, int], StallCosts] = {}
        self._batches: dict[int, int] = {}

    def tokens(self, level: int, decodes: int, context: int, prefix: int) -> int:
        """Give the prompt tokens of a mixed step at a level of pressure, 0 to `LEVELS`.

        However long the decodes alone take, prompts get `LEAST` of an efficient step beside them.
        """
        key = (level, decodes >> 2, context >> 13, prefix >> 10)
        found = self._tokens.get(key)
        if found is None:
            n, held, before = key[1] << 2, key[2] << 13, key[3] << 10
            limit = max(self._limits[level], step_s(self.clock, 0, 0, n, held) + self._least_s)
            found = self._tokens[key] = chunk_within(self.clock, limit, self._budget, before, n, held)
        return found

    def batch(self, mean_context: float) -> int:
        """Give the requests that decode fastest together: `best_batch`."""
        key = int(mean_context) >> 5
        found = self._batches.get(key)
        if found is None:
            found = self._batches[key] = best_batch(self.clock, self._seats, float(key << 5))
        return found

    def excess_s(self, tokens: int, decodes: int, context: int) -> float:
        """Give what waiting for more prompt tokens would spare those who decode: `StallCosts`."""
        key = (decodes, context >> 15)
        found = self._costs.get(key)
        if found is None:
            found = self._costs[key] = StallCosts(
                self.clock, self._budget, decodes, key[1] << 15, self._edges
            )
        return found.excess_s(tokens)


def _sizes(most: int) -> list[int]:
    """Give chunk sizes up to `most`, about 12 % apart."""
    sizes: list[int] = []
    size = 1.0
    while size < most:
        sizes.append(int(size))
        size = max(size + 1, size * 1.125)
    return [*sizes, most]

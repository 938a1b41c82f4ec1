"""What can be set: by the caller once (`Levels`), and by every plan anew (`Knobs`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from optimizer.errors import InputError
from optimizer.online.messages import real
from optimizer.problem.metrics import TPOT_SLO_S, TTFT_SLO_S

OnlineObjective = Literal["latency", "throughput", "goodput", "fair"]
"""`latency`: mean end-to-end latency. `throughput`: tokens per second. `goodput`: requests within their levels.
`fair`: equal service for tenants."""

Mode = Literal["auto", "mixed", "exclusive"]
"""Whether prompts and decodes share steps; `auto`: whatever the engine's step times say costs less."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a plan may set beside the order.

    Attributes
    ----------
    price
        Prompts that do not fill a step wait for company until they have waited so many times what the decoding requests
        would lose to them. 0: nobody waits.
    chunk_tokens
        Most prompt tokens per step, below what the time limit of steps allows; None: no further limit.
    mode
        Mixing.
    """

    price: float = 1.0
    chunk_tokens: int | None = None
    mode: Mode = "auto"


@dataclass(frozen=True, slots=True)
class Levels:
    """Options of the rule.

    Attributes
    ----------
    patience_s
        A request's place is its arrival, put back by the geometric mean of this and its work: 0 is first come first served,
        and the larger, the more small ones overtake.
    confidence
        Admission keeps the KV that all will hold within the cache with this probability, at each moment ahead.
    exempt
        Share of the requests, those with the longest prompts, that stand behind all others: percentiles below do not feel it.
    tbt_s
        No step with decodes takes longer than this, as far as the size of prompts decides it; None: what is efficient.
    ttft_slo_s, tpot_slo_s
        Levels of requests that name none, for `goodput`.

    Raises
    ------
    InputError
        If a number is out of range.
    """

    patience_s: float = 48.0
    confidence: float = 0.95
    exempt: float = 0.0
    tbt_s: float | None = None
    ttft_slo_s: float = TTFT_SLO_S
    tpot_slo_s: float = TPOT_SLO_S

    def __post_init__(self) -> None:
        if not (real(self.confidence) and 0.5 <= self.confidence < 1):
            raise InputError(
                f"{self.confidence!r}; expected a probability from 0.5 to below 1", field="confidence"
            )
        if not (real(self.patience_s) and self.patience_s >= 0):
            raise InputError(f"{self.patience_s!r}; expected seconds >= 0", field="patience_s")
        if not (real(self.exempt) and 0 <= self.exempt < 0.5):
            raise InputError(f"{self.exempt!r}; expected a share from 0 to below 0.5", field="exempt")
        for field in ("tbt_s", "ttft_slo_s", "tpot_slo_s"):
            number = getattr(self, field)
            if number is not None and not (real(number) and number > 0):
                raise InputError(f"{number!r}; expected seconds > 0", field=field)

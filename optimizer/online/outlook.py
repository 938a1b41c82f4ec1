"""How much KV those who run will hold, as a mean and a variance at moments ahead, kept up to date request by request.

Each request holds its context and a token more per decode step, for as long as it goes on; that it does is a matter of
chance. The sum at a moment is therefore nearly normal, and admission keeps it below the capacity at a confidence.
"""

from __future__ import annotations

from math import erfc, log, pi, sqrt
from operator import add

import numpy as np

from optimizer.online.state import Entry, State
from optimizer.policies.horizon_rules import AHEAD

_PER_STEP = 64
"""So many times as many requests, so many more decode steps until the moments ahead are computed anew: that takes longer."""
_AHEAD = np.array(AHEAD, np.float64)[:, None]
_ROOT_2 = sqrt(2.0)
_LEAST_SIGMA = 1e-3
_Use = tuple[list[float], list[float]]
"""Mean and variance of the tokens that somebody holds, by moment ahead."""


class Outlook:
    """The future of those who run.

    Parameters
    ----------
    state
        Who runs.
    deviations
        How many standard deviations the capacity must lie above the mean.
    certain
        Whether all must fit with their caps even if all ended at once: nobody can be thrown out.

    Notes
    -----
    The test is `kv_is_safe` of the `horizon` policy, with the sums over those who run kept from step to step.
    """

    def __init__(self, state: State, deviations: float, *, certain: bool = False) -> None:
        self._state, self._deviations, self._certain = state, deviations, certain
        self._capacity = float(state.blocks * state.block_tokens)
        self._members: list[Entry] = []
        self._place: dict[int, int] = {}
        self._promised = 0.0
        """What they will hardly exceed, if all end at once."""
        self._since = -1
        """Decode clock of the sums; -1: there are none."""
        self._mean: list[float] = []
        self._variance: list[float] = []
        self._asked: tuple[Entry, _Use] | None = None
        """Who was asked for last, and its use: it is the next to come, mostly."""
        # By member: mu, sigma, prompt tokens, and tokens less the decode clock. Sums are computed in place: what is
        # allocated for a moment costs more than what is computed in it.
        self._columns = np.zeros((4, state.seats))
        self._work = np.zeros((3, len(AHEAD), state.seats))

    def __contains__(self, entry: object) -> bool:
        return isinstance(entry, Entry) and entry.serial in self._place

    def __len__(self) -> int:
        return len(self._members)

    def add(self, entry: Entry) -> None:
        """Take in who was admitted."""
        place = self._place[entry.serial] = len(self._members)
        self._members.append(entry)
        self._write(place, entry)
        self._promised += entry.most
        if self._is_current():
            asked = self._asked
            mean, variance = asked[1] if asked is not None and asked[0] is entry else self._use(entry)
            self._mean = list(map(add, self._mean, mean))
            self._variance = list(map(add, self._variance, variance))
        self._asked = None

    def seated(self, entry: Entry) -> None:
        """Learn that somebody's prompt is computed: from now on it grows with the clock."""
        self._write(self._place[entry.serial], entry)

    def _write(self, place: int, entry: Entry) -> None:
        tokens = self._state.tokens(entry) - self._state.clock
        sigma = max(entry.sigma, _LEAST_SIGMA)
        self._columns[:, place] = (entry.mu, sigma, entry.request.prompt_tokens, tokens)

    def remove(self, entry: Entry) -> None:
        """Take out who leaves its seat.

        The sums stay: that some end by now was foreseen in them, and to count only those who did, and not that the others
        did not, would make them too small.
        """
        place = self._place.pop(entry.serial, None)
        if place is None:
            return
        last = self._members.pop()
        if last is not entry:
            self._members[place] = last
            self._place[last.serial] = place
            self._columns[:, place] = self._columns[:, len(self._members)]
        self._promised = self._promised - entry.most if self._members else 0.0

    def is_safe(self, entry: Entry) -> bool:
        """Say whether one more request keeps memory safe. Alone it may always run."""
        if not self._members or self._promised + entry.most <= self._capacity:
            return True
        if self._certain:
            return False
        if not self._is_current():
            self._refresh()
        mean, variance = use = self._use(entry)
        self._asked = (entry, use)
        capacity, deviations = self._capacity, self._deviations
        for m, v, own, spread in zip(self._mean, self._variance, mean, variance, strict=True):
            if m + own + deviations * sqrt(v + spread) > capacity:
                return False
        return True

    def forget(self) -> None:
        """Compute the future anew when it is next asked for."""
        self._since = -1

    def _is_current(self) -> bool:
        lasts = max(1, len(self._members) // _PER_STEP)
        return self._since >= 0 and self._state.clock - self._since < lasts

    def _refresh(self) -> None:
        """Compute the sums from all who run, in one go.

        The tail of the normal distribution is that of the policies, 1 - tanh of a cubic (Page 1977), to 3e-4.
        """
        n, clock = len(self._members), self._state.clock
        self._since = clock
        mu, sigma, prompts, less_clock = self._columns[:, :n]
        z, tail, mean = self._work[:, :, :n]
        tokens = less_clock + clock
        np.add(tokens - prompts, _AHEAD, out=z)
        np.maximum(z, 0.5, out=z)
        np.log(z, out=z)
        z -= mu
        z /= sigma
        np.multiply(z, z, out=tail)
        tail *= 0.044715
        tail += 1.0
        tail *= z
        tail *= sqrt(2 / pi)
        np.tanh(tail, out=tail)
        np.subtract(1.0, tail, out=tail)
        # Of the first moment, which is now: that a request goes on is known.
        tail /= np.maximum(tail[0], 1e-12)
        on = np.minimum(tail, 1.0, out=tail)
        held = np.add(tokens + self._state.block_tokens, _AHEAD, out=z)
        np.multiply(on, held, out=mean)
        self._mean = mean.sum(axis=1).tolist()
        np.subtract(1.0, on, out=on)
        mean *= on
        mean *= held
        self._variance = mean.sum(axis=1).tolist()

    def _use(self, entry: Entry) -> _Use:
        """Give what one request will hold at the moments of the sums; of one that has passed the present is left."""
        s = self._state
        passed, tokens = s.clock - self._since, s.tokens(entry)
        generated = tokens - entry.request.prompt_tokens
        scale = 1 / (max(entry.sigma, _LEAST_SIGMA) * _ROOT_2)
        now = erfc((log(generated) - entry.mu) * scale) if generated else 2.0
        means, variances = [], []
        for moment in AHEAD:
            ahead = moment - passed
            on = 1.0
            if ahead > 0 and now > 0:
                on = min(1.0, erfc((log(generated + ahead) - entry.mu) * scale) / now)
            else:
                ahead = max(ahead, 0)
            held = tokens + s.block_tokens + ahead
            mean = on * held
            means.append(mean)
            variances.append((1 - on) * mean * held)
        return means, variances

"""Which predictor is believed: the first that has something to say and is not worse than history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.errors import InputError
from optimizer.online.guesses import Given
from optimizer.online.messages import Request
from optimizer.online.predictors import Bucketed, History, NoPredictor, PerTenant, Predictor

_KINDS: dict[str, type[Predictor]] = {
    "given": Given,
    "tenant": PerTenant,
    "bucketed": Bucketed,
    "history": History,
    "none": NoPredictor,
}
DEFAULT = tuple(_KINDS)
"""The preferred first."""
_QUANTILES = (0.5, 0.9)
_DROP, _TAKE_BACK = 1.05, 0.95
_ENOUGH = 50
_RATE = 1 / 300
_MOST = 1e9
"""Tokens of an output; what is said to be longer, or no number, is not believed."""


@dataclass(slots=True)
class Score:
    """What a predictor was worth lately.

    Attributes
    ----------
    loss
        Mean pinball loss in tokens at the quantiles 0.5 and 0.9, the last few hundred requests weighing most.
    against
        History's on the same requests.
    requests
        How many it was scored on.
    dropped
        Whether it is not asked, because history is better.
    broken
        Whether it raised; then it is never asked again.
    """

    loss: float = 0.0
    against: float = 0.0
    requests: int = 0
    dropped: bool = False
    broken: bool = False

    def add(self, loss: float, against: float) -> None:
        """Take a request in."""
        self.requests += 1
        rate = max(_RATE, 1 / self.requests)
        self.loss += rate * (loss - self.loss)
        self.against += rate * (against - self.against)
        if self.requests >= _ENOUGH:
            self.dropped = self.loss > (_TAKE_BACK if self.dropped else _DROP) * self.against


def make_predictor(name: str) -> Predictor:
    """Build a predictor by its name: given, tenant, bucketed, history, none."""
    if name not in _KINDS:
        raise InputError(f"there is no predictor {name!r}; known are {', '.join(_KINDS)}", field="predictors")
    return _KINDS[name]()


def pinball(q: float, said: float, length: int) -> float:
    """Give the pinball loss of a quantile: right quantiles minimise its mean (Koenker and Bassett 1978).

    >>> pinball(0.9, 100.0, 200), round(pinball(0.9, 100.0, 50), 9)
    (90.0, 5.0)
    """
    return q * (length - said) if length > said else (1 - q) * (said - length)


class Lengths:
    """Quantiles of output lengths, by the best that is known of each request.

    Parameters
    ----------
    predictors
        Names (`optimizer.online.predictors`) or predictors of one's own, the preferred first; `history` and `none` stand
        behind them in any case.

    Examples
    --------
    >>> lengths = Lengths()
    >>> round(lengths.quantile(Request("a", 10, predicted_tokens=80.0), 0, 0.5), 9)
    80.0
    """

    def __init__(self, predictors: Sequence[str | Predictor] = DEFAULT) -> None:
        asked = [make_predictor(p) if isinstance(p, str) else p for p in predictors]
        names = [p.name for p in asked]
        asked += [make_predictor(name) for name in ("history", "none") if name not in names]
        if len({p.name for p in asked}) != len(asked):
            raise InputError(f"predictors {', '.join(names)}; expected each name once", field="predictors")
        self._asked = asked
        history = next(p for p in asked if p.name == "history")
        assert isinstance(history, History)
        self._history = history
        self.scores = {p.name: Score() for p in asked}

    def quantile(self, request: Request, generated: int, q: float) -> float:
        """Give the length in all that the output stays below with probability q; above `generated`."""
        for predictor in self._asked:
            score = self.scores[predictor.name]
            if score.dropped:
                continue
            try:
                said = predictor.quantile(request, generated, q)
                # A comparison with no number is false, and with something that is no number at all it raises.
                if said is not None and generated < said < _MOST:
                    return said
            except Exception:
                score.broken = score.dropped = True
        return generated + 1.0

    def observe(self, request: Request, length: int) -> None:
        """Learn from a finished request, after every predictor is scored on it."""
        base = self._loss(self._history, request, length)
        for predictor in self._asked:
            score = self.scores[predictor.name]
            if score.broken:
                continue
            try:
                loss = None if base is None else self._loss(predictor, request, length)
                predictor.observe(request, length)
            except Exception:
                score.broken = score.dropped = True
                continue
            if loss is not None and base is not None:
                score.add(loss, base)

    @staticmethod
    def _loss(predictor: Predictor, request: Request, length: int) -> float | None:
        loss = 0.0
        for q in _QUANTILES:
            said = predictor.quantile(request, 0, q)
            if said is None:
                return None
            # NaN compares as False everywhere and would never be dropped.
            loss += pinball(q, said if said == said else 1e18, length)
        return loss / len(_QUANTILES)

    def to_document(self) -> dict[str, object]:
        """Give everything learned as JSON."""
        return {
            p.name: {
                "learned": p.to_document(),
                "score": [s.loss, s.against, s.requests, s.dropped, s.broken],
            }
            for p in self._asked
            for s in (self.scores[p.name],)
        }

    def load(self, document: dict[str, dict[str, object]]) -> None:
        """Take up what was learned by predictors of the same names."""
        for predictor in self._asked:
            found = document.get(predictor.name)
            if found is not None:
                predictor.load(found["learned"])
                self.scores[predictor.name] = Score(*found["score"])  # type: ignore[misc]

"""Predictors of output lengths: each says quantiles, and what it is worth is measured on every finished request.

A length is a random variable: what a scheduler needs is not a number but quantiles of it, and those of the rest once
some tokens are out. A predictor that has nothing to say about a request says None, and the next one is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from optimizer.online.messages import Request
from optimizer.policies.recent import Recent


class Predictor(Protocol):
    """Says how long outputs are.

    Attributes
    ----------
    name
        In statistics.
    """

    name: str

    def quantile(self, request: Request, generated: int, q: float) -> float | None:
        """Give the length (in all, above `generated`) that the output stays below with probability q; None: no idea."""

    def observe(self, request: Request, length: int) -> None:
        """Learn the length of a finished request."""

    def to_document(self) -> object:
        """Give what it has learned as JSON."""

    def load(self, document: object) -> None:
        """Take up what it had learned."""


class NoPredictor:
    """Knows nothing: lengths are log-uniform between what is out and the cap."""

    name = "none"

    def __init__(self, most: int = 4096) -> None:
        self._most = most

    def quantile(self, request: Request, generated: int, q: float) -> float | None:
        """Give a quantile of the log-uniform law.

        >>> NoPredictor(most=1024).quantile(Request("a", 10), 0, 0.5)
        32.0
        """
        most = max(request.max_output_tokens or self._most, generated + 1)
        least = generated + 1
        return float(least * (most / least) ** q)

    def observe(self, request: Request, length: int) -> None:
        """Learn nothing."""

    def to_document(self) -> object:
        """Give nothing."""
        return None

    def load(self, document: object) -> None:
        """Take nothing up."""


class History:
    """The last lengths of all requests, those that are longer than what is out.

    Parameters
    ----------
    size
        How many are remembered.
    least
        Before so many it says nothing.

    Examples
    --------
    >>> history = History(least=3)
    >>> for length in (10, 20, 30, 400): history.observe(Request("a", 5), length)
    >>> history.quantile(Request("b", 5), 0, 0.5), history.quantile(Request("b", 5), 25, 0.5)
    (30.0, 400.0)
    """

    name = "history"

    def __init__(self, size: int = 1000, least: int = 20) -> None:
        self._recent, self._size, self._least = Recent(size), size, least

    def quantile(self, request: Request, generated: int, q: float) -> float | None:
        """Give a quantile of the lengths above what is out; who outlives all of them may do so by half."""
        if len(self._recent) < self._least:
            return None
        found = self._recent.quantile(q, above=generated)
        return (1 + q) * generated + 1 if found is None else float(found)

    def observe(self, request: Request, length: int) -> None:
        """Remember."""
        self._recent.add(length)

    def to_document(self) -> object:
        """Give the lengths, oldest first."""
        return self._recent.values()

    def load(self, document: object) -> None:
        """Take lengths up."""
        assert isinstance(document, list)
        for length in document:
            self._recent.add(int(length))


class _ByKind:
    """A history for every kind of request; kinds that were not seen for long are forgotten."""

    name = ""
    _most = 1024

    def __init__(self, size: int = 300, least: int = 20) -> None:
        self._size, self._least = size, least
        self._kinds: OrderedDict[str, History] = OrderedDict()

    def _kind(self, request: Request) -> str:
        raise NotImplementedError

    def quantile(self, request: Request, generated: int, q: float) -> float | None:
        """Ask the history of its kind."""
        history = self._kinds.get(self._kind(request))
        return None if history is None else history.quantile(request, generated, q)

    def observe(self, request: Request, length: int) -> None:
        """Remember in the history of its kind."""
        self._of(self._kind(request)).observe(request, length)

    def _of(self, kind: str) -> History:
        history = self._kinds.get(kind)
        if history is None:
            history = self._kinds[kind] = History(self._size, self._least)
            if len(self._kinds) > self._most:
                self._kinds.popitem(last=False)
        else:
            self._kinds.move_to_end(kind)
        return history

    def to_document(self) -> object:
        """Give the lengths by kind."""
        return {kind: history.to_document() for kind, history in self._kinds.items()}

    def load(self, document: object) -> None:
        """Take lengths up."""
        assert isinstance(document, dict)
        for kind, lengths in document.items():
            self._of(str(kind)).load(lengths)


class Bucketed(_ByKind):
    """A history for every power of two of prompt tokens."""

    name = "bucketed"

    def _kind(self, request: Request) -> str:
        return str(request.prompt_tokens.bit_length())


class PerTenant(_ByKind):
    """A history for every tenant that is named."""

    name = "tenant"

    def _kind(self, request: Request) -> str:
        return request.tenant

    def quantile(self, request: Request, generated: int, q: float) -> float | None:
        """Ask the history of the tenant, if there is one."""
        return super().quantile(request, generated, q) if request.tenant else None

    def observe(self, request: Request, length: int) -> None:
        """Remember in the history of the tenant, if there is one."""
        if request.tenant:
            super().observe(request, length)

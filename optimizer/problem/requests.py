"""Requests as columns: what arrives, how long it is, and what a scheduler may know of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.problem.columns import (
    Floats,
    Ints,
    Locate,
    check_order,
    check_unique,
    real_numbers,
    sequence,
    whole_numbers,
)


@dataclass(frozen=True, slots=True, eq=False)
class LengthKnowledge:
    """What a scheduler may know of output lengths, by request.

    Attributes
    ----------
    low, high
        The length lies in [low, high]; equal means known exactly.
    mean
        Point estimate, or None: then the middle of the interval.
    log_sigma
        Spread of the logarithm of the length about its mean, where a distribution is known; else None.
    """

    low: Ints
    high: Ints
    mean: Floats | None = None
    log_sigma: Floats | None = None

    @property
    def estimate(self) -> Floats:
        """Best single guess, in tokens."""
        return (self.low + self.high) / 2 if self.mean is None else self.mean

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Where the length is known exactly."""
        return np.equal(self.low, self.high)

    def take(self, rows: Any) -> LengthKnowledge:
        """Keep some rows."""
        return LengthKnowledge(*(None if c is None else c[rows] for c in _columns(self)))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class PrefixHashes:
    """Chained hashes of each prompt's full blocks: equal leading ids mean an equal prefix.

    Attributes
    ----------
    ids
        All ids, request after request.
    starts
        Request i owns ids[starts[i]:starts[i + 1]].
    block_tokens
        Tokens that one id stands for (512 in Mooncake's traces, 64 or 16 in others).
    covers_outputs
        Whether the ids go on into the output: then a prompt that contains an earlier answer finds that, too.
    """

    ids: Ints
    starts: Ints
    block_tokens: int
    covers_outputs: bool = False

    def of(self, request: int) -> Ints:
        """Give the ids of one request."""
        return self.ids[self.starts[request] : self.starts[request + 1]]

    def hashed_tokens(self, requests: Requests) -> Ints:
        """Give the tokens of each request that can be known by hashes: its last token is never in the cache."""
        return requests.prompt_tokens + (requests.output_tokens - 1 if self.covers_outputs else 0)

    def take(self, rows: Any) -> PrefixHashes:
        """Keep some rows."""
        chosen = [self.of(i) for i in np.arange(len(self.starts) - 1)[rows]]
        sizes = np.array([0, *(len(c) for c in chosen)], dtype=np.int64)
        ids = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
        return PrefixHashes(ids, np.cumsum(sizes), self.block_tokens, self.covers_outputs)


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Requests in order of arrival, one array per field; a field nobody gave is None.

    Build one with `Requests.from_columns`, which checks every number.

    Attributes
    ----------
    arrival_s
        When each arrives, ascending, from 0 on.
    prompt_tokens, output_tokens
        Lengths, at least 1. `output_tokens` is the truth: no policy ever sees it.
    ids
        Names, unique; None: request i is called str(i).
    max_output_tokens
        The cap that the client asked for (`max_tokens`), visible to policies.
    known
        What policies may know of `output_tokens`; None: nothing.
    weight
        Importance in weighted objectives.
    deadline_s
        Moment by which the request should be finished.
    ttft_slo_s, tpot_slo_s
        Service levels of the request's own.
    tenant
        Who sent it.
    prefix
        Block hashes of the prompts.

    Examples
    --------
    >>> r = Requests.from_columns({"prompt_tokens": [10, 20], "output_tokens": [3, 4]})
    >>> len(r), r.arrival_s.tolist()
    (2, [0.0, 0.0])
    >>> Requests.from_columns({"prompt_tokens": [10, -2], "output_tokens": [3, 4]})
    Traceback (most recent call last):
    optimizer.errors.InputError: request 1, field prompt_tokens: -2; expected a whole number from 1 to 100000000
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    ids: tuple[str, ...] | None = None
    max_output_tokens: Ints | None = None
    known: LengthKnowledge | None = None
    weight: Floats | None = None
    deadline_s: Floats | None = None
    ttft_slo_s: Floats | None = None
    tpot_slo_s: Floats | None = None
    tenant: tuple[str, ...] | None = None
    prefix: PrefixHashes | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    def name(self, request: int) -> str:
        """Give the id of a request, by its row."""
        return str(request) if self.ids is None else self.ids[request]

    def replace(self, **changes: Any) -> Self:
        """Give a copy with some columns changed; the caller vouches for them."""
        return dataclasses.replace(self, **changes)

    def take(self, rows: Any) -> Self:
        """Keep some rows (a slice, a mask, or ascending row numbers)."""
        picked: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            if isinstance(column, np.ndarray):
                picked[field.name] = column[rows]
            elif isinstance(column, tuple):
                picked[field.name] = tuple(column[i] for i in np.arange(len(self))[rows])
            elif column is not None:
                picked[field.name] = column.take(rows)
        return type(self)(**picked)

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Any],
        *,
        known: LengthKnowledge | None = None,
        prefix: PrefixHashes | None = None,
        locate: Locate | None = None,
    ) -> Self:
        """Check columns and make them requests.

        Parameters
        ----------
        columns
            By field name; `prompt_tokens` and `output_tokens` at least. Without `arrival_s` all arrive at 0.
        known, prefix
            As the attributes.
        locate
            From a row to the file and line it came from, for error messages.

        Raises
        ------
        InputError
            Names the first row and field that is wrong, and what was expected.
        """
        where = locate or (lambda row: {"file": f"request {row}"})
        unknown = set(columns) - {f.name for f in dataclasses.fields(cls)} | set(columns) & {
            "known",
            "prefix",
        }
        if unknown:
            raise InputError(
                f"unknown column {sorted(unknown)[0]!r}; known are {', '.join(f.name for f in dataclasses.fields(cls))}"
            )
        for required in ("prompt_tokens", "output_tokens"):
            if columns.get(required) is None:
                raise InputError(f"column {required!r} is missing")
        given = {name: sequence(column, name) for name, column in columns.items() if column is not None}
        n = len(given["prompt_tokens"])
        if n == 0:
            raise InputError("there are no requests; expected at least one")
        for name, column in given.items():
            if len(column) != n:
                raise InputError(f"column {name!r} has {len(column)} rows; expected {n}")
        made: dict[str, Any] = {}
        for name, column in given.items():
            if name in ("ids", "tenant"):
                made[name] = tuple(str(x) for x in column)
            elif name in ("prompt_tokens", "output_tokens", "max_output_tokens"):
                made[name] = whole_numbers(column, name, where)
            else:
                made[name] = real_numbers(column, name, where)
        if "arrival_s" not in made:
            made["arrival_s"] = np.zeros(n)
        check_order(made["arrival_s"], where)
        check_unique(made.get("ids"), where)
        cap = made.get("max_output_tokens")
        if cap is not None and (over := np.flatnonzero(made["output_tokens"] > cap)).size:
            row = int(over[0])
            raise InputError(
                f"{made['output_tokens'][row]} is above the request's max_output_tokens {cap[row]}; "
                "raise the cap or clip the output",
                **{"field": "output_tokens", **where(row)},
            )
        if known is not None:
            known = _check_known(known, made["output_tokens"], where)
        if prefix is not None:
            _check_prefix(prefix, made["prompt_tokens"], made["output_tokens"], where)
        return cls(**made, known=known, prefix=prefix)


def _columns(record: Any) -> Sequence[Any]:
    return [getattr(record, f.name) for f in dataclasses.fields(record)]


def _check_known(known: LengthKnowledge, output_tokens: Ints, where: Locate) -> LengthKnowledge:
    made: dict[str, Any] = {}
    for field in dataclasses.fields(known):
        column, name = getattr(known, field.name), f"known_{field.name}"
        if column is None:
            continue
        column = sequence(column, name)
        if len(column) != len(output_tokens):
            raise InputError(f"column {name!r} has {len(column)} rows; expected {len(output_tokens)}")
        check = whole_numbers if field.name in ("low", "high") else real_numbers
        made[field.name] = check(column, name, where)
    low, high = made["low"], made["high"]
    for name, bad in (
        ("known_low", low > high),
        ("output_tokens", (output_tokens < low) | (output_tokens > high)),
    ):
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"the true length {output_tokens[row]} is outside the known interval [{low[row]}, {high[row]}]; widen it",
                **{"field": name, **where(row)},
            )
    return LengthKnowledge(**made)


def _check_prefix(prefix: PrefixHashes, prompt_tokens: Ints, output_tokens: Ints, where: Locate) -> None:
    if prefix.block_tokens < 1:
        raise InputError(f"{prefix.block_tokens} tokens per hash; expected at least 1", field="block_tokens")
    if prefix.ids.size and prefix.ids.dtype.kind not in "iu":
        raise InputError(f"hashes of type {prefix.ids.dtype}; expected whole numbers", field="prefix")
    if len(prefix.starts) != len(prompt_tokens) + 1:
        raise InputError(
            f"hashes of {len(prefix.starts) - 1} requests; expected {len(prompt_tokens)}", field="prefix"
        )
    # One id may stand for the last, partial block: public traces count it in.
    most = -(-(prompt_tokens + (output_tokens if prefix.covers_outputs else 0)) // prefix.block_tokens)
    bad = np.diff(prefix.starts) > most
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{int(np.diff(prefix.starts)[row])} block hashes for a prompt of {prompt_tokens[row]} tokens; "
            f"expected at most {most[row]} at {prefix.block_tokens} tokens per block",
            **{"field": "prefix", **where(row)},
        )

"""What was executed, stored as runs of equal steps; a schedule carries no opinion on its own feasibility."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from optimizer.errors import InputError
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.files import written_whole
from optimizer.problem.instance import read_json

SCHEMA = "optimizer/schedule@1"


class Step(NamedTuple):
    """One forward pass: when it started, prompt tokens by request, who decoded, who was preempted by it."""

    start_s: float
    prefill: tuple[tuple[int, int], ...]
    decode: tuple[int, ...]
    preempted: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Runs of equal steps, and who takes part in them.

    A run is `steps` steps with the same requests doing the same: the same decodes, the same chunk sizes.
    Two million decoded tokens become some ten thousand runs.

    Attributes
    ----------
    policy
        Name of what decided.
    block_tokens
        Granularity in which KV was held: the engine's, or 1 for token-level systems.
    max_num_batched_tokens
        Token budget that the policy kept; None for systems that know none (Orca, FasterTransformer).
    start_s, end_s, first_step_s, steps
        Of each run: when its first step starts and its last one ends, how long the first step takes, and how
        many steps it has. Within a run each step is longer than the one before by the same amount.
    decode_seqs, decode_context
        Requests that decode in each step of the run; sum of their contexts after the first step, in tokens.
    prefill_tokens
        Prompt tokens computed in each step of the run.
    chunk_run, chunk_request, chunk_tokens, chunk_context
        Prefill: in every step of run `chunk_run`, the request computes `chunk_tokens` tokens; before the
        first of these steps it had `chunk_context` tokens in the cache.
    decode_request, decode_first_run, decode_last_run
        Decode: the request decodes one token in every step of those of the runs first..last that decode at
        all (`decode_seqs` > 0). `decode_last_run` is inclusive.
    preempt_run, preempt_request
        Preemptions by recompute, before the first step of that run.
    cached_run, cached_request, cached_tokens
        Prefix cache hits at admission, before the first step of that run.
    hold_request, hold_first_run, hold_last_run, hold_offset, hold_tokens
        Reservations of systems that do not page: the request holds `hold_tokens` tokens of KV during these
        runs, from token `hold_offset` on where memory is contiguous (-1 where it is not).
        Empty for paged systems: there the blocks follow from the tokens.
    first_token_s, finish_s
        By request; NaN: never.
    """

    policy: str
    block_tokens: int
    max_num_batched_tokens: int | None
    start_s: Floats
    end_s: Floats
    first_step_s: Floats
    steps: Ints
    decode_seqs: Ints
    decode_context: Ints
    prefill_tokens: Ints
    chunk_run: Ints
    chunk_request: Ints
    chunk_tokens: Ints
    chunk_context: Ints
    decode_request: Ints
    decode_first_run: Ints
    decode_last_run: Ints
    preempt_run: Ints
    preempt_request: Ints
    cached_run: Ints
    cached_request: Ints
    cached_tokens: Ints
    hold_request: Ints
    hold_first_run: Ints
    hold_last_run: Ints
    hold_offset: Ints
    hold_tokens: Ints
    first_token_s: Floats
    finish_s: Floats

    @property
    def makespan_s(self) -> float:
        """When the last request finished, in seconds from 0."""
        return float(np.nanmax(self.finish_s))

    @property
    def reserves(self) -> bool:
        """Whether KV was reserved up front instead of paged."""
        return len(self.hold_request) > 0

    def iterate(self) -> Iterator[Step]:
        """Give every step, one by one: for small schedules and for tests."""
        runs = range(len(self.steps))
        chunks: list[list[tuple[int, int]]] = [[] for _ in runs]
        for run, request, tokens in zip(self.chunk_run, self.chunk_request, self.chunk_tokens, strict=True):
            chunks[run].append((int(request), int(tokens)))
        preempted: list[list[int]] = [[] for _ in runs]
        for run, request in zip(self.preempt_run, self.preempt_request, strict=True):
            preempted[run].append(int(request))
        decodes: list[list[int]] = [[] for _ in runs]
        for request, first, last in zip(
            self.decode_request, self.decode_first_run, self.decode_last_run, strict=True
        ):
            for run in range(first, last + 1):
                if self.decode_seqs[run]:
                    decodes[run].append(int(request))
        for run in runs:
            k = int(self.steps[run])
            start, first = float(self.start_s[run]), float(self.first_step_s[run])
            pairs = k * (k - 1) / 2
            growth = (float(self.end_s[run]) - start - k * first) / pairs if pairs else 0.0
            for j in range(k):
                yield Step(
                    start + j * first + j * (j - 1) / 2 * growth,
                    tuple(chunks[run]),
                    tuple(decodes[run]),
                    tuple(preempted[run]) if j == 0 else (),
                )

    def to_document(self) -> dict[str, Any]:
        """Give the JSON form."""
        document: dict[str, Any] = {"schema": SCHEMA}
        for f in fields(self):
            value = getattr(self, f.name)
            listed = value.tolist() if isinstance(value, np.ndarray) else value
            document[f.name] = [None if x != x else x for x in listed] if isinstance(listed, list) else listed
        return document

    def write(self, path: str | Path) -> None:
        """Write the JSON form, whole or not at all."""
        with written_whole(path) as out:
            out.write(json.dumps(self.to_document(), separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the JSON form.

        Raises
        ------
        InputError
            On anything that is not a schedule: names the file and the field.
        """
        return cls.from_document(read_json(path), file=str(path))

    @classmethod
    def from_document(cls, document: Any, *, file: str | None = None) -> Self:
        """Check the shape of a JSON form and make it a schedule (`optimizer check` judges what it says)."""
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise InputError(f'this is no schedule: expected an object with "schema": "{SCHEMA}"', file=file)
        made: dict[str, Any] = {}
        for f in fields(cls):
            if f.name not in document:
                raise InputError("is missing", file=file, field=f.name)
            made[f.name] = _parse(f.name, document[f.name], file)
        for group in (
            "chunk_",
            "decode_re decode_f decode_l",
            "preempt_",
            "cached_",
            "hold_",
            "start_s end_s first_step_s steps decode_seqs decode_context prefill_tokens",
        ):
            names = [n for n in made if n.startswith(tuple(group.split()))]
            if len({len(made[n]) for n in names}) > 1:
                raise InputError(f"{', '.join(names)} differ in length; expected equal columns", file=file)
        return cls(**made)


def _parse(name: str, value: Any, file: str | None) -> Any:
    if name == "policy":
        return str(value)
    if name == "block_tokens" or (name == "max_num_batched_tokens" and value is not None):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{value!r}; expected a whole number >= 1", file=file, field=name)
        return value
    if name == "max_num_batched_tokens":
        return None
    try:
        if not isinstance(value, list):
            raise ValueError(f"{value!r}")
        array = np.array([np.nan if x is None else x for x in value], dtype=np.float64)
        if array.ndim != 1:
            raise ValueError("a list in a list")
        if name.endswith("_s"):
            return array
        if not (np.abs(array) < 2**53).all() or (array != np.floor(array)).any():
            raise ValueError("a fraction, nothing, or a number beyond all bounds")
        return array.astype(np.int64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{error}; expected a list of numbers", file=file, field=name) from None

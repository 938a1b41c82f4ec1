"""An instance is all that a solver needs: requests, an engine, an objective; and its file format."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from optimizer.errors import InputError
from optimizer.problem.engine import Engine
from optimizer.problem.files import written_whole
from optimizer.problem.requests import LengthKnowledge, PrefixHashes, Requests

SCHEMA = "optimizer/instance@1"
Objective = Literal["makespan", "mean-latency", "weighted-latency", "ttft", "goodput"]
_COLUMNS = (
    "arrival_s", "prompt_tokens", "output_tokens", "ids", "max_output_tokens", "weight",
    "deadline_s", "ttft_slo_s", "tpot_slo_s", "tenant",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """Requests, the engine that serves them, and what counts as good.

    Attributes
    ----------
    name
        For people.
    requests, engine, objective
        What is scheduled, on what, for what.
    source
        Where the numbers come from: a licence and an address, or a generator and its seed.

    Raises
    ------
    InputError
        If a request can never fit into the engine's KV cache or its model length, or the objective is unknown.
    """

    name: str
    requests: Requests
    engine: Engine
    objective: Objective = "mean-latency"
    source: str = ""
    origin: str | None = field(default=None)
    """The file it was read from, for error messages."""

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise InputError(
                f"{self.objective!r} is no objective; expected one of {', '.join(get_args(Objective))}",
                file=self.origin,
                field="objective",
            )
        reject_misfits(self.requests, self.engine, self.origin)

    @property
    def sha256(self) -> str:
        """Fingerprint of everything that can change a result.

        What an engine leaves at its default is left out, so that fingerprints outlive fields that engines gain.
        """
        document = self.to_document() | {"engine": self.engine.model_dump(mode="json", exclude_defaults=True)}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_document(self) -> dict[str, Any]:
        """Give the JSON form: requests as columns."""
        r = self.requests
        columns: dict[str, Any] = {}
        for name in _COLUMNS:
            column = getattr(r, name)
            if column is not None:
                listed = column.tolist() if isinstance(column, np.ndarray) else list(column)
                columns[name] = [None if x != x else x for x in listed]
        if r.known is not None:
            columns["known_low"], columns["known_high"] = r.known.low.tolist(), r.known.high.tolist()
            if r.known.mean is not None:
                columns["known_mean"] = r.known.mean.tolist()
            if r.known.log_sigma is not None:
                columns["known_log_sigma"] = r.known.log_sigma.tolist()
        if r.prefix is not None:
            columns["prefix_hashes"] = [r.prefix.of(i).tolist() for i in range(len(r))]
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "name": self.name,
            "objective": self.objective,
            "source": self.source,
            "engine": self.engine.model_dump(mode="json"),
            "requests": columns,
        }
        if r.prefix is not None:
            document["prefix_block_tokens"] = r.prefix.block_tokens
            document["prefix_covers_outputs"] = r.prefix.covers_outputs
        return document

    def write(self, path: str | Path) -> None:
        """Write the JSON form, whole or not at all."""
        with written_whole(path) as out:
            out.write(json.dumps(self.to_document()) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the JSON form.

        Raises
        ------
        InputError
            On anything that is not an instance; names the file, the field, and the row.
        """
        return cls.from_document(read_json(path), file=str(path))

    @classmethod
    def from_document(cls, document: Any, *, file: str | None = None) -> Self:
        """Check a JSON form and make it an instance.

        `requests` is a mapping of columns, or a list of objects with the same keys.
        """
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise InputError(f'this is no instance: expected an object with "schema": "{SCHEMA}"', file=file)
        try:
            header = _Header.model_validate(
                {k: v for k, v in document.items() if k not in ("schema", "requests")}
            )
        except ValidationError as error:
            raise from_pydantic(error, file) from None
        requests = requests_from_document(
            document.get("requests"),
            header.prefix_block_tokens,
            file,
            covers_outputs=header.prefix_covers_outputs,
        )
        return cls(header.name, requests, header.engine, header.objective, header.source, file)


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = "unnamed"
    objective: Objective = "mean-latency"
    source: str = ""
    engine: Engine
    prefix_block_tokens: int | None = None
    prefix_covers_outputs: bool = False


def requests_from_document(
    given: Any, prefix_block_tokens: int | None, file: str | None, *, covers_outputs: bool = False
) -> Requests:
    """Make requests from the `requests` part of an instance file (columns, or a list of objects)."""
    if isinstance(given, list):
        keys: dict[str, None] = {}
        for row, item in enumerate(given):
            if not isinstance(item, dict):
                raise InputError(f"requests[{row}] is {item!r}; expected an object", file=file)
            keys.update(dict.fromkeys(item))
        given = {key: [item.get(key) for item in given] for key in keys}
    if not isinstance(given, dict) or not all(isinstance(c, list) for c in given.values()):
        raise InputError('"requests" must be an object of columns, or a list of objects', file=file)

    def where(row: int) -> dict[str, Any]:
        return {"file": f"{file}, requests[{row}]" if file else f"requests[{row}]"}

    columns = dict(given)
    try:
        special = [columns.pop(f"known_{name}", None) for name in ("low", "high", "mean", "log_sigma")]
        known = None
        if special[0] is not None and special[1] is not None:
            known = LengthKnowledge(*special)
        elif any(v is not None for v in special):
            raise InputError("known_low and known_high go together; give both", file=file, field="known_low")
        prefix = None
        hashes = columns.pop("prefix_hashes", None)
        if hashes is not None:
            if prefix_block_tokens is None:
                raise InputError('prefix_hashes needs prefix_block_tokens beside "requests"', file=file)
            prefix = prefix_from_lists(hashes, prefix_block_tokens, covers_outputs=covers_outputs)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{error}; expected whole numbers, in one list per request", file=file, field="prefix_hashes"
        ) from None
    try:
        return Requests.from_columns(columns, known=known, prefix=prefix, locate=where)
    except InputError as error:
        if error.file is None:
            raise InputError(error.problem, file=file, field=error.field) from None
        raise


def prefix_from_lists(
    hashes: list[list[int] | None], block_tokens: int, *, covers_outputs: bool = False
) -> PrefixHashes:
    """Lay lists of block hashes end to end."""
    sizes = np.array([0, *(len(h) if h else 0 for h in hashes)], dtype=np.int64)
    flat = [i for h in hashes for i in (h or ())]
    if wrong := [i for i in flat if type(i) is not int]:
        raise TypeError(f"{wrong[0]!r} is no hash")
    return PrefixHashes(np.asarray(flat, dtype=np.int64), np.cumsum(sizes), block_tokens, covers_outputs)


def reject_misfits(requests: Requests, engine: Engine, file: str | None = None) -> None:
    """Raise where a request can never be served by the engine, alone and with everything free.

    A request computes prompt + output - 1 tokens: the last token is sampled and never fed back.
    """
    tokens = requests.prompt_tokens + requests.output_tokens - 1
    blocks = -(-tokens // engine.block_tokens)
    misfit = blocks > engine.kv_blocks
    if misfit.any():
        row = int(np.flatnonzero(misfit)[0])
        raise InputError(
            f"request {requests.name(row)} needs {blocks[row]} KV blocks of {engine.block_tokens} tokens for "
            f"{requests.prompt_tokens[row]} prompt and {requests.output_tokens[row]} output tokens, and the engine has "
            f"{engine.kv_blocks}; clip the lengths, leave it out, or give the engine more KV blocks "
            f"({int(misfit.sum())} such requests)",
            file=file,
        )
    if engine.max_model_len is not None:
        longer = requests.prompt_tokens + requests.output_tokens > engine.max_model_len
        if longer.any():
            row = int(np.flatnonzero(longer)[0])
            raise InputError(
                f"request {requests.name(row)} is {requests.prompt_tokens[row] + requests.output_tokens[row]} tokens long "
                f"and the engine's max_model_len is {engine.max_model_len}; clip the lengths or leave it out "
                f"({int(longer.sum())} such requests)",
                file=file,
            )


def read_json(path: str | Path) -> Any:
    """Parse a JSON file, with the line in the message where it is broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is no text: {error.reason} at byte {error.start}", file=str(path)) from None
    except json.JSONDecodeError as error:
        said = error.msg.removesuffix(" at")  # "Unterminated string starting at"
        raise InputError(
            f"is no JSON: {said} at character {error.colno}", file=str(path), line=error.lineno
        ) from None
    except (RecursionError, ValueError):
        raise InputError(
            "is no JSON that can be read: a nesting is too deep or a number too long", file=str(path)
        ) from None


def from_pydantic(error: ValidationError, file: str | None) -> InputError:
    """Say the first of pydantic's complaints in our form."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or None
    given = "" if isinstance(first["input"], dict) else f" (given: {first['input']!r})"
    return InputError(f"{first['msg']}{given}", file=file, field=place)

"""All formats by name, how to tell them apart, and the one way in: `read_trace`."""

from __future__ import annotations

import json
from pathlib import Path

from optimizer.errors import InputError
from optimizer.problem import Instance
from optimizer.traces.aibrix import read_aibrix
from optimizer.traces.azure import AZURE
from optimizer.traces.burstgpt import BURSTGPT
from optimizer.traces.compact import COMPACT_CSV, COMPACT_JSONL
from optimizer.traces.layout import Layout, Source, read_text
from optimizer.traces.lines import read_lines
from optimizer.traces.llmservingsim import LLMSERVINGSIM
from optimizer.traces.mooncake import BAILIAN, MOONCAKE
from optimizer.traces.rows import Rows, settle
from optimizer.traces.sharegpt import read_sharegpt
from optimizer.traces.splitwise import SPLITWISE
from optimizer.traces.tables import header_of, read_table
from optimizer.traces.trace import Trace
from optimizer.traces.vidur import VIDUR, VIDUR_LENGTHS

FORMATS: dict[str, str] = {
    "azure": "Azure 2023, 2024 or 2025: CSV TIMESTAMP,ContextTokens,GeneratedTokens",
    "mooncake": "Mooncake: JSONL timestamp (ms), input_length, output_length, hash_ids (512 tokens each)",
    "bailian": "Qwen-Bailian: JSONL as Mooncake's with chat_id, in seconds, hash_ids (16 tokens each)",
    "vidur": "Vidur replay: CSV arrived_at,num_prefill_tokens,num_decode_tokens",
    "vidur-lengths": "Vidur and Sarathi lengths: CSV num_prefill_tokens,num_decode_tokens",
    "splitwise": "Splitwise-sim: CSV arrival_timestamp,prompt_size,token_size",
    "burstgpt": "BurstGPT: CSV Timestamp,Request tokens,Response tokens",
    "sharegpt": "ShareGPT: JSON list of conversations",
    "llmservingsim": "LLMServingSim: JSONL input_toks, output_toks, arrival_time_ns",
    "aibrix": "AIBrix: JSONL timestamp (ms), requests",
    "compact": "this project's: CSV or JSONL prompt_tokens,output_tokens[,arrival_s,...]",
    "instance": "this project's: JSON with requests, engine and objective",
}
"""Name and description of every format that `read_trace` knows."""

_TABLES = (AZURE, VIDUR, VIDUR_LENGTHS, SPLITWISE, BURSTGPT, COMPACT_CSV)
_LINES = (MOONCAKE, BAILIAN, LLMSERVINGSIM, COMPACT_JSONL)
# Keys that tell a JSONL format, where they are not the keys it needs.
_TELLING: tuple[tuple[str, frozenset[str]], ...] = (
    ("bailian", frozenset({"chat_id", "input_length", "output_length"})),
    ("llmservingsim", frozenset({"sub_requests"})),
    ("aibrix", frozenset({"timestamp", "requests"})),
    ("compact", frozenset({"turns", "session_id"})),
    *((layout.name, frozenset(layout.required)) for layout in (MOONCAKE, LLMSERVINGSIM, COMPACT_JSONL)),
)


def read_trace(
    path: str | Path,
    *,
    format: str | None = None,
    skip_bad_rows: bool = False,
    hash_block_tokens: int | None = None,
) -> Trace:
    """Read requests from a file in any of the public formats, or in the project's own.

    It does not draw arrivals for files that have none, nor clip anything: see `optimizer.traces.shape`.

    Parameters
    ----------
    path
        The file.
    format
        One of `FORMATS`; None: told from the first line.
    skip_bad_rows
        List bad rows in `Trace.skipped` and go on without them. An instance is read whole or not at all.
    hash_block_tokens
        Tokens that a block hash stands for, against what the format or the file says of it; not for an instance.

    Returns
    -------
    Trace
        The first request arrives at 0.

    Raises
    ------
    InputError
        On anything wrong; names file, line and field, and what was expected.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = pathlib.Path(folder.name, "trace.csv")
    >>> _ = file.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\\n5.5,100,20\\n7,30,4\\n")
    >>> trace = read_trace(file)
    >>> trace, trace.requests.arrival_s.tolist()
    (Trace(2 requests, vidur, trace.csv, 0 skipped), [0.0, 1.5])
    >>> folder.cleanup()
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise InputError(f"{format!r} is no format; expected one of {', '.join(FORMATS)}", field="format")
    if hash_block_tokens is not None and hash_block_tokens < 1:
        raise InputError(f"{hash_block_tokens}; expected at least 1", field="hash_block_tokens")
    source = Source(path, read_text(path), skip_bad_rows, hash_block_tokens)
    name = format or _detect(source.text, source.file)
    if name == "instance":
        if hash_block_tokens is not None:
            raise InputError(
                "an instance says itself what its hashes stand for, or has none; leave this out",
                file=source.file,
                field="hash_block_tokens",
            )
        instance = Instance.read(path)
        timed = bool(instance.requests.arrival_s.any())
        return Trace(instance.requests, name, path, has_arrivals=timed, instance=instance)
    rows = _read(source, name)
    if hash_block_tokens is not None and rows.hashes is None:
        raise InputError(
            "the file has no block hashes; leave this out", file=source.file, field="hash_block_tokens"
        )
    requests, skipped = settle(rows, skip_bad_rows=skip_bad_rows)
    return Trace(requests, name, path, skipped, "arrival_s" in rows.columns, _note(rows))


def detect_format(path: str | Path) -> str:
    """Tell a file's format from its first line.

    Raises
    ------
    InputError
        If it is none that is known, or could be several.
    """
    return _detect(read_text(path), str(path))


def _read(source: Source, name: str) -> Rows:
    if name == "sharegpt":
        return read_sharegpt(source)
    if name == "aibrix":
        return read_aibrix(source)
    is_json = source.text.lstrip()[:1] == "{"
    for layout in _TABLES:
        if layout.name == name and not (is_json and name == COMPACT_JSONL.name):
            return read_table(source, layout)
    return read_lines(source, next(layout for layout in _LINES if layout.name == name))


def _note(rows: Rows) -> str:
    parts = [rows.note] if rows.note else []
    tenant = rows.columns.get("tenant")
    if tenant is not None and tenant.name in ("session_id", "model"):
        parts.append(f"the tenant is the {tenant.name}")
    if "arrival_s" not in rows.columns and not parts:
        parts.append("lengths alone: all requests arrive at 0 until arrivals are drawn")
    return "; ".join(parts)


def _detect(text: str, file: str) -> str:
    start = text.lstrip()
    if start.startswith("["):
        return "sharegpt"
    if start.startswith("{"):
        return _detect_json(start, file)
    header = header_of(start)
    found = [layout for layout in _TABLES if set(layout.required) <= set(header)]
    # Vidur's replay columns are its length columns and one more: the format that explains more wins.
    told = [a for a in found if not any(set(a.required) < set(b.required) for b in found)]
    return _only([layout.name for layout in told], header, _TABLES, file)


def _detect_json(start: str, file: str) -> str:
    try:
        first = json.loads(start.partition("\n")[0])
    except (ValueError, RecursionError):
        # The first line of an indented document is a brace alone, or the file is broken in its first line.
        first = None
    if first is None or "schema" in first:
        if '"optimizer/instance@' in start[:2000]:
            return "instance"
        if first is None:
            raise _unknown("the first line is no JSON object", file)
    keys = list(first)
    names = [name for name, telling in _TELLING if telling <= set(keys)]
    if "bailian" in names and "mooncake" in names:
        names.remove("mooncake")
    return _only(list(dict.fromkeys(names)), keys, _LINES, file)


def _only(names: list[str], words: list[str], layouts: tuple[Layout, ...], file: str) -> str:
    if len(names) == 1:
        return names[0]
    if names:
        raise _unknown(f"this could be {' or '.join(names)}", file)
    nearest = max(layouts, key=lambda layout: len(set(layout.required) & set(words)))
    lacking = [word for word in nearest.required if word not in words]
    shown = ", ".join(words)
    what = f"no known format has {shown if len(shown) <= 80 else shown[:77] + '...'}"
    if 0 < len(lacking) < len(nearest.required):
        what += f" (nearest is {nearest.name}, which has {', '.join(lacking)} too)"
    raise _unknown(what, file, lacking[0] if len(lacking) == 1 else None)


def _unknown(what: str, file: str, field: str | None = None) -> InputError:
    return InputError(
        f"{what}; known formats are {', '.join(FORMATS)}: name one with --format",
        file=file,
        line=1,
        field=field,
    )

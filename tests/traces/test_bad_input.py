"""What is wrong with a file is told by file, line and field; or counted and listed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.traces import FORMATS, detect_format, read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
STAMP = "2023-11-16 18:17:03.9799600"
OWN = "arrival_s,prompt_tokens,output_tokens\n"
MOON = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n'
TOKENS = "expected a whole number from 1 to 100000000"
SECONDS = "expected a number of seconds from 0 to 1e+10"


def moon(**changes: object) -> str:
    return MOON + json.dumps({**json.loads(MOON), **changes}) + "\n"


# One row is good, the one after it bad: text, line, field, message.
BAD_ROWS = {
    "negative": (OWN + "0,5,5\n1,-3,5\n", 3, "prompt_tokens", f"-3; {TOKENS}"),
    "missing": (OWN + "0,5,5\n1,5,\n", 3, "output_tokens", f"nothing is given; {TOKENS}"),
    "fractional": (OWN + "0,5,5\n1,5.5,5\n", 3, "prompt_tokens", f"5.5; {TOKENS}"),
    "absurd": (OWN + "0,5,5\n1,5,1000000000\n", 3, "output_tokens", f"1000000000; {TOKENS}"),
    "infinite": (OWN + "0,5,5\n1,inf,1\n", 3, "prompt_tokens", f"inf; {TOKENS}"),
    "not a number": (OWN + "0,5,5\n1,nan,1\n", 3, "prompt_tokens", f"'nan'; {TOKENS}"),
    "text": (OWN + "0,5,5\n1,many,5\n", 3, "prompt_tokens", f"'many'; {TOKENS}"),
    "underscore": (OWN + "0,5,5\n1,1_0,5\n", 3, "prompt_tokens", f"'1_0'; {TOKENS}"),
    "zero output": (OWN + "0,5,5\n1,5,0\n", 3, "output_tokens", f"0; {TOKENS}"),
    "negative time": (OWN + "0,5,5\n-1,5,5\n", 3, "arrival_s", f"-1; {SECONDS}"),
    "absurd time": (OWN + "0,5,5\n1e300,5,5\n", 3, "arrival_s", f"1e300; {SECONDS}"),
    "no time": (OWN + "0,5,5\n,5,5\n", 3, "arrival_s", f"nothing is given; {SECONDS}"),
    "backwards": (OWN + "7,5,5\n1,5,5\n", 3, "arrival_s", "1 is earlier than a row above"),
    "cut off": (OWN + "0,5,5\n1,5", 3, None, "2 cells; expected 3, as in the header (is the line cut off?)"),
    "too many cells": (OWN + "0,5,5\n1,5,5,9\n", 3, None, "4 cells; expected 3, as in the header"),
    "twice the id": (
        "id,prompt_tokens,output_tokens\na,5,5\na,5,5\n", 3, "id", "'a' stands already in line 2",
    ),
    "no id": ("id,prompt_tokens,output_tokens\na,5,5\n,5,5\n", 3, "id", "nothing is given; expected a name"),
    "above its cap": (
        "prompt_tokens,output_tokens,max_output_tokens\n5,5,9\n5,10,9\n", 3, "output_tokens",
        "10 is above the row's max_output_tokens, 9",
    ),
    "outside what is known": (
        "prompt_tokens,output_tokens,known_low,known_high\n5,5,1,9\n5,10,1,9\n", 3, "output_tokens",
        "10 is outside what is known of it, 1 to 9",
    ),
    "a prefix in words": (
        "prompt_tokens,output_tokens,prefix_hashes,prefix_block_tokens\n99,5,0-2 7,16\n99,5,0-x,16\n", 3,
        "prefix_hashes", "'0-x'; expected whole numbers and runs of them",
    ),
    "a deadline in words": (
        "prompt_tokens,output_tokens,deadline_s\n5,5,\n5,5,soon\n", 3, "deadline_s", "'soon'; expected a number",
    ),
    "after a blank line and a quoted line break": (
        'prompt_tokens,output_tokens,tenant\n\n5,5,"a\nb"\n5,-5,c\n', 5, "output_tokens", f"-5; {TOKENS}",
    ),
    "azure: 31 June": (
        f"{AZURE}{STAMP},5,5\n2023-06-31 10:00:00,5,5\n", 3, "TIMESTAMP", "expected a moment in UTC",
    ),
    "azure: now": (f"{AZURE}{STAMP},5,5\nnow,5,5\n", 3, "TIMESTAMP", "'now'; expected a moment in UTC"),
    "azure: other zone": (
        f"{AZURE}{STAMP},5,5\n2023-11-16 18:17:04+02:00,5,5\n", 3, "TIMESTAMP", "expected a moment in UTC",
    ),
    "azure: backwards": (
        f"{AZURE}{STAMP},5,5\n2023-11-16 18:17:02.9,5,5\n", 3, "TIMESTAMP", "is earlier than a row above",
    ),
    "burstgpt: failure": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,a,5,5,10,x\n6,a,5,0,5,x\n", 3,
        "Response tokens", f"0; {TOKENS}",
    ),
    "splitwise: twice the id": (
        "request_id,arrival_timestamp,prompt_size,token_size\n7,0,1,1\n7,1,1,1\n", 3, "request_id",
        "7 stands already in line 2",
    ),
    "json: fractional": (moon(input_length=5.5), 2, "input_length", f"5.5; {TOKENS}"),
    "json: text": (moon(input_length="600"), 2, "input_length", "600; expected a whole number"),
    "json: true": (moon(output_length=True), 2, "output_length", f"True; {TOKENS}"),
    "json: null": (moon(output_length=None), 2, "output_length", f"nothing is given; {TOKENS}"),
    "json: huge": (moon(output_length=10**400), 2, "output_length", TOKENS),
    "json: NaN": (moon(timestamp=float("nan")), 2, "timestamp", "expected a number of milliseconds >= 0"),
    "json: missing key": (MOON + '{"timestamp": 1, "input_length": 5}\n', 2, "output_length", "nothing is given"),
    "json: cut off": (
        MOON + '{"timestamp": 1, "input_le', 2, None,
        "is no JSON: Unterminated string starting at character 18 (is the line cut off?)",
    ),
    "json: cut between": (
        MOON + '{"timestamp": 1, ', 2, None,
        "is no JSON: Expecting property name enclosed in double quotes at character 18 (is the line cut off?)",
    ),
    "json: endless digits": (MOON + '{"timestamp": ' + "1" * 5000 + "}", 2, None, "a number or a nesting is too long"),
    "json: no object": (MOON + "[1, 2]\n", 2, None, "[1, 2]; expected a JSON object"),
    "json: ids in words": (moon(hash_ids=["a"]), 2, "hash_ids", "['a']; expected a list of whole numbers"),
    "json: negative id": (moon(hash_ids=[-1]), 2, "hash_ids", "[-1]; expected a list of whole numbers"),
    "json: giant id": (moon(hash_ids=[2**70]), 2, "hash_ids", "expected a list of whole numbers"),
    "json: no list": (moon(hash_ids=7), 2, "hash_ids", "7; expected a list of whole numbers"),
    "json: more ids than blocks": (
        moon(hash_ids=[1, 2, 3]), 2, "hash_ids", "3 ids; the prompt has fewer blocks of 512 tokens",
    ),
    "json: a run backwards": (
        '{"prompt_tokens": 100, "output_tokens": 5, "hash_runs": [[1, 6]]}\n'
        '{"prompt_tokens": 33, "output_tokens": 5, "hash_runs": [[2, 1]]}\n', 2, "hash_runs",
        "[[2, 1]]; expected a list of [first, last] pairs",
    ),
    "json: a run without end": (
        '{"prompt_tokens": 100, "output_tokens": 5, "hash_runs": [[1, 6]]}\n'
        '{"prompt_tokens": 33, "output_tokens": 5, "hash_runs": [[0, 999999999999]]}\n', 2, "hash_runs",
        "expected a list of [first, last] pairs",
    ),
    "aibrix: no list": (
        '{"timestamp": 0, "requests": [{"Prompt Length": 1, "Output Length": 1}]}\n{"timestamp": 1, "requests": 7}\n',
        2, "requests", "7; expected a list of objects",
    ),
    "aibrix: no length": (
        '{"timestamp": 0, "requests": [{"Prompt Length": 1, "Output Length": 1}]}\n'
        '{"timestamp": 1, "requests": [{"Prompt Length": 1}]}\n', 2, "Output Length", "nothing is given",
    ),
    "sharegpt: one turn": (
        '[{"conversations": [{"value": "a"}, {"value": "b"}]},\n {"conversations": [{"value": "a"}]}]', 2,
        "[1].conversations", "1 turns; expected a list of at least two turns",
    ),
    "sharegpt: no text": (
        '[{"conversations": [{"value": "a"}, {"value": "b"}]},\n {"conversations": [{"value": 1}, {}]}]', 2,
        "[1].conversations", "1; expected the text of a turn",
    ),
    "sharegpt: no words": (
        '[{"conversations": [{"value": "a"}, {"value": "b"}]},\n{"conversations": [{"value": "a"}, {"value": ""}]}]',
        2, "second turn", f"0; {TOKENS}",
    ),
}  # fmt: skip


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_told_by_file_line_and_field(tmp_path: Path, name: str) -> None:
    text, line, field, message = BAD_ROWS[name]
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_trace(path)
    assert (error.value.file, error.value.line, error.value.field) == (str(path), line, field)
    assert message in error.value.problem


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_that_is_skipped_is_listed_and_the_good_one_stays(tmp_path: Path, name: str) -> None:
    text, line, field, message = BAD_ROWS[name]
    trace = read_trace(written(tmp_path, text), skip_bad_rows=True)
    assert len(trace.requests) == 1
    ((skipped_line, reason),) = trace.skipped
    assert skipped_line == line
    assert message in reason
    assert field is None or f"field {field}: " in reason


# The whole file is at fault, whether bad rows are skipped or not: text, line, field, message.
BAD_FILES = {
    "empty": ("", None, None, "the file is empty"),
    "blank": ("\n \n", None, None, "the file is empty"),
    "binary": (b"\x1f\x8b\x08\x00\x00azure", None, None, "this is a binary file"),
    "no UTF-8": (OWN.encode() + b"0,5,5\n1,\xff,5\n", 3, None, "this is no text in UTF-8"),
    "only a header": (OWN, 1, None, "there are no requests; only a header"),
    "unknown column": ("prompt_tokens,output_tokens,dead_line\n5,5,5\n", 1, "dead_line", "unknown column"),
    "doubled column": (
        "prompt_tokens,output_tokens,output_tokens\n5,5,5\n", 1, "output_tokens", "stands twice in the header",
    ),
    "missing column": ("arrival_s,prompt_tokens\n5,5\n", 1, "output_tokens", "nearest is compact"),
    "azure without a column": ("TIMESTAMP,ContextTokens\n", 1, "GeneratedTokens", "nearest is azure"),
    "unknown format": ("a,b,c\n1,2,3\n", 1, None, "no known format has a, b, c; known formats are azure, mooncake"),
    "two formats": (
        "prompt_tokens,output_tokens,num_prefill_tokens,num_decode_tokens\n1,1,1,1\n", 1, None,
        "this could be vidur-lengths or compact",
    ),
    "unknown key": (moon(colour=1), 2, "colour", "unknown column; mooncake has timestamp"),
    "unknown keys": ('{"colour": 1}\n', 1, None, "no known format has colour"),
    "broken first line": ('{"timestamp": 0, "inp\n', 1, None, "the first line is no JSON object"),
    "closed loop": (moon(delay=5), 2, "delay", "closed-loop trace"),
    "a session per line": (
        '{"session_id": 1, "block_tokens": 64, "turns": []}\n', 1, "turns", "only files with one request per line",
    ),
    "llmservingsim sessions": (
        '{"session_id": 1, "arrival_time_ns": 0, "sub_requests": []}\n', 1, "session_id", "this is the session form",
    ),
    "list without end": ('[{"conversations": [{"value": "a"}, {"value": "b"}]}', 1, None, "is the file cut off?"),
    "list cut in an element": ('[\n{"conversations": [{"val', 2, None, "is the file cut off?"),
    "empty list": ("[]", 1, None, "there are no requests"),
    "both hashes": (
        '{"prompt_tokens": 5, "output_tokens": 5, "hash_ids": [1], "hash_runs": [[1, 1]]}\n', None, "hash_runs",
        "hash_ids stands beside it",
    ),
    "two block sizes": (
        '{"prompt_tokens": 5, "output_tokens": 5, "hash_ids": [1], "block_tokens": 16}\n'
        '{"prompt_tokens": 5, "output_tokens": 5, "hash_ids": [1], "block_tokens": 32}\n', None, "block_tokens",
        "the same in all rows",
    ),
    "unknown key of aibrix": ('{"timestamp": 0, "requests": [], "x": 1}\n', 1, "x", "a line of aibrix has timestamp"),
    "aibrix without requests": ('{"timestamp": 0, "requests": []}\n', None, None, "there are no requests"),
    "another schema": ('{"schema": "optimizer/instance@0"}\n', None, None, "this is no instance"),
}  # fmt: skip


@pytest.mark.parametrize("skip", [False, True], ids=["strict", "skipping"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_told_whether_rows_are_skipped_or_not(tmp_path: Path, name: str, skip: bool) -> None:
    text, line, field, message = BAD_FILES[name]
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_trace(path, skip_bad_rows=skip)
    assert (error.value.file, error.value.line, error.value.field) == (str(path), line, field)
    assert message in error.value.problem


def test_what_cannot_be_detected_names_the_formats_and_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        detect_format(written(tmp_path, "a,b\n1,2\n"))
    assert all(name in error.value.problem for name in FORMATS)
    assert "--format" in error.value.problem


def test_a_format_that_is_named_wrongly_says_what_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path, OWN + "0,5,5\n")
    with pytest.raises(InputError, match="missing column; azure needs TIMESTAMP") as error:
        read_trace(path, format="azure")
    assert (error.value.line, error.value.field) == (1, "TIMESTAMP")
    with pytest.raises(InputError, match="no JSON"):
        read_trace(path, format="mooncake")
    with pytest.raises(InputError, match="'azur' is no format; expected one of azure"):
        read_trace(path, format="azur")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    with pytest.raises(InputError, match="cannot be read: No such file") as error:
        read_trace(path)
    assert error.value.file == str(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path)


def test_the_first_bad_row_counts_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    path = written(tmp_path, OWN + "5,5,5\n4,5,5\n6,-1,5\n")
    with pytest.raises(InputError) as error:
        read_trace(path)
    assert (error.value.line, error.value.field) == (3, "arrival_s")


def test_one_row_far_back_does_not_condemn_those_behind_it(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, OWN + "5,5,5\n1,5,5\n2,5,5\n6,5,5\n7,0,5\n"), skip_bad_rows=True)
    assert trace.requests.arrival_s.tolist() == [0, 1]
    assert [line for line, _ in trace.skipped] == [3, 4, 6]


def test_a_file_of_bad_rows_alone_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no good row is left; 2 are bad \(line 2, field output_tokens"):
        read_trace(written(tmp_path, OWN + "0,5,0\n1,5,0\n"), skip_bad_rows=True)


SAMPLES = [
    *(case[0] for case in BAD_ROWS.values()),
    *(c[0] for c in BAD_FILES.values() if isinstance(c[0], str)),
]


@given(
    sample=st.sampled_from(SAMPLES),
    at=st.floats(0, 1),
    cut=st.integers(0, 12),
    put=st.text(max_size=6)
    | st.sampled_from(["-", "{}", "[]", "[[", "null", "1e999", '"', ",", "\n", "\r", "9" * 30]),
    skip=st.booleans(),
)
def test_whatever_is_in_a_file_only_our_own_error_comes_out(
    sample: str, at: float, cut: int, put: str, skip: bool
) -> None:
    place = int(at * len(sample))
    text = sample[:place] + put + sample[place + cut :]
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), text.encode(errors="surrogatepass"))
        try:
            trace = read_trace(path, skip_bad_rows=skip)
        except InputError:
            return
    assert trace.requests.prompt_tokens.min() >= 1
    assert skip or not trace.skipped

"""Every format, read from a few lines of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.problem import Engine, Instance, PrefixHashes, Requests
from optimizer.traces import FORMATS, detect_format, read_trace

AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,374,44\r\n"
    "2023-11-16 18:17:08.2945390,396,109"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:01+00:00,2399,6\n"
)
AZURE_LMM = (
    "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    "2024-10-15T12:00:00.269Z,1,1000,50\n"
    "2024-10-15T12:00:02.269Z,0,10,5\n"
)
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 1030, "output_length": 52, "hash_ids": [46, 47, 48]}\n'
    '{"timestamp": 30535, "input_length": 513, "output_length": 26, "hash_ids": [46, 2353]}\n'
)
BAILIAN = (
    '{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 33, "output_length": 132, '
    '"type": "text", "turn": 1, "hash_ids": [9, 8, 7]}\n'
    '{"chat_id": 160, "parent_chat_id": -1, "timestamp": 61.364, "input_length": 33, "output_length": 2, '
    '"type": "file", "turn": 1, "hash_ids": [1, 8, 7]}\n'
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n1.5,100,20\n2,30,4\n"
VIDUR_LENGTHS = (
    "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n100,20,120,5.0\n30,4,34,7.5\n"
)
SPLITWISE = (
    "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "7,2,0,0.0,1,374,44\n9,2,3,4.3,1,396,109\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"
)
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,s1,1.5,ChatGPT,472,18,490,Conversation log\n45,s2,2,GPT-4,1087,230,1317,API log\n"
)
SHAREGPT = json.dumps(
    [
        {
            "id": "a",
            "conversations": [{"from": "human", "value": "x" * 17}, {"from": "gpt", "value": "y" * 8}],
        },
        {
            "id": "b",
            "conversations": [{"value": "q", "tokens": 30}, {"value": "a", "tokens": 4}, {"value": "more"}],
        },
    ],
    indent=1,
)
LLMSERVINGSIM = (
    '{"input_toks": 85, "output_toks": 416, "arrival_time_ns": 1000000000, "input_tok_ids": [1], "output_tok_ids": []}\n'
    '{"input_toks": 9, "output_toks": 333, "arrival_time_ns": 1500000000}\n'
)
AIBRIX = (
    '{"timestamp": 1000, "requests": [{"Prompt Length": 178, "Output Length": 8, "prompt": "hi"}, '
    '{"prompt_length": 258, "output_length": 40}]}\n'
    '{"timestamp": 1906, "requests": []}\n'
    '{"timestamp": 2906, "requests": [{"Prompt Length": 5, "Output Length": 6}]}\n'
)
COMPACT = "arrival_s,prompt_tokens,output_tokens,model,log_type\n0.5,10,3,m1,x\n1.5,20,4,m2,y\n"
COMPACT_LENGTHS = "prompt_tokens,output_tokens\n10,3\n20,4\n"
COMPACT_JSONL = (
    '{"arrival_s":1.0,"prompt_tokens":100,"output_tokens":5,"session_id":44,"turn":0,"hash_runs":[[1,5],[9,9]]}\n'
    '{"arrival_s":2.0,"prompt_tokens":200,"output_tokens":6,"session_id":45,"turn":0,"hash_runs":[[1,12]]}\n'
)

CASES = {
    # name: text, format, arrivals (None: none in the file), prompts, outputs, tenants
    "azure2023.csv": (AZURE_2023, "azure", [0, 4.314579], [374, 396], [44, 109], None),
    "azure2024.csv": (AZURE_2024, "azure", [0, 0.99007], [2162, 2399], [5, 6], None),
    "lmm.csv": (AZURE_LMM, "azure", [0, 2], [1000, 10], [50, 5], None),
    "mooncake.jsonl": (MOONCAKE, "mooncake", [0, 3.053], [1030, 513], [52, 26], None),
    "bailian.jsonl": (BAILIAN, "bailian", [0, 0.25], [33, 33], [132, 2], ("text", "file")),
    "vidur.csv": (VIDUR, "vidur", [0, 0.5], [100, 30], [20, 4], None),
    "lengths.csv": (VIDUR_LENGTHS, "vidur-lengths", None, [100, 30], [20, 4], None),
    "splitwise.csv": (SPLITWISE, "splitwise", [0, 4.3], [374, 396], [44, 109], ("0", "3")),
    "burstgpt.csv": (BURSTGPT, "burstgpt", [0, 40], [472, 1087], [18, 230], ("ChatGPT", "GPT-4")),
    "burstgpt3.csv": (BURSTGPT_3, "burstgpt", [0, 40], [472, 1087], [18, 230], ("ChatGPT", "GPT-4")),
    "sharegpt.json": (SHAREGPT, "sharegpt", None, [5, 30], [2, 4], None),
    "llmservingsim.jsonl": (LLMSERVINGSIM, "llmservingsim", [0, 0.5], [85, 9], [416, 333], None),
    "aibrix.jsonl": (AIBRIX, "aibrix", [0, 0, 1.906], [178, 258, 5], [8, 40, 6], None),
    "compact.csv": (COMPACT, "compact", [0, 1], [10, 20], [3, 4], ("m1", "m2")),
    "compact_lengths.csv": (COMPACT_LENGTHS, "compact", None, [10, 20], [3, 4], None),
    "compact.jsonl": (COMPACT_JSONL, "compact", [0, 1], [100, 200], [5, 6], ("44", "45")),
}


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("named", [True, False], ids=["named", "detected"])
def test_every_format_is_read_whether_named_or_detected(tmp_path: Path, name: str, named: bool) -> None:
    text, format, arrivals, prompts, outputs, tenants = CASES[name]
    path = written(tmp_path, text, name)
    assert detect_format(path) == format
    trace = read_trace(path, format=format if named else None)
    assert trace.format == format
    assert trace.path == path
    assert trace.skipped == ()
    assert trace.has_arrivals is (arrivals is not None)
    r = trace.requests
    assert r.arrival_s.tolist() == (arrivals if arrivals is not None else [0.0] * len(prompts))
    assert (r.prompt_tokens.tolist(), r.output_tokens.tolist()) == (prompts, outputs)
    assert r.tenant == tenants


def test_the_cases_cover_every_format_but_the_instance() -> None:
    assert {case[1] for case in CASES.values()} | {"instance"} == set(FORMATS)


@pytest.mark.parametrize("name", ["azure2023.csv", "mooncake.jsonl", "sharegpt.json", "compact.csv"])
def test_a_byte_order_mark_blank_lines_and_windows_line_ends_change_nothing(
    tmp_path: Path, name: str
) -> None:
    text, format, _, prompts, _, _ = CASES[name]
    path = written(
        tmp_path, "\ufeff\r\n" + text.replace("\r\n", "\n").replace("\n", "\r\n") + "\r\n\r\n", name
    )
    trace = read_trace(path)
    assert (trace.format, trace.requests.prompt_tokens.tolist()) == (format, prompts)


def test_hashes_of_mooncake_stand_for_512_tokens(tmp_path: Path) -> None:
    prefix = read_trace(written(tmp_path, MOONCAKE)).requests.prefix
    assert prefix is not None
    assert (prefix.block_tokens, prefix.of(0).tolist(), prefix.of(1).tolist()) == (
        512,
        [46, 47, 48],
        [46, 2353],
    )


def test_hashes_of_bailian_are_chained_on_reading(tmp_path: Path) -> None:
    prefix = read_trace(written(tmp_path, BAILIAN)).requests.prefix
    assert prefix is not None
    assert prefix.block_tokens == 16
    # Blocks 8 and 7 come after different first blocks: they are different KV.
    assert not set(prefix.of(0).tolist()) & set(prefix.of(1).tolist())


def test_runs_are_expanded_and_the_block_size_inferred(tmp_path: Path) -> None:
    prefix = read_trace(written(tmp_path, COMPACT_JSONL)).requests.prefix
    assert prefix is not None
    assert (prefix.block_tokens, prefix.of(0).tolist()) == (16, [1, 2, 3, 4, 5, 9])


def test_the_block_size_is_taken_from_the_caller_then_the_file(tmp_path: Path) -> None:
    text = '{"prompt_tokens": 100, "output_tokens": 5, "hash_ids": [1], "block_tokens": 64}\n'
    path = written(tmp_path, text)
    assert read_trace(path).requests.prefix.block_tokens == 64  # type: ignore[union-attr]
    assert read_trace(path, hash_block_tokens=80).requests.prefix.block_tokens == 80  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("prompt", "ids", "why"),
    [(10, [1], "several block sizes fit"), (1000, [1, 2, 3, 4, 5], "no usual block size fits")],
)
def test_a_block_size_that_cannot_be_told_is_asked_for(
    tmp_path: Path, prompt: int, ids: list[int], why: str
) -> None:
    path = written(tmp_path, json.dumps({"prompt_tokens": prompt, "output_tokens": 5, "hash_ids": ids}))
    with pytest.raises(InputError, match=f"{why}.*--hash-block-tokens") as error:
        read_trace(path)
    assert (error.value.file, error.value.field) == (str(path), "hash_ids")


def test_a_block_size_for_a_file_without_hashes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no block hashes"):
        read_trace(written(tmp_path, VIDUR), hash_block_tokens=16)
    with pytest.raises(InputError, match="expected at least 1"):
        read_trace(written(tmp_path, VIDUR), hash_block_tokens=0)


def test_a_block_size_for_an_instance_is_an_error(tmp_path: Path, engine: Engine) -> None:
    prefix = PrefixHashes(np.array([1, 2]), np.array([0, 2]), 16)
    requests = Requests.from_columns({"prompt_tokens": [32], "output_tokens": [4]}, prefix=prefix)
    path = tmp_path / "instance.json"
    Instance("one", requests, engine).write(path)
    with pytest.raises(InputError, match="an instance says itself what its hashes stand for") as error:
        read_trace(path, hash_block_tokens=32)
    assert (error.value.file, error.value.field) == (str(path), "hash_block_tokens")


def test_sharegpt_says_that_its_lengths_are_estimates(tmp_path: Path) -> None:
    note = read_trace(written(tmp_path, SHAREGPT)).note
    assert "1 conversations are estimated as characters / 4" in note
    counted = json.dumps([{"prompt_tokens": 3, "output_tokens": 9, "conversations": []}])
    trace = read_trace(written(tmp_path, counted))
    assert "estimated" not in trace.note
    assert trace.requests.output_tokens.tolist() == [9]


def test_ids_are_kept_where_the_format_has_them(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, SPLITWISE)).requests.ids == ("7", "9")


def test_an_instance_brings_its_engine(tmp_path: Path, engine: Engine) -> None:
    requests = Requests.from_columns({"prompt_tokens": [3], "output_tokens": [4], "arrival_s": [2.0]})
    path = tmp_path / "instance.json"
    Instance("one", requests, engine).write(path)
    trace = read_trace(path)
    assert (trace.format, trace.has_arrivals) == ("instance", True)
    assert trace.instance is not None
    assert trace.instance.engine.kv_blocks == engine.kv_blocks
    indented = tmp_path / "indented.json"
    indented.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    assert detect_format(indented) == "instance"


def test_nanoseconds_of_a_unix_clock_lose_no_microsecond(tmp_path: Path) -> None:
    start = 1_700_000_000 * 10**9
    text = "\n".join(
        json.dumps({"input_toks": 1, "output_toks": 1, "arrival_time_ns": start + at})
        for at in (0, 1_500_000_256)
    )
    arrivals = read_trace(written(tmp_path, text)).requests.arrival_s
    assert arrivals[1] == pytest.approx(1.500000256, abs=1e-6)


def test_a_deadline_moves_with_the_time_axis(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,output_tokens,deadline_s\n100,1,1,130\n110,1,1,\n"
    r = read_trace(written(tmp_path, text)).requests
    assert r.deadline_s is not None
    assert r.deadline_s[0] == 30
    assert np.isnan(r.deadline_s[1])

"""The catalogue loads, its shapes count to the published parameters, and wrong files are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.capacity import gpu, list_gpus, list_llms, llm
from optimizer.errors import InputError


@pytest.mark.parametrize("name", list_llms())
def test_every_llm_counts_to_its_published_parameters(name: str) -> None:
    found = llm(name)
    assert found.name == name
    assert found.source
    if found.published_parameters:
        assert found.parameters == found.published_parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [("opt-30b", 30), ("opt-66b", 66), ("opt-175b", 175)],
)
def test_parameters_where_only_a_round_number_is_published(name: str, billions: int) -> None:
    assert llm(name).parameters / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("mixtral-8x7b", 12.9), ("mixtral-8x22b", 39), ("qwen3-30b-a3b", 3.3), ("llama3.1-8b", 8.03)],
)
def test_active_parameters(name: str, billions: float) -> None:
    assert llm(name).active_parameters / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("name", list_gpus())
def test_every_gpu_loads(name: str) -> None:
    found = gpu(name)
    assert found.name == name
    assert found.source
    # A figure off by a power of ten would stand out here: the ridge lies at some 50 to 350 operations per byte.
    assert 30 < found.bf16_flops / found.bandwidth_bytes_s < 450
    assert found.fp8_flops is None or found.fp8_flops / found.bf16_flops == pytest.approx(2, rel=0.05)


def test_the_issue_s_models_and_gpus_are_there() -> None:
    assert {
        "llama-65b", "llama2-7b", "llama2-13b", "llama2-70b", "llama3.1-8b", "llama3.1-70b",
        "qwen2.5-32b", "mixtral-8x7b", "opt-13b", "opt-66b",
    } <= set(list_llms())  # fmt: skip
    assert {"a100-40", "a100-80", "h100", "h200", "l40s", "rtx-4090", "a10g", "b200"} <= set(list_gpus())


def test_a_near_name_is_offered() -> None:
    with pytest.raises(InputError, match=r"did you mean .*llama3\.1-8b"):
        llm("llama3.1-8")
    with pytest.raises(InputError, match="did you mean h200"):
        gpu("h-200")


GOOD = """name: toy
layers: 2
hidden: 8
heads: 2
kv_heads: 1
head_dim: 4
intermediate: 16
vocab: 10
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("layers: 2\n", ""), r"toy\.yaml, field layers: Field required"),
        (
            GOOD.replace("layers: 2", "layers: -2"),
            r"field layers: .*greater than or equal to 1 \(given: -2\)",
        ),
        (GOOD.replace("layers: 2", "layers: 2.5"), r"field layers: .*\(given: 2\.5\)"),
        (GOOD + "colour: red\n", "field colour: Extra inputs"),
        (GOOD.replace("kv_heads: 1", "kv_heads: 3"), "heads 2 is no multiple of kv_heads 3"),
        ("- a list\n", "expected `field: value` lines"),
        ("name: [unclosed\n", r"toy\.yaml, line \d+: is no valid YAML"),
        ("", "expected `field: value` lines"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        llm(str(path))


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(GOOD)
    assert llm(str(path)).parameters == 1352
    with pytest.raises(InputError, match="cannot be read"):
        llm(str(tmp_path / "absent.yaml"))


CHECKED = "estimate_error: {what: all, points: 3, median: 0.1, low: -0.2, high: 0.3}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "efficiency: {matrix: 1.2}\n",
            r"field efficiency\.matrix: .*less than or equal to 1 \(given: 1\.2\)",
        ),
        ("efficiency: {speed: 1}\n", r"field efficiency\.speed: Extra inputs"),
        (CHECKED.replace("-0.2", "0.4"), "low 0.4 is above high 0.3"),
        (CHECKED.replace("points: 3", "points: 0"), r"field estimate_error\.points"),
    ],
)
def test_wrong_factors_of_a_gpu_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    plain = (
        "name: mine\nmemory_bytes: 1\nbandwidth_bytes_s: 1.0\nbf16_flops: 1.0\ninterconnect_bytes_s: 1.0\n"
    )
    path.write_text(plain)
    assert gpu(str(path)).estimate_error is None
    path.write_text(plain + CHECKED)
    assert gpu(str(path)).estimate_error is not None
    path.write_text(plain + text)
    with pytest.raises(InputError, match=message):
        gpu(str(path))

"""config.json of the families that the reader knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimizer.capacity import engine, llm, llm_from_config
from optimizer.errors import InputError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "mlp_bias": False,
    "use_cache": True,
}
# The shapes with which the H200 was measured.
MEASURED = {
    "llama3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072,
    },
    "llama2-13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40, "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 32768,
    },
    "llama-65b": {
        "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 64, "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 32768,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_measured_shapes_are_those_of_the_catalogue(name: str) -> None:
    found, known = llm_from_config(LLAMA | MEASURED[name], name=name), llm(name)
    assert found.parameters == known.parameters == known.published_parameters
    assert found.kv_bytes_per_token() == known.kv_bytes_per_token()
    assert found.dtype == "bf16"


MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
    "num_experts_per_tok": 2, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN2 = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072,
}  # fmt: skip
QWEN3_MOE = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8, "max_position_embeddings": 40960,
}  # fmt: skip
OPT = {
    "model_type": "opt", "hidden_size": 5120, "ffn_dim": 20480, "num_hidden_layers": 40,
    "num_attention_heads": 40, "vocab_size": 50272, "max_position_embeddings": 2048, "torch_dtype": "float16",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "name"),
    [(MIXTRAL, "mixtral-8x7b"), (QWEN2, "qwen2.5-7b"), (QWEN3_MOE, "qwen3-30b-a3b"), (OPT, "opt-13b")],
)
def test_families(config: dict[str, Any], name: str) -> None:
    found, known = llm_from_config(config, name=name), llm(name)
    assert found.model_copy(update={"source": "", "published_parameters": None}) == known.model_copy(
        update={"source": "", "published_parameters": None}
    )


def test_a_vision_model_s_text_part() -> None:
    config = {"model_type": "mllama", "text_config": QWEN2}
    assert llm_from_config(config, name="x").layers == 28


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_hidden_layers": None},
            r"field num_hidden_layers: is missing \(or n_layer, num_layers\); add it",
        ),
        ({"hidden_size": "big"}, "field hidden_size: 'big' is no count"),
        ({"vocab_size": 0}, "field vocab_size: 0 is no count"),
        ({"vocab_size": True}, "field vocab_size: True is no count"),
        ({"num_attention_heads": 31}, "field head_dim: hidden size 3584 is no multiple of 31 heads"),
        ({"num_key_value_heads": 5}, "heads 28 is no multiple of kv_heads 5"),
        ({"num_experts": 8}, "field num_experts_per_tok: is missing"),
        ({"model_type": "deepseek_v3"}, "field model_type: .*multi-head latent attention"),
        ({"torch_dtype": "int3"}, "field torch_dtype: 'int3' is not known"),
        ({"quantization_config": {"quant_method": "awq"}}, "field quantization_config: .*'awq'"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        llm_from_config(QWEN2 | change)


def test_from_a_file_to_an_engine(tmp_path: Path) -> None:
    path = tmp_path / "mine" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(QWEN2))
    assert llm(str(path)).name == "mine"
    found = engine(f"{path}@h100", tp=2)
    assert found.origin == "estimated"
    assert found.kv_blocks > 10_000
    path.write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        llm(str(path))


def test_fp8_weights() -> None:
    assert llm_from_config(QWEN2 | {"quantization_config": {"quant_method": "fp8"}}, name="x").dtype == "fp8"

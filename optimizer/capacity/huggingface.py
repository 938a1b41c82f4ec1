"""An LLM from the `config.json` that comes with its weights on Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.capacity.specifications import LLM
from optimizer.capacity.yaml_files import read_mapping, validated
from optimizer.errors import InputError

# What the families call a thing, the usual name first.
_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head"),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner"),
    "vocab": ("vocab_size",),
}
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token")
_LENGTH = ("max_position_embeddings", "n_positions")
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "bf16"}
# Families whose attention or layers have another shape than `LLM` can say; better refused than wrong.
_REFUSED = {
    "deepseek_v2": "multi-head latent attention",
    "deepseek_v3": "multi-head latent attention",
    "mamba": "no attention",
    "mamba2": "no attention",
    "t5": "an encoder",
    "bert": "an encoder",
    "qwen2_moe": "shared experts",
}


def llm_from_config(source: str | Path | Mapping[str, Any], *, name: str | None = None) -> LLM:
    """Read the shape of an LLM from its Hugging Face `config.json`.

    Knows the families llama, mistral, mixtral, qwen2, qwen3, qwen3_moe and opt, and reads others that use the
    same keys as if they were llama. Keys that do not bear on memory or work are passed over.

    Parameters
    ----------
    source
        Path of the file, or its content.
    name
        For people; else `_name_or_path` of the file, else the folder it lies in.

    Raises
    ------
    InputError
        If the file cannot be read, a key is missing, a value is no count, or the family has another shape:
        naming the key and what to do.

    Examples
    --------
    >>> shape = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2,
    ...          "intermediate_size": 16, "vocab_size": 10}
    >>> llm_from_config(shape, name="toy").kv_heads
    2
    """
    file = None if isinstance(source, Mapping) else str(source)
    config = dict(source) if isinstance(source, Mapping) else read_mapping(Path(source))
    # Models that also read pictures keep the language model's keys one level down.
    config = {**config, **config["text_config"]} if isinstance(config.get("text_config"), dict) else config
    family = str(config.get("model_type", ""))
    if family in _REFUSED:
        problem = f"family {family!r} ({_REFUSED[family]}) has a shape that is not modelled"
        raise InputError(f"{problem}; measure it and write an engine card", file=file, field="model_type")
    shape = {field: _count(config, keys, file) for field, keys in _KEYS.items()}
    heads, hidden = shape["heads"], shape["hidden"]
    if "head_dim" not in config and hidden % heads:
        problem = f"hidden size {hidden} is no multiple of {heads} heads; add the key"
        raise InputError(problem, file=file, field="head_dim")
    experts = _count(config, _EXPERTS, file, default=1)
    if experts > 1 and "moe_intermediate_size" in config:
        shape["intermediate"] = _count(config, ("moe_intermediate_size",), file)
    opt = family == "opt"
    values = {
        **shape,
        "name": name or _name(config, file),
        "kv_heads": _count(config, _KV_HEADS, file, default=heads),
        "head_dim": _count(config, ("head_dim",), file, default=hidden // heads),
        "experts": experts,
        "experts_per_token": _count(config, _EXPERTS_PER_TOKEN, file, default=1 if experts == 1 else None),
        "gated_mlp": not opt,
        "linear_bias": opt,
        "learned_positions": _count(config, _LENGTH, file) + 2 if opt else 0,
        "tied_embeddings": bool(config.get("tie_word_embeddings", opt)),
        "qkv_bias": family == "qwen2" or bool(config.get("attention_bias", False)),
        "qk_norm": family.startswith("qwen3"),
        "dtype": _dtype(config, file),
        "max_model_len": _count(config, _LENGTH, file, default=0) or None,
        "source": f"{file or 'a given config'} (model_type {family or 'not said'})",
    }
    return validated(LLM, values, file=file)


def _count(
    config: Mapping[str, Any], keys: tuple[str, ...], file: str | None, default: int | None = None
) -> int:
    key = next((key for key in keys if config.get(key) is not None), None)
    if key is None:
        if default is not None:
            return default
        others = f" (or {', '.join(keys[1:])})" if keys[1:] else ""
        raise InputError(
            f"is missing{others}; add it to the file, from the model's card", file=file, field=keys[0]
        )
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{value!r} is no count; expected a whole number >= 1", file=file, field=key)
    return value


def _name(config: Mapping[str, Any], file: str | None) -> str:
    given = str(config.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
    return given or (Path(file).resolve().parent.name if file else "") or "unnamed"


def _dtype(config: Mapping[str, Any], file: str | None) -> str:
    quantisation = config.get("quantization_config")
    if isinstance(quantisation, dict):
        method = str(quantisation.get("quant_method", ""))
        if method in ("fp8", "fbgemm_fp8"):
            return "fp8"
        problem = (
            f"weights quantised by {method!r} are not modelled; remove the key to estimate 16-bit weights"
        )
        raise InputError(problem, file=file, field="quantization_config")
    given = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    if given not in _DTYPES:
        problem = f"{given!r} is not known; expected {', '.join(_DTYPES)}"
        raise InputError(problem, file=file, field="torch_dtype")
    return _DTYPES[given]

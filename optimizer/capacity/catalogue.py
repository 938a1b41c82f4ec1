"""The catalogue of LLMs and GPUs: look-up by name, a file of your own by path."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from optimizer.capacity.huggingface import llm_from_config
from optimizer.capacity.specifications import GPU, LLM
from optimizer.capacity.yaml_files import read_model
from optimizer.catalogue import catalogue_path
from optimizer.errors import InputError

_MANY = 30
"""Names that an error message lists at most."""


def names(kind: str) -> list[str]:
    """Give the names in a folder of the catalogue (`llm`, `gpu`, `engines`), sorted.

    >>> "h200" in names("gpu")
    True
    """
    return sorted(path.stem for path in (catalogue_path("models") / kind).glob("*.yaml"))


def list_llms() -> list[str]:
    """Name every LLM of the catalogue, sorted."""
    return names("llm")


def list_gpus() -> list[str]:
    """Name every GPU of the catalogue, sorted."""
    return names("gpu")


def llm(name: str) -> LLM:
    """Look up an LLM, or read one from a file.

    Parameters
    ----------
    name
        Of the catalogue (`list_llms()`), in any case; or the path of a `.yaml` like those of the catalogue,
        or of a Hugging Face `config.json`.

    Raises
    ------
    InputError
        If there is none (the message lists near names), or the file is wrong (file and field).

    Examples
    --------
    >>> llm("mixtral-8x7b").experts
    8
    """
    path = Path(name)
    if path.suffix == ".json":
        return llm_from_config(path)
    return read_model(LLM, path) if path.suffix == ".yaml" else _llm(name.lower())


@cache
def _llm(name: str) -> LLM:
    return read_model(LLM, _found("llm", name, "LLM"))


def gpu(name: str) -> GPU:
    """Look up a GPU, or read one from a `.yaml` file.

    Raises
    ------
    InputError
        If there is none (the message lists near names), or the file is wrong (file and field).

    Examples
    --------
    >>> gpu("h200").memory_bytes // 2**20
    143771
    """
    path = Path(name)
    return read_model(GPU, path) if path.suffix == ".yaml" else _gpu(name.lower())


@cache
def _gpu(name: str) -> GPU:
    return read_model(GPU, _found("gpu", name, "GPU"))


def forget() -> None:
    """Read the files of the catalogue anew from here on: they have been rewritten."""
    _llm.cache_clear()
    _gpu.cache_clear()


def _found(kind: str, name: str, word: str) -> Path:
    known = names(kind)
    if name not in known:
        raise InputError(f"no {word} {name!r} in the catalogue; {near(name, known)}", field=kind)
    return catalogue_path("models") / kind / f"{name}.yaml"


def near(name: str, known: Iterable[str]) -> str:
    """Say which known names a wrong one may have meant.

    >>> near("lama", ["llama", "opt"])
    'did you mean llama?'
    >>> near("xyz", ["llama", "opt"])
    'known: llama, opt'
    """
    known = list(known)
    close = get_close_matches(name, known, n=5, cutoff=0.6)
    if close:
        return f"did you mean {', '.join(close)}?"
    return (
        f"known: {', '.join(known[:_MANY])}{f' and {len(known) - _MANY} more' if len(known) > _MANY else ''}"
    )

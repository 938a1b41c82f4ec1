"""Catalogue files: YAML read into a validated model, with errors that name the file and the field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from optimizer.errors import InputError
from optimizer.problem.files import written_whole

Model = TypeVar("Model", bound=BaseModel)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file whose top level is a mapping.

    Raises
    ------
    InputError
        If the file cannot be read, is no YAML, or holds something else than a mapping.
    """
    import yaml  # here, because only a look-up in the catalogue needs it

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}", file=str(path)
        ) from None
    # libyaml is ten times faster, and not in every build of PyYAML.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        problem = f"is no valid YAML: {getattr(error, 'problem', None) or error}"
        raise InputError(problem, file=str(path), line=line) from None
    if not isinstance(found, dict):
        raise InputError(f"expected `field: value` lines, found {type(found).__name__}", file=str(path))
    return found


def read_model(kind: type[Model], path: Path) -> Model:
    """Read a catalogue file into `kind`.

    Raises
    ------
    InputError
        Naming the file, the field and what was expected.
    """
    return validated(kind, read_mapping(path), file=str(path))


def validated(kind: type[Model], values: dict[str, Any], *, file: str | None = None) -> Model:
    """Validate values as `kind`, turning the first complaint into an `InputError`.

    Raises
    ------
    InputError
        Naming the file, the field and what was expected.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r:.80})"
        raise InputError(f"{first['msg']}{given}", file=file, field=field) from None


def write_mapping(path: Path, values: Mapping[str, Any], comment: str = "") -> None:
    """Write a catalogue file, whole or not at all, with a line of comment before the values.

    Raises
    ------
    InputError
        If the folder is not there or cannot be written to.
    """
    import yaml

    with written_whole(path) as out:
        if comment:
            out.write(f"# {comment}\n")
        yaml.safe_dump(
            _rounded(values), out, sort_keys=False, width=110, allow_unicode=True, default_flow_style=None
        )


def _rounded(value: Any) -> Any:
    """Round every fraction to five digits: the sixth is noise, and a card is read by people."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(np.format_float_scientific(value, precision=4)) if isinstance(value, float) else value

"""Where the catalogues of data lie: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from optimizer.errors import InputError

_PACKAGE = Path(__file__).resolve().parent


def catalogue_path(kind: Literal["models", "instances"]) -> Path:
    """Find the folder of a catalogue.

    Parameters
    ----------
    kind
        `models` (LLM, GPU and engine cards) or `instances` (requests to schedule).

    Returns
    -------
    Path
        An existing folder: `optimizer/_catalogue/<kind>` of a wheel, else `<kind>` of the checkout.

    Raises
    ------
    InputError
        If there is neither, which means that the installation is damaged.

    Examples
    --------
    >>> catalogue_path("instances").name
    'instances'
    """
    inside, beside = _PACKAGE / "_catalogue" / kind, _PACKAGE.parent / kind
    # A bare `models` folder beside an installed package would be somebody else's: the checkout has a pyproject.toml.
    if inside.is_dir():
        return inside
    if beside.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file():
        return beside
    raise InputError(f"the catalogue {kind!r} is not there; install the package again", file=str(inside))

"""The workloads and instances that are shipped with the package."""

from __future__ import annotations

from optimizer.catalogue import catalogue_path
from optimizer.errors import InputError
from optimizer.traces.formats import read_trace
from optimizer.traces.trace import Trace

_SUFFIXES = (".csv", ".jsonl", ".json")


def embedded_names() -> tuple[str, ...]:
    """Give the names of everything shipped, `family/name`.

    >>> "gsm8k/gsm8k-1319" in embedded_names()
    True
    """
    root = catalogue_path("instances")
    # Files beside the families (best known values, say) are no workloads.
    found = (path.relative_to(root) for path in root.glob("*/**/*") if path.suffix in _SUFFIXES)
    return tuple(sorted(path.with_suffix("").as_posix() for path in found))


def embedded(name: str) -> Trace:
    """Read a shipped workload or instance.

    Parameters
    ----------
    name
        One of `embedded_names()`, such as `gsm8k/gsm8k-1319`.

    Raises
    ------
    InputError
        If there is none of that name.

    Examples
    --------
    >>> len(embedded("gsm8k/gsm8k-1319").requests)
    1319
    """
    if name not in embedded_names():
        raise InputError(f"{name!r} is not shipped; there are {', '.join(embedded_names())}")
    base = catalogue_path("instances") / name
    paths = (base.with_name(base.name + suffix) for suffix in _SUFFIXES)
    return read_trace(next(path for path in paths if path.is_file()))

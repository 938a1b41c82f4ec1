"""What is shipped with the package: workloads (requests alone) and instances (with an engine and an objective)."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from optimizer.catalogue import catalogue_path
from optimizer.errors import InputError
from optimizer.problem import Instance
from optimizer.problem.instance import Objective
from optimizer.traces.formats import read_trace
from optimizer.traces.instance_families import FILE, build, family, family_folder, family_names
from optimizer.traces.trace import Trace

_WORKLOADS = (".csv", ".jsonl")
_STORED = ".json"
_MANY = 12
"""Names that an error message lists at most."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the list of instances.

    Attributes
    ----------
    family, name
        Where it belongs; the instance is `family/name`. Where there are several, `{seed}` stands for 0, 1, ...
    count
        How many there are.
    least, most
        Requests of the smallest and the largest.
    objective
        What counts as good.
    engine
        Its name.
    """

    family: str
    name: str
    count: int
    least: int
    most: int
    objective: Objective
    engine: str


def list_instances() -> tuple[str, ...]:
    """Name every instance that is shipped, `family/name`; nothing is drawn for it.

    >>> "gsm8k/paper-200-case-17" in list_instances()
    True
    """
    return tuple(f"{name}/{one}" for name in family_names() for one in _names(name))


def listed_instances() -> tuple[Listed, ...]:
    """Tell of every instance how large it is and what it is for, in a line for all that differ only in their seed.

    >>> next(line.most for line in listed_instances() if line.name == "paper-200")
    1319
    """
    lines = []
    for name in family_names():
        of = family(name)
        for path in _stored(name):
            lines.append(_tell(name, Instance.read(path), path.stem))
        for one in of.sets:
            said = of.engine_of(one)
            engine = str(said.get("card") or said.get("name"))
            least, most = one.least_and_most
            lines.append(Listed(name, one.name, one.seeds or 1, least, most, of.objective_of(one), engine))
    return tuple(lines)


def instance(name: str) -> Instance:
    """Give an instance that is shipped: read from its file, or drawn as its family says.

    Parameters
    ----------
    name
        One of `list_instances()`, such as `gsm8k/paper-200`.

    Raises
    ------
    InputError
        If there is none of that name; the message says which are near.

    Examples
    --------
    >>> one = instance("gsm8k/paper-200")
    >>> len(one.requests), one.engine.max_num_seqs, one.objective
    (1319, 200, 'makespan')
    """
    of, _, rest = name.partition("/")
    if of in family_names():
        path = family_folder(of) / f"{rest}{_STORED}"
        if path in _stored(of):
            return Instance.read(path)
        found = build(of, rest)
        if found is not None:
            return found
    if name in embedded_names():
        raise InputError(f"{name} is requests alone; read them with `embedded`, and give them an engine")
    raise InputError(f"{name!r} is not shipped; {near_shipped(name)}")


def embedded_names() -> tuple[str, ...]:
    """Give the names of the workloads that are shipped, `family/name`.

    >>> "gsm8k/gsm8k-1319" in embedded_names()
    True
    """
    root = catalogue_path("instances")
    found = (path.relative_to(root) for path in root.glob("*/*") if path.suffix in _WORKLOADS)
    return tuple(sorted(path.with_suffix("").as_posix() for path in found))


def embedded(name: str) -> Trace:
    """Read a shipped workload or instance.

    Parameters
    ----------
    name
        One of `embedded_names()`, such as `gsm8k/gsm8k-1319`, or of `list_instances()`.

    Raises
    ------
    InputError
        If there is none of that name; the message says which are near.

    Examples
    --------
    >>> len(embedded("gsm8k/gsm8k-1319").requests)
    1319
    """
    if name in embedded_names():
        base = catalogue_path("instances") / name
        paths = (base.with_name(base.name + suffix) for suffix in _WORKLOADS)
        return read_trace(next(path for path in paths if path.is_file()))
    one = instance(name)
    path = Path(one.origin or family_folder(name.partition("/")[0]) / FILE)
    return Trace(
        one.requests, "instance", path, has_arrivals=bool(one.requests.arrival_s.any()), instance=one
    )


def near_shipped(name: str) -> str:
    """Say which shipped workloads and instances a wrong name may have meant.

    >>> near_shipped("toy/paking")
    'did you mean toy/packing?'
    """
    of, _, rest = name.strip("/").partition("/")
    every = [*embedded_names(), *list_instances()]
    inside = [known for known in every if known.startswith(f"{of}/")]
    if not inside:
        close = get_close_matches(name, every, n=3, cutoff=0.75) or get_close_matches(of, family_names(), n=3)
        return f"did you mean {', '.join(close)}?" if close else _all_of_it()
    close = get_close_matches(name, inside, n=3, cutoff=0.75) if rest else []
    if close:
        return f"did you mean {', '.join(close)}?"
    one_each = [known for known in inside if known in embedded_names()]
    one_each += [f"{of}/{line.name}" for line in listed_instances() if line.family == of]
    return f"{of}/ has {', '.join(one_each[:_MANY])}{', ...' if len(one_each) > _MANY else ''}"


def _all_of_it() -> str:
    return (
        f"there are {', '.join(embedded_names())} and instances in {', '.join(family_names())} "
        "(optimizer instances lists them)"
    )


def _names(family_name: str) -> list[str]:
    drawn = (name for one in family(family_name).sets for name in one.names())
    return [*(path.stem for path in _stored(family_name)), *drawn]


def _stored(family_name: str) -> list[Path]:
    return sorted(family_folder(family_name).glob(f"*{_STORED}"))


def _tell(family_name: str, one: Instance, name: str) -> Listed:
    n = len(one.requests)
    return Listed(family_name, name, 1, n, n, one.objective, one.engine.name)

"""What HiGHS must show before it is believed: versions that work together, and right answers to tiny questions."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from optimizer.errors import OptimizerError
from optimizer.solvers.matrix import Matrix

_HIGHSPY = "highspy==1.12.0"
_REMEDY = f'install it: python -m pip install "{_HIGHSPY}"'


class SolverError(OptimizerError):
    """A solver is missing, does not go with another one, or cannot be trusted; the message says what to install."""


def installed(package: str) -> tuple[int, ...] | None:
    """Give the leading numbers of an installed package's version, without importing it; None if it is not there.

    >>> installed("numpy") >= (2, 0), installed("no-such-package")
    (True, None)
    """
    try:
        text = version(package)
    except PackageNotFoundError:
        return None
    numbers: list[int] = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def refuse_bad_pair(highspy: tuple[int, ...] | None = None, ortools: tuple[int, ...] | None = None) -> None:
    """Raise where the installed HiGHS must not be used.

    OR-Tools up to 9.15 brings a HiGHS 1.12 of its own. highspy 1.14 beside it takes that one's functions for its own and
    gives wrong answers that it calls optimal; from 1.15 on, whichever of the two is imported second fails to load.
    PuLP imports highspy, so this is asked before PuLP is imported, too.

    Parameters
    ----------
    highspy, ortools
        Versions; None: those installed.

    Raises
    ------
    SolverError
        With the reason and what to install.

    Examples
    --------
    >>> refuse_bad_pair((1, 12, 0), (9, 15, 6755))
    >>> refuse_bad_pair((1, 15, 1), (9, 15, 6755))
    Traceback (most recent call last):
    optimizer.solvers.sanity.SolverError: highspy 1.15.1 and ortools 9.15.6755 cannot be loaded into one process: ...
    """
    highspy = highspy or installed("highspy")
    ortools = ortools or installed("ortools")
    if highspy is None:
        raise SolverError(f"highspy is not installed; {_REMEDY}")
    if ortools is None or ortools >= (9, 16) or highspy < (1, 14):
        return
    names = f"highspy {_dotted(highspy)} and ortools {_dotted(ortools)}"
    if highspy >= (1, 15):
        raise SolverError(
            f"{names} cannot be loaded into one process: both bring a libhighs.so.1, of different versions; {_REMEDY}"
        )
    raise SolverError(
        f"{names} give wrong answers called optimal when they are in one process: they share symbols; {_REMEDY}"
    )


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def battery() -> list[tuple[str, Matrix, float | None]]:
    """Give tiny programs, each with its name and its optimum, worked out by hand; None: infeasible."""
    knapsack = Matrix.of(
        cost=[-10, -13, -7],
        low=[0] * 3,
        high=[1] * 3,
        whole=[True] * 3,
        rows=[(0, [(0, 3), (1, 4), (2, 2)], 6)],
    )
    # Four jobs of 3, 3, 2, 2 on two machines; variable 8 is the makespan.
    jobs = [3, 3, 2, 2]
    packing = Matrix.of(
        cost=[0] * 8 + [1],
        low=[0] * 9,
        high=[1] * 8 + [99],
        whole=[True] * 8 + [False],
        rows=[(1, [(2 * i, 1), (2 * i + 1, 1)], 1) for i in range(4)]
        + [(0, [(8, 1), *((2 * i + m, -p) for i, p in enumerate(jobs))], 99) for m in range(2)],
    )
    cover = Matrix.of(
        cost=[1] * 3,
        low=[0] * 3,
        high=[1] * 3,
        whole=[True] * 3,
        rows=[(1, [(a, 1), (b, 1)], 2) for a, b in ((0, 1), (1, 2), (0, 2))],
        offset=0.5,
    )
    fixed_charge = Matrix.of(
        cost=[2, 20],
        low=[0, 0],
        high=[100, 1],
        whole=[False, True],
        rows=[(-1e9, [(0, 1), (1, -50)], 0), (7.5, [(0, 1)], 1e9)],
    )
    parity = Matrix.of(cost=[1], low=[0], high=[9], whole=[True], rows=[(7, [(0, 2)], 7)])
    return [
        ("knapsack", knapsack, -20.0),
        ("packing", packing, 5.0),
        ("cover", cover, 2.5),
        ("fixed charge", fixed_charge, 35.0),
        ("parity", parity, None),
    ]


def check_battery(solve: Callable[[Matrix], float | None]) -> None:
    """Ask a solver what is known already.

    Parameters
    ----------
    solve
        Gives the optimum of a program, None where it says that there is no solution.

    Raises
    ------
    SolverError
        At the first wrong answer.
    """
    for name, program, optimum in battery():
        answer = solve(program)
        right = answer is None if optimum is None else answer is not None and abs(answer - optimum) < 1e-6
        if not right:
            raise SolverError(
                f"HiGHS cannot be trusted here: it says {answer} for the sanity program {name!r}, whose optimum is {optimum}; "
                f"{_REMEDY}"
            )

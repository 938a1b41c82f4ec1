"""CBC, the program that comes with PuLP 3: a second opinion, and a task for `drive`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from optimizer.problem.columns import Floats
from optimizer.solvers.matrix import Matrix
from optimizer.solvers.task import Emit, Ended, Found


class CbcTask:
    """A program and how to solve it.

    Parameters
    ----------
    program
        What to minimise.
    start
        A number per variable, NaN where unknown; or None.
    time_limit_s, threads, seed, node_limit
        As in `milp.run`.
    """

    def __init__(
        self,
        program: Matrix,
        start: Floats | None,
        time_limit_s: float | None,
        threads: int,
        seed: int,
        node_limit: int | None,
    ) -> None:
        self.program, self.start = program, start
        self.time_limit_s, self.threads, self.seed, self.node_limit = time_limit_s, threads, seed, node_limit
        self._stopping = False
        self._pid: int | None = None

    def run(self, emit: Emit) -> None:
        """Solve, and tell every event."""
        import pulp

        with tempfile.TemporaryDirectory() as folder:
            model, answer = Path(folder, "model.mps"), Path(folder, "answer.txt")
            model.write_text(_mps(self.program))
            words = [pulp.PULP_CBC_CMD.pulp_cbc_path, str(model), *self._options(Path(folder, "start.txt"))]
            words += ["-solve", "-printingOptions", "all", "-solution", str(answer)]
            # A new session: Ctrl-C reaches the caller alone, who then asks for the end.
            cbc = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            self._pid = cbc.pid
            if self._stopping:
                self.stop()
            log, _ = cbc.communicate()
            self._pid = None
            if cbc.returncode != 0 or not answer.is_file():
                emit(
                    Ended("failed", None, f"CBC ended with exit code {cbc.returncode}: {log.strip()[-200:]}")
                )
                return
            self._conclude(answer.read_text().splitlines(), log, emit)

    def stop(self) -> None:
        """Ask the search to end; CBC then writes what it has."""
        self._stopping = True
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGINT)

    def _options(self, start: Path) -> list[str]:
        words = ["-ratio", "0", "-allow", "0", "-threads", str(self.threads), "-timeMode", "elapsed"]
        words += ["-randomSeed", str(self.seed), "-randomCbcSeed", str(self.seed)]
        if self.time_limit_s is not None:
            words += ["-sec", str(self.time_limit_s)]
        if self.node_limit is not None:
            words += ["-maxNodes", str(self.node_limit)]
        if self.start is not None:
            lines = [f"{i} C{i} {value!r} 0" for i, value in enumerate(self.start.tolist()) if value == value]
            start.write_text("Stopped on time - objective value 0\n" + "\n".join(lines) + "\n")
            words += ["-mips", str(start)]
        return words

    def _conclude(self, answer: list[str], log: str, emit: Emit) -> None:
        said = f"CBC says {answer[0].strip()}"
        if "infeasible" in answer[0].lower():
            emit(Ended("infeasible", None, said))
            return
        if answer[0].startswith("Unbounded") or "objective value" not in answer[0]:
            emit(Ended("failed", None, said))
            return
        optimal = answer[0].startswith("Optimal")
        bound = _bound(log, self.program.offset)
        if "no integer solution" not in answer[0]:
            values = np.zeros(len(self.program.cost))
            for line in answer[1:]:
                fields = line.replace("**", " ").split()
                if len(fields) >= 3 and fields[1].startswith("C"):
                    values[int(fields[1][1:])] = float(fields[2])
            claimed = float(answer[0].rsplit(" ", 1)[1]) + self.program.offset
            bound = claimed if optimal else bound
            emit(Found(values, claimed, bound))
        emit(Ended("optimal" if optimal else "limit", bound, said))


def _bound(log: str, offset: float) -> float | None:
    """Read the bound of a stopped run; CBC prints it rounded, so its last digit is taken down by one."""
    found = re.search(r"^Lower bound:\s*(-?\d+(?:\.(\d+))?)\s*$", log, re.MULTILINE)
    if found is None:
        return None
    return float(found[1]) - 10.0 ** -len(found[2] or "") + offset


def _mps(program: Matrix) -> str:
    """Write free MPS; columns are C0, C1, ..., rows R0, R1, ..."""
    low, high = program.row_low.tolist(), program.row_high.tolist()
    kinds = ["E" if a == b else "L" if a == -np.inf else "G" for a, b in zip(low, high, strict=True)]
    lines = ["NAME model", "ROWS", " N COST", *(f" {kind} R{r}" for r, kind in enumerate(kinds)), "COLUMNS"]
    columns: list[list[str]] = [[f"COST {cost!r}"] for cost in program.cost.tolist()]
    for row in range(len(low)):
        for at in range(program.starts[row], program.starts[row + 1]):
            columns[program.columns[at]].append(f"R{row} {float(program.entries[at])!r}")
    for whole in (False, True):
        if whole:
            lines.append(" M1 'MARKER' 'INTORG'")
        lines += [
            f" C{c} {entry}"
            for c, entries in enumerate(columns)
            if program.whole[c] == whole
            for entry in entries
        ]
        if whole:
            lines.append(" M2 'MARKER' 'INTEND'")
    lines.append("RHS")
    lines += [
        f" RHS R{r} {(b if kind == 'L' else a)!r}"
        for r, (kind, a, b) in enumerate(zip(kinds, low, high, strict=True))
    ]
    ranged = [r for r, kind in enumerate(kinds) if kind == "G" and high[r] != np.inf]
    lines += ["RANGES", *(f" RNG R{r} {high[r] - low[r]!r}" for r in ranged)] if ranged else []
    lines.append("BOUNDS")
    for c, (a, b) in enumerate(zip(program.low.tolist(), program.high.tolist(), strict=True)):
        lines.append(f" MI BND C{c}" if a == -np.inf else f" LO BND C{c} {a!r}")
        lines.append(f" PL BND C{c}" if b == np.inf else f" UP BND C{c} {b!r}")
    return "\n".join([*lines, "ENDATA", ""])

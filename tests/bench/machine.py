"""Runs commands as fresh processes on one core, next to the clock, and says what each one took.

This process imports nothing but the standard library, on purpose: Linux counts the memory of the parent at
the moment of the fork as the child's, so a large parent would spoil every peak.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

UNDISTURBED = 0.95
"""A process that had its core to itself computed this share of its time, or more."""
PATIENCE_S = 20.0
"""How long to go on trying for a run that nobody disturbed."""

ROOT = Path(__file__).parents[2]
CLOCK = Path(__file__).with_name("clock.py")


class Failed(Exception):
    """A command ended with an error."""


@dataclass(frozen=True, slots=True)
class Took:
    """What a process took.

    Attributes
    ----------
    wall_s, cpu_s
        From its start to its end, interpreter and imports included; and what of that it computed.
    peak_mb
        The most memory it had resident, in 10^6 bytes.
    output
        What it printed.
    result
        What it wrote into its result file, if it was asked for one.
    clock
        Events per second, read just before and just after; the mean.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    output: str
    result: str = ""
    clock: float = 0.0

    @property
    def share(self) -> float:
        """The share of its time in which it had the core."""
        return self.cpu_s / self.wall_s


class Machine:
    """One core of this machine.

    Parameters
    ----------
    core
        Its number; None: the last one that this process may use. Where the system cannot pin (macOS), any.

    Raises
    ------
    Failed
        If this process may not use the core.
    """

    def __init__(self, core: int | None = None) -> None:
        self.core: int | None = None
        self.clock: list[float] = []
        self.runs = self.disturbed = self.repeated = 0
        if hasattr(os, "sched_setaffinity"):
            cores = os.sched_getaffinity(0)
            self.core = max(cores) if core is None else core
            if self.core not in cores:
                raise Failed(f"core {core} is not one of {sorted(cores)}")
            os.sched_setaffinity(0, {self.core})  # those it starts stay there, and it only waits for them

    def run(self, command: Sequence[str | Path], *, result: Path | None = None) -> Took:
        """Run a command to its end, the clock before and after; `result` names a file that it writes.

        If another process took the core in between, it is run again, three times at most; the least
        disturbed run counts, whatever it took.

        Raises
        ------
        Failed
            If it ends with an error.
        """
        best = self._once(command, result)
        end = time.monotonic() + PATIENCE_S
        for _ in range(3):
            if best.share >= UNDISTURBED or time.monotonic() + best.cpu_s > end:
                break
            self.repeated += 1
            best = max(best, self._once(command, result), key=lambda took: took.share)
        self.runs += 1
        self.disturbed += best.share < UNDISTURBED
        return best

    def _once(self, command: Sequence[str | Path], result: Path | None) -> Took:
        before = self._read_clock()
        took = _run(command)
        written = "" if result is None else result.read_text()
        return replace(took, result=written, clock=(before + self._read_clock()) / 2)

    def _read_clock(self) -> float:
        self.clock.append(float(_run([sys.executable, CLOCK]).output))
        return self.clock[-1]


def _run(command: Sequence[str | Path]) -> Took:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd=ROOT
            )
        except OSError as error:
            raise Failed(f"{command[0]} cannot be started: {error.strerror}") from None
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C: leave nothing running
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise Failed(f"{Path(command[0]).name} ended with {process.returncode}: {last[0]}")
        out.seek(0)
        unit = 1 if sys.platform == "darwin" else 1024
        cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6
        return Took(wall, cpu, peak, out.read().decode())

"""Times by a model beside measured ones, and the error by phase and by size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.capacity.cards import FitError
from optimizer.capacity.fit import fit_error
from optimizer.capacity.steplog import PHASES, WORK, Floats, StepLog, predict, windows
from optimizer.problem.engine import StepTime

_EDGES: dict[str, tuple[int, ...]] = {
    "prefill_tokens": (1, 129, 513, 2049, 8193),
    "decode_seqs": (1, 9, 33, 129, 513),
    "decode_context": (1, 1_001, 10_001, 100_001, 1_000_001),
}
"""Where bins of size begin; the last one has no end."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Times by a model beside measured ones: of steps, or of stretches of an asynchronous log.

    Attributes
    ----------
    predicted_s, measured_s
        Of a step; of a stretch, the mean over its steps.
    work
        Rows x `WORK`, the same.
    phase
        `decode`, `prefill` or `mixed`; a stretch with steps of several phases is mixed.
    """

    predicted_s: Floats
    measured_s: Floats
    work: Floats
    phase: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.measured_s)

    def by_phase(self) -> dict[str, FitError]:
        """Give the error of each phase that there is, and of `all`."""
        rows = {name: self.phase == name for name in PHASES} | {"all": np.ones(len(self), dtype=bool)}
        return {name: self._error(of) for name, of in rows.items() if of.any()}

    def by_size(self) -> list[tuple[str, str, FitError]]:
        """Give the error by prefilled tokens, decoding requests, and context: (quantity, range, error)."""
        found = []
        for name, starts in _EDGES.items():
            amount = self.work[:, WORK.index(name)]
            for first, end in zip(starts, (*starts[1:], None), strict=True):
                rows = (amount >= first) & (amount < (np.inf if end is None else end))
                if rows.any():
                    label = f"{first:,} or more" if end is None else f"{first:,} to {end - 1:,}"
                    found.append((name, label, self._error(rows)))
        return found

    def _error(self, rows: NDArray[np.bool_]) -> FitError:
        return fit_error(self.predicted_s[rows], self.measured_s[rows])


def judge(
    model: StepTime, log: StepLog, window: int | None = None, held_out: NDArray[np.bool_] | None = None
) -> Judged:
    """Put the times of a model beside those of a log.

    Parameters
    ----------
    model, log
        What is compared.
    window
        As in `fit_regimes`.
    held_out
        Of each step, or stretch, whether to compare it; None: all of them.
    """
    predicted, measured, work, phase = predict(model, log), log.step_s, log.work, log.phase
    if window is not None:
        first, _, seconds = windows(log, window)
        rows = first[:, None] + np.arange(window)
        predicted, measured = predicted[rows].mean(axis=1), seconds / window
        work, phases = work[rows].mean(axis=1), phase[rows]
        phase = np.where((phases == phases[:, :1]).all(axis=1), phases[:, 0], "mixed")
    kept = np.ones(len(measured), dtype=bool) if held_out is None else held_out
    return Judged(predicted[kept], measured[kept], work[kept], phase[kept])

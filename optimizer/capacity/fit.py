"""Fits a step-time model to a step log; `optimizer.capacity.calibrate` makes an engine card of it.

Every group of steps (those that only decode; the others) gets the physical form of a step: for each regime of
scheduled tokens a convex curve of the tokens (reading the weights, or the matrix work: the larger one), plus attention,
requests and context at rates that hold in the whole group. All of it is non-negative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.capacity.cards import FitError
from optimizer.capacity.least_squares import non_negative, robust_weights
from optimizer.capacity.steplog import PHASES, WORK, Floats, StepLog, predict, windows
from optimizer.errors import InputError
from optimizer.problem.engine import StepPiece, StepRegime, StepTime

_FIELDS = {
    "prefill_attention": "per_prefill_attention_s",
    "prefill_seqs": "per_prefill_seq_s",
    "decode_seqs": "per_decode_seq_s",
    "decode_context": "per_decode_context_s",
}

_LEAST_BASE_S = 1e-6
"""Of a step without a fixed part: few steps, all of them large, may tell none; no step takes no time."""


@dataclass(frozen=True, slots=True)
class Group:
    """Steps that are fitted together, and the form that they get.

    Attributes
    ----------
    phase
        `decode`, or `any` for all steps that no other group takes.
    starts
        Scheduled tokens at which regimes begin; the first is 0. More than one where the engine changes its
        kernels, as fp8 matrix products do by the number of rows.
    pieces
        Affine pieces of the curve: of each regime, or with `floors` of all regimes together.
    floors
        Each regime has a floor of its own, whatever the tokens, beneath one curve for all of them: how a step is
        launched differs, its work does not.
    shared
        Columns of `WORK` with one rate for the group.
    given
        Rates that are not fitted, in seconds per unit.
    """

    phase: Literal["decode", "any"]
    starts: tuple[int, ...] = (0,)
    pieces: int = 2
    floors: bool = False
    shared: tuple[str, ...] = tuple(_FIELDS)
    given: dict[str, float] = field(default_factory=dict)

    @property
    def coefficients(self) -> int:
        """Figures that a fit has to find."""
        curves = self.pieces * (1 if self.floors else len(self.starts))
        rates = len([name for name in self.shared if name not in self.given])
        return 2 * curves + len(self.starts) * self.floors + rates


CAPTURED_TOKENS = 512
"""Largest batch that vLLM captures as CUDA graphs: a larger one is launched kernel by kernel."""

PHYSICAL = (
    Group("decode", pieces=3, shared=("decode_context",)),
    Group("any", starts=(0, CAPTURED_TOKENS + 1), pieces=2, floors=True),
)
"""Decoding alone runs as one captured graph; any prefill in the step makes it another program."""


def fit_step_time(
    log: StepLog, groups: tuple[Group, ...] = PHYSICAL, *, window: int | None = None, seed: int = 0
) -> StepTime:
    """Fit a step-time model by relative errors, robustly: `fit_regimes` of groups that cover every phase."""
    return StepTime(regimes=fit_regimes(log, groups, window=window, seed=seed))


def fit_regimes(
    log: StepLog,
    groups: tuple[Group, ...] = PHYSICAL,
    *,
    window: int | None = None,
    held_out: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> tuple[StepRegime, ...]:
    """Fit the regimes of a step-time model by relative errors, robustly.

    Parameters
    ----------
    log
        Measured steps.
    groups
        The form.
    window
        None for a synchronous log: the time of a step is `completed_s - dispatched_s`. For an
        asynchronous one the number of steps whose total is compared (see `windows`); 10 is good.
    held_out
        With a window: of each stretch, whether it takes no part. Steps are held out by leaving them out.
    seed
        Of the starting points of the search for pieces.

    Raises
    ------
    InputError
        If a group has fewer steps than coefficients.

    Notes
    -----
    Given which piece is the largest for a step, the model is linear: non-negative least squares. Given the
    coefficients, the largest piece is known. The two alternate from several starts, and the errors are
    weighted towards the median, because a log of a real engine has stragglers.
    """
    regimes: list[StepRegime] = []
    exact = {group.phase for group in groups} - {"any"}
    for group in groups:
        if window is not None and group.phase != "any":
            raise InputError(
                "a stretch of steps mixes phases; fit an asynchronous log with one group of phase 'any'"
            )
        rows = log.phase == group.phase if group.phase != "any" else ~np.isin(log.phase, list(exact))
        part = log if window is not None else log[rows]
        problem = _Problem.build(part, group, window, held_out)
        if len(problem.seconds) <= problem.columns:
            raise InputError(
                f"{len(problem.seconds)} measurements of phase {group.phase!r} are too few "
                f"for {problem.columns} coefficients; measure more, or fit fewer pieces"
            )
        regimes.extend(problem.regimes(problem.solve(seed)))
    return tuple(regimes)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Steps of a group, their regime, and the sums over steps whose time is known."""

    group: Group
    tokens: Floats
    shared: Floats
    regime: NDArray[np.intp]
    first: NDArray[np.intp]
    seconds: Floats

    @classmethod
    def build(
        cls, log: StepLog, group: Group, window: int | None, held_out: NDArray[np.bool_] | None
    ) -> _Problem:
        names = [name for name in group.shared if name not in group.given]
        if window is None:
            rows, first, seconds = np.arange(len(log)), np.arange(len(log)), log.step_s
        else:
            start, _, seconds = windows(log, window)
            if held_out is not None:
                start, seconds = start[~held_out], seconds[~held_out]
            rows = (start[:, None] + np.arange(window)).ravel()
            first = np.arange(0, len(rows), window)
        work = log.work[rows]
        known = sum(
            (rate * work[:, WORK.index(name)] for name, rate in group.given.items()), np.zeros(len(rows))
        )
        regime = np.searchsorted(group.starts, log.tokens[rows], side="right") - 1
        shared = work[:, [WORK.index(name) for name in names]]
        return cls(group, log.tokens[rows], shared, regime, first, seconds - np.add.reduceat(known, first))

    @property
    def columns(self) -> int:
        return self._curves + int(self.shared.shape[1])

    def solve(self, seed: int) -> Floats:
        """Alternate assignment and least squares from several starts; give the best coefficients."""
        rng = np.random.default_rng(seed)
        best, least = np.zeros(self.columns), np.inf
        for _ in range(12 if self.group.pieces + self.group.floors > 1 else 1):
            piece = self._start(rng)
            weights = np.ones(len(self.seconds))
            for _ in range(40):
                x = self._linear(piece, weights)
                lines = self._lines(x)
                predicted = np.add.reduceat(lines.max(axis=1) + self.shared @ x[self._curves :], self.first)
                error = predicted / self.seconds - 1
                weights = robust_weights(error)
                # A straggler counts no more than 30 %.
                badness = float(np.minimum(np.abs(error), 0.3).mean())
                if badness < least:
                    best, least = x, badness
                piece = lines.argmax(axis=1)
        return best

    @property
    def _curves(self) -> int:
        """Columns of bases and slopes: pairs of (base, slope) by line, lines by regime."""
        return 2 * self._lines_in_all

    @property
    def _lines_in_all(self) -> int:
        group = self.group
        return len(group.starts) + group.pieces if group.floors else len(group.starts) * group.pieces

    def _start(self, rng: np.random.Generator) -> NDArray[np.intp]:
        pieces = self.group.pieces + self.group.floors
        piece = np.zeros(len(self.tokens), dtype=np.intp)
        for regime in range(len(self.group.starts)):
            rows = self.regime == regime
            if rows.any():
                cuts = np.sort(rng.choice(np.unique(self.tokens[rows]), pieces - 1))
                piece[rows] = np.searchsorted(cuts, self.tokens[rows], side="right")
        return piece

    def _of_regime(self) -> NDArray[np.intp]:
        """Regimes x pieces: which line it is."""
        starts, pieces = len(self.group.starts), self.group.pieces
        if not self.group.floors:
            return np.arange(starts * pieces).reshape(starts, pieces)
        common = np.arange(starts, starts + pieces)
        return np.column_stack([np.arange(starts), np.tile(common, (starts, 1))])

    def _linear(self, piece: NDArray[np.intp], weights: Floats) -> Floats:
        matrix = np.zeros((len(self.tokens), self.columns))
        column = 2 * self._of_regime()[self.regime, piece]
        each = np.arange(len(self.tokens))
        matrix[each, column] = 1
        matrix[each, column + 1] = self.tokens
        matrix[:, self._curves :] = self.shared
        if self.group.floors:
            matrix[:, 1 : 2 * len(self.group.starts) : 2] = 0
        sums = np.add.reduceat(matrix, self.first, axis=0)
        scale = np.maximum(sums.max(axis=0), 1e-12)
        return np.asarray(non_negative(sums / scale * (weights / self.seconds)[:, None], weights) / scale)

    def _lines(self, x: Floats) -> Floats:
        curves = x[: self._curves].reshape(-1, 2)[self._of_regime()][self.regime]
        return np.asarray(curves[:, :, 0] + curves[:, :, 1] * self.tokens[:, None])

    def regimes(self, x: Floats) -> list[StepRegime]:
        names = [name for name in self.group.shared if name not in self.group.given]
        rates = {**dict(zip(names, x[self._curves :].tolist(), strict=True)), **self.group.given}
        common = {_FIELDS[name]: rate for name, rate in rates.items()}
        curves = x[: self._curves].reshape(-1, 2)[self._of_regime()]
        found = []
        for start, lines in zip(self.group.starts, curves.tolist(), strict=True):
            pieces = []
            for base, slope in sorted(map(tuple, lines), key=lambda line: line[1]):
                own = {"base_s": base, "per_decode_seq_s": slope + common.get("per_decode_seq_s", 0.0)}
                if self.group.phase == "any":
                    own["per_prefill_token_s"] = slope
                if base or slope:
                    pieces.append(StepPiece(**{**common, **own}))
            if not any(piece.base_s for piece in pieces):
                pieces.append(StepPiece(**{"base_s": _LEAST_BASE_S, **common}))
            found.append(StepRegime(phase=self.group.phase, min_tokens=start, pieces=tuple(pieces)))
        return found


def split(log: StepLog, share: float = 0.2, seed: int = 0) -> tuple[StepLog, StepLog]:
    """Hold out a share of each workload's steps: (to fit, to judge).

    >>> log = StepLog(*(np.arange(10.0),) * 3, np.ones((10, 5)), np.array(["a"] * 10))
    >>> [len(part) for part in split(log)]
    [8, 2]
    """
    out = drawn(log.workload, share, seed)
    return log[~out], log[out]


def drawn(workload: NDArray[np.str_], share: float = 0.2, seed: int = 0) -> NDArray[np.bool_]:
    """Draw a share of the rows of each workload."""
    rng = np.random.default_rng(seed)
    out = np.zeros(len(workload), dtype=bool)
    for name in np.unique(workload):
        rows = np.flatnonzero(workload == name)
        # Of few steps a random whole number with the right mean, so that small sweeps are judged too.
        count = int(share * len(rows) + rng.random())
        out[rng.choice(rows, count, replace=False)] = True
    return out


def errors(model: StepTime, log: StepLog, window: int | None = None) -> dict[str, FitError]:
    """Say how far a model is from a log, by phase and in all.

    Parameters
    ----------
    model, log
        What is compared.
    window
        As in `fit_step_time`; stretches mix phases, so only `all` is given then.
    """
    predicted = predict(model, log)
    if window is not None:
        first, end, seconds = windows(log, window)
        until = np.concatenate([[0.0], np.cumsum(predicted)])
        return {"all": fit_error(until[end] - until[first], seconds)}
    found = {}
    for name in (*PHASES, "all"):
        rows = (log.phase == name) | (name == "all")
        if rows.any():
            found[name] = fit_error(predicted[rows], log.step_s[rows])
    return found


def fit_error(predicted: Floats, seconds: Floats) -> FitError:
    """Compare times, of steps or of stretches of steps, in seconds."""
    relative = np.abs(predicted / seconds - 1)
    return FitError(
        steps=len(seconds),
        median=float(np.median(relative)),
        mean=float(relative.mean()),
        total=float(predicted.sum() / seconds.sum() - 1),
    )


def covers(log: StepLog) -> dict[str, tuple[float, float]]:
    """Give the range of every quantity that a log has seen."""
    return {name: (float(log.work[:, k].min()), float(log.work[:, k].max())) for k, name in enumerate(WORK)}

"""Every error this package raises on purpose; each message says what was given and what to do about it."""

from __future__ import annotations


class OptimizerError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback."""


class InputError(OptimizerError, ValueError):
    """Something handed in is wrong; the message names the place, the field and the remedy.

    Parameters
    ----------
    problem
        What is wrong and what was expected, in one sentence.
    file, line, field
        Where; each is left out of the message when it is not known. Lines count from 1.

    Examples
    --------
    >>> print(InputError("-3 is negative; expected a whole number >= 1", file="t.csv", line=7, field="prompt_tokens"))
    t.csv, line 7, field prompt_tokens: -3 is negative; expected a whole number >= 1
    """

    def __init__(
        self, problem: str, *, file: str | None = None, line: int | None = None, field: str | None = None
    ) -> None:
        self.problem, self.file, self.line, self.field = problem, file, line, field
        place = ", ".join(
            part
            for part in (
                file,
                None if line is None else f"line {line}",
                None if field is None else f"field {field}",
            )
            if part
        )
        super().__init__(f"{place}: {problem}" if place else problem)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and comparisons run in processes.
        return _rebuild_input_error, (self.problem, self.file, self.line, self.field)


def _rebuild_input_error(problem: str, file: str | None, line: int | None, field: str | None) -> InputError:
    return InputError(problem, file=file, line=line, field=field)


class PolicyError(OptimizerError):
    """A policy broke its contract: it raised, deadlocked, livelocked, or asked for what cannot be done."""

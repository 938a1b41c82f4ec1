"""The command line: one module per group of commands; nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of every program that a signal 2 ends (128 + 2)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        Without the program's name; None: those the process was started with.

    Returns
    -------
    int
        0: done. 1: the answer is no (a schedule breaks a rule, a policy of a comparison failed).
        2: something given is wrong, and the message on standard error says what. 3: a defect of this
        program. 130: Ctrl-C.
    """
    try:
        from optimizer.cli.app import app

        app(args=None if arguments is None else list(arguments), prog_name="optimizer")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # before or after the command itself
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0

"""One integer time base, so that k steps added at once equal k steps added one by one.

A tick is a femtosecond. Step times are affine in token counts with coefficients of nanoseconds and less;
rounded to ticks they are integers, and so is every sum of them: the event-compressed simulator and the
step-by-step one agree to the last bit, and so does a checker that recomputes the times in its own way.
Python's integers do not overflow, so the length of a trace does not matter.
"""

from __future__ import annotations

TICKS_PER_SECOND = 10**15
_TICKS_PER_NANOSECOND = 10**6


def ticks(seconds: float) -> int:
    """Round a duration or a coefficient in seconds to ticks.

    >>> ticks(2e-5)
    20000000000
    """
    return round(seconds * TICKS_PER_SECOND)


def moment_ticks(seconds: float) -> int:
    """Round a moment in seconds to a whole nanosecond, in ticks.

    Traces give moments as decimal fractions of at most 100 ns; through nanoseconds they become exact again.

    >>> moment_ticks(1787.123457)
    1787123457000000000
    """
    return round(seconds * 1e9) * _TICKS_PER_NANOSECOND


def seconds(ticks: int) -> float:
    """Give back ticks as seconds.

    >>> seconds(1787123457000000000)
    1787.123457
    """
    return ticks / TICKS_PER_SECOND

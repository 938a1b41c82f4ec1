"""One integer time base: rounding is to the nearest tick, moments are whole nanoseconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.units import TICKS_PER_SECOND, moment_ticks, seconds, ticks


def test_a_tick_is_a_femtosecond():
    """A nanosecond is a million ticks, and less than half a tick is none."""
    assert ticks(1.0) == TICKS_PER_SECOND == 10**15
    assert ticks(1e-9) == 10**6
    assert ticks(0.4e-15) == 0
    assert ticks(0.6e-15) == 1


@given(st.integers(0, 10**9))
def test_moments_of_a_hundred_nanoseconds_are_exact(tenths_of_us):
    """The timestamps of public traces come out as the whole number that was meant, within a few hours."""
    assert moment_ticks(tenths_of_us / 10**7) == tenths_of_us * 10**8


def test_sums_of_moments_that_floats_get_wrong_are_exact():
    """0.1 + 0.2 is no longer 0.30000000000000004."""
    assert 0.1 + 0.2 != 0.3
    assert moment_ticks(0.1) + moment_ticks(0.2) == moment_ticks(0.3) == moment_ticks(0.1 + 0.2)


@given(st.integers(0, 10**18))
def test_seconds_are_the_nearest_float(moment):
    """Back from ticks nothing is lost but the last bit of a double."""
    assert seconds(moment) == pytest.approx(moment / 1e15, rel=1e-15)
    assert abs(ticks(seconds(moment)) - moment) <= moment * 2**-52 + 1


def test_ticks_do_not_overflow():
    """A century in ticks is more than 64 bits hold, and still exact."""
    century = moment_ticks(100 * 365 * 86_400.0)
    assert century == 100 * 365 * 86_400 * 10**15
    assert century > 2**63

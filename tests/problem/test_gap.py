import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.problem.gap import gap

values = st.floats(0.001, 1e9)


@given(values, st.floats(0, 1))
def test_a_bound_at_a_share_of_the_value_leaves_the_rest_as_gap(value, share):
    assert gap(value, value * share) == pytest.approx(1 - share, abs=1e-6)


@given(values, st.floats(1.01, 100))
def test_a_bound_above_the_value_is_an_error_and_never_a_negative_gap(value, factor):
    if value * (factor - 1) > 1e-3:
        with pytest.raises(ValueError, match="above"):
            gap(value, value * factor)


@pytest.mark.parametrize("pair", [(None, 1.0), (1.0, None), (None, None), (0.0, -1.0)])
def test_what_is_unknown_stays_unknown(pair):
    assert gap(*pair) is None


def test_round_off_is_no_contradiction():
    assert gap(1e6, 1e6 + 1e-3) == 0.0

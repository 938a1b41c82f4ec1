"""Reservations: first fit, holes that merge, fragmentation, and a plain map of every token beside it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.simulator.recorder import Recorder
from optimizer.simulator.reserve import Reservations


def memory(tokens=100, *, contiguous=True) -> Reservations:
    """Reservations in a cache of so many tokens."""
    state = SimpleNamespace(blocks=tokens, block_tokens=1, recorder=Recorder(100))
    return Reservations(state, contiguous=contiguous)


def filled(*sizes, **how) -> Reservations:
    """A cache in which request i holds so many tokens, one after the other."""
    m = memory(**how)
    for request, size in enumerate(sizes):
        m.take(request, size)
    return m


def test_the_capacity_is_the_engines_in_tokens():
    """Blocks times tokens per block."""
    state = SimpleNamespace(blocks=7, block_tokens=16, recorder=Recorder(1))
    assert Reservations(state, contiguous=True).capacity == 112


def test_the_first_hole_that_fits_is_taken():
    """Not the best one: the lowest."""
    m = filled(30, 10, 20, 10, 30)
    m.give_back(0)
    m.give_back(2)
    m.take(5, 20)
    assert m.held[5] == (0, 20)
    m.take(6, 15)
    assert m.held[6] == (40, 15)
    m.take(7, 10)
    assert m.held[7] == (20, 10)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_neighbouring_holes_become_one(order):
    """In whatever order they are freed."""
    m = filled(30, 30, 30, 10)
    for request in order:
        assert not m.fits(61)
        m.give_back(request)
    assert m.fits(90)
    m.take(9, 90)
    assert (m.held[9], m.free) == ((0, 90), 0)


def test_contiguous_memory_fragments_and_paged_memory_does_not():
    """60 tokens are free, in two pieces of 30."""
    for contiguous, fits in ((True, False), (False, True)):
        m = filled(30, 40, 30, contiguous=contiguous)
        m.give_back(0)
        m.give_back(2)
        assert (m.free, m.fits(60), m.fits(30)) == (60, fits, True)


def test_where_pieces_do_not_matter_no_place_is_written_down():
    """The offset is -1 then."""
    m = filled(30, 40, contiguous=False)
    assert m.held == {0: (-1, 30), 1: (-1, 40)}
    assert (m.free, m.fits(30), m.fits(31)) == (30, True, False)


def test_all_of_the_memory_can_be_one_reservation():
    """To the last token, and again once it is free."""
    m = filled(100)
    assert not m.fits(1)
    m.give_back(0)
    assert m.fits(100)
    assert not m.fits(101)


def test_who_holds_what_is_written_down():
    """From the run after the reservation to the last one before it is freed; what lasts no run is not."""
    m = memory()
    runs = m._state.recorder.runs
    m.take(0, 10)
    runs += [(0,) * 7] * 2
    m.take(1, 20)
    m.take(2, 5)
    m.give_back(2)
    runs += [(0,) * 7]
    m.give_back(0)
    assert m._state.recorder.holds == [0, 0, 2, 0, 10]
    m.give_back(1)
    assert m._state.recorder.holds[5:] == [1, 2, 2, 10, 20]


@given(st.booleans(), st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40)), max_size=60))
def test_a_map_of_every_token_says_the_same(contiguous, script):
    """A request comes with a size, or goes if it is there: places, free tokens and what fits agree."""
    m, cells = memory(60, contiguous=contiguous), [None] * 60
    for request, size in script:
        if request in m.held:
            m.give_back(request)
            cells = [None if cell == request else cell for cell in cells]
        else:
            if contiguous:
                places = [i for i in range(61 - size) if not any(c is not None for c in cells[i : i + size])]
                chosen = range(places[0], places[0] + size) if places else ()
            else:
                free = [i for i, cell in enumerate(cells) if cell is None]
                chosen = free[:size] if len(free) >= size else ()
            assert m.fits(size) == bool(chosen)
            if chosen:
                m.take(request, size)
                assert m.held[request] == (chosen[0] if contiguous else -1, size)
                for i in chosen:
                    cells[i] = request
        assert m.free == cells.count(None)

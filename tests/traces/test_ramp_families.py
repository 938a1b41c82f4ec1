"""Families in rounds: drawn by their seed, startable, and loaded as they say."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.traces.ramp_families import ramp_families, ramp_family


@pytest.mark.parametrize("name", ramp_families())
@pytest.mark.parametrize("load", [None, 0.8])
def test_a_seed_gives_the_same_ramps_and_every_request_fits(name: str, load: float | None) -> None:
    one, same, other = (ramp_family(name, 400, seed, load=load) for seed in (3, 3, 4))
    for column in ("prompt", "rounds", "arrival"):
        assert getattr(one, column).tobytes() == getattr(same, column).tobytes()
    assert one.capacity == same.capacity
    assert one.prompt.tobytes() != other.prompt.tobytes()
    assert (one.peak <= one.capacity).all()


@pytest.mark.parametrize("name", ramp_families())
def test_lengths_do_not_depend_on_the_load(name: str) -> None:
    still, busy = ramp_family(name, 100, 1), ramp_family(name, 100, 1, load=1.3)
    assert still.prompt.tobytes() == busy.prompt.tobytes()
    assert still.rounds.tobytes() == busy.rounds.tobytes()
    assert not still.arrival.any()


@pytest.mark.parametrize("load", [0.5, 2.0])
def test_the_load_is_area_per_room(load: float) -> None:
    ramps = ramp_family("chat", 20_000, 1, load=load)
    room = ramps.capacity * int(ramps.arrival.max())
    assert float(ramps.area.sum()) / room == pytest.approx(load, rel=0.05)


def test_small_caches_are_drawn_from_their_range() -> None:
    capacities = [ramp_family("kv-ramps", 1, seed).capacity for seed in range(300)]
    assert set(capacities) == set(range(30, 51))
    ramps = ramp_family("kv-ramps", 5000, 2)
    # The paper's prompts are 1 to 5; the first round holds one token more.
    assert set((ramps.prompt - 1).tolist()) == {1, 2, 3, 4, 5}
    assert (ramps.prompt - 1 + ramps.rounds).max() == ramps.capacity


def test_chat_has_the_cache_of_the_literature_and_its_medians() -> None:
    ramps = ramp_family("chat", 100_000, 1)
    assert ramps.capacity == 16_492
    assert np.median(ramps.prompt) == 12
    assert np.median(ramps.rounds) == 45


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(("chatt", 1, 1, None), "name"), (("chat", 0, 1, None), "n"), (("chat", 1, 1, 0.0), "load")],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, int, int, float | None], field: str) -> None:
    name, n, seed, load = arguments
    with pytest.raises(InputError) as error:
        ramp_family(name, n, seed, load=load)
    assert error.value.field == field

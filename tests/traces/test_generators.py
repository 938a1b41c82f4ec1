"""Synthetic families follow their laws, and a seed gives the same requests every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.traces import families, generate


@pytest.mark.parametrize("family", families())
def test_a_seed_gives_the_same_requests_and_another_seed_others(family: str) -> None:
    one, same, other = (generate(family, 300, seed, rate=2.0) for seed in (1, 1, 2))
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert getattr(one, name).tobytes() == getattr(same, name).tobytes()
        assert getattr(one, name).tobytes() != getattr(other, name).tobytes()
    assert one.tenant == same.tenant


@pytest.mark.parametrize("family", families())
def test_lengths_do_not_depend_on_the_rate(family: str) -> None:
    slow, fast = (generate(family, 50, 1, rate=rate) for rate in (1.0, 8.0))
    assert slow.prompt_tokens.tobytes() == fast.prompt_tokens.tobytes()
    assert slow.arrival_s == pytest.approx(fast.arrival_s * 8)


@pytest.mark.parametrize("family", families())
def test_one_request_can_be_drawn_and_every_family_says_its_law(family: str) -> None:
    assert len(generate(family, 1, 0, rate=1.0)) == 1
    assert families()[family].endswith(".")


def test_without_a_rate_all_arrive_at_zero() -> None:
    assert not generate("chat", 10, 1).arrival_s.any()


def test_chat_has_its_means_and_medians() -> None:
    r = generate("chat", 200_000, 1)
    assert np.median(r.prompt_tokens) == 11
    assert np.median(r.output_tokens) == 45
    # Clipping at 4,096 tokens takes a little off the heavy tail.
    assert r.prompt_tokens.mean() == pytest.approx(40.6, rel=0.05)
    assert r.output_tokens.mean() == pytest.approx(85.3, rel=0.05)


def test_mixed_long_has_its_share_of_long_prompts() -> None:
    r = generate("mixed-long", 100_000, 1)
    assert (r.prompt_tokens >= 2049).mean() == pytest.approx(0.3, abs=0.01)
    assert r.prompt_tokens.max() <= 8192
    assert r.output_tokens.mean() == pytest.approx(200, rel=0.03)


def test_gsm8k_like_has_the_moments_it_is_given_but_for_the_cut() -> None:
    r = generate("gsm8k-like", 100_000, 1)
    assert r.prompt_tokens.mean() == pytest.approx(68.43, rel=0.02)
    # Cutting off what is below one token raises the mean of the wide law by a few per cent.
    assert 344 < r.output_tokens.mean() < 370
    assert r.output_tokens.min() == 1


def test_kv_ramps_fit_their_cache_one_by_one() -> None:
    r = generate("kv-ramps", 10_000, 1, kv_tokens=30)
    assert set(r.prompt_tokens.tolist()) == {1, 2, 3, 4, 5}
    assert (r.prompt_tokens + r.output_tokens).max() == 30


def test_bursts_vary_as_they_should() -> None:
    gaps = np.diff(generate("bursty", 200_000, 1, rate=3.0).arrival_s)
    assert gaps.mean() == pytest.approx(1 / 3, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(4, rel=0.05)


def test_equal_system_prompts_share_exactly_their_whole_blocks() -> None:
    r = generate("shared-prefix", 400, 1, systems=3, system_tokens=100, block_tokens=16)
    assert r.prefix is not None
    assert r.tenant is not None
    seen: dict[str, list[int]] = {}
    owner: dict[int, set[str]] = {}
    for row, tenant in enumerate(r.tenant):
        ids = r.prefix.of(row).tolist()
        assert len(ids) == r.prompt_tokens[row] // 16
        assert len(set(ids)) == len(ids)
        common = seen.setdefault(tenant, ids)
        seen[tenant] = [a for a, b in zip(common, ids, strict=False) if a == b]
        for i in ids:
            owner.setdefault(i, set()).add(tenant)
    assert set(seen) == {"system-0", "system-1", "system-2"}
    assert all(3 <= len(shared) <= 9 for shared in seen.values())
    assert all(len(tenants) == 1 for tenants in owner.values())


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"family": "chatt"}, "family"),
        ({"n": 0}, "n"),
        ({"seed": -1}, "seed"),
        ({"rate": 0.0}, "rate"),
        ({"cv": 2.0}, "rate"),
        ({"rate": 1.0, "cv": -1.0}, "cv"),
        ({"family": "bursty"}, "rate"),
        ({"colour": 1}, "colour"),
        ({"family": "mixed-long", "long_share": 2}, "long_share"),
        ({"family": "mixed-long", "shortest": 9000}, "shortest"),
        ({"family": "kv-ramps", "kv_tokens": 5}, "longest_prompt"),
        ({"family": "shared-prefix", "systems": 0}, "systems"),
    ],
)
def test_senseless_arguments_are_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        generate(**{"family": "chat", "n": 5, "seed": 1, **arguments})
    assert error.value.field == field

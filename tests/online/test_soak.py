"""Many requests through the public calls: all are served, and memory stays flat. OPTIMIZER_SOAK=1000000 for a million."""

from __future__ import annotations

import os
import resource
import tracemalloc

import numpy as np
import pytest

from optimizer.online import Request, RollingHorizon
from optimizer.online.simulated import SimulatedEngine
from tests.online.double import toy_engine


def soak(requests, look_every):
    """Keep some hundred requests in the system; give the traced memory at every look."""
    rng = np.random.default_rng(0)
    engine = toy_engine(kv_blocks=600, block_tokens=16, max_num_batched_tokens=512, max_num_seqs=64)
    horizon, simulated, now, submitted, done = (
        RollingHorizon(engine, solver=None),
        SimulatedEngine(engine),
        0.0,
        0,
        0,
    )
    looks = []
    while done < requests:
        waiting = horizon.load()[0]
        while submitted < requests and waiting < 100:
            prompt, output = int(rng.integers(1, 200)), 1 + int(rng.exponential(8.0))
            name = f"r{submitted}"
            guess = output * float(np.exp(rng.normal(0, 0.5)))
            request = Request(name, prompt, 64, predicted_tokens=guess, tenant=f"t{submitted % 5000}")
            admission = horizon.submit(request, now)
            assert admission.status != "rejected"
            simulated.add(name, prompt, min(output, 64))
            submitted += 1
            waiting += 1
            if submitted % 97 == 0 and horizon.cancel(name):
                simulated.drop(name)
                done += 1
            if submitted % look_every == 0:
                looks.append(tracemalloc.get_traced_memory()[0])
        step = horizon.next_step(now)
        took, finished = simulated.execute(step)
        now += took
        done += len(horizon.observe(step, now, finished))
    counts = horizon.stats().counts
    assert counts.finished + counts.cancelled == requests == counts.submitted
    assert horizon.loop.state.used_blocks == 0
    assert not horizon.loop.state.entries
    assert not horizon.loop.state.by_serial
    return looks


def test_memory_stays_flat_over_many_requests():
    soak(4000, 4000)
    tracemalloc.start()
    looks = soak(8000, 1000)
    tracemalloc.stop()
    assert max(looks[3:]) < 1.1 * max(looks[:3])


@pytest.mark.long
@pytest.mark.skipif("OPTIMIZER_SOAK" not in os.environ, reason="takes minutes: set OPTIMIZER_SOAK=1000000")
def test_memory_stays_flat_over_a_million_requests():
    requests = int(os.environ["OPTIMIZER_SOAK"])
    soak(20_000, 20_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    soak(requests, requests)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000

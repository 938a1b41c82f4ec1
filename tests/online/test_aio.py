"""Coroutines: who waits for work is woken by whatever may bring some."""

from __future__ import annotations

import asyncio

from optimizer.online import AsyncHorizon, Request, RollingHorizon
from tests.online.double import toy_engine


def horizon_of(**limits):
    return AsyncHorizon(RollingHorizon(toy_engine(**limits), solver=None))


def test_clients_and_a_server_in_one_loop():
    async def client(horizon, first, done):
        for i in range(20):
            await horizon.submit(Request(f"{first}-{i}", 4, 3))
            await asyncio.sleep(0)
        while len(done) < 60:
            await asyncio.sleep(0)

    async def server(horizon, done):
        while step := await horizon.next_step():
            await asyncio.sleep(0)
            done += await horizon.observe(step)

    async def everything():
        done = []
        async with horizon_of() as horizon:
            serving = asyncio.create_task(server(horizon, done))
            await asyncio.gather(*(client(horizon, k, done) for k in range(3)))
            await horizon.close()
            await serving
        return done, horizon.stats()

    done, stats = asyncio.run(asyncio.wait_for(everything(), 30))
    assert len(set(done)) == 60
    assert (stats.running, stats.waiting) == (0, 0)


def test_next_step_waits_for_work_and_close_ends_the_wait():
    async def everything():
        horizon = horizon_of()
        step = asyncio.create_task(horizon.next_step())
        await asyncio.sleep(0.01)
        assert not step.done()
        await horizon.submit(Request("a", 4, 3))
        assert (await step).prefill == (("a", 4),)
        assert await horizon.cancel("a")
        step = asyncio.create_task(horizon.next_step())
        await asyncio.sleep(0.01)
        assert not step.done()
        await horizon.close()
        assert not await step

    asyncio.run(asyncio.wait_for(everything(), 30))


def test_a_lost_report_does_not_keep_next_step_waiting_for_ever():
    """Who reached its cap in a step that nobody reported ends after a window, though nobody calls."""

    async def everything():
        async with AsyncHorizon(RollingHorizon(toy_engine(), window_s=0.05, solver=None)) as horizon:
            await horizon.submit(Request("a", 4, 1))
            assert (await horizon.next_step()).prefill == (("a", 4),)
            step = asyncio.create_task(horizon.next_step())
            await asyncio.sleep(0.3)
            assert horizon.stats().running == 0
            step.cancel()

    asyncio.run(asyncio.wait_for(everything(), 30))

"""Who is answered last when a worker leaves."""

from __future__ import annotations

import asyncio

import pytest

from worker.serverless import flight as module
from worker.serverless.flight import Flight


def test_a_worker_with_one_job_may_be_replaced_at_once() -> None:
    async def alone() -> bool:
        flight = Flight()
        async with flight.job():
            return await flight.leave()

    assert asyncio.run(alone())


def test_the_order_to_replace_the_worker_waits_for_every_other_answer() -> None:
    told: list[str] = []

    async def job(flight: Flight, name: str, fails: bool, seconds: float) -> None:
        async with flight.job():
            await asyncio.sleep(seconds)
            last = fails and await flight.leave()
            told.append(f"{name} last" if last else name)

    async def together() -> None:
        flight = Flight()
        await asyncio.gather(
            job(flight, "first", True, 0.01),
            job(flight, "second", True, 0.02),
            job(flight, "good", False, 0.1),
        )

    asyncio.run(together())
    assert told == ["second", "good", "first last"]


def test_a_neighbour_that_takes_too_long_is_not_endangered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)

    async def with_a_slow_one() -> bool:
        flight = Flight()

        async def slow() -> None:
            async with flight.job():
                await asyncio.sleep(0.3)

        neighbour = asyncio.create_task(slow())
        async with flight.job():
            last = await flight.leave()
        await neighbour
        return last

    assert not asyncio.run(with_a_slow_one())


def test_whoever_leaves_takes_no_more_jobs() -> None:
    left: list[str] = []
    flight = Flight()
    flight.on_leave = lambda: left.append("left")
    asyncio.run(flight.leave())
    assert left == ["left"]


def test_what_a_job_holds_is_given_back_when_it_is_cancelled() -> None:
    given_back: list[str] = []

    async def give_back() -> None:
        given_back.append("slots")

    async def cancelled() -> None:
        flight = Flight()

        async def job() -> None:
            async with flight.job():
                flight.at_the_end(give_back)
                await asyncio.sleep(10)

        task = asyncio.create_task(job())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert given_back == ["slots"]

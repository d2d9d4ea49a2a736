"""A bound on waiting holds in a task that is being cancelled, too."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from appliance.runtime.patience import result_within, within


async def never() -> None:
    await asyncio.Event().wait()


async def at_once() -> None:
    pass


async def failing() -> None:
    raise OSError("gone")


def in_clean_up(make: Coroutine[Any, Any, object]) -> bool:
    """What `within` says inside a task that has been cancelled."""
    said: list[bool] = []

    async def service(begun: asyncio.Event) -> None:
        begun.set()
        try:
            await never()
        finally:
            said.append(await within(0.05, make))

    async def scenario() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(service(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    return said[0]


def test_what_takes_too_long_is_given_up() -> None:
    assert not asyncio.run(within(0.05, never()))
    assert not in_clean_up(never())


def test_what_ends_in_time_has_ended() -> None:
    assert asyncio.run(within(60, at_once()))
    assert in_clean_up(at_once())


def test_what_fails_is_told() -> None:
    with pytest.raises(OSError, match="gone"):
        asyncio.run(within(60, failing()))


def test_what_is_given_up_ends() -> None:
    async def scenario() -> bool:
        ended = asyncio.Event()

        async def stubborn() -> None:
            try:
                await never()
            finally:
                ended.set()

        assert not await within(0.05, stubborn())
        return await asyncio.wait_for(ended.wait(), 10)

    assert asyncio.run(scenario())


def test_who_is_cancelled_while_waiting_leaves_nothing_behind() -> None:
    async def scenario() -> bool:
        begun, tidied = asyncio.Event(), asyncio.Event()

        async def orderly() -> None:
            begun.set()
            try:
                await never()
            finally:
                await asyncio.sleep(0)
                tidied.set()

        task = asyncio.create_task(within(60, orderly()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return tidied.is_set()

    assert asyncio.run(scenario())


def test_a_result_comes_in_time_or_not_at_all() -> None:
    async def answer() -> int:
        return 42

    assert asyncio.run(result_within(60, answer())) == 42
    assert asyncio.run(result_within(None, answer())) == 42
    with pytest.raises(TimeoutError):
        asyncio.run(result_within(0.05, never()))


def test_clean_up_that_fails_is_told() -> None:
    async def clumsy() -> None:
        try:
            await never()
        finally:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        asyncio.run(within(0.05, clumsy()))

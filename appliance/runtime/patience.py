"""Waiting with a bound, also while a task is being cancelled: at its end, a service still has something to say.

`asyncio.timeout` of Python 3.11.2 (Debian 12's) raises CancelledError instead of TimeoutError in a task that is being
cancelled, by somebody or by a bound around it. `asyncio.wait_for` may swallow a cancellation there.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

GRACE_S = 1.0  # for the clean-up of what is given up

_T = TypeVar("_T")


async def within(seconds: float | None, work: Coroutine[Any, Any, object]) -> bool:
    """Whether `work` came to its end in time; if not it is cancelled, and has a second to clean up. None: no bound.

    What it raises is raised.
    """
    return await _ended(seconds, work) is not None


async def result_within(seconds: float | None, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` returns. TimeoutError where it takes longer; otherwise as `within`."""
    task = await _ended(seconds, work)
    if task is None:
        raise TimeoutError
    return task.result()


async def _ended(seconds: float | None, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T] | None":
    """The task of what came to its end in time."""
    task = asyncio.create_task(work)
    in_time = False
    try:
        in_time = bool((await asyncio.wait([task], timeout=seconds))[0])
    finally:
        if not in_time:
            task.cancel()
            await asyncio.wait([task], timeout=GRACE_S)
    if task.done() and (in_time or not task.cancelled()):
        task.result()
    return task if in_time else None

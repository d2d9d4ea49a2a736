"""Waiting with a bound, also while a task is being cancelled: at its end, a service still has something to say."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def within(seconds: float, work: Coroutine[Any, Any, object]) -> bool:
    """Whether `work` came to its end in time; if not it is cancelled. What it raises is raised.

    For clean-up. There `asyncio.timeout` of Python 3.11.2 (Debian 12's) raises CancelledError instead of TimeoutError.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()
    if done:
        task.result()
    return bool(done)

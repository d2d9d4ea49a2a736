"""Work in a thread that nobody waits for at the end: a server that is silent holds up neither a service nor a process.

What such work writes must bear to be cut off at any moment, as by a power cut.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")


async def aside(work: Callable[[], _T], name: str = "aside") -> _T:
    """What `work` returns or raises. Where the waiting is cancelled the thread goes on by itself."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def end(result: _T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # without an error it is what `work` returned

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as problem:  # noqa: BLE001 - whatever it is belongs to whoever waits
            error = problem
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(end, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done

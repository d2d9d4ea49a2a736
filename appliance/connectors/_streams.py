"""Many tasks that bring readings, one stream for whoever reads them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from appliance.connectors.port import Arrival
from appliance.errors import ConnectorError, MillwrightError
from appliance.events.ledger import Ledger

log = logging.getLogger(__name__)

WAITING = 64  # batches for whoever reads them; beyond, the tasks wait


class Streams:
    """Counts what is read as processed, and what nobody read any more as dropped. One at a time is open."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue: asyncio.Queue[list[Arrival] | ConnectorError] = asyncio.Queue(WAITING)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run it until `close`. Its MillwrightError ends the stream; so does a defect, told."""
        task = asyncio.create_task(self._guard(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # one that never got a turn

    async def put(self, arrivals: list[Arrival]) -> None:
        """Arrivals that the ledger counts as received."""
        if arrivals:
            try:
                await self._queue.put(arrivals)
            except asyncio.CancelledError:
                self._drop(arrivals)
                raise

    async def read(self) -> AsyncIterator[list[Arrival]]:
        """Batches, until a task fails: then its ConnectorError."""
        while True:
            found = await self._queue.get()
            if isinstance(found, ConnectorError):
                raise found
            self._ledger.processed += len(found)
            yield found

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while not self._queue.empty():
            left = self._queue.get_nowait()
            if isinstance(left, list):
                self._drop(left)

    def _drop(self, arrivals: list[Arrival]) -> None:
        self._ledger.drop("stopped", "what was heard and not yet read", len(arrivals))

    async def _guard(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except ConnectorError as error:
            await self._queue.put(error)
        except MillwrightError as error:
            await self._queue.put(ConnectorError(error.message, error.remedy))
        except Exception as error:
            log.exception("%s failed by a defect", name)
            await self._queue.put(ConnectorError(f"{name} failed by a defect: {error}"[:500]))

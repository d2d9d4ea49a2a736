"""Counts what was published to a topic that nobody listens to, so that a person hears of the misspelling.

Hearing that takes a subscription to everything, which a busy box cannot spare. So it is listened to all the time while
little arrives, as when a person tries something by hand, and for a second each minute where much does: what is
published again and again is found within minutes, and costs a hundredth of the readings.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache

from appliance.bus.port import Batch, Bus, Message
from appliance.errors import BusError
from appliance.events import strays
from appliance.events.ledger import Ledger

log = logging.getLogger(__name__)

BUSY_PER_S = 200  # messages
LOOK_S = 1.0  # over which they are counted
PAUSE_S = 60.0
CAPACITY = 2000  # messages; a sample may miss some
MAX_KEPT = 1000  # topics of retained messages, which are handed out at each subscription

_explain = lru_cache(4096)(strays.explain)


class Strays:
    """`bus` is a session of its own: it hears again what other sessions hear. `ledger` has nothing but drops. A look
    takes `look_s` at least."""

    def __init__(
        self, bus: Bus, wait: Callable[[float], Awaitable[None]] = asyncio.sleep, look_s: float = LOOK_S
    ) -> None:
        self._bus, self._wait, self._look_s = bus, wait, look_s
        self._kept: set[str] = set()
        self.ledger = Ledger()

    async def run(self) -> None:
        async with self._bus:
            while True:
                try:
                    async with self._bus.subscribe(*strays.FILTERS, capacity=CAPACITY) as batches:
                        await self._listen(batches)
                except BusError as error:
                    log.warning("misspelt topics are not noticed: %s", error.message)
                    return
                await self._wait(PAUSE_S)

    async def _listen(self, batches: AsyncIterator[Batch]) -> None:
        """Until more arrives than is worth it."""
        loop = asyncio.get_running_loop()
        began, heard = loop.time(), 0
        async for batch in batches:
            for message in batch:
                self._judge(message)
            heard += len(batch)
            elapsed = loop.time() - began
            if elapsed >= self._look_s and heard > BUSY_PER_S * max(elapsed, LOOK_S):
                return
            if elapsed >= LOOK_S:
                began, heard = loop.time(), 0

    def _judge(self, message: Message) -> None:
        error = _explain(message.topic)
        if error is None or not message.payload:  # an empty one clears what the broker kept: somebody tidies up
            return
        if message.retain:
            if message.topic in self._kept or len(self._kept) >= MAX_KEPT:
                return
            self._kept.add(message.topic)
        self.ledger.received += 1
        self.ledger.refuse(error)

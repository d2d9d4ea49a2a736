"""Keeps the picture of the bus: one session that only listens, for `run` and its report and for `watch`."""

import asyncio
from collections.abc import AsyncIterator, Callable

from appliance.bus.port import Batch, Bus
from appliance.events.schema import State
from appliance.runtime.patience import within
from appliance.runtime.service import Clock, Pulse
from appliance.services.picture import FILTERS, RETAINED_FILTERS, Change, Picture
from appliance.services.status import tell_ready

LAST_WORDS_S = 0.5  # what services say at their end arrives within milliseconds


class Observer:
    """`tell` is called with each change that is worth a line."""

    name = "observer"

    def __init__(self, bus: Bus, picture: Picture, clock: Clock, tell: Callable[[Change], None]) -> None:
        self._bus, self._picture, self._clock, self._tell = bus, picture, clock, tell
        self._fed = asyncio.Event()
        self._met: set[str] = set()  # services that were online

    async def run(self, pulse: Pulse) -> None:
        async with (
            self._bus,
            self._bus.subscribe(*FILTERS) as live,
            self._bus.subscribe(*RETAINED_FILTERS, qos=1) as retained,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._feed(retained, pulse), name="observer states")
            group.create_task(self._feed(live, pulse), name="observer readings")
            await tell_ready(self._bus, pulse)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await self._hear_last_words()
                raise

    async def _feed(self, batches: AsyncIterator[Batch], pulse: Pulse) -> None:
        async for batch in batches:
            for change in self._picture.feed(batch, self._clock()):
                if not self._is_old_news(change):
                    self._tell(change)
            self._fed.set()
            pulse.beat()

    def _is_old_news(self, change: Change) -> bool:
        """The end of a run before this one, which the broker has kept."""
        if not isinstance(change.event, State):
            return False
        if change.event.online:
            self._met.add(change.subject)
        return change.subject not in self._met

    async def _hear_last_words(self) -> None:
        """The services that stopped before this one have said their final books; they are still on their way."""
        await within(LAST_WORDS_S, self._until_all_are_offline())

    async def _until_all_are_offline(self) -> None:
        while any(state.online for state in self._picture.services.values()):
            self._fed.clear()
            await self._fed.wait()

"""Sends what happens on this box elsewhere: bus -> a gate and an outbox for each destination -> its channel.

The bus's acknowledgement follows the commit: what was published with QoS 1 is on the disk before the broker forgets it,
and what the broker delivers twice leaves once. A destination that is away holds up nobody: not the bus, not the others.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any

import msgspec

from appliance import __version__
from appliance.bus.port import Batch, Bus, Message
from appliance.channels.leaving.gate import URGENT
from appliance.channels.port import Channel, Request
from appliance.errors import BusError, ChannelError, MillwrightError
from appliance.events import topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Command, Kind
from appliance.runtime.patience import result_within
from appliance.runtime.service import Clock, Pulse
from appliance.services import commands
from appliance.services.outlet import Outlet
from appliance.services.status import Status, tell_ready
from appliance.store.outbox import SETTLED

log = logging.getLogger(__name__)

PART = 1024  # messages dealt with before the event loop gets its turn
PARTS = 8  # that wait for the disk at once: one commit for all of them
PROBE_S = 30.0
ANSWER_S = 10.0
MAX_ASKED = 100  # requests from destinations that are performed at once


class _Which(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""  # empty: all of them


class Forward:
    """`urgent` is a session of its own, so that an alarm does not wait behind readings."""

    name = "forward"

    def __init__(self, bus: Bus, urgent: Bus, outlets: Sequence[Outlet], kinds: Sequence[str], clock: Clock) -> None:
        self._bus, self._urgent, self._outlets, self._clock = bus, urgent, list(outlets), clock
        self._kinds = [Kind(kind) for kind in Kind if kind in kinds]
        self._ledger = Ledger()
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)
        self._own = topics.state(self.name)
        self._asked: set[asyncio.Task[None]] = set()
        for outlet in self._outlets:
            outlet.changed, outlet.perform = self._status.publish, self._perform

    async def run(self, pulse: Pulse) -> None:
        async with self._bus, self._urgent, AsyncExitStack() as stack:
            try:
                flow = [await stack.enter_async_context(one) for one in self._subscriptions()]
                async with asyncio.TaskGroup() as group:
                    for outlet in self._outlets:
                        group.create_task(outlet.run(), name=f"forward {outlet.name}")
                    group.create_task(self._status.run(pulse), name="forward status")
                    group.create_task(self._serve(), name="forward commands")
                    for batches in flow:
                        group.create_task(self._take(batches), name="forward intake")
                    with suppress(BusError):
                        await self._bus.wait_connected(ANSWER_S)
                    await tell_ready(self._urgent, pulse)
            finally:
                self._status.publish(online=False)

    def _subscriptions(self) -> Iterator[AbstractAsyncContextManager[AsyncIterator[Batch]]]:
        for bus, is_urgent in ((self._bus, False), (self._urgent, True)):
            filters = [topics.everything(kind) for kind in self._kinds if (kind in URGENT) is is_urgent]
            if filters:
                yield bus.subscribe(*filters, qos=1)

    async def _take(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:  # asking for the next one acknowledges this one
            writing = deque[Awaitable[Any]]()
            for start in range(0, len(batch), PART):
                writing.append(self._take_part(batch[start : start + PART]))
                await (writing.popleft() if len(writing) == PARTS else asyncio.sleep(0))
            await asyncio.gather(*writing)

    def _take_part(self, batch: Batch) -> Awaitable[Any]:
        """Until it is on the disk."""
        # What we say of ourselves would give us something to say again.
        others: list[Message] = [message for message in batch if message.topic != self._own]
        now = self._clock()
        return asyncio.gather(*filter(None, [outlet.take(others, now) for outlet in self._outlets]))

    # Commands

    async def _serve(self) -> None:
        handlers = {"pause": self._pause, "resume": self._resume, "test": self._test}
        await commands.serve(self._bus, self.name, handlers, self._clock)

    async def _pause(self, command: Command) -> dict[str, Any]:
        return await self._turn(command, is_paused=True)

    async def _resume(self, command: Command) -> dict[str, Any]:
        return await self._turn(command, is_paused=False)

    async def _turn(self, command: Command, *, is_paused: bool) -> dict[str, Any]:
        found = self._meant(command)
        for outlet in found:
            await outlet.pause(is_paused)
        return {"names": [outlet.name for outlet in found], "paused": is_paused}

    async def _test(self, command: Command) -> dict[str, Any]:
        """Each destination is tried on a line of its own."""
        found = self._meant(command)
        told = await asyncio.gather(*(_tried(outlet.channel) for outlet in found))
        return {outlet.name: result for outlet, result in zip(found, told, strict=True)}

    def _meant(self, command: Command) -> list[Outlet]:
        name = commands.arguments(command, _Which).name
        found = [outlet for outlet in self._outlets if name in ("", outlet.name)]
        if not found:
            known = ", ".join(outlet.name for outlet in self._outlets)
            raise MillwrightError(f"there is no destination '{name}'", f"There are: {known}.")
        return found

    async def _perform(self, request: Request) -> None:
        """What somebody at a destination asks for, beside what else there is to do."""
        if len(self._asked) >= MAX_ASKED:
            raise MillwrightError(f"{MAX_ASKED} requests are performed already", "Ask again later.")
        task = asyncio.create_task(self._ask(request), name=f"forward {request.service} {request.verb}")
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _ask(self, request: Request) -> None:
        try:
            answer = await commands.ask(
                self._bus, request.service, request.verb, request.args, request.by, ANSWER_S, self._clock
            )
        except MillwrightError as error:
            log.warning("%s asked for '%s': %s", request.by, request.verb, error)
        else:
            if answer.reason:
                log.warning("%s asked for '%s': %s", request.by, request.verb, answer.reason)

    # Books

    def _detail(self) -> dict[str, Any]:
        # Status asks for the detail before it reads the books.
        self._balance()
        trouble = [f"{outlet.name}: {outlet.post.trouble}" for outlet in self._outlets if outlet.post.trouble]
        return {
            "trouble": "; ".join(trouble),
            "destinations": {outlet.name: outlet.describe() for outlet in self._outlets},
        }

    def _balance(self) -> None:
        """The books over all destinations: an event that leaves for two of them counts twice. What a destination does
        not lack is dealt with."""
        dropped: Counter[str] = Counter()
        received = processed = 0
        for outlet in self._outlets:
            books, refused = outlet.post.books, outlet.gate.ledger
            received += books.received + outlet.post.uncommitted + refused.received
            processed += books.sent + sum(books.dropped.get(reason, 0) for reason in SETTLED)
            dropped.update({reason: count for reason, count in books.dropped.items() if reason not in SETTLED})
            dropped.update(refused.dropped)
            self._ledger.examples |= refused.examples
        self._ledger.received, self._ledger.processed, self._ledger.dropped = received, processed, dict(dropped)


async def _tried(channel: Channel) -> dict[str, Any]:
    try:
        return {"works": True, "seen": await result_within(PROBE_S, channel.probe())}
    except ChannelError as error:
        return {"works": False, "problem": error.message, "remedy": error.remedy}
    except TimeoutError:
        return {"works": False, "problem": f"no answer within {PROBE_S:g} s", "remedy": ""}

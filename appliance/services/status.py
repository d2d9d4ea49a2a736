"""A service's word about itself, kept true on the bus: `state/<service>`, retained, QoS 1.

    status = Status(bus, "record", __version__, ledger, clock, detail)
    async with asyncio.TaskGroup() as group:
        group.create_task(status.run(pulse), name="record status")
    ...
    status.publish(online=False)  # the last act of the service

An abrupt end is told by the broker: the session's last will is `will(service)`.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from appliance.bus.port import Batch, Bus, Message
from appliance.errors import BusError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import State
from appliance.runtime.service import Clock, Pulse

PERIOD_S = 2.0
ANSWER_S = 2.0
REMEMBERED = 64  # states that may still come back from the broker

ARRIVED = ("too-large", "overrun", "unclaimed")  # under which a session drops what never reached its service


def will(service: str) -> Message:
    """The last will of a service's session. It is written before the event it tells of, so its time is 0."""
    return Message(topics.state(service), codec.encode(State(at=0, online=False)), qos=1, retain=True)


async def tell_ready(bus: Bus, pulse: Pulse) -> None:
    """Of a service that has made its subscriptions: it is ready when they stand with the broker, so that whoever starts
    after it is heard. Where no broker answers for two seconds it waits for one as well as any other."""
    with suppress(BusError):
        await bus.wait_connected(ANSWER_S)
    pulse.ready()


class Status:
    """Publishes a ledger's books and the service's own `detail` (plain values) when they change.

    What the session itself dropped is told, too: on its way in as part of the books, on its way out as `unsent`.
    """

    def __init__(
        self,
        bus: Bus,
        service: str,
        version: str,
        ledger: Ledger,
        clock: Clock,
        detail: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._bus, self._ledger, self._clock, self._detail = bus, ledger, clock, detail
        self._topic, self._version = topics.state(service), version
        self._published: State | None = None  # none: what stands on the bus is not known to be true
        self._said: deque[bytes] = deque(maxlen=REMEMBERED)
        self._ended = False

    async def run(self, pulse: Pulse | None = None) -> None:
        """Until cancelled: publish at once, after each connection, and every two seconds where something changed, or
        where somebody else wrote over it."""
        self._bus.on_connected(self._assert)
        async with self._bus.subscribe(self._topic) as batches, asyncio.TaskGroup() as group:
            group.create_task(self._hear(batches), name="own state")
            while True:
                self._publish_changed()
                if pulse is not None:
                    pulse.beat()
                await asyncio.sleep(PERIOD_S)

    async def _hear(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            for message in batch:
                # What the broker kept from before this session is overwritten by what is said at its beginning.
                if not message.retain and message.payload not in self._said:
                    self._published = None

    def publish(self, online: bool = True) -> None:
        """Say it now. After `online=False` nothing more is said."""
        self._ended = not online
        self._send(self._state(online))

    def _assert(self) -> None:
        if not self._ended:
            self.publish()

    def _publish_changed(self) -> None:
        state = self._state(True)
        if self._published is None or replace(self._published, at=state.at) != state:
            self._send(state)

    def _send(self, state: State) -> None:
        payload = codec.encode(state)
        try:
            self._bus.publish(self._topic, payload, qos=1, retain=True)
        except BusError:
            return  # the session's store is full: a later state says the same
        self._published = state
        self._said.append(payload)

    def _state(self, online: bool) -> State:
        detail = self._detail()  # which may bring the ledger up to date
        books, session = self._ledger, self._bus.ledger
        arrived = {reason: count for reason, count in session.dropped.items() if reason in ARRIVED}
        unsent = {reason: count for reason, count in session.dropped.items() if reason not in ARRIVED}
        # In this order: a service may count in a thread, and what is dealt with was received before.
        dropped, processed, received = dict(books.dropped), books.processed, books.received
        examples = {reason: case for reason, case in session.examples.items() if reason in ARRIVED} | books.examples
        named = {"unsent": unsent, "examples": examples}
        return State(
            at=self._clock(),
            online=online,
            version=self._version,
            received=received + sum(arrived.values()),
            processed=processed,
            queued=received - processed - sum(dropped.values()),
            dropped=dict(Counter(dropped) + Counter(arrived)),
            detail=detail | {name: value for name, value in named.items() if value},
        )

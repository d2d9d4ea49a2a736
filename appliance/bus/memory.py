"""The bus without a broker: one process, one event loop, the same guarantees. For tests and for reading the port."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from appliance.bus.port import CAPACITY, MAX_PAYLOAD, Batch, Message
from appliance.events.ledger import Ledger


def matches(pattern: str, topic: str) -> bool:
    """MQTT 3.1.1 section 4.7: `+` is one level, `#` is all that follow."""
    levels, parts = pattern.split("/"), topic.split("/")
    for index, level in enumerate(levels):
        if level == "#":
            return True
        if index >= len(parts) or (level != "+" and level != parts[index]):
            return False
    return len(levels) == len(parts)


class MemoryBroker:
    """What the sessions of one test share: subscriptions and retained messages."""

    def __init__(self) -> None:
        self.retained: dict[str, Message] = {}
        self.sessions: list[MemoryBus] = []

    def accept(self, message: Message) -> None:
        if message.retain and message.payload:
            self.retained[message.topic] = message
        elif message.retain:
            self.retained.pop(message.topic, None)
        for session in self.sessions:
            session.deliver(message._replace(retain=False))


class _Subscription:
    def __init__(self, filters: tuple[str, ...], qos: int, capacity: int, ledger: Ledger) -> None:
        self.filters, self.qos, self.capacity, self.ledger = filters, qos, capacity, ledger
        self.pending: Batch = []
        self.unsettled: Batch = []
        self.arrived = asyncio.Event()

    def offer(self, message: Message) -> None:
        if not any(matches(pattern, message.topic) for pattern in self.filters):
            return
        self.ledger.received += 1
        qos = min(message.qos, self.qos)
        if len(message.payload) > MAX_PAYLOAD:
            self.ledger.drop("too-large", message.topic)
        elif qos == 0 and len(self.pending) >= self.capacity:
            self.ledger.drop("overrun", message.topic)
        else:
            self.pending.append(message._replace(qos=qos))
            self.arrived.set()

    async def batches(self) -> AsyncIterator[Batch]:
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            batch, self.pending = self.pending, []
            if batch:
                yield batch
                self.ledger.processed += len(batch)


class MemoryBus:
    def __init__(self, broker: MemoryBroker, will: Message | None = None) -> None:
        self.ledger = Ledger()
        self._broker, self._will = broker, will
        self._subscriptions: list[_Subscription] = []
        self._callbacks: list[Callable[[], None]] = []
        self._connected = False

    @property
    def connected(self) -> bool:
        return self._connected

    async def __aenter__(self) -> Self:
        self._broker.sessions.append(self)
        self._connected = True
        for callback in self._callbacks:
            callback()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._broker.sessions.remove(self)
        self._connected = False
        if kind is not None and self._will is not None:
            self._broker.accept(self._will)

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        self._broker.accept(Message(topic, payload, qos, retain))

    def publish_many(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._broker.accept(message)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    @asynccontextmanager
    async def subscribe(
        self, *filters: str, qos: int = 0, capacity: int = CAPACITY
    ) -> AsyncIterator[AsyncIterator[Batch]]:
        subscription = _Subscription(filters, qos, capacity, self.ledger)
        self._subscriptions.append(subscription)
        for message in self._broker.retained.values():
            subscription.offer(message)
        try:
            yield subscription.batches()
        finally:
            self._subscriptions.remove(subscription)

    def on_connected(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        if self._connected:
            callback()

    def deliver(self, message: Message) -> None:
        for subscription in self._subscriptions:
            subscription.offer(message)

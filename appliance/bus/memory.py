"""The bus without a broker: one process, one event loop, the same guarantees. For tests and for reading the port."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from appliance.bus.filters import matches
from appliance.bus.inbox import Inbox
from appliance.bus.packets import check_payload, encode_topic
from appliance.bus.port import CAPACITY, MAX_PAYLOAD, MAX_UNACKNOWLEDGED, Batch, Message
from appliance.errors import BusError
from appliance.events.ledger import Ledger
from appliance.runtime.patience import within

_LAST_ID = 65_535


class _Session:
    """What the broker knows of one client: its filters, and the QoS 1 messages it has not acknowledged."""

    def __init__(self) -> None:
        self.bus: MemoryBus | None = None
        self.filters: dict[str, int] = {}  # with their QoS
        self.unacknowledged: dict[int, Message] = {}
        self._last_id = 0

    def accept(self, message: Message) -> None:
        """Hand on, or keep for a client that is away."""
        levels = [qos for pattern, qos in self.filters.items() if matches(pattern, message.topic)]
        if not levels:
            return
        self.hand(replace(message, qos=min(message.qos, max(levels))))

    def hand(self, message: Message) -> None:
        packet_id = self._keep(message) if message.qos else 0
        if self.bus is not None:
            self.bus.deliver(message, packet_id)

    def acknowledge(self, packet_ids: list[int]) -> None:
        for packet_id in packet_ids:
            self.unacknowledged.pop(packet_id, None)

    def _keep(self, message: Message) -> int:
        while True:
            self._last_id = self._last_id % _LAST_ID + 1
            if self._last_id not in self.unacknowledged:
                self.unacknowledged[self._last_id] = message
                return self._last_id


class MemoryBroker:
    """What the sessions of one test share. `stop` and `start` are a clean restart: nothing is forgotten."""

    def __init__(self) -> None:
        self.retained: dict[str, Message] = {}
        self.sessions: dict[str, _Session] = {}
        self.buses: list[MemoryBus] = []
        self.is_running = True

    def accept(self, message: Message) -> None:
        if message.retain and message.payload:
            self.retained[message.topic] = message
        elif message.retain:
            self.retained.pop(message.topic, None)
        for session in list(self.sessions.values()):
            session.accept(replace(message, retain=False))

    def stop(self) -> None:
        self.is_running = False
        for bus in self.buses:
            bus.disconnect()

    def start(self) -> None:
        self.is_running = True
        for bus in list(self.buses):
            bus.connect()


class MemoryBus:
    """`client_id` names a session that the broker keeps while nobody has it open."""

    def __init__(self, broker: MemoryBroker, will: Message | None = None, client_id: str = "") -> None:
        self.ledger = Ledger()
        self._broker, self._will = broker, will
        self._is_named, self._client_id = bool(client_id), client_id or f"nameless-{id(self)}"
        self._session: _Session | None = None
        self._inbox = Inbox(self.ledger, self._settle, lambda: None)
        self._waiting: list[Message] = []  # QoS 1 for a broker that is away
        self._callbacks: list[Callable[[], None]] = []
        self._connected, self._gone = asyncio.Event(), asyncio.Event()
        self._gone.set()

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def __aenter__(self) -> Self:
        self._broker.buses.append(self)
        if self._broker.is_running:
            self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        was_connected = self.connected
        self._broker.buses.remove(self)
        self.disconnect()
        if was_connected and kind is not None and issubclass(kind, Exception) and self._will is not None:
            self._broker.accept(self._will)

    async def wait_connected(self, within_s: float | None = None) -> None:
        if not await within(within_s, self._connected.wait()):
            raise BusError("no connection to the broker in memory: it was stopped", "start it")

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        message = Message(topic, payload, qos, retain)
        encode_topic(topic)
        check_payload(message)
        if self.connected:
            self._broker.accept(message)
        elif not qos:
            self.ledger.received += 1
            self.ledger.drop("offline", topic)
        elif len(self._waiting) >= MAX_UNACKNOWLEDGED:
            raise BusError(f"{len(self._waiting)} messages of QoS 1 wait for the broker", "start it")
        else:
            self._waiting.append(message)

    def publish_many(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.publish(message.topic, message.payload, qos=message.qos, retain=message.retain)

    @property
    def unacknowledged(self) -> int:
        return len(self._waiting)

    async def wait_lost(self) -> str:
        await self._gone.wait()
        return "it was stopped"

    async def ping(self) -> None:
        await asyncio.sleep(0)
        if not self.connected:
            raise BusError("no connection to the broker in memory")

    async def drain(self) -> None:
        await asyncio.sleep(0)
        if self._waiting:
            await self._connected.wait()

    @asynccontextmanager
    async def subscribe(
        self, *filters: str, qos: int = 0, capacity: int = CAPACITY
    ) -> AsyncIterator[AsyncIterator[Batch]]:
        subscription = self._inbox.add(filters, qos, capacity)
        if self._session is not None:
            self._stand(filters, qos)
        is_settled = False
        try:
            yield subscription
            is_settled = True
        finally:
            self._inbox.remove(subscription, 0.0, settled=is_settled)
            if self._session is not None and not self._is_named:
                for pattern in filters:
                    self._session.filters.pop(pattern, None)

    def on_connected(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        if self.connected:
            callback()

    # For the broker

    def connect(self) -> None:
        self._session = self._broker.sessions.setdefault(self._client_id, _Session())
        self._session.bus = self
        for packet_id, message in list(self._session.unacknowledged.items()):
            self.deliver(message, packet_id)
        for subscription in self._inbox.subscriptions:
            self._stand(subscription.filters, subscription.qos)
        self._connected.set()
        self._gone.clear()
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._broker.accept(message)
        for callback in self._callbacks:
            callback()

    def disconnect(self) -> None:
        self._connected.clear()
        self._gone.set()
        self._inbox.void_ids()
        if self._session is not None:
            self._session.bus = None
            self._session = None
        if not self._is_named:
            self._broker.sessions.pop(self._client_id, None)

    def deliver(self, message: Message, packet_id: int) -> None:
        if len(message.payload) > MAX_PAYLOAD:
            self._inbox.too_large([message.topic])
            self._settle([packet_id])
        else:
            ids = [packet_id] if packet_id else []
            self._inbox.deliver([message], ids, len(message.payload), [message.topic], 0.0)

    def _stand(self, filters: tuple[str, ...], qos: int) -> None:
        session = self._session
        assert session is not None
        for pattern in filters:
            session.filters[pattern] = qos
            for message in list(self._broker.retained.values()):
                if matches(pattern, message.topic):
                    session.hand(replace(message, qos=min(message.qos, qos)))

    def _settle(self, packet_ids: list[int]) -> None:
        if self._session is not None:
            self._session.acknowledge(packet_ids)

"""What a session has received and its consumers have not dealt with yet. Shared by all implementations of the port.

A message belongs to exactly one subscription: filters of one session may not overlap. Packet ids of QoS 1 messages
travel beside the batches; they are acknowledged when the consumer asks for the next batch.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from appliance.bus import filters as topic_filters
from appliance.bus.packets import MAX_CACHED_TOPICS
from appliance.bus.port import CAPACITY_BYTES, Batch, Message
from appliance.errors import BusError
from appliance.events.ledger import Ledger

CLAIM_S = 10.0  # how long QoS 1 messages wait for a service that has not made its subscription yet
_HELD_BYTES = CAPACITY_BYTES


class _Held(NamedTuple):
    """A QoS 1 message without a subscription; packet id 0 when the connection it came over is gone."""

    message: Message
    packet_id: int
    since: float


class Subscription:
    """An asynchronous iterator of batches."""

    def __init__(self, inbox: "Inbox", filters: tuple[str, ...], qos: int, capacity: int) -> None:
        self.filters, self.qos = filters, qos
        self._inbox, self._capacity = inbox, capacity
        self._arrived = asyncio.Event()
        self._pending: Batch = []
        self._pending_ids: list[int] = []
        self._bytes = 0
        self._lent: Batch = []  # in the consumer's hands
        self._lent_ids: list[int] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        self.settle()
        while not self._pending:
            self._arrived.clear()
            await self._arrived.wait()
        self._lent, self._pending = self._pending, []
        self._lent_ids, self._pending_ids = self._pending_ids, []
        self._bytes = 0
        self._inbox.made_room()
        return self._lent

    def matches(self, topic: str) -> bool:
        return any(topic_filters.matches(pattern, topic) for pattern in self.filters)

    def offer(self, messages: Batch, packet_ids: Sequence[int], size: int) -> None:
        """`size`: bytes of memory that the messages take, about."""
        if len(self._pending) + len(messages) > self._capacity or self._bytes + size > CAPACITY_BYTES:
            messages = self._fit(messages)
            size = sum(len(message.payload) for message in messages)
        if self._pending:
            self._pending += messages
        else:
            self._pending = messages
        self._pending_ids += packet_ids
        self._bytes += size
        self._arrived.set()

    @property
    def crowded(self) -> bool:
        """So much of QoS 1 waits that the broker had better keep the rest."""
        return self._bytes > 2 * CAPACITY_BYTES or len(self._pending_ids) > self._capacity

    def void_ids(self) -> None:
        self._pending_ids.clear()
        self._lent_ids = []

    def give_back(self) -> list[tuple[Message, int]]:
        """What was not dealt with: QoS 1 with packet ids (0 where void), so that another subscription may have it.

        Messages whose ids are void are older than all others, so the ids that there are belong to the newest messages.
        """
        messages = [message for message in self._lent + self._pending if message.qos]
        ids = self._lent_ids + self._pending_ids
        lost = len(self._lent) + len(self._pending) - len(messages)
        if lost:
            self._inbox.ledger.drop("unclaimed", count=lost)
        self._lent, self._pending, self._lent_ids, self._pending_ids = [], [], [], []
        return list(zip(messages, [0] * (len(messages) - len(ids)) + ids, strict=True))

    def settle(self) -> None:
        if self._lent:
            self._inbox.ledger.processed += len(self._lent)
            ids, self._lent, self._lent_ids = self._lent_ids, [], []
            self._inbox.settle(ids)

    def _fit(self, messages: Batch) -> Batch:
        """Without the QoS 0 messages that there is no room for."""
        room = max(0, self._capacity - len(self._pending)) if self._bytes < CAPACITY_BYTES else 0
        kept: Batch = []
        for message in messages:
            if message.qos or len(kept) < room:
                kept.append(message)
            else:
                self._inbox.ledger.drop("overrun", message.topic)
        return kept


class Inbox:
    """Sorts messages to subscriptions. `settled` gets packet ids to acknowledge, `made_room` is called at each take."""

    def __init__(self, ledger: Ledger, settled: Callable[[list[int]], None], made_room: Callable[[], None]) -> None:
        self.ledger, self.made_room = ledger, made_room
        self._settled = settled
        self.subscriptions: list[Subscription] = []
        self._routes: dict[str, Subscription | None] = {}
        self._only: Subscription | None = None  # takes everything without looking, while all topics seen match it
        self._held: list[_Held] = []
        self._held_bytes = 0

    @property
    def crowded(self) -> bool:
        return any(subscription.crowded for subscription in self.subscriptions)

    def settle(self, packet_ids: list[int]) -> None:
        if packet_ids:
            self._settled(packet_ids)

    def deliver(self, messages: Batch, packet_ids: list[int], size: int, fresh: Sequence[str], now: float) -> None:
        """`packet_ids` belong to the messages of QoS 1, in order; `fresh`: their topics, those told before left out.

        After `add` and `remove` all topics must be told again. `size` is in bytes, `now` in seconds of any clock.
        """
        self.ledger.received += len(messages)
        if self._only is not None and not all(map(self._only.matches, fresh)):
            self._only = None
        if self._only is not None:
            self._only.offer(messages, packet_ids, size)
        else:
            self._sort(messages, packet_ids, now)

    def too_large(self, topics: Sequence[str]) -> None:
        self.ledger.received += len(topics)
        for topic in topics:
            self.ledger.drop("too-large", topic)

    def add(self, filters: tuple[str, ...], qos: int, capacity: int) -> Subscription:
        """BusError for malformed filters and for those that overlap with others of this session."""
        topic_filters.check(filters, (theirs for other in self.subscriptions for theirs in other.filters))
        if qos not in (0, 1):
            raise BusError(f"a subscription of QoS {qos}", "the bus speaks QoS 0 and 1")
        subscription = Subscription(self, filters, qos, capacity)
        self.subscriptions.append(subscription)
        self._reroute()
        self._claim(subscription)
        return subscription

    def remove(self, subscription: Subscription, now: float, *, settled: bool) -> None:
        """`settled`: its consumer left as planned, so that the batch in its hands counts as dealt with."""
        if settled:
            subscription.settle()
        self.subscriptions.remove(subscription)
        self._reroute()
        for message, packet_id in subscription.give_back():
            self._hold(message, packet_id, now)
        self.made_room()

    def void_ids(self) -> None:
        """The connection is lost: the broker will send what is not acknowledged again, under ids of its choice."""
        for subscription in self.subscriptions:
            subscription.void_ids()
        self._held = [held._replace(packet_id=0) for held in self._held]

    def expire(self, before: float) -> None:
        """Give up on QoS 1 messages that nobody claimed since `before`: filters of an earlier version, most likely."""
        expired = [held for held in self._held if held.since < before]
        if expired:
            self._keep([held for held in self._held if held.since >= before])
            self._give_up(expired)

    def _reroute(self) -> None:
        self._routes.clear()
        self._only = self.subscriptions[0] if len(self.subscriptions) == 1 else None

    def _sort(self, messages: Batch, packet_ids: list[int], now: float) -> None:
        ids = iter(packet_ids)
        parts: dict[Subscription, tuple[Batch, list[int]]] = {}
        for message in messages:
            packet_id = next(ids) if message.qos else 0
            try:
                target = self._routes[message.topic]
            except KeyError:
                target = self._route(message.topic)
            if target is None:
                self._hold(message, packet_id, now)
                continue
            part = parts.get(target) or parts.setdefault(target, ([], []))
            part[0].append(message)
            if packet_id:
                part[1].append(packet_id)
        for target, (batch, batch_ids) in parts.items():
            target.offer(batch, batch_ids, sum(len(message.payload) for message in batch))

    def _route(self, topic: str) -> Subscription | None:
        if len(self._routes) >= MAX_CACHED_TOPICS:
            self._routes.clear()
        found = next((each for each in self.subscriptions if each.matches(topic)), None)
        self._routes[topic] = found
        return found

    def _hold(self, message: Message, packet_id: int, now: float) -> None:
        """Nobody subscribes to this yet, or no longer."""
        held = _Held(message, packet_id, now)
        if message.qos and self._held_bytes + len(message.payload) <= _HELD_BYTES:
            self._held.append(held)
            self._held_bytes += len(message.payload)
        else:
            self._give_up([held])

    def _keep(self, held: list[_Held]) -> None:
        self._held = held
        self._held_bytes = sum(len(each.message.payload) for each in held)

    def _give_up(self, expired: list[_Held]) -> None:
        for held in expired:
            self.ledger.drop("unclaimed", held.message.topic)
        self.settle([held.packet_id for held in expired if held.packet_id])

    def _claim(self, subscription: Subscription) -> None:
        claimed = [held for held in self._held if subscription.matches(held.message.topic)]
        if not claimed:
            return
        self._keep([held for held in self._held if not subscription.matches(held.message.topic)])
        claimed.sort(key=lambda held: held.packet_id > 0)  # see `give_back`: void ids come first
        batch = [held.message for held in claimed]
        ids = [held.packet_id for held in claimed if held.packet_id]
        subscription.offer(batch, ids, sum(len(message.payload) for message in batch))

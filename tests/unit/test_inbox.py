"""What arrived and is not dealt with: who gets it, how much is held, when it is acknowledged."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.bus import filters as topic_filters
from appliance.bus import inbox as module
from appliance.bus.inbox import Inbox, Subscription
from appliance.bus.port import Batch, Message
from appliance.errors import BusError
from appliance.events.ledger import Ledger


class Desk:
    """An inbox, and what it reports."""

    def __init__(self) -> None:
        self.ledger, self.settled, self.takes = Ledger(), list[int](), 0
        self.inbox = Inbox(self.ledger, self.settled.extend, self._note_take)

    def subscribe(self, *filters: str, capacity: int = 100) -> Subscription:
        return self.inbox.add(filters, 1, capacity)

    def deliver(self, *messages: Message, first_id: int = 1, now: float = 0.0) -> None:
        ids = list(range(first_id, first_id + sum(message.qos for message in messages)))
        size = sum(len(message.payload) for message in messages)
        self.inbox.deliver(list(messages), ids, size, [message.topic for message in messages], now)

    def _note_take(self) -> None:
        self.takes += 1


def take(subscription: Subscription) -> Batch:
    async def one() -> Batch:
        return await asyncio.wait_for(anext(subscription), 10)

    return asyncio.run(one())


A, B = Message("a", b"x", 1), Message("b", b"x", 1)


def test_a_batch_is_acknowledged_when_the_next_is_asked_for() -> None:
    desk = Desk()
    subscription = desk.subscribe("a")
    desk.deliver(A, A)
    assert take(subscription) == [A, A]
    assert desk.settled == []
    desk.deliver(A, first_id=3)
    assert take(subscription) == [A]
    assert desk.settled == [1, 2]
    assert (desk.ledger.processed, desk.ledger.queued) == (2, 1)


def test_messages_wait_for_a_subscription_that_is_yet_to_come() -> None:
    desk = Desk()
    desk.deliver(A, B)
    assert take(desk.subscribe("b")) == [B]
    assert take(desk.subscribe("a")) == [A]
    assert desk.ledger.received == 2


def test_messages_that_nobody_claims_are_given_up_and_counted() -> None:
    desk = Desk()
    desk.subscribe("b")
    desk.deliver(A, now=1.0)
    desk.deliver(A, first_id=2, now=5.0)
    desk.inbox.expire(before=3.0)
    assert desk.settled == [1]
    assert desk.ledger.dropped == {"unclaimed": 1}
    desk.deliver(Message("a", b"", 0), now=6.0)
    assert desk.ledger.dropped == {"unclaimed": 2}  # QoS 0 does not wait


def test_a_flood_of_qos_0_never_stops_the_reading() -> None:
    desk = Desk()
    subscription = desk.subscribe("a", capacity=3)
    for _ in range(300):
        desk.deliver(Message("a", bytes(1 << 20)))
    assert not desk.inbox.crowded
    assert desk.ledger.dropped == {"overrun": 297}
    assert len(take(subscription)) == 3
    desk.deliver(Message("a", b""))
    assert len(take(subscription)) == 1


def test_what_is_held_is_bounded_in_bytes_too() -> None:
    desk = Desk()
    subscription = desk.subscribe("a", capacity=1000)
    large = Message("a", bytes(1 << 20))
    for _ in range(100):
        desk.deliver(large)
    assert desk.ledger.dropped == {"overrun": 100 - (module.CAPACITY_BYTES >> 20)}
    for number in range(80):
        desk.deliver(Message("a", large.payload, 1), first_id=number + 1)
    assert desk.inbox.crowded
    take(subscription)
    assert not desk.inbox.crowded
    assert desk.takes == 1


def test_one_subscription_alone_still_gets_only_what_it_asked_for() -> None:
    """A broker may remember filters of an earlier version of the service."""
    desk = Desk()
    subscription = desk.subscribe("a/#")
    desk.deliver(Message("a/1", b"", 1), Message("old", b"", 1), Message("a/2", b"", 1))
    assert [message.topic for message in take(subscription)] == ["a/1", "a/2"]
    desk.deliver(Message("old", b"", 1), Message("a/3", b"", 1), first_id=4)
    assert [message.topic for message in take(subscription)] == ["a/3"]
    assert desk.settled == [1, 3]


def test_ids_of_a_lost_connection_are_never_acknowledged() -> None:
    desk = Desk()
    subscription = desk.subscribe("a")
    desk.deliver(A, A)
    take(subscription)
    desk.deliver(A, first_id=3)
    desk.inbox.void_ids()
    desk.deliver(A, first_id=9)
    assert take(subscription) == [A, A]
    desk.deliver(A, first_id=10)
    take(subscription)
    assert desk.settled == [9]


def test_what_a_dead_consumer_held_keeps_its_ids() -> None:
    desk = Desk()
    first = desk.subscribe("a")
    desk.deliver(A)
    take(first)
    desk.inbox.void_ids()
    desk.deliver(Message("a", b"new", 1), first_id=7)
    desk.inbox.remove(first, 0.0, settled=False)
    second = desk.subscribe("a")
    assert take(second) == [A, Message("a", b"new", 1)]
    desk.inbox.remove(second, 0.0, settled=True)
    assert desk.settled == [7]
    assert desk.ledger.queued == 0


filters = st.sampled_from(["a/b", "a/c", "a/+", "+/b", "a/#", "b", "b/#", "#", "+/+", "$SYS/x", "$SYS/#", "a/b/c"])


@given(st.lists(filters, max_size=3), st.lists(filters, min_size=1, max_size=3))
def test_filters_that_overlap_are_refused_whoever_has_them(standing: list[str], new: list[str]) -> None:
    pairs = [(one, other) for place, one in enumerate(new) for other in (*standing, *new[:place])]
    expected = any(topic_filters.overlap(one, other) for one, other in pairs)
    with pytest.raises(BusError, match="overlap") if expected else contextlib.nullcontext():
        topic_filters.check(new, standing)

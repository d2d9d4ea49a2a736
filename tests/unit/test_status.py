"""A service's state on the bus: said at once, when it changes, when the session returns, and at the end."""

import asyncio
from typing import Any

import pytest

from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.bus.port import Message
from appliance.events import codec
from appliance.events.ledger import Ledger
from appliance.events.schema import Kind, State
from appliance.services import status as module
from appliance.services.status import Status, will

PATIENCE_S = 20


def told(broker: MemoryBroker) -> State:
    message = broker.retained["mw/v1/state/record"]
    assert message.qos == 1
    state = codec.decode(Kind.STATE, message.payload, 0)
    assert isinstance(state, State)
    return state


def make(bus: MemoryBus, ledger: Ledger, detail: dict[str, Any]) -> Status:
    return Status(bus, "record", "1.2.3", ledger, lambda: 17, lambda: detail)


async def started(status: Status) -> "asyncio.Task[None]":
    task = asyncio.create_task(status.run())
    await asyncio.sleep(0)
    return task


def test_the_books_and_the_detail_are_told() -> None:
    async def scenario() -> State:
        broker, ledger = MemoryBroker(), Ledger()
        ledger.received, ledger.processed = 10, 7
        ledger.drop("malformed", "line1/pump: not CBOR", 2)
        async with MemoryBus(broker) as bus:
            task = await started(make(bus, ledger, {"rows": 3}))
            task.cancel()
        return told(broker)

    state = asyncio.run(scenario())
    assert (state.at, state.online, state.version) == (17, True, "1.2.3")
    assert (state.received, state.processed, state.queued, state.dropped) == (10, 7, 1, {"malformed": 2})
    assert state.detail == {"rows": 3, "examples": {"malformed": "line1/pump: not CBOR"}}


def test_what_somebody_else_writes_over_it_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD_S", 0)

    async def scenario() -> None:
        broker = MemoryBroker()
        async with MemoryBus(broker) as bus, MemoryBus(broker) as other:
            task = await started(make(bus, Ledger(), {}))
            true = told(broker)
            for garbage in (b"garbage", b"", codec.encode(State(1, False))):
                other.publish("mw/v1/state/record", garbage, qos=1, retain=True)
                async with asyncio.timeout(PATIENCE_S):
                    while not holds(broker, true):  # noqa: ASYNC110 - a broker in memory has no event for it
                        await asyncio.sleep(0)
            assert bus.ledger.dropped == {}
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


def holds(broker: MemoryBroker, state: State) -> bool:
    kept = broker.retained.get("mw/v1/state/record")
    return kept is not None and kept.payload == codec.encode(state)


def test_what_the_session_dropped_is_told_with_its_direction() -> None:
    async def scenario() -> State:
        broker, ledger = MemoryBroker(), Ledger()
        ledger.received = ledger.processed = 4
        async with MemoryBus(broker) as bus:
            for reason in ("too-large", "offline"):
                bus.ledger.received += 2
                bus.ledger.drop(reason, "mw/v1/reading/line1/pump", 2)
            task = await started(make(bus, ledger, {}))
            task.cancel()
        return told(broker)

    state = asyncio.run(scenario())
    assert (state.received, state.processed, state.queued, state.dropped) == (6, 4, 0, {"too-large": 2})
    assert state.detail == {"unsent": {"offline": 2}, "examples": {"too-large": "mw/v1/reading/line1/pump"}}


class Listening(MemoryBroker):
    """A broker that remembers how much had been received each time a state was published."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[int] = []

    def accept(self, message: Message) -> None:
        super().accept(message)
        self.said.append(told(self).received)


def test_unchanged_books_are_not_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD_S", 0)
    broker, ledger = Listening(), Ledger()

    async def scenario() -> list[int]:
        async with MemoryBus(broker) as bus:
            task = await started(make(bus, ledger, {}))
            for _ in range(20):
                await asyncio.sleep(0)
            quiet = list(broker.said)
            ledger.received = 5
            for _ in range(20):
                await asyncio.sleep(0)
            task.cancel()
        return quiet

    assert asyncio.run(scenario()) == [0]
    assert broker.said == [0, 5]


def test_the_last_word_stands_even_if_the_session_returns() -> None:
    async def scenario() -> State:
        broker, ledger = MemoryBroker(), Ledger()
        bus = MemoryBus(broker)
        async with bus:
            status = make(bus, ledger, {})
            task = await started(status)
            task.cancel()
            status.publish(online=False)
        async with bus:
            pass
        return told(broker)

    assert asyncio.run(scenario()).online is False


def test_the_will_is_a_retained_offline_state() -> None:
    message = will("record")
    state = codec.decode(Kind.STATE, message.payload, 0)
    assert (message.topic, message.qos, message.retain) == ("mw/v1/state/record", 1, True)
    assert isinstance(state, State)
    assert state.online is False

"""Topics that nobody listens to: what was meant, and how hearing them stays cheap."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.bus.filters import matches
from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.bus.port import Message
from appliance.errors import EventError
from appliance.events import strays, topics
from appliance.events.schema import Kind
from appliance.services.strays import BUSY_PER_S, Strays

PATIENCE_S = 20

MEANT = {
    "mw/v1/readings/line1/pump": ("no-such-kind", "mw/v1/reading/line1/pump"),
    "mw/v1/Reading/Line1/Pump": ("no-such-kind", "mw/v1/reading/line1/pump"),
    "mw/v1/readng/x": ("no-such-kind", "mw/v1/reading/x"),
    "mw/v1/telemetry/line 1/pump": ("no-such-kind", "mw/v1/reading/line_1/pump"),
    "mw/v1/blocks/x": ("no-such-kind", "mw/v1/block/x"),
    "mw/v1/line1/pump": ("no-such-kind", "mw/v1/reading/line1/pump"),
    "mw/v1/pump": ("no-such-kind", "mw/v1/reading/pump"),
    "mw/v1//reading/x": ("no-such-kind", "mw/v1/reading/x"),
    "mw/v1": ("no-such-kind", ""),
    "mw/v2/reading/line1/pump": ("no-such-version", "mw/v1/reading/line1/pump"),
    "mw/V1/reading/x": ("no-such-version", "mw/v1/reading/x"),
    "mw/reading/line1/pump": ("no-such-version", "mw/v1/reading/line1/pump"),
    "mw": ("no-such-version", ""),
    "/mw/v1/reading/line1/pump": ("no-such-root", "mw/v1/reading/line1/pump"),
    "MW/V1/READING/PUMP": ("no-such-root", "mw/v1/reading/pump"),
}
LEVEL = st.sampled_from(["mw", "v1", "v2", "MW", "reading", "Readings", "block", "line1", "Pump 1", "", "ä", "x" * 200])


@pytest.mark.parametrize("topic", MEANT)
def test_a_stray_is_explained(topic: str) -> None:
    reason, meant = MEANT[topic]
    error = strays.explain(topic)
    assert error is not None
    assert (error.reason, topic in error.message) == (reason, True)
    assert error.message.endswith(f"; did you mean {meant}?") if meant else "did you mean" not in error.message
    assert any(matches(one, topic) for one in strays.FILTERS)


@given(st.lists(LEVEL, min_size=1, max_size=12).map("/".join))
def test_what_is_meant_is_a_topic_and_what_is_a_topic_is_no_stray(topic: str) -> None:
    error = strays.explain(topic)
    if error is None:
        assert topic.split("/")[:2] == ["mw", "v1"]
        return
    with pytest.raises(EventError):
        topics.parse(topic)
    _, asked, meant = error.message.partition("did you mean ")
    if asked:
        topics.parse(meant.removesuffix("?"))


@pytest.mark.parametrize("kind", Kind)
def test_all_kinds_are_heard_by_somebody(kind: Kind) -> None:
    assert strays.explain(topics.topic(kind, "line1/pump")) is None


@pytest.mark.parametrize(
    ("asset", "meant"),
    [
        ("Line1/Pump", "'line1/pump'"),
        ("line 1/pump", "'line_1/pump'"),
        ("/line1/pump", "'line1/pump'"),
        ("line1//pump/", "'line1/pump'"),
        ("a/b/c/d/e/f/g/h/i", ""),
        ("x" * 300, ""),
    ],
)
def test_an_asset_that_cannot_be_names_the_one_that_can(asset: str, meant: str) -> None:
    with pytest.raises(EventError) as caught:
        topics.parse(f"mw/v1/reading/{asset}")
    assert caught.value.message.endswith(f"; did you mean {meant}?" if meant else "at most)")


def test_a_topic_without_an_asset_says_so() -> None:
    with pytest.raises(EventError, match="'mw/v1/reading' names no asset: mw/v1/reading/<asset>"):
        topics.parse("mw/v1/reading")


class Pauses:
    """Waiting that ends when the test says so."""

    def __init__(self) -> None:
        self.begun, self.over = asyncio.Event(), asyncio.Event()

    async def wait(self, _: float) -> None:
        self.begun.set()
        await self.over.wait()
        self.over.clear()


def listening(scenario: Callable[[Strays, MemoryBus, Pauses], Awaitable[None]]) -> Strays:
    async def main() -> Strays:
        broker, pauses = MemoryBroker(), Pauses()
        async with MemoryBus(broker) as bus:
            bus.publish("mw/v1/readings/kept", b"{}", retain=True)
            heard = Strays(MemoryBus(broker), pauses.wait, look_s=0)
            running = asyncio.create_task(heard.run())
            async with asyncio.timeout(PATIENCE_S):
                await until(lambda: heard.ledger.received == 1)
                await scenario(heard, bus, pauses)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return heard

    return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event; in memory it is a few turns away
        await asyncio.sleep(0)


def test_strays_are_counted_once_and_what_is_right_is_not() -> None:
    async def scenario(heard: Strays, bus: MemoryBus, _: Pauses) -> None:
        bus.publish("mw/v1/reading/line1/pump", b"{}")
        bus.publish("mw/v1/readings/kept", b"", retain=True)
        bus.publish("/mw/v1/reading/line1/pump", b"{}")
        await until(lambda: heard.ledger.received == 2)

    ledger = listening(scenario).ledger
    assert ledger.dropped == {"no-such-kind": 1, "no-such-root": 1}
    assert ledger.queued == 0


def test_a_flood_is_only_looked_into_and_looked_into_again() -> None:
    async def scenario(heard: Strays, bus: MemoryBus, pauses: Pauses) -> None:
        while not pauses.begun.is_set():
            bus.publish_many([message] * BUSY_PER_S)
            await asyncio.sleep(0)
        bus.publish("mw/v1/readings/missed", b"{}")
        await asyncio.sleep(0)
        pauses.over.set()
        while heard.ledger.received == 1:
            bus.publish("mw/v1/readings/line1/pump", b"{}")
            await asyncio.sleep(0)

    message = Message("mw/v1/reading/line1/pump", b"{}")
    ledger = listening(scenario).ledger
    assert "missed" not in ledger.examples["no-such-kind"]
    assert "line1/pump" in ledger.examples["no-such-kind"]
    assert "kept" not in ledger.examples["no-such-kind"]

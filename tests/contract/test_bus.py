"""The port's guarantees, over the fake and over a real mosquitto that belongs to the test."""

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
import uvloop

from appliance.bus.broker import configuration, socket_path
from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.bus.mqtt import MqttBus
from appliance.bus.outgoing import Outgoing
from appliance.bus.packets import Joiner
from appliance.bus.port import MAX_PAYLOAD, MAX_UNACKNOWLEDGED, Batch, Bus, Message
from appliance.config.places import Paths
from appliance.config.schema import Broker
from appliance.errors import BusError

PATIENCE_S = 20.0
ROOT = Path(__file__).resolve().parents[2]


class Rig(Protocol):
    """A broker, and sessions with it."""

    def bus(self, client_id: str = "", will: Message | None = None) -> AbstractAsyncContextManager[Bus]: ...

    async def stop(self) -> None: ...

    async def start(self) -> None: ...


class MemoryRig:
    def __init__(self, _: Path) -> None:
        self._broker = MemoryBroker()

    def bus(self, client_id: str = "", will: Message | None = None) -> MemoryBus:
        return MemoryBus(self._broker, will, client_id)

    async def start(self) -> None:
        self._broker.start()

    async def stop(self) -> None:
        self._broker.stop()


class MosquittoRig:
    """Saves only at a clean stop, so that a kill loses as much as it can."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(state=folder / "state", run=folder / "run")
        self.url = f"unix:{socket_path(self.paths)}"
        (self.paths.state / "broker").mkdir(parents=True)
        self.paths.run.mkdir()
        self._file = folder / "mosquitto.conf"
        settings = Broker(save_interval_s=3600)
        self._file.write_text(configuration(self.paths, settings, as_root=os.geteuid() == 0))
        self._child: asyncio.subprocess.Process | None = None

    def bus(self, client_id: str = "", will: Message | None = None) -> MqttBus:
        return MqttBus(self.url, client_id=client_id, will=will)

    async def start(self) -> None:
        socket_path(self.paths).unlink(missing_ok=True)
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "mosquitto is not installed: apt install mosquitto"
        self._child = await asyncio.create_subprocess_exec(
            program, "-c", str(self._file), stderr=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL
        )
        async with self.bus() as bus:
            await bus.wait_connected(PATIENCE_S)

    async def stop(self) -> None:
        await self.signal(signal.SIGTERM)

    async def signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(number)
            if number in (signal.SIGTERM, signal.SIGKILL):
                await self._child.wait()

    async def save(self) -> None:
        """As the broker does every few seconds: from now on it knows its sessions, whatever happens to it."""
        await self.signal(signal.SIGUSR1)
        await until((self.paths.state / "broker" / "mosquitto.db").exists)


RIGS: dict[str, Callable[[Path], MemoryRig | MosquittoRig]] = {"memory": MemoryRig, "mosquitto": MosquittoRig}

Play = Callable[[Callable[[Rig], Awaitable[None]]], None]
PlayReal = Callable[[Callable[[MosquittoRig], Awaitable[None]]], None]


def _player(make: Callable[[Path], Rig], folder: Path) -> Play:
    def play(scenario: Callable[[Rig], Awaitable[None]]) -> None:
        async def bounded() -> None:
            rig = make(folder)
            async with asyncio.timeout(2 * PATIENCE_S):
                await rig.start()
                try:
                    await scenario(rig)
                finally:
                    await rig.stop()

        uvloop.run(bounded())

    return play


@pytest.fixture(params=[*RIGS])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Runs a scenario over each implementation."""
    return _player(RIGS[request.param], tmp_path)


@pytest.fixture
def play_real(tmp_path: Path) -> PlayReal:
    """Runs a scenario over mosquitto: what a broker in memory cannot do."""
    return _player(MosquittoRig, tmp_path)  # type: ignore[arg-type,return-value]


async def take(batches: AsyncIterator[Batch], count: int) -> Batch:
    """The next `count` messages, which end a batch."""
    taken: Batch = []
    while len(taken) < count:
        taken += await anext(batches)
    assert len(taken) == count
    return taken


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; the scenario's time bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)


@asynccontextmanager
async def dies() -> AsyncIterator[None]:
    """The consumer in this block fails."""
    with pytest.raises(ZeroDivisionError):
        yield


@asynccontextmanager
async def pair(rig: Rig, client_id: str = "") -> AsyncIterator[tuple[Bus, Bus]]:
    """Two connected sessions, to publish and to subscribe."""
    async with rig.bus() as one, rig.bus(client_id) as other:
        await one.wait_connected(PATIENCE_S)
        await other.wait_connected(PATIENCE_S)
        yield one, other


# Publishing and subscribing


@pytest.mark.parametrize("qos", [0, 1])
def test_messages_arrive_as_they_were_published(play: Play, qos: int) -> None:
    async def scenario(rig: Rig) -> None:
        async with pair(rig) as (ours, theirs), theirs.subscribe("a/+/c", "b/#", qos=qos) as batches:
            ours.publish("a/x/c", b"one", qos=qos)
            ours.publish("a/x/d", b"not asked for", qos=qos)
            ours.publish("b", "größer".encode(), qos=qos)
            ours.publish("b/c/ü", b"", qos=qos)
            assert await take(batches, 3) == [
                Message("a/x/c", b"one", qos),
                Message("b", "größer".encode(), qos),
                Message("b/c/ü", b"", qos),
            ]

    play(scenario)


def test_the_lower_qos_counts(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with (
            pair(rig) as (ours, theirs),
            theirs.subscribe("a", qos=0) as low,
            theirs.subscribe("b", qos=1) as high,
        ):
            ours.publish("a", b"", qos=1)
            ours.publish("b", b"", qos=0)
            ours.publish("b", b"", qos=1)
            assert [message.qos for message in await take(low, 1)] == [0]
            assert [message.qos for message in await take(high, 2)] == [0, 1]

    play(scenario)


@pytest.mark.parametrize("qos", [0, 1])
def test_order_is_kept_within_a_qos(play: Play, qos: int) -> None:
    async def scenario(rig: Rig) -> None:
        async with pair(rig) as (ours, theirs), theirs.subscribe("n/#", qos=qos) as batches:
            expected = [Message(f"n/{number % 7}", b"%d" % number, qos) for number in range(5000)]
            for part in range(0, len(expected), 500):
                ours.publish_many(expected[part : part + 500])
                await ours.drain()
            assert await take(batches, len(expected)) == expected

    play(scenario)


def test_several_subscriptions_get_each_their_own(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with (
            pair(rig) as (ours, theirs),
            theirs.subscribe("a/#") as first,
            theirs.subscribe("b/#", "c", qos=1) as second,
        ):
            ours.publish_many(Message("abc"[number % 3], b"%d" % number, number % 2) for number in range(90))
            ones, others = await take(first, 30), await take(second, 60)
            assert {message.topic for message in ones} == {"a"}
            assert {message.topic for message in others} == {"b", "c"}
            assert sorted(int(message.payload) for message in ones + others) == [*range(90)]

    play(scenario)


@pytest.mark.parametrize(("one", "other"), [("a/#", "a/b"), ("+/b", "a/+"), ("a", "a"), ("a/#", "a"), ("#", "x/+/y")])
def test_overlapping_filters_are_refused(play: Play, one: str, other: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as bus, bus.subscribe(one):
            with pytest.raises(BusError, match="overlap"):
                async with bus.subscribe(other):
                    raise AssertionError("entered")

    play(scenario)


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0b", "x" * 70_000])
def test_topics_that_no_broker_takes_are_refused(play: Play, topic: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as bus:
            await bus.wait_connected(PATIENCE_S)
            for qos in (0, 1):
                with pytest.raises(BusError, match="no topic to publish to"):
                    bus.publish(topic, b"", qos=qos)

    play(scenario)


@pytest.mark.parametrize("pattern", ["", "a/#/b", "a#", "a+/b", "a\0"])
def test_filters_that_no_broker_takes_are_refused(play: Play, pattern: str) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as bus:
            with pytest.raises(BusError, match="no topic filter"):
                async with bus.subscribe(pattern):
                    raise AssertionError("entered")

    play(scenario)


def test_payloads_up_to_the_bound_arrive_and_larger_ones_are_refused(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with pair(rig) as (ours, theirs), theirs.subscribe("#", qos=1) as batches:
            large = os.urandom(MAX_PAYLOAD)
            for qos in (0, 1):
                ours.publish("a", large, qos=qos)
                with pytest.raises(BusError, match="larger than consumers accept"):
                    ours.publish("a", large + b"x", qos=qos)
            got = await take(batches, 2)
            assert [message.payload == large for message in got] == [True, True]

    play(scenario)


# Retained messages


def test_what_is_retained_comes_at_subscription_marked_so(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with pair(rig) as (ours, theirs):
            ours.publish("s/a", b"old", qos=1, retain=True)
            ours.publish("s/a", b"new", qos=1, retain=True)
            ours.publish("s/b", b"plain", qos=0, retain=True)
            ours.publish("s/c", b"passing", qos=1)
            await ours.drain()
            async with theirs.subscribe("s/#", qos=1) as batches:
                kept = await take(batches, 2)
                assert sorted(kept, key=lambda message: message.topic) == [
                    Message("s/a", b"new", 1, True),
                    Message("s/b", b"plain", 0, True),
                ]
                ours.publish("s/a", b"live", qos=1, retain=True)
                assert await take(batches, 1) == [Message("s/a", b"live", 1, False)]

    play(scenario)


def test_an_empty_payload_clears_what_is_retained(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with pair(rig) as (ours, theirs):
            ours.publish("s/a", b"x", qos=1, retain=True)
            ours.publish("s/a", b"", qos=1, retain=True)
            ours.publish("s/end", b"x", qos=1, retain=True)
            await ours.drain()
            async with theirs.subscribe("s/#") as batches:
                assert [message.topic for message in await take(batches, 1)] == ["s/end"]

    play(scenario)


# Acknowledgement


def test_a_consumer_that_dies_is_given_its_batch_again_by_the_session(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with pair(rig) as (ours, theirs):
            async with dies(), theirs.subscribe("a/#", qos=1) as batches:
                ours.publish("a/1", b"x", qos=1)
                await take(batches, 1)
                raise ZeroDivisionError
            async with theirs.subscribe("a/#", qos=1) as batches:
                assert await take(batches, 1) == [Message("a/1", b"x", 1)]

    play(scenario)


def test_a_consumer_that_dies_is_given_its_batch_again_by_the_broker(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as ours:
            await ours.wait_connected(PATIENCE_S)
            async with dies(), rig.bus("worker") as theirs, theirs.subscribe("a/#", qos=1) as batches:
                await theirs.wait_connected(PATIENCE_S)
                ours.publish("a/1", b"dealt with", qos=1)
                await take(batches, 1)
                ours.publish("a/2", b"not dealt with", qos=1)
                await take(batches, 1)
                raise ZeroDivisionError
            ours.publish("a/3", b"while away", qos=1)
            await ours.drain()
            async with rig.bus("worker") as theirs, theirs.subscribe("a/#", qos=1) as batches:
                assert [message.payload for message in await take(batches, 2)] == [b"not dealt with", b"while away"]

    play(scenario)


def test_what_was_dealt_with_does_not_come_again(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as ours:
            await ours.wait_connected(PATIENCE_S)
            async with rig.bus("worker") as theirs:
                await theirs.wait_connected(PATIENCE_S)
                async with theirs.subscribe("a/#", qos=1) as batches:
                    ours.publish("a/1", b"first", qos=1)
                    await take(batches, 1)  # leaving the loop as planned settles it
            ours.publish("a/2", b"second", qos=1)
            await ours.drain()
            async with rig.bus("worker") as theirs, theirs.subscribe("a/#", qos=1) as batches:
                assert [message.payload for message in await take(batches, 1)] == [b"second"]

    play(scenario)


def test_a_nameless_session_is_forgotten(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as ours:
            await ours.wait_connected(PATIENCE_S)
            async with rig.bus() as theirs, theirs.subscribe("a/#", qos=1):
                await theirs.wait_connected(PATIENCE_S)
            ours.publish("a/1", b"while away", qos=1)
            await ours.drain()
            async with rig.bus() as theirs, theirs.subscribe("a/#", qos=1) as batches:
                await theirs.wait_connected(PATIENCE_S)
                ours.publish("a/2", b"now", qos=1)
                assert [message.payload for message in await take(batches, 1)] == [b"now"]

    play(scenario)


# Losing the connection


def test_entering_does_not_wait_for_the_broker(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.stop()
        async with rig.bus() as bus:
            assert not bus.connected
            with pytest.raises(BusError, match="no connection to the broker"):
                await bus.wait_connected(0.01)
            bus.publish("a", b"x", qos=1)
            async with bus.subscribe("a", qos=1) as batches:
                await rig.start()
                await bus.wait_connected(PATIENCE_S)
                assert bus.connected
                assert await take(batches, 1) == [Message("a", b"x", 1)]

    play(scenario)


def test_qos_0_without_a_connection_is_dropped_and_counted(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.stop()
        async with rig.bus() as bus:
            bus.publish("a", b"x")
            bus.publish_many([Message("b", b"x"), Message("c", b"x")])
            assert bus.ledger.dropped == {"offline": 3}
            assert bus.ledger.queued == 0
        await rig.start()

    play(scenario)


def test_qos_1_waits_for_the_broker_in_order(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with pair(rig, "keeper") as (ours, theirs), theirs.subscribe("n", qos=1) as batches:
            await rig.stop()
            await until(lambda: not ours.connected)
            for number in range(6000):  # more than may be on their way at once
                ours.publish("n", b"%d" % number, qos=1)
            await rig.start()
            await ours.drain()
            assert [int(message.payload) for message in await take(batches, 6000)] == [*range(6000)]

    play(scenario)


def test_more_qos_1_than_the_session_holds_is_an_error(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.stop()
        async with rig.bus() as bus:
            bus.publish_many(itertools.repeat(Message("a", b"", 1), MAX_UNACKNOWLEDGED))
            with pytest.raises(BusError, match="wait for the broker"):
                bus.publish("a", b"", qos=1)
        await rig.start()

    play(scenario)


def test_after_a_restart_subscriptions_stand_before_the_callbacks_run(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as bus, bus.subscribe("a/#") as ones, bus.subscribe("b/#", qos=1) as others:
            runs = itertools.count(1)

            def tell() -> None:
                bus.publish("a/run", b"%d" % next(runs))
                bus.publish("b/run", b"", qos=1)

            await bus.wait_connected(PATIENCE_S)
            bus.on_connected(tell)
            assert [message.payload for message in await take(ones, 1)] == [b"1"]
            assert len(await take(others, 1)) == 1
            await rig.stop()
            await until(lambda: not bus.connected)
            await rig.start()
            assert [message.payload for message in await take(ones, 1)] == [b"2"]
            assert len(await take(others, 1)) == 1

    play(scenario)


def test_a_failing_callback_does_not_stop_the_others(play_real: PlayReal, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(rig: MosquittoRig) -> None:
        called = asyncio.Event()
        bus = rig.bus()
        bus.on_connected(lambda: {}["defect"])
        bus.on_connected(called.set)
        async with bus:
            await called.wait()

    play_real(scenario)
    assert "a callback failed" in caplog.text


# The will

WILL = Message("state/worker", b"offline", 1, True)


def test_the_will_is_published_when_a_session_ends_by_an_error(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as watcher, watcher.subscribe("state/#", qos=1) as batches:
            await watcher.wait_connected(PATIENCE_S)
            async with dies(), rig.bus("worker", WILL) as bus:
                await bus.wait_connected(PATIENCE_S)
                raise ZeroDivisionError
            assert await take(batches, 1) == [Message(WILL.topic, WILL.payload, 1, False)]

    play(scenario)


@pytest.mark.parametrize("cancelled", [False, True])
def test_no_will_when_a_session_is_left_as_planned(play: Play, cancelled: bool) -> None:
    async def scenario(rig: Rig) -> None:
        async def work() -> None:
            async with rig.bus("worker", WILL) as bus:
                await bus.wait_connected(PATIENCE_S)
                entered.set()
                try:
                    await asyncio.Event().wait() if cancelled else None
                finally:
                    bus.publish("state/worker", b"stopped", qos=1)

        async with rig.bus() as watcher, watcher.subscribe("#", qos=1) as batches:
            await watcher.wait_connected(PATIENCE_S)
            entered = asyncio.Event()
            working = asyncio.create_task(work())
            await entered.wait()
            if cancelled:
                working.cancel()
            await asyncio.wait([working])
            watcher.publish("end", b"", qos=1)
            assert [message.payload for message in await take(batches, 2)] == [b"stopped", b""]

    play(scenario)


WORKER = """
import asyncio, sys, uvloop
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message

async def main():
    async with MqttBus(sys.argv[1], client_id="worker", will=Message("state/worker", b"gone", 1)) as bus:
        async with bus.subscribe("job/#", qos=1) as batches:
            await bus.wait_connected(10)
            print("ready", flush=True)
            async for batch in batches:
                for message in batch:
                    print(message.payload.decode(), flush=True)
                    if message.payload == b"die":
                        await asyncio.Event().wait()

uvloop.run(main())
"""


def test_a_process_killed_at_its_work_loses_nothing(play_real: PlayReal) -> None:
    async def scenario(rig: MosquittoRig) -> None:
        async with rig.bus() as bus, bus.subscribe("state/#", qos=1) as states:
            await bus.wait_connected(PATIENCE_S)
            first = await _worker(rig)
            for payload in (b"one", b"die"):
                bus.publish("job/1", payload, qos=1)
                assert await _line(first) == payload.decode()
            first.kill()
            await first.wait()
            assert [message.payload for message in await take(states, 1)] == [b"gone"]
            bus.publish("job/2", b"two", qos=1)
            await bus.drain()
            second = await _worker(rig)
            assert await _line(second) == "die"  # it was in the consumer's hands, unsettled
            second.kill()
            await second.wait()

    play_real(scenario)


async def _worker(rig: MosquittoRig) -> asyncio.subprocess.Process:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, rig.url, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert await _line(worker) == "ready"
    return worker


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


# Too slow, too large, too much


def test_a_slow_consumer_loses_qos_0_only_and_it_is_counted(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with pair(rig) as (ours, theirs), theirs.subscribe("a/#", qos=1, capacity=10) as batches:
            ours.publish_many(Message("a/0", b"%d" % number) for number in range(50))
            ours.publish_many(Message("a/1", b"%d" % number, 1) for number in range(8))
            await until(lambda: theirs.ledger.received == 58)
            assert theirs.ledger.dropped == {"overrun": 40}
            got = await take(batches, 18)
            assert [int(message.payload) for message in got] == [*range(10), *range(8)]

    play(scenario)


def test_qos_1_beyond_the_capacity_stays_with_the_broker(play_real: PlayReal) -> None:
    async def scenario(rig: MosquittoRig) -> None:
        async with pair(rig) as (ours, theirs), theirs.subscribe("a", qos=1, capacity=10) as batches:
            for number in range(20_000):
                ours.publish("a", b"%d" % number, qos=1)
            await ours.drain()
            assert theirs.ledger.received < 20_000
            assert [int(message.payload) for message in await take(batches, 20_000)] == [*range(20_000)]
            assert theirs.ledger.dropped == {}

    play_real(scenario)


@pytest.mark.parametrize("qos", [0, 1])
def test_a_message_that_is_too_large_is_counted_and_does_not_come_again(play_real: PlayReal, qos: int) -> None:
    async def scenario(rig: MosquittoRig) -> None:
        async with rig.bus() as ours:
            await ours.wait_connected(PATIENCE_S)
            async with rig.bus("worker") as theirs, theirs.subscribe("a/#", qos=1) as batches:
                await theirs.wait_connected(PATIENCE_S)
                await _publish_with_mosquitto_pub(rig, "a/large", MAX_PAYLOAD + 1, qos)
                ours.publish("a/after", b"x", qos=1)
                assert [message.topic for message in await take(batches, 1)] == ["a/after"]
                assert theirs.ledger.dropped == {"too-large": 1}
                assert theirs.ledger.examples["too-large"] == "a/large"
            async with rig.bus("worker") as theirs, theirs.subscribe("a/#", qos=1) as batches:
                await theirs.wait_connected(PATIENCE_S)
                ours.publish("a/end", b"x", qos=1)
                assert [message.topic for message in await take(batches, 1)] == ["a/end"]
                assert theirs.ledger.dropped == {}

    play_real(scenario)


async def _publish_with_mosquitto_pub(rig: MosquittoRig, topic: str, size: int, qos: int) -> None:
    path = str(socket_path(rig.paths))
    command = ["mosquitto_pub", "--unix", path, "-t", topic, "-s", "-q", str(qos)]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE)
    await process.communicate(bytes(size))
    assert process.returncode == 0


def test_a_stalled_broker_costs_counted_messages_not_memory(play_real: PlayReal) -> None:
    async def scenario(rig: MosquittoRig) -> None:
        async with rig.bus() as bus:
            await bus.wait_connected(PATIENCE_S)
            await rig.signal(signal.SIGSTOP)
            payload = bytes(100_000)
            try:
                for _ in range(200):
                    bus.publish("a", payload)
                    await asyncio.sleep(0)
            finally:
                await rig.signal(signal.SIGCONT)
            stalled = bus.ledger.dropped["stalled"]
            assert 100 <= stalled < 130  # 8 MB of 20 are held, and what the socket takes
            await bus.drain()
            bus.publish("a", payload)
            assert bus.ledger.dropped == {"stalled": stalled}

    play_real(scenario)


def test_unclaimed_messages_go_in_the_end(play_real: PlayReal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters of an earlier version of a service: the broker keeps sending what nobody asks for any more."""
    monkeypatch.setattr("appliance.bus.mqtt.CLAIM_S", 0.0)
    monkeypatch.setattr("appliance.bus.mqtt.TICK_S", 0.01)

    async def scenario(rig: MosquittoRig) -> None:
        async with rig.bus() as ours:
            await ours.wait_connected(PATIENCE_S)
            async with rig.bus("worker") as theirs, theirs.subscribe("old", qos=1):
                await theirs.wait_connected(PATIENCE_S)
            ours.publish_many(Message("old", b"%d" % number, 1) for number in range(5000))
            await ours.drain()
            async with rig.bus("worker") as theirs, theirs.subscribe("new", qos=1) as batches:
                await theirs.wait_connected(PATIENCE_S)
                ours.publish("new", b"", qos=1)
                assert len(await take(batches, 1)) == 1
                await until(lambda: theirs.ledger.dropped == {"unclaimed": 5000})

    play_real(scenario)


# A broker that is killed


def test_a_killed_broker_under_load_loses_nothing_that_it_had_handed_on(play_real: PlayReal) -> None:
    """Its subscribers are there and keep up, so that everything acknowledged to the publisher is on its way to them."""

    async def scenario(rig: MosquittoRig) -> None:
        async with pair(rig, "keeper") as (ours, theirs), theirs.subscribe("n", qos=1) as batches:
            await rig.save()
            total, seen = 3000, set[int]()
            publishing = asyncio.create_task(_publish_in_steps(ours, total))
            kills = [total // 3, 2 * total // 3]
            while len(seen) < total:
                seen.update(int(message.payload) for message in await anext(batches))
                if kills and len(seen) > kills[0]:
                    kills.pop(0)
                    await rig.signal(signal.SIGKILL)
                    await rig.start()
            await publishing
            assert seen == set(range(total))

    play_real(scenario)


async def _publish_in_steps(bus: Bus, total: int) -> None:
    """Never more than the reader's socket holds: what lies in a killed broker's own memory is lost with it."""
    for first in range(0, total, 20):
        bus.publish_many(Message("n", b"%d" % number, 1) for number in range(first, first + 20))
        await bus.drain()


def test_what_a_killed_broker_forgot_is_asserted_again_by_the_callback(play_real: PlayReal) -> None:
    async def scenario(rig: MosquittoRig) -> None:
        async with rig.bus("alarms") as ours:
            ours.on_connected(lambda: ours.publish("alarm/pump", b"stands", qos=1, retain=True))
            await ours.wait_connected(PATIENCE_S)
            await ours.drain()
            await rig.signal(signal.SIGKILL)
            await rig.start()
            await ours.wait_connected(PATIENCE_S)
            await ours.drain()
            async with rig.bus() as late, late.subscribe("alarm/#", qos=1) as batches:
                assert [message.payload for message in await take(batches, 1)] == [b"stands"]

    play_real(scenario)


def test_a_clean_restart_keeps_what_waits_for_a_service_that_is_away(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus("worker") as theirs, theirs.subscribe("job", qos=1):
            await theirs.wait_connected(PATIENCE_S)
        async with rig.bus() as ours:
            await ours.wait_connected(PATIENCE_S)
            ours.publish("job", b"x", qos=1)
            await ours.drain()
            await rig.stop()
            await until(lambda: not ours.connected)
            await rig.start()
        async with rig.bus("worker") as theirs, theirs.subscribe("job", qos=1) as batches:
            assert [message.payload for message in await take(batches, 1)] == [b"x"]

    play(scenario)


# The books


def test_the_books_balance(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with pair(rig) as (ours, theirs), theirs.subscribe("a/#", qos=1, capacity=600) as batches:
            ours.publish_many(Message(f"a/{number % 3}", b"", number % 2) for number in range(1000))
            await until(lambda: theirs.ledger.received == 1000)
            taken = await take(batches, 1000 - theirs.ledger.dropped["overrun"])
            assert theirs.ledger.queued == len(taken)
            ours.publish("a/1", b"", qos=1)
            await take(batches, 1)
            assert theirs.ledger.processed == len(taken)
            assert theirs.ledger.queued == 1

    play(scenario)


def test_packet_ids_are_reused_without_a_clash() -> None:
    outgoing = Outgoing(Joiner())
    for _ in range(30):
        for _ in range(4000):
            outgoing.add(Message("a", b"", 1))
        packets = outgoing.ready()
        ids = [int.from_bytes(packets[at + 5 : at + 7], "big") for at in range(0, len(packets), 7)]
        assert len(set(ids)) == 4000
        assert min(ids) >= 1024
        outgoing.acknowledge(ids[:2000])
        outgoing.rewind()
        again = outgoing.ready()
        assert [int.from_bytes(again[at + 5 : at + 7], "big") for at in range(0, len(again), 7)] == ids[2000:]
        assert {again[at] for at in range(0, len(again), 7)} == {0x3A}  # with DUP
        outgoing.acknowledge(ids[2000:])
        assert len(outgoing) == 0


def test_a_loss_is_told_and_what_was_not_taken_over_is_known(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as bus:
            await bus.wait_connected(PATIENCE_S)
            bus.publish("a", b"", qos=1)
            await bus.drain()
            assert bus.unacknowledged == 0
            losing = asyncio.ensure_future(bus.wait_lost())
            await asyncio.sleep(0)
            assert not losing.done()
            await rig.stop()
            assert await losing
            assert await bus.wait_lost()
            bus.publish("a", b"", qos=1)
            assert bus.unacknowledged == 1
            await rig.start()
            await bus.drain()
            assert bus.unacknowledged == 0

    play(scenario)


def test_a_ping_is_answered_while_there_is_a_connection(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        async with rig.bus() as bus:
            await bus.wait_connected(PATIENCE_S)
            await asyncio.gather(bus.ping(), bus.ping())
            await rig.stop()
            await bus.wait_lost()
            with pytest.raises(BusError):
                await bus.ping()
            await rig.start()
            await bus.wait_connected(PATIENCE_S)
            await bus.ping()

    play(scenario)


def test_a_ping_that_nobody_answers_ends_with_the_connection(play_real: PlayReal) -> None:
    async def scenario(rig: MosquittoRig) -> None:
        async with rig.bus() as bus:
            await bus.wait_connected(PATIENCE_S)
            await rig.signal(signal.SIGSTOP)
            asking = asyncio.ensure_future(bus.ping())
            await asyncio.sleep(0)
            assert not asking.done()
            await rig.signal(signal.SIGKILL)
            with pytest.raises(BusError, match="was lost"):
                await asking
            await rig.start()

    play_real(scenario)

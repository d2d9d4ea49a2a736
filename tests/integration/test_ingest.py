"""The ingest service: connectors opened, read, opened again; its state; commands; and all of it over a real broker."""

import asyncio
import getpass
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.__main__ import main as command_line
from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.connectors import replay, simulator
from appliance.connectors._pace import Leaping
from appliance.connectors.port import Arrival, Connector
from appliance.errors import ConnectorError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import CommandState, Device, Kind, Reading, State
from appliance.services import commands
from appliance.services import status as status_module
from appliance.services.ingest import Ingest

PATIENCE_S = 20
NOW = 1_700_000_000_000_000_000


class Pulse:
    def __init__(self) -> None:
        self.is_ready = asyncio.Event()

    def ready(self) -> None:
        self.is_ready.set()

    def beat(self) -> None:
        pass


class Scripted:
    """A connector that yields what it is given: readings of an asset, or an error."""

    def __init__(self, *lives: Sequence[Arrival | ConnectorError]) -> None:
        self.ledger = Ledger()
        self.lives, self.opened, self.closed = list(lives), 0, 0

    async def __aenter__(self) -> "Scripted":
        self.opened += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed += 1

    async def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        for step in self.lives.pop(0):
            if isinstance(step, ConnectorError):
                raise step
            self.ledger.received += 1
            self.ledger.processed += 1
            yield [step]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def reading(value: float, asset: str = "line1/pump") -> Arrival:
    return Arrival(asset, Reading(NOW, {"temperature": value}))


def gone(name: str = "line1") -> ConnectorError:
    return ConnectorError(f"{name} is gone", "Plug it in.")


class LateBus(MemoryBus):
    """A session that may still wait for its broker."""

    is_late = False

    @property
    def connected(self) -> bool:
        return super().connected and not self.is_late

    def publish_many(self, messages: Iterable[Message]) -> None:
        if self.connected:
            super().publish_many(messages)

    def arrive(self) -> None:
        self.is_late = False
        for callback in self._callbacks:
            callback()


class Rig:
    """The service over a bus in memory; what is published and what is waited for, remembered."""

    def __init__(
        self, *connectors: tuple[str, Connector], wait: Callable[[float], Awaitable[None]] | None = None
    ) -> None:
        self.broker, self.leap = MemoryBroker(), Leaping()
        self.bus = LateBus(self.broker)
        self.service = Ingest(self.bus, connectors, lambda: NOW, wait or self.leap.wait)
        self.seen: list[tuple[str, float]] = []

    def state(self) -> State:
        state = codec.decode(Kind.STATE, self.broker.retained[topics.state("ingest")].payload, NOW)
        assert isinstance(state, State)
        return state

    def connector(self, name: str) -> dict[str, Any]:
        return dict(self.state().detail["connectors"][name])

    def play(self, scenario: Callable[[MemoryBus], Awaitable[None]]) -> None:
        async def main() -> None:
            async with MemoryBus(self.broker) as bus, bus.subscribe("mw/v1/reading/#") as batches:
                pulse = Pulse()
                listening = asyncio.create_task(self._listen(batches))
                running = asyncio.create_task(self.service.run(pulse))
                await pulse.is_ready.wait()
                async with asyncio.timeout(PATIENCE_S):
                    await scenario(bus)
                for task in (running, listening):
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

        asyncio.run(main())

    async def _listen(self, batches: Any) -> None:
        async for batch in batches:
            for message in batch:
                event = codec.decode_reading(message.payload, NOW)
                self.seen.append((message.topic, event.values.get("temperature", 0.0)))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for has no event; in memory it is a few turns away
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def states_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "PERIOD_S", 0)


def test_readings_arrive_and_the_end_is_told() -> None:
    rig = Rig(("replay", Scripted([reading(1), reading(2)])), ("replay", Scripted([reading(3, "line2/fan")])))
    rig.play(lambda _: rig.until(lambda: len(rig.seen) == 3 and rig.state().processed == 3))
    assert sorted(rig.seen) == [
        ("mw/v1/reading/line1/pump", 1),
        ("mw/v1/reading/line1/pump", 2),
        ("mw/v1/reading/line2/fan", 3),
    ]
    state = rig.state()
    assert (state.online, state.received, state.processed, state.queued) == (False, 3, 3, 0)
    assert rig.connector("replay")["standing"] == "ended"
    assert rig.connector("replay-2")["processed"] == 1


def test_a_connector_that_fails_is_opened_again_later_and_later() -> None:
    lives = [[gone()], [gone()], [gone()], [reading(5), gone()], [reading(6)]]
    ill = Scripted(*lives)
    rig = Rig(("serial", ill))
    rig.play(lambda _: rig.until(lambda: rig.connector("serial")["standing"] == "ended"))
    assert rig.leap.waited == [1, 2, 4, 1], "twice as long each time, from the start after it worked"
    assert (ill.opened, ill.closed) == (5, 5)
    assert [value for _, value in rig.seen] == [5, 6]


def test_the_wait_has_an_end() -> None:
    rig = Rig(("serial", Scripted(*[[gone()]] * 9, [])))
    rig.play(lambda _: rig.until(lambda: rig.connector("serial")["standing"] == "ended"))
    assert rig.leap.waited == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_failure_is_shown_and_disturbs_no_other() -> None:
    async def forever(_: float) -> None:
        await asyncio.Event().wait()

    rig = Rig(("serial", Scripted([gone()])), ("host", Scripted([reading(1), reading(2)])), wait=forever)

    async def scenario(_: MemoryBus) -> None:
        await rig.until(lambda: len(rig.seen) == 2 and rig.connector("serial")["standing"] == "waiting")
        shown = rig.connector("serial")
        assert shown["error"] == "line1 is gone\n  -> Plug it in."
        assert shown["next_attempt"] == NOW + 1_000_000_000

    rig.play(scenario)


def test_while_the_broker_is_away_connectors_pause() -> None:
    connector = Scripted([reading(1), reading(2), reading(3)])
    rig = Rig(("host", connector))
    rig.bus.is_late = True

    async def scenario(_: MemoryBus) -> None:
        await turns(50)
        assert connector.ledger.received == 1
        rig.bus.arrive()
        await rig.until(lambda: len(rig.seen) == 3)

    rig.play(scenario)
    assert [value for _, value in rig.seen] == [1, 2, 3]


def test_an_asset_that_breaks_the_grammar_is_counted() -> None:
    rig = Rig(("odd", Scripted([reading(1, "No Such Place"), reading(2)])))
    rig.play(lambda _: rig.until(lambda: rig.connector("odd")["standing"] == "ended"))
    state = rig.state()
    assert (state.received, state.processed, state.dropped, state.queued) == (2, 1, {"topic": 1}, 0)
    assert "No Such Place" in state.detail["examples"]["topic"]


def test_a_device_that_breaks_the_grammar_is_not_remembered() -> None:
    rig = Rig(("odd", Scripted([("No Such Place", Device(NOW, "odd")), ("line1/pump", Device(NOW, "pump"))])))
    rig.play(lambda _: rig.until(lambda: rig.connector("odd")["standing"] == "ended"))
    assert rig.state().dropped == {"topic": 1}
    assert rig.state().detail["devices"] == 1


def test_broken_rows_are_in_the_books(tmp_path: Path) -> None:
    (tmp_path / "pump.csv").write_text("time,temperature\n1,20\n2,hot\n3,22\n")
    settings = replay.Settings(file=str(tmp_path / "pump.csv"))
    rig = Rig(("replay", replay.create(settings, Leaping().time())))
    rig.play(lambda _: rig.until(lambda: rig.connector("replay")["standing"] == "ended"))
    state = rig.state()
    assert (state.received, state.processed, state.dropped) == (3, 2, {"not-a-number": 1})
    assert "'hot'" in rig.connector("replay")["examples"]["not-a-number"]


def test_a_fault_on_request() -> None:
    rig = Rig(("simulator", simulator.create(simulator.Settings(), Leaping().time())))

    async def scenario(bus: MemoryBus) -> None:
        async def ask(**args: Any) -> tuple[CommandState, str, dict[str, Any]]:
            answer = await commands.ask(bus, "ingest", "inject", args, "anna", PATIENCE_S)
            return answer.state, answer.reason, answer.result

        state, _, result = await ask(fault="leak", asset="demo/pump")
        assert (state, result["shows"]) == (CommandState.SUCCESSFUL, ["pressure_bar", "flow_lpm"])
        for wrong, reason in (
            ({"fault": "rust", "asset": "demo/pump"}, "bearing-wear"),
            ({"fault": "leak", "asset": "line1/pump"}, "no connector simulates 'line1/pump'"),
            ({"fault": "leak"}, "asset"),
        ):
            state, told, _ = await ask(**wrong)
            assert state is CommandState.FAILED
            assert reason in told

    rig.play(scenario)


def test_a_defect_is_not_taken_for_a_failure() -> None:
    class Defect(Scripted):
        async def __aiter__(self) -> AsyncIterator[list[Arrival]]:
            raise ZeroDivisionError
            yield []

    async def main() -> None:
        await Ingest(MemoryBus(MemoryBroker()), [("odd", Defect())], lambda: NOW).run(Pulse())

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(main())
    assert raised.group_contains(ZeroDivisionError)


@pytest.fixture
def broker() -> Iterator[str]:
    """The address of a mosquitto of this test's own."""
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    if not Path(program).exists():
        pytest.skip("mosquitto is not installed")
    # A socket's path may have 107 characters; pytest's folders are longer.
    with tempfile.TemporaryDirectory(prefix="mw-") as folder:
        socket, settings = Path(folder, "s"), Path(folder, "mosquitto.conf")
        lines = (
            f"listener 0 {socket}",
            "allow_anonymous true",
            "max_queued_messages 1000000",
            f"user {getpass.getuser()}",
        )
        settings.write_text("\n".join(lines))
        process = subprocess.Popen([program, "-c", str(settings)])
        yield f"unix:{socket}"
        process.terminate()
        process.wait(PATIENCE_S)


async def first(batches: AsyncIterator[list[Message]], wanted: Callable[[Message], bool]) -> Message:
    async for batch in batches:
        for message in batch:
            if wanted(message):
                return message
    raise AssertionError("the bus ended")


async def kept(bus: MqttBus) -> set[str]:
    """The topics of what the broker retains: it sends that before anything newer."""
    found = set()

    def is_newer(message: Message) -> bool:
        if message.retain:
            found.add(message.topic)
        return message.payload == b"newer"

    async with bus.subscribe("mw/v1/#", qos=1) as batches:
        bus.publish("mw/v1/audit/test", b"newer", qos=1)
        await first(batches, is_newer)
    return found


def test_a_recording_over_a_real_broker(broker: str, tmp_path: Path) -> None:
    rows = 3000
    (tmp_path / "pump.csv").write_text("time,a,b\n" + "".join(f"{row},{row},{row / 2}\n" for row in range(rows)))
    connector = replay.create(replay.Settings(file=str(tmp_path / "pump.csv"), speed=0))

    async def main() -> tuple[list[float], State]:
        async with asyncio.timeout(PATIENCE_S), MqttBus(broker) as listener:
            await listener.wait_connected()
            async with (
                listener.subscribe("mw/v1/reading/#") as batches,
                listener.subscribe("mw/v1/state/#", qos=1) as states,
            ):
                running = asyncio.create_task(
                    Ingest(MqttBus(broker), [("replay", connector)], time.time_ns).run(Pulse())
                )
                seen: list[float] = []
                async for batch in batches:
                    seen += [codec.decode_reading(message.payload, time.time_ns()).values["a"] for message in batch]
                    if len(seen) >= rows:
                        break
                ended = await first(states, lambda message: b"ended" in message.payload)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        state = codec.decode(Kind.STATE, ended.payload, time.time_ns())
        assert isinstance(state, State)
        return seen, state

    seen, state = asyncio.run(main())
    assert seen == list(range(rows))
    assert (state.received, state.processed, state.queued, state.dropped) == (rows, rows, 0, {})


def test_a_command_over_a_real_broker(broker: str) -> None:
    """Asked before the service is there, it is performed when it comes; nothing of it stays in the broker."""

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), MqttBus(broker) as bus:
            await bus.wait_connected()
            args = {"fault": "leak", "asset": "demo/pump"}
            asking = asyncio.create_task(commands.ask(bus, "ingest", "inject", args, "anna", PATIENCE_S))
            async with MqttBus(broker) as early, early.subscribe(topics.commands_of("ingest"), qos=1) as batches:
                await first(batches, lambda message: bool(message.payload))
            connectors = [("simulator", simulator.create(simulator.Settings()))]
            session = MqttBus(broker, client_id="mw-ingest")
            running = asyncio.create_task(Ingest(session, connectors, time.time_ns).run(Pulse()))
            assert (await asking).state is CommandState.SUCCESSFUL
            assert await kept(bus) == {topics.state("ingest")}
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_the_command_line_injects_a_fault(broker: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "millwright.toml"
    config.write_text(f'[bus]\nurl = "{broker}"\n')
    pump = simulator.create(simulator.Settings())

    def simulate(*words: str) -> int:
        return command_line(["--config", str(config), "simulate", *words])

    async def main() -> list[int]:
        pulse = Pulse()
        running = asyncio.create_task(Ingest(MqttBus(broker), [("simulator", pump)], time.time_ns).run(pulse))
        async with asyncio.timeout(PATIENCE_S):
            await pulse.is_ready.wait()
            codes = [
                await asyncio.to_thread(simulate, *words)
                for words in (("leak",), ("none", "--json"), ("leak", "--asset", "line9/pump"))
            ]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return codes

    assert asyncio.run(main()) == [0, 0, 1]
    told = capfd.readouterr()
    assert "demo/pump: leak begins; it shows in pressure_bar and flow_lpm" in told.out
    assert '"state": "successful"' in told.out
    assert "no connector simulates 'line9/pump'" in told.err

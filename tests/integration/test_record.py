"""The record service on a bus: readings, waveforms, alarms reach the disk, a bad disk stops nothing."""

import asyncio
import csv
import io
import json
import os
import random
import sqlite3
import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import sqlite_utils  # noqa: F401  # migrations then run in this process, which is quicker

from appliance.__main__ import main
from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.config import schema
from appliance.events import codec, topics
from appliance.events.schema import Alarm, AlarmState, Block, Kind, Reading, Severity, State
from appliance.services import record as record_module
from appliance.services import status as status_module
from appliance.services.record import Record
from appliance.services.status import will
from appliance.store import alarms, database
from appliance.store import writer as writer_module
from appliance.store.alarms import Alarms, Change
from appliance.store.history import History
from appliance.store.reader import reading
from tests.integration.conftest import Box

PATIENCE_S = 30
SECOND = 1_000_000_000
MB = 1 << 20
NOW = 1_700_000_000 * SECOND


class Pulse:
    def __init__(self) -> None:
        self.is_ready = asyncio.Event()

    def ready(self) -> None:
        self.is_ready.set()

    def beat(self) -> None:
        pass


class Bench:
    """A record service on a bus in memory, its files, and its last word."""

    def __init__(self, folder: Path, max_assets: int = 50) -> None:
        self.folder, self.broker = folder, Told()
        self.settings = schema.Record(budget_mb=16, commit_ms=10, max_assets=max_assets)
        self.history = History(folder / "history.sqlite", 16 * MB, 365 * 86_400 * SECOND)
        self.alarms = Alarms(folder / "alarms.sqlite")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[MemoryBus]:
        pulse = Pulse()
        service = Record(MemoryBus(self.broker, will("record")), self.history, self.alarms, self.settings, lambda: NOW)
        task = asyncio.create_task(service.run(pulse))
        self.broker.changed = asyncio.Event()
        async with asyncio.timeout(PATIENCE_S), MemoryBus(self.broker) as bus:
            await pulse.is_ready.wait()
            yield bus
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), task.exception()

    async def until(self, condition: Callable[[State], bool]) -> State:
        while not condition(self.broker.state):
            self.broker.changed.clear()
            await self.broker.changed.wait()
        return self.broker.state

    def recorded(self, asset: str) -> list[tuple[int, dict[str, float]]]:
        with reading(self.history.path) as reader:
            return [(one.at, one.values) for one in reader.readings(asset)]


class Told(MemoryBroker):
    """A broker that says when the state of the service changes."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()
        self.state = State(at=0, online=False)

    def accept(self, message: Message) -> None:
        super().accept(message)
        if message.topic == topics.state("record"):
            state = codec.decode(Kind.STATE, message.payload, NOW)
            assert isinstance(state, State)
            assert state.received == state.processed + state.queued + sum(state.dropped.values())
            self.state = state
            self.changed.set()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on how long the service waits between two tries."""
    monkeypatch.setattr(status_module, "PERIOD_S", 0.02)
    monkeypatch.setattr(record_module, "RETRY_S", 0.02)
    monkeypatch.setattr(writer_module, "RETRY_S", 0.02)


def alarm(number: int, state: AlarmState = AlarmState.UNACKNOWLEDGED, at: int = NOW) -> Alarm:
    return Alarm(
        id=f"alarm-{number}",
        at=at,
        raised=NOW,
        state=state,
        severity=Severity.ALARM,
        cause="x",
        score=2.0,
        threshold=1.0,
    )


def publish_alarm(bus: MemoryBus | MqttBus, one: Alarm, asset: str = "line1/pump") -> None:
    bus.publish(topics.topic(Kind.ALARM, asset), codec.encode(one), qos=1)


def test_readings_blocks_and_alarms_are_kept_and_the_books_balance(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    block = Block(NOW, 100.0, {"x": array("f", [0.5, 1.5])})

    async def scenario() -> State:
        async with bench.running() as bus:
            for second in range(5):
                payload = codec.encode(Reading(NOW + second * SECOND, {"x": second / 10, "y": 1e300}))
                bus.publish("mw/v1/reading/line1/pump", payload)
            bus.publish("mw/v1/block/line1/fan", codec.encode(block))
            publish_alarm(bus, alarm(1))
            bus.publish(topics.topic(Kind.ALARM, "line1/pump"), b"", qos=1, retain=True)
            assert (await bench.until(lambda state: state.processed == 8)).online
        return bench.broker.state

    state = asyncio.run(scenario())
    assert (state.online, state.received, state.processed, state.dropped) == (False, 8, 8, {})
    assert bench.recorded("line1/pump") == [(NOW + n * SECOND, {"x": n / 10, "y": 1e300}) for n in range(5)]
    with reading(bench.history.path) as reader:
        assert list(reader.blocks("line1/fan")) == [block]
    assert bench.alarms.standing() == [Change("line1/pump", alarm(1))]
    assert (state.detail["readings"], state.detail["assets"], state.detail["alarm_states"]) == (6, 2, 1)
    assert 0 < state.detail["bytes"] < MB
    bench.alarms.close()


def test_bad_input_is_counted_and_stops_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_assets=3)
    bad = [
        ("mw/v1/reading/a", b"\xff\xff", "malformed"),
        ("mw/v1/reading/a", b'{"x": "warm"}', "not-a-number"),
        ("mw/v1/reading/a", b'{"x": 1e999}', "not-finite"),
        ("mw/v1/reading/a", b"{}", "empty"),
        ("mw/v1/reading/A/B", b'{"x": 1}', "topic"),
        ("mw/v1/reading/a", b'{"at": 1, "values": {"x": 1}}', "time-past"),
        ("mw/v1/reading/a", json.dumps({"at": NOW - 366 * 86_400 * SECOND, "values": {"x": 1}}).encode(), "expired"),
        ("mw/v1/reading/a", json.dumps({"at": NOW, "values": {"x": 9}}).encode(), "duplicate"),
        ("mw/v1/reading/a", b'{"a\\u0000b": 1}', "point-name"),
        ("mw/v1/reading/e", b'{"x": 1}', "too-many-assets"),
        ("mw/v1/block/a", b'{"rate": 1, "values": {"x": []}}', "empty"),
        ("mw/v1/alarm/a", b"{", "malformed"),
        ("mw/v1/alarm/a", codec.encode(msgspec.structs.replace(alarm(1), score=float("nan"))), "not-finite"),
        ("mw/v1/alarm/a", codec.encode(msgspec.structs.replace(alarm(1), until=-1)), "shape"),
    ]

    async def scenario() -> State:
        async with bench.running() as bus:
            bus.publish("mw/v1/reading/a", json.dumps({"at": NOW, "values": {"x": 1}}).encode())
            for asset in "bc":
                bus.publish(f"mw/v1/reading/{asset}", b'{"x": 1}')
            for topic, payload, _ in bad:
                bus.publish(topic, payload, qos=1)
            bus.publish("mw/v1/reading/a", b'{"x": 1}')
            await bench.until(lambda state: state.received == len(bad) + 4 and not state.queued)
        return bench.broker.state

    state = asyncio.run(scenario())
    reasons = [reason for _, _, reason in bad]
    assert state.dropped == {reason: reasons.count(reason) for reason in reasons}
    assert state.processed == 4
    assert set(state.detail["examples"]) == set(reasons)
    assert [values for _, values in bench.recorded("a")] == [{"x": 1.0}, {"x": 1.0}]


def test_readings_without_a_time_are_none_of_them_repeats(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def scenario() -> None:
        async with bench.running() as bus:
            for _ in range(2000):
                bus.publish("mw/v1/reading/a", b'{"x": 1}')
            await bench.until(lambda state: state.processed == 2000)

    asyncio.run(scenario())
    assert len(bench.recorded("a")) == 2000


def test_what_waits_is_committed_when_the_service_stops(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.settings = schema.Record(commit_ms=5000)

    async def scenario() -> State:
        async with bench.running() as bus:
            await bench.until(lambda state: state.online and state.detail["bytes"] > 0)
            for second in range(100):
                bus.publish("mw/v1/reading/a", codec.encode(Reading(NOW + second, {"x": 1.0})))
            await bench.until(lambda state: state.received == 100)
        return bench.broker.state

    state = asyncio.run(scenario())
    assert (state.processed, state.queued, state.online) == (100, 0, False)
    assert len(bench.recorded("a")) == 100


@pytest.mark.parametrize("turns", range(6))
def test_a_stop_is_heard_in_whatever_turn_of_the_loop_it_comes(tmp_path: Path, turns: int) -> None:
    bench = Bench(tmp_path)

    async def scenario() -> State:
        async with bench.running() as bus:
            await bench.until(lambda state: state.online and state.detail["bytes"] > 0)
            bus.publish("mw/v1/reading/a", b'{"x": 1}')
            for _ in range(turns):
                await asyncio.sleep(0)
        return bench.broker.state

    state = asyncio.run(scenario())
    assert (state.online, state.queued) == (False, 0)
    assert set(state.dropped) <= {"unclaimed"}  # the session may hold what it was not told to be dealt with
    assert len(bench.recorded("a")) == state.processed


def test_an_alarm_told_twice_leaves_one_row_and_a_new_state_another(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    steps = [alarm(1), alarm(1, AlarmState.ACKNOWLEDGED, NOW + 1), alarm(2)]

    async def scenario(times: int) -> None:
        async with bench.running() as bus:
            for _ in range(times):
                for step in steps:
                    publish_alarm(bus, step)
            await bench.until(lambda state: state.processed == times * len(steps))

    asyncio.run(scenario(3))
    asyncio.run(scenario(2))
    assert [change.alarm for change in bench.alarms.changes()] == [steps[0], steps[2], steps[1]]
    assert [change.alarm.id for change in bench.alarms.standing()] == ["alarm-1", "alarm-2"]
    assert {change.alarm.state for change in alarms.latest(bench.alarms.path)} == {
        AlarmState.ACKNOWLEDGED,
        AlarmState.UNACKNOWLEDGED,
    }
    assert bench.alarms.record([Change("line1/pump", alarm(1, AlarmState.NORMAL, NOW + 2))]) == 1
    assert [change.alarm.id for change in bench.alarms.standing()] == ["alarm-2"]
    assert bench.alarms.count() == 4
    bench.alarms.close()


def test_alarms_that_ended_make_room_and_standing_ones_stay(tmp_path: Path) -> None:
    store = Alarms(tmp_path / "alarms.sqlite", max_changes=20)
    store.record([Change("a", alarm(0))])
    for number in range(1, 100):
        store.record([Change("a", alarm(number)), Change("a", alarm(number, AlarmState.NORMAL, NOW + 1))])
    assert store.count() <= 20
    assert [change.alarm.id for change in store.standing()] == ["alarm-0"]
    assert len({change.alarm.id for change in store.changes()}) > 1
    store.close()


def test_damaged_files_are_set_aside_and_begun_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for name in ("history.sqlite", "alarms.sqlite"):
        (tmp_path / name).write_bytes(b"this was a database once " * 1000)

    async def scenario() -> State:
        async with bench.running() as bus:
            bus.publish("mw/v1/reading/a", b'{"x": 1}')
            publish_alarm(bus, alarm(1))
            return await bench.until(lambda state: state.processed == 2 and not state.detail["trouble"])

    state = asyncio.run(scenario())
    for name in ("history.sqlite", "alarms.sqlite"):
        (aside,) = database.aside(tmp_path / name)
        assert aside.read_bytes().startswith(b"this was a database once")
        assert f"{tmp_path / name} is damaged" in state.detail["notice"]
        assert aside.name in state.detail["notice"]
    assert len(bench.recorded("a")) == 1
    assert bench.alarms.count() == 1
    bench.alarms.close()


def test_damage_that_shows_while_it_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def scenario() -> State:
        async with bench.running() as bus:
            bus.publish("mw/v1/reading/a", b'{"x": 1}')
            await bench.until(lambda state: state.processed == 1)
            with sqlite3.connect(bench.history.path) as db:
                pages = [page for (page,) in db.execute("SELECT rootpage FROM sqlite_master WHERE rootpage > 0")]
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.close()
            with bench.history.path.open("r+b") as file:
                for page in pages:
                    file.seek((page - 1) * 4096)
                    file.write(b"\xff" * 4096)
            bench.history._shelf.execute("PRAGMA shrink_memory")  # so that it looks at the disk again
            bus.publish("mw/v1/reading/b", b'{"x": 1}')
            return await bench.until(lambda state: state.processed == 2)

    state = asyncio.run(scenario())
    assert "is damaged" in state.detail["notice"]
    assert len(database.aside(bench.history.path)) == 1
    assert len(bench.recorded("b")) == 1


def test_a_full_disk_is_told_waited_for_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself is told that the disk ends: what it then does is what it does on a full disk."""
    monkeypatch.setattr("appliance.store.pending.MAX_BYTES", 200_000)
    bench, path = Bench(tmp_path), tmp_path / "history.sqlite"
    opening = database.open_writing

    def open_small(path: Path, schema: str, synchronous: str) -> sqlite3.Connection:
        connection = opening(path, schema, synchronous)  # type: ignore[arg-type]
        if (tmp_path / "full").exists():
            connection.execute("PRAGMA max_page_count = 1")
        return connection

    monkeypatch.setattr(database, "open_writing", open_small)
    (tmp_path / "full").touch()

    dice = random.Random(1)
    readings = [Reading(NOW + n, {f"p{point}": dice.random() for point in range(20)}) for n in range(2000)]

    async def scenario() -> State:
        async with bench.running() as bus:
            publish_alarm(bus, alarm(1))
            for one in readings[:500]:
                bus.publish("mw/v1/reading/a", codec.encode(one))
            state = await bench.until(lambda state: bool(state.detail["trouble"]))
            assert "database or disk is full" in state.detail["trouble"]
            for one in readings[500:]:
                bus.publish("mw/v1/reading/a", codec.encode(one))
            state = await bench.until(lambda state: state.received == 2001)
            assert state.processed <= 1
            assert state.dropped["store-unavailable"] > 500
            (tmp_path / "full").unlink()
            await bench.until(lambda state: not state.queued)
            bus.publish("mw/v1/reading/b", b'{"x": 1}')
            return await bench.until(lambda state: state.received == 2002 and not state.queued)

    state = asyncio.run(scenario())
    assert state.detail["trouble"] == ""
    assert set(state.dropped) == {"store-unavailable"}
    kept = bench.recorded("a")
    assert len(kept) + sum(state.dropped.values()) == 2000
    assert kept[:500] == [(one.at, one.values) for one in readings[:500]]
    assert len(bench.recorded("b")) == 1
    assert database.aside(path) == []
    assert bench.alarms.count() == 1
    bench.alarms.close()


def test_a_newer_file_is_told_and_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    db = sqlite3.connect(bench.history.path)
    db.execute("PRAGMA user_version = 99")
    db.close()

    async def scenario() -> State:
        async with bench.running() as bus:
            bus.publish("mw/v1/reading/a", b'{"x": 1}')
            await bench.until(lambda state: state.received == 1 and "newer release" in state.detail["trouble"])
        return bench.broker.state

    state = asyncio.run(scenario())
    assert state.dropped["store-unavailable"] == 1  # nowhere to put it at the end
    assert database.aside(bench.history.path) == []


def test_over_a_real_broker(box: Box) -> None:
    """Alarms that were published while the service was away are there when it returns, once each."""
    history = History(box.folder / "history.sqlite", 16 * MB, 365 * 86_400 * SECOND)
    store = Alarms(box.folder / "alarms.sqlite")
    settings = schema.Record(commit_ms=10)

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        pulse = Pulse()
        bus = MqttBus(box.url, client_id="mw-record", will=will("record"))
        task = asyncio.create_task(Record(bus, history, store, settings, time.time_ns).run(pulse))
        await pulse.is_ready.wait()
        yield
        task.cancel()
        await asyncio.wait([task])

    async def scenario() -> State:
        async with (
            asyncio.timeout(PATIENCE_S),
            MqttBus(box.url) as bus,
            bus.subscribe("mw/v1/state/record", qos=1) as states,
        ):
            async with running():
                await told(states, lambda state: state.online)
                bus.publish("mw/v1/reading/a", b'{"x": 1}', qos=1)
                for number in range(10):
                    publish_alarm(bus, alarm(number))
                await told(states, lambda state: state.processed == 11)
            await told(states, lambda state: not state.online)
            for number in range(5, 20):
                publish_alarm(bus, alarm(number))
            await bus.drain()
            async with running():
                return await told(states, lambda state: state.processed == 15)

    state = asyncio.run(scenario())
    assert (state.received, state.detail["alarm_states"]) == (15, 10)
    assert sorted(change.alarm.id for change in store.standing()) == sorted(f"alarm-{n}" for n in range(20))
    store.close()


async def told(states: AsyncIterator[list[Message]], condition: Callable[[State], bool]) -> State:
    async for batch in states:
        for message in batch:
            state = codec.decode(Kind.STATE, message.payload, time.time_ns())
            if isinstance(state, State) and condition(state):
                return state
    raise AssertionError("the session ended")


# The command


@pytest.fixture
def kept(quiet_box: Box) -> Box:
    """A box with a history: 300 readings of a pump, a second apart."""
    (quiet_box.folder / "state").mkdir()
    bench = Bench(quiet_box.folder / "state")

    async def scenario() -> None:
        async with bench.running() as bus:
            for second in range(300):
                values = {"temperature": 20 + second / 10} | ({"pressure": 0.1 + 0.2} if second % 2 else {})
                bus.publish("mw/v1/reading/line1/pump", codec.encode(Reading(NOW + second * SECOND, values)))
            bus.publish("mw/v1/reading/line1/fan", codec.encode(Reading(NOW, {"speed": 1.0})))
            await bench.until(lambda state: state.processed == 301)

    asyncio.run(scenario())
    return quiet_box


Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(kept: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["history", "--config", str(kept.config), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_table_of_the_newest_readings(show: Show) -> None:
    code, output, _ = show("line1/pump")
    lines = output.splitlines()
    assert code == 0
    assert lines[0].split() == ["TIME", "temperature", "pressure"]
    assert len(lines) == 41
    assert lines[-1].split() == ["2023-11-14", "22:18:19.000", "49.9", "0.3"]
    assert lines[-2].split() == ["2023-11-14", "22:18:18.000", "49.8", "-"]
    assert len(show("line1/pump", "--limit", "3")[1].splitlines()) == 4


def test_csv_is_exact_and_complete(show: Show) -> None:
    _, output, _ = show("line1/pump", "--csv")
    header, *rows = list(csv.reader(io.StringIO(output)))
    assert header == ["time", "temperature", "pressure"]
    assert len(rows) == 300
    assert rows[0] == ["2023-11-14T22:13:20.000000000Z", "20.0", ""]
    assert float(rows[1][2]) == 0.1 + 0.2
    assert [float(row[1]) for row in rows] == [20 + second / 10 for second in range(300)]


def test_json_lines_of_some_points_in_a_span(show: Show) -> None:
    span = ("--since", "2023-11-14T22:14:00Z", "--until", "2023-11-14T22:14:10+00:00")
    _, output, _ = show("line1/pump", "--json", "--points", "pressure", *span)
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["at"] for row in rows] == [NOW + second * SECOND for second in range(41, 51, 2)]
    assert all(row["values"] == {"pressure": 0.1 + 0.2} for row in rows)
    assert show("line1/pump", "--since", "2h", "--csv")[1] == "time\n"
    assert "Nothing was recorded" in show("line1/pump", "--since", "2h")[1]


def test_the_list_of_assets(show: Show) -> None:
    assert show()[1].splitlines() == ["line1/fan", "line1/pump"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("line1/pumo",), 1, "Did you mean line1/pump"),
        (("line1/pump", "--points", "pressur"), 1, "has no point 'pressur'\n  -> Did you mean pressure?"),
        (("line1/pump", "--since", "yesterday"), 2, "--since 'yesterday' is not a time"),
        (("line1/pump", "--limit", "0"), 2, "at least one"),
    ],
)
def test_what_cannot_be_shown(show: Show, words: tuple[str, ...], code: int, said: str) -> None:
    result = show(*words)
    assert (result[0], result[1]) == (code, "")
    assert said in result[2]


def test_without_a_record_it_says_so(quiet_box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--config", str(quiet_box.config), "a"]) == 1
    assert "It is made when the record service first runs" in capsys.readouterr().err


def test_a_pipe_that_closes_early(kept: Box) -> None:
    async def scenario() -> bytes:
        process = await kept.start("history", "line1/pump", "--csv")
        assert process.stdout is not None
        line = await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.read()
        return line

    assert asyncio.run(scenario()) == b"time,temperature,pressure" + os.linesep.encode()

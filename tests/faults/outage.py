"""A plant, a box that forwards, a broker elsewhere and a receiver behind it: real processes, killed one by one while
events pour in, in accelerated time."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from appliance.bus.broker import configuration
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.channels.leaving import envelope
from appliance.config.places import Paths
from appliance.config.schema import Broker
from appliance.events import codec, topics
from appliance.events.schema import Alarm, AlarmState, Kind, Severity, State

ROOT = Path(__file__).resolve().parents[2]
RATE = 2000  # events a simulated second
ASSETS = 50
ALARM_EVERY = 400
CHUNK = 500  # published at once
AHEAD = 10_000  # events that the plant may be ahead of the receiver while nobody is down
PREFIX = "plant/box"
SENDER, BROKER, RECEIVER = "sender", "broker", "receiver"
KILLS = (BROKER, RECEIVER, SENDER, BROKER, RECEIVER, SENDER)
DOWN, LEAST_DOWN = 0.03, 5000  # of all events; events


@dataclass
class Outage:
    who: str
    began: int  # serial numbers of events
    ended: int


@dataclass
class Report:
    """What the receiver has in the end, told by the serial numbers of events."""

    events: int
    lost: int
    doubled: int
    outages: list[Outage]
    alarms_first: list[bool] = field(default_factory=list)  # of each outage of the line
    newest_first: list[bool] = field(default_factory=list)
    seconds: float = 0.0


class Site:
    """Folders with short names: a socket's path has 107 bytes."""

    def __init__(self, folder: Path, events: int) -> None:
        self._folder, self._events = folder, events
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._marks: Counter[str] = Counter()
        self._progress = asyncio.Event()

    async def play(self) -> Report:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end)
            for name in ("plant", BROKER, RECEIVER, SENDER):
                await self._start(name)
            plant = await stack.enter_async_context(MqttBus(self._url("plant"), client_id="plant"))
            far = await stack.enter_async_context(MqttBus(self._url(BROKER)))
            await plant.wait_connected(30)
            await _subscribed(plant)
            batches = await stack.enter_async_context(far.subscribe(f"{PREFIX}/confirmed/+", qos=1))
            hearing = asyncio.create_task(self._hear(batches))
            stack.callback(hearing.cancel)
            far.on_connected(self._look)
            outages = await self._pour(plant)
            await self._all_there()
        report = self._report(outages)
        report.seconds = loop.time() - began
        return report

    async def _pour(self, plant: MqttBus) -> list[Outage]:
        down = max(LEAST_DOWN, round(self._events * DOWN))
        starts = [round(self._events * (place + 1) / (len(KILLS) + 1)) for place in range(len(KILLS))]
        plan, outages = list(zip(starts, KILLS, strict=True)), list[Outage]()
        under_way: Outage | None = None
        for first in range(0, self._events, CHUNK):
            if plan and first >= plan[0][0]:
                _, who = plan.pop(0)
                await self._kill(who)
                under_way = Outage(who, first, first + down)
                outages.append(under_way)
            if under_way and first >= under_way.ended:
                if under_way.who != SENDER:  # what came meanwhile waits in the outbox, not before it
                    await _taken_in(plant, first)
                await self._start(under_way.who)
                under_way = None
            plant.publish_many([event(number) for number in range(first, min(first + CHUNK, self._events))])
            await plant.drain()
            while under_way is None and first - self._marks.total() > AHEAD:
                await self._change()
        if under_way:
            await self._start(under_way.who)
        return outages

    async def _hear(self, batches: object) -> None:
        async for batch in batches:  # type: ignore[attr-defined]
            for message in batch:
                self._marks = Counter(envelope.marks(message.payload).marks)
            self._progress.set()

    def _look(self) -> None:
        """What was confirmed while this listener was away from the broker, too, is in the receiver's book."""
        if (store := self._folder / "received.sqlite").exists():
            with closing(sqlite3.connect(store, timeout=30)) as db:
                known = db.execute("SELECT name FROM sqlite_master WHERE name = 'mark'").fetchone()
                rows = db.execute("SELECT lane, seq FROM mark").fetchall() if known else []
            self._marks |= Counter(dict(rows))
            self._progress.set()

    async def _change(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    async def _all_there(self) -> None:
        while self._marks.total() < self._events:
            await self._change()

    # The processes

    def _url(self, name: str) -> str:
        return f"unix:{self._folder}/{name}/mqtt.sock"

    async def _start(self, name: str) -> None:
        command = {"plant": self._broker, BROKER: self._broker, RECEIVER: self._receiver, SENDER: self._sender}[name](
            name
        )
        log = (self._folder / f"{name}.log").open("ab")
        with log:
            self._children[name] = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=log, stderr=log)
        if name in ("plant", BROKER):
            async with MqttBus(self._url(name)) as bus:
                await bus.wait_connected(30)

    async def _kill(self, name: str) -> None:
        child = self._children.pop(name)
        assert child.returncode is None, (
            f"{name} had ended by itself: {(self._folder / f'{name}.log').read_text()[-500:]}"
        )
        child.send_signal(signal.SIGKILL)
        await child.wait()

    async def _end(self) -> None:
        for child in self._children.values():
            if child.returncode is None:
                child.terminate()
        for child in self._children.values():
            await child.wait()

    def _broker(self, name: str) -> list[str]:
        paths = Paths(state=self._folder / f"{name}-state", run=self._folder / name)
        (paths.state / "broker").mkdir(parents=True, exist_ok=True)
        paths.run.mkdir(exist_ok=True)
        (paths.run / "mqtt.sock").unlink(missing_ok=True)
        file = self._folder / f"{name}.conf"
        file.write_text(configuration(paths, Broker(), as_root=os.geteuid() == 0))
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "mosquitto is not installed: apt install mosquitto"
        return [program, "-c", str(file)]

    def _receiver(self, _: str) -> list[str]:
        store = str(self._folder / "received.sqlite")
        return [sys.executable, "-m", "tools.reception", self._url(BROKER), PREFIX, "--store", store]

    def _sender(self, _: str) -> list[str]:
        file = self._folder / "box.toml"
        file.write_text(
            f'[paths]\nstate = "{self._folder}/state"\nrun = "{self._folder}/run"\n'
            f'[bus]\nurl = "{self._url("plant")}"\n'
            f'[forward.mqtt]\nurl = "{self._url(BROKER)}"\nprefix = "{PREFIX}"\nconfirm = "receiver"\n'
            'kinds = ["alarm", "reading"]\ncatch_up_per_s = 0\nbudget_mb = 4096\n'
        )
        return [sys.executable, "-m", "appliance", "--config", str(file), "run", "forward"]

    # What came of it

    def _report(self, outages: list[Outage]) -> Report:
        with sqlite3.connect(self._folder / "received.sqlite") as db:
            rows = db.execute("SELECT rowid, lane, payload FROM event ORDER BY rowid").fetchall()
        seen: Counter[int] = Counter()
        places: dict[str, dict[int, int]] = {"alarm": {}, "reading": {}}
        for place, lane, payload in rows:
            number = serial(lane, payload)
            seen[number] += 1
            places[lane][number] = place
        lost = sum(number not in seen for number in range(self._events))
        report = Report(self._events, lost, sum(seen.values()) - len(seen), outages)
        for outage in outages:
            if outage.who != SENDER:
                self._judge(outage, places, report)
        return report

    def _judge(self, outage: Outage, places: dict[str, dict[int, int]], report: Report) -> None:
        """What came in while the line was certainly down; the last chunks may still have been on their way in."""
        during = range(outage.began + 2 * CHUNK, outage.ended - 4 * CHUNK)
        alarms = {number: places["alarm"][number] for number in during if number in places["alarm"]}
        readings = [places["reading"][number] for number in during if number in places["reading"]]
        if alarms and readings:
            report.alarms_first.append(max(alarms.values()) < min(readings))
            report.newest_first.append(newest_first(sorted(alarms, key=alarms.__getitem__)))


def newest_first(arrived: list[int]) -> bool:
    """Behind those that were under way when the line went: a few, and older than all the others."""
    for under_way in range(len(arrived) // 2 + 1):
        waited = arrived[under_way:]
        if waited == sorted(waited, reverse=True) and max(arrived[:under_way], default=-1) < min(waited, default=0):
            return True
    return False


async def _subscribed(plant: MqttBus) -> None:
    """The sender has a session with the plant's broker: from now on that keeps events for it."""
    async with plant.subscribe(topics.state("forward"), qos=1) as batches:
        async for batch in batches:
            for message in batch:
                state = codec.decode(Kind.STATE, message.payload, BASE)
                if isinstance(state, State) and state.online:
                    return


async def _taken_in(plant: MqttBus, count: int) -> None:
    """So many events are on the sender's disk, those that came twice not counted."""
    async with plant.subscribe(topics.state("forward"), qos=1) as batches:
        async for batch in batches:
            for message in batch:
                state = codec.decode(Kind.STATE, message.payload, BASE)
                assert isinstance(state, State)
                told = state.detail.get("destinations", {}).get("mqtt", {})
                if told and told["received"] - told["dropped"].get("duplicate", 0) >= count:
                    return


BASE = 1_790_000_000_000_000_000  # UTC ns


def event(number: int) -> Message:
    at = BASE + number * 1_000_000_000 // RATE
    asset = f"line1/p{number % ASSETS:02d}"
    if number % ALARM_EVERY:
        payload = b'{"at":%d,"values":{"n":%d}}' % (at, number)
        return Message(topics.topic(Kind.READING, asset), payload, 1)
    alarm = Alarm(f"a{number}", at, at, AlarmState.UNACKNOWLEDGED, Severity.ALARM, "n", 2.0, 1.0)
    return Message(topics.topic(Kind.ALARM, asset), codec.encode(alarm), 1)


def serial(lane: str, payload: bytes) -> int:
    fields = json.loads(payload)
    return int(fields["id"][1:]) if lane == "alarm" else int(fields["values"]["n"])

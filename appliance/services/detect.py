"""Judges readings: bus -> detector -> scores and alarms on the bus.

Order of an alarm's life: decided, made durable, published. What is published can therefore always be told again, and
it is, after each connection to the broker: whoever listens takes the same state twice without harm.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import cbor2
import msgspec

from appliance import __version__
from appliance.bus.port import Batch, Bus, Message
from appliance.errors import BusError, DamagedError, EventError, InferenceError, StoreError
from appliance.events import codec, rows, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import ANOMALY, Alarm, AlarmState, Command, Kind, Label, State, Verdict
from appliance.inference.detector.alarms import AlarmBook, Change
from appliance.inference.detector.detector import Detector, Judged
from appliance.inference.detector.feedback import REPORTED, Feedback, Said
from appliance.inference.detector.rounds import FLAT, MISSING, RANGE, WEAR, Limit
from appliance.runtime import files
from appliance.runtime.service import Clock, Pulse
from appliance.services import commands
from appliance.services.status import Status, tell_ready

log = logging.getLogger(__name__)
_T = TypeVar("_T")

STATE_LIMIT = 256 << 20  # bytes of the state file
PART = 4096  # messages dealt with before the event loop gets its turn
TICK_S = 1.0
GRACE_S = 1.0  # for an inference that is under way at the end
MAX_TOPICS = 16_384  # remembered
GATHER_S = 0.02  # between two judgements: many windows at once cost a fraction of as many alone
OWN_ASSET, SERVED_ASSET, FALLBACK = "millwright/detect", "millwright/infer", "device-fallback"
CONDITIONS = (ANOMALY, FALLBACK, MISSING, FLAT, RANGE, WEAR, REPORTED)  # of alarms that nobody else raises
MINUTE = 60_000_000_000  # ns
MAX_SHELVED = 31 * 24 * 60  # minutes; what is shelved for ever is forgotten


class _Which(msgspec.Struct, forbid_unknown_fields=True):
    alarm: str  # its id or its asset


class _Shelve(msgspec.Struct, forbid_unknown_fields=True):
    alarm: str
    minutes: Annotated[float, msgspec.Meta(gt=0, le=MAX_SHELVED)]


class Computer(Protocol):
    """What runs the model."""

    @property
    def device(self) -> str: ...  # that computes now

    @property
    def fallback(self) -> str: ...  # why it is not the one that was wished for

    @property
    def alarm(self) -> str: ...  # the part of it that somebody is called for

    @property
    def slow(self) -> bool: ...  # the loop must not wait for it

    def close(self) -> None: ...


class _Lane(NamedTuple):
    """How the readings of a topic are taken as long as they are what they were."""

    asset: str
    points: list[str]
    read: rows.Reader


class Detect:
    """`state_file` holds what was learned and which alarms stand; `checkpoint_s` is how often it is written."""

    name = "detect"

    def __init__(
        self,
        bus: Bus,
        detector: Detector,
        computer: Computer,
        state_file: Path,
        checkpoint_s: int,
        clock: Clock,
        limits: Sequence[Limit] = (),
    ) -> None:
        self._bus, self._detector, self._computer, self._clock = bus, detector, computer, clock
        self._state_file, self._checkpoint_s = state_file, checkpoint_s
        self._book = AlarmBook()
        self._rounds = detector.rounds(limits)
        self._feedback = Feedback(self._book, detector, self._rounds)
        self._ledger, self._commands = Ledger(), Ledger()
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)
        self._saving = asyncio.Lock()
        self._detecting = asyncio.Lock()  # the detector is at work, maybe in a thread
        self._taken = asyncio.Event()  # readings that were not judged yet
        self._saved_at_count = 0
        self._assets: dict[str, str] = {}  # by topic
        self._lanes: dict[str, _Lane] = {}  # by topic
        self._trouble = ""

    async def run(self, pulse: Pulse) -> None:
        self._restore()
        self._bus.on_connected(self._assert_alarms)
        async with self._bus:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._status.run(pulse), name="detect status")
                    group.create_task(self._serve(), name="detect commands")
                    group.create_task(self._tend(), name="detect checkpoints")
                    group.create_task(self._clear_ghosts(), name="detect ghosts")
                    group.create_task(self._watch_served(), name="detect served models")
                    group.create_task(self._judge_together(), name="detect judgements")
                    group.create_task(self._take_blocks(), name="detect blocks")
                    group.create_task(self._take_readings(pulse), name="detect readings")
            finally:
                await self._save()
                self._status.publish(online=False)
                await asyncio.to_thread(self._computer.close)

    async def _take_readings(self, pulse: Pulse) -> None:
        async with self._bus.subscribe(topics.everything(Kind.READING)) as batches:
            await tell_ready(self._bus, pulse)
            async for batch in batches:
                for part in _parts(batch):
                    await self._detect(partial(self._take, part, self._clock()))
                    self._taken.set()
                    if len(part) == PART:
                        await self._judge()
                    pulse.beat()
                    await asyncio.sleep(0)

    async def _take_blocks(self) -> None:
        async with self._bus.subscribe(topics.everything(Kind.BLOCK)) as batches:
            async for batch in batches:
                self._ledger.received += len(batch)
                for message in batch:
                    await self._detect(partial(self._take_block, message, self._clock()))
                    await asyncio.sleep(0)
                self._taken.set()

    def _take_block(self, message: Message, now: int) -> None:
        try:
            asset = self._assets.get(message.topic) or self._parse(message.topic)
            self._detector.push_block(asset, codec.decode_block(message.payload, now))
            self._ledger.processed += 1
        except EventError as error:
            self._ledger.refuse(error)

    async def _judge_together(self) -> None:
        """At once where it is quiet; where it is busy so much later that what came meanwhile shares the work."""
        while True:
            await self._taken.wait()
            await self._judge()
            await asyncio.sleep(GATHER_S)

    async def _judge(self) -> None:
        self._taken.clear()
        await self._tell(await self._detect(self._detector.judge))

    async def _detect(self, work: Callable[[], _T]) -> _T:
        """Whatever may infer. Where that takes long, or may hang, the loop goes on meanwhile."""
        async with self._detecting:
            if not self._computer.slow:
                return work()
            working = asyncio.create_task(asyncio.to_thread(work))
            try:
                return await asyncio.shield(working)
            except asyncio.CancelledError:
                await asyncio.wait([working], timeout=GRACE_S)
                raise

    def _take(self, batch: Batch, now: int) -> None:
        """`now` in UTC ns stands in for the times of readings that carry none, a nanosecond apart: equal times would
        make a duplicate of a value that stands still."""
        lane_of, push_row, swift = self._lanes.get, self._detector.push_row, 0
        self._ledger.received += len(batch)
        for arrival, message in enumerate(batch, now):
            lane = lane_of(message.topic)
            if lane and (row := lane.read(message.payload)) and push_row(lane.asset, arrival, lane.points, row):
                swift += 1
            else:
                self._take_thoroughly(message, arrival)
        self._ledger.processed += swift

    def _take_thoroughly(self, message: Message, arrival: int) -> None:
        self._lanes.pop(message.topic, None)
        try:
            asset = self._assets.get(message.topic) or self._parse(message.topic)
            reading = codec.decode_reading(message.payload, arrival)
            self._detector.push(asset, reading)
        except EventError as error:
            self._ledger.refuse(error)
            return
        self._ledger.processed += 1
        if reading.at == arrival and message.payload[:1] == b"{":
            self._open_lane(message.topic, asset, len(reading.values))

    def _parse(self, topic: str) -> str:
        asset = topics.parse(topic).path
        if len(self._assets) >= MAX_TOPICS:
            self._assets.clear()  # a flood of names must not fill the memory
        self._assets[topic] = asset
        return asset

    def _open_lane(self, topic: str, asset: str, width: int) -> None:
        """The next reading of the topic may be like this one: a bare JSON map of all points."""
        points = self._detector.points(asset)
        if points is not None and len(points) == width and (read := rows.reader(points)):
            if len(self._lanes) >= MAX_TOPICS:
                self._lanes.clear()
            self._lanes[topic] = _Lane(asset, points, read)

    async def _tell(self, judged: list[Judged]) -> None:
        if not judged:
            return
        encode, topic = codec.encode, topics.topic
        self._bus.publish_many([Message(topic(Kind.SCORE, asset), encode(score)) for asset, score in judged])
        changes = [change for asset, score in judged if (change := self._book.judge(asset, score))]
        await self._commit(changes)

    async def _commit(self, changes: list[Change]) -> None:
        if not changes:
            return
        await self._save()
        for change in changes:
            log.info("%s: %s %s (%s)", change.asset, change.alarm.severity, change.alarm.state, change.alarm.cause)
            self._publish(change)

    def _publish(self, change: Change) -> None:
        ended = change.alarm.state is AlarmState.NORMAL
        try:
            topic = topics.alarm(change.asset, change.alarm.condition)
            self._bus.publish(topic, codec.encode(change.alarm), qos=1, retain=not ended)
            if ended:
                self._bus.publish(topic, b"", qos=1, retain=True)
        except BusError as error:
            log.warning("%s; told again after the next connection", error.message)

    def _publish_label(self, asset: str, label: Label) -> None:
        try:
            self._bus.publish(topics.topic(Kind.LABEL, asset), codec.encode(label), qos=1)
        except BusError as error:
            log.warning("%s; told again after the next connection", error.message)

    def _assert_alarms(self) -> None:
        """Broker and listeners may have lost what they had: say the last ended alarms, all standing ones and the last
        labels again."""
        for change in self._book.ended:
            if (change.asset, change.alarm.condition) not in self._book.standing:
                self._publish(change)
        for (asset, _), alarm in self._book.standing.items():
            self._publish(Change(asset, alarm))
        for asset, label in self._feedback.labels:
            self._publish_label(asset, label)

    async def _clear_ghosts(self) -> None:
        """Retained alarms of a former life of this box, which nobody would ever end."""
        async with self._bus.subscribe(topics.everything(Kind.ALARM), qos=1) as batches:
            async for batch in batches:
                for message in batch:
                    ghost = self._ghost(message)
                    if ghost is not None:
                        self._publish(ghost)

    def _ghost(self, message: Message) -> Change | None:
        if not (message.retain and message.payload):
            return None
        try:
            asset = topics.parse(message.topic).path
            alarm = codec.decode(Kind.ALARM, message.payload, self._clock())
        except EventError as error:
            log.warning("%s carries no alarm: %s", message.topic, error.message)
            return None
        if isinstance(alarm, Alarm) and message.topic != topics.alarm(asset, alarm.condition):
            self._bus.publish(message.topic, b"", qos=1, retain=True)  # of a release that had one topic an asset
        if not isinstance(alarm, Alarm) or alarm.condition not in CONDITIONS or self._book.knows(asset, alarm.id):
            return None
        return Change(asset, msgspec.structs.replace(alarm, at=self._clock(), state=AlarmState.NORMAL, active=False))

    async def _tend(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            await self._commit([*self._book.expire(self._clock()), *self._devices(), *await self._go_round()])
            if ticks % self._checkpoint_s == 0 and self._ledger.processed != self._saved_at_count:
                await self._save()

    async def _go_round(self) -> list[Change]:
        async with self._detecting:
            now = self._clock()
            return self._feedback.find(self._rounds.walk(now, self._bus.connected), now)

    def _devices(self) -> Iterator[Change]:
        """Nobody shall believe that the accelerator computes while it does not."""
        why, device = self._computer.alarm, self._computer.device
        change = self._book.hold(OWN_ASSET, FALLBACK, why, self._clock(), why.partition(" ")[0].rstrip(":"), device)
        if change is not None:
            yield change

    async def _serve(self) -> None:
        await commands.serve(self._bus, self.name, self._handlers(), self._clock, self._commands)

    async def _watch_served(self) -> None:
        """Models that are served to others fall back, too: the alarm for them has its one owner here."""
        async with self._bus.subscribe(topics.state("infer"), qos=1) as batches:
            async for batch in batches:
                for message in batch:
                    await self._commit(list(self._served(message)))

    def _served(self, message: Message) -> Iterator[Change]:
        try:
            state = codec.decode(Kind.STATE, message.payload, self._clock())
        except EventError:
            return  # it has been cleared, or is nobody's state
        if isinstance(state, State) and state.online:
            why = str(state.detail.get("alarm", ""))
            cause = why.partition(":")[0]
            if change := self._book.hold(SERVED_ASSET, FALLBACK, why, self._clock(), cause):
                yield change

    def _handlers(self) -> dict[str, commands.Handler]:
        return {
            "ack": self._acknowledge,
            "shelve": self._shelve,
            "unshelve": self._unshelve,
            "normal": partial(self._judged_by_person, Verdict.NORMAL),
            "fault": partial(self._judged_by_person, Verdict.FAULT),
            "relearn": self._relearn,
        }

    async def _acknowledge(self, command: Command) -> dict[str, Any]:
        alarm = commands.arguments(command, _Which).alarm
        return await self._operate(self._book.acknowledge(alarm, command.by, self._clock()))

    async def _shelve(self, command: Command) -> dict[str, Any]:
        asked, now = commands.arguments(command, _Shelve), self._clock()
        until = now + round(asked.minutes * MINUTE)
        return await self._operate(self._book.shelve(asked.alarm, command.by, now, until))

    async def _unshelve(self, command: Command) -> dict[str, Any]:
        alarm = commands.arguments(command, _Which).alarm
        return await self._operate(self._book.unshelve(alarm, command.by, self._clock()))

    async def _judged_by_person(self, verdict: Verdict, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, Said)
        async with self._detecting:
            answer = self._feedback.take(verdict, asked, command.by, self._clock())
        await self._save()
        for change in answer.changes:
            self._publish(change)
        if answer.label is not None:
            self._publish_label(answer.asset, answer.label)
        return answer.result

    async def _relearn(self, command: Command) -> dict[str, Any]:
        asset = commands.arguments(command, _Which).alarm
        async with self._detecting:
            changes = self._feedback.relearn(asset, command.by, self._clock())
        await self._save()
        for change in changes:
            self._publish(change)
        return {"asset": asset, "state": "learning anew"}

    async def _operate(self, change: Change) -> dict[str, Any]:
        await self._commit([change])
        return {"asset": change.asset, "alarm": change.alarm.id, "state": change.alarm.state.value}

    async def _save(self) -> None:
        """Write what was learned and which alarms stand. A disk that refuses is shown, and tried again."""
        async with self._saving:
            self._saved_at_count = self._ledger.processed
            async with self._detecting:
                state = {
                    "alarms": self._book.snapshot(),
                    "detector": self._detector.snapshot(),
                    "rounds": self._rounds.snapshot(),
                    "feedback": self._feedback.snapshot(),
                }
            data = cbor2.dumps(state)
            try:
                await asyncio.to_thread(files.write_sealed, self._state_file, data)
                self._trouble = ""
            except StoreError as error:
                self._trouble = error.message
                log.error("%s", error)

    def _restore(self) -> None:
        try:
            data = files.read_sealed(self._state_file, STATE_LIMIT)
            if data is not None:
                self._adopt(data)
        except DamagedError as error:
            aside = files.set_aside(self._state_file, self._clock())
            self._trouble = f"{error.message}: learning anew; the old file is {aside.name}"
            log.error("%s", self._trouble)

    def _adopt(self, data: bytes) -> None:
        try:
            state = cbor2.loads(data)
            self._detector.restore(state["detector"])
            self._book.restore(state["alarms"])
            if "rounds" in state:  # a release before this one did without
                self._rounds.restore(state["rounds"])
                self._feedback.restore(state["feedback"])
        except (
            cbor2.CBORDecodeError,
            msgspec.ValidationError,
            InferenceError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise DamagedError(f"{self._state_file} is not what this release writes ({error})") from error

    def _detail(self) -> dict[str, Any]:
        refused = {"commands_dropped": dict(self._commands.dropped)} if self._commands.dropped else {}
        return {
            **self._detector.describe(),
            **self._rounds.describe(),
            **self._feedback.describe(),
            **refused,
            "alarms": len(self._book.standing),
            "device": self._computer.device,
            "fallback": self._computer.fallback,
            "trouble": self._trouble,
        }


def _parts(batch: Batch) -> Iterator[Batch]:
    for start in range(0, len(batch), PART):
        yield batch[start : start + PART]

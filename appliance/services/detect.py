"""Judges readings: bus -> detector -> scores and alarms on the bus.

Order of an alarm's life: decided, made durable, published. What is published can therefore always be told again, and
it is, after each connection to the broker: whoever listens takes the same state twice without harm.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import cbor2
import msgspec

from appliance import __version__
from appliance.bus.port import Batch, Bus, Message
from appliance.errors import DamagedError, EventError, InferenceError, StoreError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Command, Kind, State, Verdict
from appliance.inference.detector.alarms import AlarmBook, Change
from appliance.inference.detector.detector import Detector, Judged
from appliance.inference.detector.feedback import Feedback, Said
from appliance.inference.detector.quality import Limit
from appliance.runtime import files, memory
from appliance.runtime.service import Clock, Pulse
from appliance.services import commands
from appliance.services.annunciator import FALLBACK, Annunciator
from appliance.services.gathering import Gathering
from appliance.services.intake import Intake
from appliance.services.roster import Roster
from appliance.services.status import Status, tell_ready

log = logging.getLogger(__name__)
_T = TypeVar("_T")

STATE_LIMIT = 256 << 20  # bytes of the state file
PART = 2048  # messages dealt with before the event loop gets its turn
TICK_S = 1.0
TIDY_TICKS = 5  # between two times that free memory is given back: lessons and judgements leave some 5 MB of it
GRACE_S = 1.0  # for an inference that is under way at the end
LAST_S = 0.015  # so long do readings wait for others when none come any more
OWN_ASSET, SERVED_ASSET = "millwright/detect", "millwright/infer"
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
        roster: Roster | None = None,
    ) -> None:
        self._bus, self._detector, self._computer, self._clock = bus, detector, computer, clock
        self._state_file, self._checkpoint_s = state_file, checkpoint_s
        self._book = AlarmBook()
        self._rounds = detector.rounds(limits)
        self._feedback = Feedback(self._book, detector, self._rounds)
        self._annunciator = Annunciator(bus, self._book, self._feedback, clock)
        self._ledger, self._commands = Ledger(), Ledger()
        self._intake = Intake(detector, self._ledger)
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)
        self._alarm_file = state_file.with_name(f"{state_file.name}.alarms")
        self._writes = 0  # of either file
        self._detecting = asyncio.Lock()  # the detector is at work, maybe in a thread
        self._roster = roster  # without one the model stays what it is
        if roster is not None:
            roster.attach(detector, self._detecting)
        self._gathering, self._saving = Gathering(), asyncio.Lock()
        self._taken = asyncio.Event()  # something waits to be judged
        self._saved_at_count, self._trouble = 0, ""

    async def run(self, pulse: Pulse) -> None:
        self._loop = asyncio.get_running_loop()
        self._restore()
        self._bus.on_connected(self._annunciator.assert_all)
        async with self._bus:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._status.run(pulse), name="detect status")
                    group.create_task(self._serve(), name="detect commands")
                    group.create_task(self._tend(), name="detect checkpoints")
                    group.create_task(self._annunciator.clear_ghosts(), name="detect ghosts")
                    group.create_task(self._watch_served(), name="detect served models")
                    group.create_task(self._judge_last(), name="detect judgements")
                    group.create_task(self._take_blocks(), name="detect blocks")
                    group.create_task(self._take_readings(pulse), name="detect readings")
                    if self._roster is not None:
                        group.create_task(self._roster.run(), name="detect models")
            finally:
                await self._save()
                self._status.publish(online=False)
                await asyncio.to_thread(self._computer.close)

    async def _take_readings(self, pulse: Pulse) -> None:
        async with self._bus.subscribe(topics.everything(Kind.READING)) as batches:
            await tell_ready(self._bus, pulse)
            memory.settle()
            async for batch in batches:
                for part in _parts(batch):
                    await self._detect(partial(self._intake.take, part, self._clock()))
                    await self._judge_in_time(len(part))
                    pulse.beat()
                    if part is not batch:
                        await asyncio.sleep(0)

    async def _take_blocks(self) -> None:
        async with self._bus.subscribe(topics.everything(Kind.BLOCK)) as batches:
            async for batch in batches:
                for message in batch:
                    await self._detect(partial(self._intake.take_block, message, self._clock()))
                    await self._judge_in_time(1)
                    await asyncio.sleep(0)

    async def _judge_in_time(self, taken: int) -> None:
        if self._gathering.took(taken, self._loop.time()):
            await self._judge()
        else:
            self._taken.set()

    async def _judge_last(self) -> None:
        """What nothing came after."""
        while True:
            await self._taken.wait()
            self._taken.clear()
            await asyncio.sleep(LAST_S)
            if self._gathering.waiting:
                await self._judge_in_time(0)

    async def _judge(self) -> None:
        began = time.process_time()
        judged = await self._detect(self._detector.judge)
        self._gathering.begun()  # before anything is awaited: readings come in while an alarm is written down
        await self._tell(judged)
        spent = time.process_time()
        self._gathering.judged(spent - began, spent, self._loop.time())

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

    async def _tell(self, judged: list[Judged]) -> None:
        if not judged:
            return
        self._publish(judged)
        changes = [change for asset, score in judged if (change := self._book.judge(asset, score))]
        await self._commit(changes)

    def _publish(self, judged: list[Judged]) -> None:
        encode, topic = codec.encode, topics.topic
        self._bus.publish_many([Message(topic(Kind.SCORE, asset), encode(score)) for asset, score in judged])

    async def _commit(self, changes: list[Change]) -> None:
        if not changes:
            return
        await self._save_alarms()
        for change in changes:
            log.info("%s: %s %s (%s)", change.asset, change.alarm.severity, change.alarm.state, change.alarm.cause)
            self._annunciator.publish(change)

    async def _tend(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            await self._commit([*self._book.expire(self._clock()), *self._devices(), *await self._go_round()])
            if ticks % TIDY_TICKS == 0:
                memory.give_back()
            if ticks % self._checkpoint_s == 0 and self._ledger.processed != self._saved_at_count:
                await self._save()

    async def _go_round(self) -> list[Change]:
        async with self._detecting:
            now = self._clock()
            changes = self._feedback.find(self._rounds.walk(now, self._bus.connected), now)
            self._publish(self._rounds.early())
            return changes

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
            "ping": lambda _: {},  # whoever asks wants to know whether it lives
            **(self._roster.handlers() if self._roster is not None else {}),
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
            self._annunciator.publish(change)
        if answer.changes and self._roster is not None:
            self._roster.contests.said(answer.asset, verdict)
        if answer.label is not None:
            self._annunciator.publish_label(answer.asset, answer.label)
        return answer.result

    async def _relearn(self, command: Command) -> dict[str, Any]:
        asset = commands.arguments(command, _Which).alarm
        async with self._detecting:
            changes = self._feedback.relearn(asset, command.by, self._clock())
        await self._save()
        for change in changes:
            self._annunciator.publish(change)
        return {"asset": asset, "state": "learning anew"}

    async def _operate(self, change: Change) -> dict[str, Any]:
        await self._commit([change])
        return {"asset": change.asset, "alarm": change.alarm.id, "state": change.alarm.state.value}

    async def _save_alarms(self) -> None:
        """Write what an alarm changes, which is little: what was learned is as large as the site, and can wait."""
        async with self._saving:
            self._writes += 1
            async with self._detecting:
                state = {
                    "write": self._writes,
                    "alarms": self._book.snapshot(),
                    "latches": self._detector.latches(),
                    "rounds": self._rounds.told(),
                    "feedback": self._feedback.snapshot(),
                }
            await self._write(self._alarm_file, state)

    async def _save(self) -> None:
        """Write what was learned and which alarms stand. A disk that refuses is shown, and tried again."""
        async with self._saving:
            self._saved_at_count = self._ledger.processed
            self._writes += 1
            async with self._detecting:
                state = {
                    "write": self._writes,
                    "alarms": self._book.snapshot(),
                    "detector": self._detector.snapshot(),
                    "rounds": self._rounds.snapshot(),
                    "feedback": self._feedback.snapshot(),
                }
                if self._roster is not None:
                    state["contest"] = self._roster.contests.snapshot()
            await self._write(self._state_file, state)

    async def _write(self, path: Path, state: dict[str, Any]) -> None:
        try:
            await asyncio.to_thread(files.write_sealed, path, cbor2.dumps(state))
            self._trouble = ""
        except StoreError as error:
            self._trouble = error.message
            log.error("%s", error)

    def _restore(self) -> None:
        self._read(self._state_file, self._adopt, "learning anew")
        self._read(self._alarm_file, self._adopt_alarms, "alarms are those of the last checkpoint")

    def _read(self, path: Path, adopt: Callable[[dict[str, Any]], None], otherwise: str) -> None:
        try:
            data = files.read_sealed(path, STATE_LIMIT)
            if data is not None:
                _understand(path, data, adopt)
        except DamagedError as error:
            aside = files.set_aside(path, self._clock())
            self._trouble = f"{error.message}: {otherwise}; the old file is {aside.name}"
            log.error("%s", self._trouble)

    def _adopt(self, state: dict[str, Any]) -> None:
        self._detector.restore(state["detector"])
        self._book.restore(state["alarms"])
        self._writes = int(state.get("write", 0))
        if self._roster is not None:
            self._roster.contests.restore(state.get("contest"))
        if "rounds" in state:  # a release before this one did without
            self._rounds.restore(state["rounds"])
            self._feedback.restore(state["feedback"])

    def _adopt_alarms(self, state: dict[str, Any]) -> None:
        """What is newer than the last checkpoint."""
        if state["write"] <= self._writes:
            return
        self._writes = int(state["write"])
        self._book.restore(state["alarms"])
        self._detector.set_latches(state["latches"])
        self._rounds.retell(state["rounds"])
        self._feedback.restore(state["feedback"])

    def _detail(self) -> dict[str, Any]:
        refused = {"commands_dropped": dict(self._commands.dropped)} if self._commands.dropped else {}
        return {
            **self._detector.describe(),
            **self._rounds.describe(),
            **self._feedback.describe(),
            **({"choice": self._roster.describe()} if self._roster is not None else {}),
            **refused,
            "alarms": len(self._book.standing),
            "device": self._computer.device,
            "fallback": self._computer.fallback,
            "trouble": self._trouble,
        }


def _understand(path: Path, data: bytes, adopt: Callable[[dict[str, Any]], None]) -> None:
    """DamagedError where the file is of another kind."""
    try:
        adopt(cbor2.loads(data))
    except (
        cbor2.CBORDecodeError,
        msgspec.ValidationError,
        InferenceError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise DamagedError(f"{path} is not what this release writes ({error})") from error


def _parts(batch: Batch) -> Iterator[Batch]:
    if len(batch) <= PART:
        yield batch
        return
    for start in range(0, len(batch), PART):
        yield batch[start : start + PART]

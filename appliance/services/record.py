"""Keeps readings, waveforms, alarms and labels: bus -> SQLite.

Readings are committed in groups. Alarms are committed before the bus acknowledges them: whatever happens in between,
they are delivered again, and a state that comes twice leaves one row.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

from appliance import __version__
from appliance.bus.port import Batch, Bus, Message
from appliance.config import schema
from appliance.errors import DamagedError, EventError, StoreError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Alarm, Kind, Label
from appliance.runtime.service import Clock, Pulse
from appliance.services.status import Status, tell_ready
from appliance.store import alarms, labels
from appliance.store.alarms import Alarms, Change
from appliance.store.history import History
from appliance.store.labels import Labelled
from appliance.store.writer import Writer

log = logging.getLogger(__name__)

PART = 1024  # messages dealt with before the event loop gets its turn
RETRY_S = 1.0
_SECOND = 1_000_000_000  # ns

Take = Callable[[str, bytes, int], None]  # asset, payload, arrival


class Record:
    """Opens the stores itself, and again after a failure; a disk that refuses is shown and tried again."""

    name = "record"

    def __init__(self, bus: Bus, history: History, alarms: Alarms, settings: schema.Record, clock: Clock) -> None:
        self._bus, self._history, self._alarms, self._settings, self._clock = bus, history, alarms, settings, clock
        self._ledger = Ledger()
        self._writer = Writer(history, self._ledger, clock, settings.commit_ms / 1000, settings.max_assets)
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)
        self._takers: dict[Kind, Take] = {Kind.READING: self._take_reading, Kind.BLOCK: self._take_block}
        self._routes: dict[str, tuple[Take, str]] = {}  # of topics that were parsed before
        self._newest_arrival = 0
        self._alarm_trouble = self._alarm_notice = ""
        self._alarms_recorded = 0

    async def run(self, pulse: Pulse) -> None:
        async with self._bus:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._writer.run(), name="record commits")
                    group.create_task(self._record_alarms(), name="record alarms")
                    group.create_task(self._record_readings(pulse), name="record readings")
                    group.create_task(self._status.run(pulse), name="record status")
            finally:
                self._alarms.close()
                self._status.publish(online=False)

    async def _record_readings(self, pulse: Pulse) -> None:
        filters = [topics.everything(kind) for kind in self._takers]
        async with self._bus.subscribe(*filters) as batches:
            await tell_ready(self._bus, pulse)
            async for batch in batches:
                for part in _parts(batch):
                    self._take(part, self._arrival(len(part)))
                    await asyncio.sleep(0)

    def _arrival(self, count: int) -> int:
        """Of the first of so many messages; each is a nanosecond later than the one before it, whatever the clock does.

        So those that carry no time of their own never share one, and none is lost as a repeat.
        """
        now = self._clock()
        if 0 <= self._newest_arrival - now < _SECOND:
            now = self._newest_arrival + 1
        self._newest_arrival = now + count - 1
        return now

    def _take(self, batch: Batch, now: int) -> None:
        self._ledger.received += len(batch)
        routes = self._routes
        for arrival, message in enumerate(batch, now):
            try:
                take, asset = routes.get(message.topic) or self._route(message.topic)
                take(asset, message.payload, arrival)
            except EventError as error:
                self._ledger.refuse(error, message.topic)

    def _take_reading(self, asset: str, payload: bytes, arrival: int) -> None:
        self._writer.add(asset, codec.decode_reading(payload, arrival), arrival)

    def _take_block(self, asset: str, payload: bytes, arrival: int) -> None:
        self._writer.add_block(asset, codec.decode_block(payload, arrival))

    def _route(self, topic: str) -> tuple[Take, str]:
        kind, asset = topics.parse(topic)
        if len(self._routes) > 2 * self._settings.max_assets:
            self._routes.clear()  # a flood of names must not fill the memory
        route = self._routes[topic] = (self._takers[kind], asset)
        return route

    async def _record_alarms(self) -> None:
        filters = [topics.everything(kind) for kind in (Kind.ALARM, Kind.LABEL)]
        async with self._bus.subscribe(*filters, qos=1) as batches:
            await self._commit([], [])  # the database is there before the first alarm
            async for batch in batches:  # asking for the next one acknowledges this one
                self._ledger.received += len(batch)
                found = [one for message in batch if (one := self._change(message)) is not None]
                changes = [one for one in found if isinstance(one, Change)]
                said = [one for one in found if isinstance(one, Labelled)]
                if found:
                    await self._commit(changes, said)
                    self._ledger.processed += len(found)

    def _change(self, message: Message) -> Change | Labelled | None:
        """None where there is nothing to record; that is counted here."""
        if not message.payload:  # the retained message of an alarm that ended is cleared
            self._ledger.processed += 1
            return None
        try:
            kind, asset = topics.parse(message.topic)
            event = codec.decode(kind, message.payload, self._clock())
            if isinstance(event, Label):
                labels.check(event)
                return Labelled(asset, event)
            assert isinstance(event, Alarm)
            alarms.check(event)
        except EventError as error:
            self._ledger.refuse(error, message.topic)
            return None
        return Change(asset, event)

    async def _commit(self, changes: list[Change], said: list[Labelled]) -> None:
        """Until they are on the disk; the broker keeps what comes meanwhile."""
        while True:
            try:
                self._alarms_recorded += await asyncio.to_thread(self._alarms.record, changes)
                if said:
                    await asyncio.to_thread(self._alarms.record_labels, said)
                self._alarm_trouble = ""
                return
            except DamagedError as error:
                self._set_alarms_aside(error)
            except StoreError as error:
                self._alarm_trouble = error.message
                log.error("alarms cannot be recorded: %s", error)
            await asyncio.sleep(RETRY_S)

    def _set_alarms_aside(self, error: DamagedError) -> None:
        self._alarm_trouble = error.message
        try:
            aside = self._alarms.set_aside(self._clock())
        except StoreError as refused:
            log.error("%s", refused)
            return
        self._alarm_notice = f"{error.message}; it was set aside as {aside.name} and a new one begun"
        log.error("%s", self._alarm_notice)

    def _detail(self) -> dict[str, Any]:
        tally, writer = self._history.tally, self._writer
        return {
            "readings": tally.rows,
            "commits": tally.commits,
            "repeats": tally.repeats,
            "rotten": tally.rotten,
            "deleted": tally.deleted,
            "assets": writer.pending.assets,
            "bytes": self._history.bytes_on_disk(),
            "budget_mb": self._settings.budget_mb,
            "alarm_states": self._alarms_recorded,
            "trouble": writer.trouble or self._alarm_trouble,
            "notice": " ".join(filter(None, (writer.notice, self._alarm_notice))),
        }


def _parts(batch: Batch) -> Iterator[Batch]:
    for start in range(0, len(batch), PART):
        yield batch[start : start + PART]

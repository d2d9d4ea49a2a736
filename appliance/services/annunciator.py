"""Tells alarms and labels on the bus, again after each connection, and ends those of a former life of this box."""

import logging

import msgspec

from appliance.bus.port import Bus, Message
from appliance.errors import BusError, EventError
from appliance.events import codec, topics
from appliance.events.schema import ANOMALY, Alarm, AlarmState, Kind, Label
from appliance.inference.detector.alarms import AlarmBook, Change
from appliance.inference.detector.feedback import REPORTED, Feedback
from appliance.inference.detector.findings import FLAT, MISSING, RANGE, WEAR
from appliance.runtime.service import Clock

log = logging.getLogger(__name__)

FALLBACK = "device-fallback"
CONDITIONS = (ANOMALY, FALLBACK, MISSING, FLAT, RANGE, WEAR, REPORTED)  # of alarms that nobody else raises


class Annunciator:
    """What is told here is durable already."""

    def __init__(self, bus: Bus, book: AlarmBook, feedback: Feedback, clock: Clock) -> None:
        self._bus, self._book, self._feedback, self._clock = bus, book, feedback, clock

    def publish(self, change: Change) -> None:
        ended = change.alarm.state is AlarmState.NORMAL
        try:
            topic = topics.alarm(change.asset, change.alarm.condition)
            self._bus.publish(topic, codec.encode(change.alarm), qos=1, retain=not ended)
            if ended:
                self._bus.publish(topic, b"", qos=1, retain=True)
        except BusError as error:
            log.warning("%s; told again after the next connection", error.message)

    def publish_label(self, asset: str, label: Label) -> None:
        try:
            self._bus.publish(topics.topic(Kind.LABEL, asset), codec.encode(label), qos=1)
        except BusError as error:
            log.warning("%s; told again after the next connection", error.message)

    def assert_all(self) -> None:
        """Broker and listeners may have lost what they had: say the last ended alarms, all standing ones and the last
        labels again."""
        for change in self._book.ended:
            if (change.asset, change.alarm.condition) not in self._book.standing:
                self.publish(change)
        for (asset, _), alarm in self._book.standing.items():
            self.publish(Change(asset, alarm))
        for asset, label in self._feedback.labels:
            self.publish_label(asset, label)

    async def clear_ghosts(self) -> None:
        """Retained alarms of a former life of this box, which nobody would ever end."""
        async with self._bus.subscribe(topics.everything(Kind.ALARM), qos=1) as batches:
            async for batch in batches:
                for message in batch:
                    ghost = self._ghost(message)
                    if ghost is not None:
                        self.publish(ghost)

    def _ghost(self, message: Message) -> Change | None:
        if not (message.retain and message.payload):
            return None
        try:
            asset = topics.parse(message.topic).path
            alarm = codec.decode(Kind.ALARM, message.payload, self._clock())
        except EventError as error:
            log.warning("%s carries no alarm: %s", message.topic, error.message)
            return None
        if not isinstance(alarm, Alarm) or alarm.condition not in CONDITIONS:
            return None
        if message.topic != topics.alarm(asset, alarm.condition):
            self._bus.publish(message.topic, b"", qos=1, retain=True)  # of a release that had one topic an asset
        if self._book.knows(asset, alarm.id):
            return None
        return Change(asset, msgspec.structs.replace(alarm, at=self._clock(), state=AlarmState.NORMAL, active=False))

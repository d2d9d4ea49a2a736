"""From messages to rows of the detector: topics parsed once, payloads decoded, books kept."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import astuple

from appliance.bus.port import Batch, Message
from appliance.errors import EventError
from appliance.events import codec, rows, topics
from appliance.events.ledger import Ledger
from appliance.inference.detector.detector import Detector
from appliance.inference.detector.lots import Lot, pack

MAX_TOPICS = 16_384  # remembered
MANY = 512  # messages from which on those of one topic are taken together
SEVERAL = 8  # of one topic, for which that pays


class _Lane(NamedTuple):
    """How the readings of a topic are taken as long as they are what they were."""

    asset: str
    points: list[str]
    decode: rows.Decode


class _Share(NamedTuple):
    """Of a batch: one topic's."""

    lot: Lot
    messages: Batch


class Intake:
    """`ledger` counts what comes, what is taken, and what is refused under which reason."""

    def __init__(self, detector: Detector, ledger: Ledger) -> None:
        self._detector, self._ledger = detector, ledger
        self._assets: dict[str, str] = {}  # by topic
        self._lanes: dict[str, _Lane] = {}  # by topic

    def take(self, batch: Batch, now: int) -> None:
        """`now` in UTC ns stands in for the times of readings that carry none, a nanosecond apart: equal times would
        make a duplicate of a value that stands still."""
        self._ledger.received += len(batch)
        if len(batch) < MANY:
            self._take_in_turn(batch, now)
        else:
            self._take_together(batch, now)

    def _take_in_turn(self, messages: Iterable[Message], now: int) -> None:
        lane_of, push_row, swift = self._lanes.get, self._detector.push_row, 0
        for arrival, message in enumerate(messages, now):
            lane = lane_of(message.topic)
            if lane is not None:
                asset, points, decode = lane
                try:
                    row = decode(message.payload)
                except rows.UNREADABLE:
                    row = None
                if row is not None and push_row(asset, arrival, points, astuple(row)):
                    swift += 1
                    continue
            self._take_thoroughly(message, arrival)
        self._ledger.processed += swift

    def _take_together(self, batch: Batch, now: int) -> None:
        """Topic by topic: an asset's own messages keep their order."""
        by_topic: defaultdict[str, Batch] = defaultdict(list)
        for message in batch:
            by_topic[message.topic].append(message)
        by_width: defaultdict[int, list[_Share]] = defaultdict(list)
        others: Batch = []
        for topic, messages in by_topic.items():
            lot = self._lot(topic, messages) if len(messages) >= SEVERAL else None
            if lot is None:
                others += messages
            else:
                by_width[len(lot.points)].append(_Share(lot, messages))
        for shares in by_width.values():
            now = self._take_shares(shares, now)
        self._take_in_turn(others, now)

    def _lot(self, topic: str, messages: Batch) -> Lot | None:
        """None where there is one among them that has to be looked at."""
        lane = self._lanes.get(topic)
        if lane is None:
            return None
        asset, points, decode = lane
        try:
            packed = pack([astuple(decode(message.payload)) for message in messages])
        except rows.UNREADABLE:
            return None
        return Lot(asset, points, len(messages), packed)

    def _take_shares(self, shares: list[_Share], now: int) -> int:
        """The next time."""
        taken = self._detector.push_lots([share.lot for share in shares], now)
        for (_, messages), swift in zip(shares, taken, strict=True):
            self._ledger.processed += swift
            if swift < len(messages):
                self._take_in_turn(messages[swift:], now + swift)
            now += len(messages)
        return now

    def _take_thoroughly(self, message: Message, arrival: int) -> None:
        self._lanes.pop(message.topic, None)
        try:
            asset = self._assets.get(message.topic) or self._parse(message.topic)
            reading = codec.decode_reading(message.payload, arrival)
            self._detector.push(asset, reading)
        except EventError as error:
            self._ledger.refuse(error, message.topic)
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
        if points is not None and len(points) == width and (decode := rows.decoder(points)):
            if len(self._lanes) >= MAX_TOPICS:
                self._lanes.clear()
            self._lanes[topic] = _Lane(asset, points, decode)

    def take_block(self, message: Message, now: int) -> None:
        self._ledger.received += 1
        try:
            asset = self._assets.get(message.topic) or self._parse(message.topic)
            self._detector.push_block(asset, codec.decode_block(message.payload, now))
            self._ledger.processed += 1
        except EventError as error:
            self._ledger.refuse(error, message.topic)

"""The picture of the bus that a person is shown: assets, scores, standing alarms, services and their books.

Pure and bounded: messages and times come in, nothing goes out but the list of what changed. The terminal view, the
plain lines, the report of a run and the tests all read the same picture.
"""

import math
from collections import deque
from itertools import islice
from typing import Any, NamedTuple

from appliance.bus.port import Batch, Message
from appliance.errors import EventError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Alarm, AlarmState, Block, Event, Kind, Reading, Score, Severity, Stage, State
from appliance.services.words import alarm_summary, alarm_text, drop_text, service_summary, stage_text

FILTERS = tuple(topics.everything(kind) for kind in (Kind.READING, Kind.BLOCK, Kind.SCORE))  # QoS 0
RETAINED_FILTERS = tuple(topics.everything(kind) for kind in (Kind.ALARM, Kind.STATE))  # QoS 1

MAX_ASSETS = 1000
MAX_VALUES = 32  # points kept of an asset's last reading
MAX_ALARMS = 1000
MAX_SERVICES = 64
MAX_RAISED = 1000  # alarms remembered after they ended, for the report
MAX_LATENCIES = 20_000  # the newest, for the percentiles
MAX_NAMES = 4096  # topics whose meaning is remembered
MAX_BYTES = {Kind.SCORE: 8192, Kind.ALARM: 8192, Kind.STATE: 65_536}  # larger ones are refused: they are kept here

SECOND = 1_000_000_000  # ns
RATE_MEMORY_S = 15.0  # long enough that one reading a second shows as 1.0, whenever one looks
SILENT_S = 900.0  # after which an asset without an alarm makes room
_SWEEP_S = 10.0
_LARGEST = 1 << 63


class Change(NamedTuple):
    """Something a person wants to be told: `kind` is asset, stage, alarm or service; `text` one line about it."""

    at: int
    kind: str
    subject: str
    text: str
    event: Event | None = None


class Rate:
    """Happenings a second over the last 15 s or so."""

    def __init__(self, now: int) -> None:
        self._began = self._at = now
        self._level = 0.0

    def add(self, count: int, now: int) -> None:
        self._level = self._decayed(now) + count
        self._at = max(now, self._at)

    def value(self, now: int) -> float:
        age_s = max((now - self._began) / SECOND, 1.0)
        memory_s = RATE_MEMORY_S * -math.expm1(-age_s / RATE_MEMORY_S)
        return self._decayed(now) / memory_s

    def _decayed(self, now: int) -> float:
        return self._level * math.exp(-max(now - self._at, 0) / SECOND / RATE_MEMORY_S)


class Asset:
    """What is known of one asset. `values` are those of its last reading, the first 32 of `points`."""

    def __init__(self, path: str, now: int) -> None:
        self.path = path
        self.seen = now  # our clock, at its last message
        self.at = 0  # the reading's own time
        self.readings = 0
        self.points = 0
        self.values: dict[str, float] = {}
        self.score: Score | None = None
        self.rate = Rate(now)

    @property
    def stage(self) -> Stage | None:
        return self.score.stage if self.score else None

    @property
    def strain(self) -> float:
        """The score as a share of its threshold: from 1 on the asset is abnormal."""
        if self.score is None or not self.score.threshold > 0:
            return 0.0
        share = self.score.score / self.score.threshold
        return share if math.isfinite(share) else 0.0

    def age_s(self, now: int) -> float:
        return max(now - self.seen, 0) / SECOND


class Picture:
    """`feed` it with what the bus delivers. `ledger` counts what this picture itself could not read, by reason."""

    def __init__(self, now: int) -> None:
        self.began = now
        self.ledger = Ledger()
        self.assets: dict[str, Asset] = {}
        self.alarms: dict[tuple[str, str], Alarm] = {}  # standing, by asset and condition
        self.raised: dict[str, tuple[str, Alarm]] = {}  # every alarm seen, by id: asset and newest state
        self.services: dict[str, State] = {}
        self.counts: dict[Kind, int] = dict.fromkeys(Kind, 0)
        self.rates: dict[Kind, Rate] = {kind: Rate(now) for kind in Kind}
        self._latencies: deque[int] = deque(maxlen=MAX_LATENCIES)
        self._addresses: dict[str, topics.Address] = {}
        self._swept = now

    def feed(self, batch: Batch, now: int) -> list[Change]:
        """Take in what arrived by `now` (UTC ns); tell what is worth a line. Never raises, whatever arrives."""
        changes: list[Change] = []
        counted = dict.fromkeys(Kind, 0)
        for message in batch:
            self.ledger.received += 1
            try:
                kind = self._take(message, now, changes)
            except EventError as error:
                self.ledger.refuse(error)
            else:
                self.ledger.processed += 1
                counted[kind] += 1
        for kind, count in counted.items():
            self.counts[kind] += count
            if count:
                self.rates[kind].add(count, now)
        self._sweep(now)
        return changes

    def rate(self, kind: Kind, now: int) -> float:
        return self.rates[kind].value(now)

    def worst(self) -> list[Asset]:
        """The assets, those first that want attention: alarms, then the nearest to their threshold, then by name."""
        ranks: dict[str, int] = {}
        for (path, _), alarm in self.alarms.items():
            ranks[path] = min(_alarm_rank(alarm)[0], ranks.get(path, _LARGEST))
        return sorted(self.assets.values(), key=lambda asset: _urgency(asset, ranks.get(asset.path)))

    def standing(self) -> list[tuple[str, Alarm]]:
        """Asset and alarm: what nobody has seen yet first, then by severity, the newest first."""
        found = [(path, alarm) for (path, _), alarm in self.alarms.items()]
        return sorted(found, key=lambda pair: _alarm_rank(pair[1]))

    def unconfirmed(self) -> tuple[int, list[str]]:
        """How many assets have learned while nobody has said that they were healthy then, and the first of them."""
        state = self.services.get("detect")
        told = state.detail.get("unconfirmed") if state else None
        if not isinstance(told, dict) or not isinstance(told.get("assets"), list):
            return 0, []
        assets = [name for name in told["assets"] if isinstance(name, str)][:8]
        count = told.get("count")
        return (count if type(count) is int else len(assets)), assets

    def drops(self) -> dict[str, int]:
        """What all services dropped, by reason, the most frequent first."""
        total: dict[str, int] = {}
        for state in self.services.values():
            for reason, count in state.dropped.items():
                total[reason] = total.get(reason, 0) + count
        return dict(sorted(total.items(), key=lambda pair: -pair[1]))

    def devices(self) -> list[str]:
        """Device and model of the scores that are shown, such as `CPU, level 1`."""
        found = {
            (asset.score.device, f"{asset.score.model} {asset.score.version}".strip())
            for asset in self.assets.values()
            if asset.score and asset.score.device
        }
        return [", ".join(part for part in pair if part) for pair in sorted(found)]

    def latency_ms(self, share: float) -> float | None:
        """From a reading's own time to the arrival of its score here: 0.5 is the median. None before any score."""
        ordered = sorted(self._latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] / 1e6 if ordered else None

    def summary(self, now: int) -> dict[str, Any]:
        """Plain values for a report; the names are stable."""
        return {
            "at": now,
            "seconds": round((now - self.began) / SECOND, 3),
            "readings": self.counts[Kind.READING],
            "blocks": self.counts[Kind.BLOCK],
            "scores": self.counts[Kind.SCORE],
            "readings_per_s": round(self.rate(Kind.READING, now), 3),
            "scores_per_s": round(self.rate(Kind.SCORE, now), 3),
            "latency_ms": {"p50": self.latency_ms(0.5), "p99": self.latency_ms(0.99)},
            "devices": self.devices(),
            "assets": {path: _asset_summary(asset, now) for path, asset in sorted(self.assets.items())},
            "alarms": [alarm_summary(asset, alarm) for asset, alarm in self.raised.values()],
            "standing": [alarm_summary(asset, alarm) for asset, alarm in self.standing()],
            "services": {name: service_summary(state) for name, state in sorted(self.services.items())},
            "dropped": self.drops(),
            "unreadable": dict(self.ledger.dropped),
        }

    def _take(self, message: Message, now: int, changes: list[Change]) -> Kind:
        kind, path = self._address(message.topic)
        if kind is Kind.ALARM and not message.payload:
            self.alarms.pop((path, topics.condition(message.topic)), None)
            return kind
        if kind is Kind.STATE and not message.payload:
            self.services.pop(path, None)
            return kind
        if kind is Kind.READING:
            self._reading(path, codec.decode_reading(message.payload, now), now, changes)
            return kind
        if len(message.payload) > MAX_BYTES.get(kind, len(message.payload)):
            raise EventError("too-large", f"{message.topic}: {len(message.payload)} bytes")
        event = codec.decode(kind, message.payload, now)
        _check_integers(event)
        match event:
            case Score():
                self._score(path, event, now, changes)
            case Block():
                self._reading(path, event, now, changes)
            case Alarm():
                self._alarm(path, event, changes)
            case State():
                self._state(path, event, now, changes)
        return kind

    def _address(self, topic: str) -> topics.Address:
        known = self._addresses.get(topic)
        if known is None:
            known = topics.parse(topic)
            if len(self._addresses) >= MAX_NAMES:
                self._addresses.clear()
            self._addresses[topic] = known
        return known

    def _asset(self, path: str, now: int, changes: list[Change]) -> Asset:
        asset = self.assets.get(path)
        if asset is None:
            if len(self.assets) >= MAX_ASSETS:
                raise EventError("too-many-assets", f"'{path}': {MAX_ASSETS} assets are shown at most")
            asset = self.assets[path] = Asset(path, now)
            changes.append(Change(now, "asset", path, "first heard of"))
        asset.seen = now
        return asset

    def _reading(self, path: str, event: Reading | Block, now: int, changes: list[Change]) -> None:
        known = self.assets.get(path)
        if known is None or known.values.keys() != event.values.keys():
            codec.check_points(list(event.values))  # names are kept, and shown on a terminal
        asset = self._asset(path, now, changes)
        asset.at, asset.points = event.at, len(event.values)
        asset.values = _last_values(event)
        asset.readings += 1
        asset.rate.add(1, now)

    def _score(self, path: str, score: Score, now: int, changes: list[Change]) -> None:
        asset = self._asset(path, now, changes)
        before, asset.score = asset.stage, score
        if before is not score.stage:
            changes.append(Change(now, "stage", path, stage_text(before, score), score))
        latency = now - score.at
        if 0 <= latency < 60 * SECOND:  # a recording that is replayed with its old times says nothing about us
            self._latencies.append(latency)

    def _alarm(self, path: str, alarm: Alarm, changes: list[Change]) -> None:
        key = path, alarm.condition
        before = self.alarms.get(key)
        if alarm.state is AlarmState.NORMAL:
            self.alarms.pop(key, None)
        elif before is None and len(self.alarms) >= MAX_ALARMS:
            raise EventError("too-many-alarms", f"'{path}': {MAX_ALARMS} alarms are shown at most")
        else:
            self.alarms[key] = alarm
        known = self.raised.get(alarm.id)
        if known is None or _differs(known[1], alarm):
            changes.append(Change(alarm.at, "alarm", path, alarm_text(alarm), alarm))
        if known is None and len(self.raised) >= MAX_RAISED:
            del self.raised[next(iter(self.raised))]
        self.raised[alarm.id] = (path, alarm)

    def _state(self, path: str, state: State, now: int, changes: list[Change]) -> None:
        before = self.services.get(path)
        if before is None and len(self.services) >= MAX_SERVICES:
            raise EventError("too-many-services", f"'{path}': {MAX_SERVICES} services are shown at most")
        self.services[path] = state
        if before is None or before.online != state.online:
            changes.append(Change(now, "service", path, "online" if state.online else "offline", state))
        known = before.dropped if before else {}
        for reason in sorted(state.dropped.keys() - known.keys()):
            changes.append(Change(now, "service", path, drop_text(state, reason), state))

    def _sweep(self, now: int) -> None:
        if 0 <= now - self._swept < _SWEEP_S * SECOND:
            return
        self._swept = now
        alarmed = {path for path, _ in self.alarms}
        for path in [path for path, asset in self.assets.items() if asset.age_s(now) > SILENT_S]:
            if path not in alarmed:
                del self.assets[path]


def _urgency(asset: Asset, rank: int | None) -> tuple[int, float, str]:
    """`rank` is that of its most urgent alarm."""
    if rank is not None:
        return rank - 10, 0.0, asset.path
    # In steps, so that the order does not dance while scores breathe; what still learns comes after.
    judged = asset.stage in (Stage.WARNING, Stage.ALARMING)
    return (0 if judged else 1), -math.floor(min(asset.strain, 10.0) * 2) if judged else 0.0, asset.path


def _asset_summary(asset: Asset, now: int) -> dict[str, Any]:
    score = asset.score
    return {
        "readings": asset.readings,
        "points": asset.points,
        "rate_per_s": round(asset.rate.value(now), 3),
        "age_s": round(asset.age_s(now), 3),
        "at": asset.at,
        "values": dict(asset.values),
        "stage": score.stage.value if score else None,
        "score": score.score if score else None,
        "threshold": score.threshold if score else None,
        "cause": score.cause if score else None,
        "rows": score.rows if score else None,
        "model": score.model if score else None,
        "version": score.version if score else None,
        "device": score.device if score else None,
    }


def _check_integers(event: Event) -> None:
    """CBOR's integers have no end; clocks, screens and JSON have."""
    numbers = [getattr(event, name) for name in event.__struct_fields__]
    if isinstance(event, State):
        numbers += event.dropped.values()
    if any(type(number) is int and not -_LARGEST < number < _LARGEST for number in numbers):
        raise EventError("shape", "an integer is beyond 64 bits")


def _last_values(event: Reading | Block) -> dict[str, float]:
    if isinstance(event, Block):
        return {name: samples[-1] for name, samples in islice(event.values.items(), MAX_VALUES)}
    return event.values if len(event.values) <= MAX_VALUES else dict(islice(event.values.items(), MAX_VALUES))


def _differs(one: Alarm, other: Alarm) -> bool:
    seen = ("state", "severity", "active", "by", "until", "message")
    return any(getattr(one, name) != getattr(other, name) for name in seen)


def _alarm_rank(alarm: Alarm) -> tuple[int, int]:
    order = [AlarmState.UNACKNOWLEDGED, AlarmState.RETURNED, AlarmState.ACKNOWLEDGED, AlarmState.SHELVED]
    place = order.index(alarm.state) if alarm.state in order else len(order)
    return 2 * place + (alarm.severity is not Severity.ALARM), -alarm.raised

"""From what dialects say to arrivals: devices with facts in UCUM, samples as readings. Pure and bounded.

What a device may not do: come in thousands, flood, send text where it sent numbers, change a unit into something else.
Each is counted in the ledger under its reason and told as the device's `trouble`, with the remedy; the others notice
nothing. A unit that changes within its dimension (kW for W) is converted to the one that was there first.
"""

import math
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec.structs import replace

from appliance.connectors._names import level
from appliance.connectors.dialects.port import Facts, Refused, Sample, Standing, Value
from appliance.connectors.port import Arrival
from appliance.errors import EventError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Device, Reading
from appliance.protocols import units

MAX_POINTS = 512  # of a device
SECOND = 1_000_000_000
TELL_NS = 10 * SECOND  # between two words about the same trouble
CALM_NS = 600 * SECOND  # after which a trouble is over
AHEAD_NS, BEHIND_NS = 60 * SECOND, 7 * 86_400 * SECOND  # of a device's own clock

REMEDIES = {
    "malformed": "Look at what it publishes: mosquitto_sub shows it. Its firmware may be damaged or its message cut.",
    "shape": "Look at what it publishes: it is not what its dialect says.",
    "too-large": "Let it send less in a message.",
    "too-many-points": "Let it send fewer values, or split it into several devices.",
    "too-many-devices": "Raise devices.max_devices, or 'millwright devices forget' those that are gone.",
    "flood": "Let it report less often; only so many messages a second are taken (devices.max_rate_hz).",
    "type-changed": "A number became text: mend the device, or leave the point out.",
    "unit-changed": "Set its unit back, or 'millwright devices forget' it: it then begins anew.",
    "id-reused": "Two devices use one identity: give one of them another name or topic.",
    "time-off": "Set the device's clock (NTP); its readings are stamped at their arrival until then.",
    "sequence": "Messages were lost between the device and the broker; it was asked to begin anew.",
    "no-birth": "It was asked for its birth; if it stays silent, restart it.",
    "unknown-metric": "It sends metrics that its birth did not name; it was asked for a new one.",
    "historical": "It sends what it kept while it was offline; only what is now is judged.",
    "template": "Its entry for Home Assistant computes the value: use [dialects.mapping] for its topic.",
    "point-name": "Give the value a shorter name without control characters.",
    "not-finite": "It sends values beyond all numbers: look at the sensor.",
}

_WORDS = {
    "on": 1.0,
    "off": 0.0,
    "true": 1.0,
    "false": 0.0,
    "open": 1.0,
    "opened": 1.0,
    "closed": 0.0,
    "detected": 1.0,
    "clear": 0.0,
    "locked": 1.0,
    "unlocked": 0.0,
}
_ABSENT = frozenset({"", "unavailable", "unknown", "none", "null", "nan", "n/a", "-"})


class Limits(NamedTuple):
    devices: int = 5000
    rate_hz: float = 50.0  # messages of a device, over time; bursts may be larger

    @property
    def burst(self) -> float:
        return max(20.0, 4 * self.rate_hz)


def asset_of(source: str, key: str) -> str:
    """The path that never changes. What the grammar cannot spell gets a few digits that tell it from others, and so
    does what is too long for it."""
    levels = [_level(part) for part in key.split("/") if part] or ["device"]
    path = "/".join([level(source, "device"), *levels[: topics.MAX_LEVELS - 1]])
    if len(levels) < topics.MAX_LEVELS and len(path) <= topics.MAX_PATH:
        return path
    return f"{path[: topics.MAX_PATH - 5].rstrip('/')}-{_digits(key)}"


def _level(text: str) -> str:
    plain = level(text, "device")
    return plain if plain == text.lower() else f"{plain[:50]}-{_digits(text)}"


def _digits(text: str) -> str:
    return f"{zlib.crc32(text.encode()) & 0xFFFF:04x}"


class _Point:
    """How a point's values are taken: `unit` is the one that stays, `told` the one that they come in."""

    __slots__ = ("is_blocked", "is_number", "told", "unit")

    def __init__(self, unit: str = "") -> None:
        self.unit = self.told = unit
        self.is_blocked = self.is_number = False


class _Known:
    """One device."""

    def __init__(self, asset: str, facts: Device, burst: float, now: int) -> None:
        self.asset, self.facts = asset, facts
        self.points = {name: _Point(unit) for name, unit in facts.units.items()}
        self.tokens, self.filled = burst, now
        self.troubles: dict[str, int] = {}  # since it was calm
        self.troubled = self.told_trouble = 0  # ns
        self.is_told = False


class Devices:
    """Those of one dialect. `known` gives what was remembered of an asset from before."""

    def __init__(
        self, source: str, ledger: Ledger, limits: Limits, known: Callable[[str], Device | None] = lambda _: None
    ) -> None:
        self._source, self._ledger, self._limits, self._remembered = source, ledger, limits, known
        self._devices: dict[str, _Known] = {}
        self._stamped = 0

    def __len__(self) -> int:
        return len(self._devices)

    def key(self, asset: str) -> str | None:
        """By which the dialect knows an asset."""
        return next((key for key, device in self._devices.items() if device.asset == asset), None)

    def forget(self, asset: str) -> None:
        key = self.key(asset)
        if key is not None:
            del self._devices[key]

    def take(self, outcomes: Iterable[Facts | Sample | Standing | Refused], now: int) -> list[Arrival]:
        """Arrivals in their order; `now` in UTC ns. Whoever hands them on counts them as processed."""
        arrivals: list[Arrival] = []
        for outcome in outcomes:
            device = self._device(outcome.key, now)
            if device is None:
                continue
            match outcome:
                case Facts():
                    self._learn(device, outcome, now)
                case Standing():
                    if device.facts.available is not outcome.available:
                        self._change(device, now, available=outcome.available)
                case Refused():
                    self._ledger.received += 1
                    self._refuse(device, outcome.reason, outcome.message, now)
                case Sample():
                    arrivals += self._read(device, outcome, now)
            if not device.is_told:
                device.is_told = True
                arrivals.append(self._count(Arrival(device.asset, device.facts)))
        return arrivals

    def _device(self, key: str, now: int) -> _Known | None:
        known = self._devices.get(key)
        if known is None:
            if len(self._devices) >= self._limits.devices:
                self._ledger.received += 1
                self._ledger.drop("too-many-devices", f"{self._source} {key}: {REMEDIES['too-many-devices']}")
                return None
            asset = asset_of(self._source, key)
            facts = self._remembered(asset) or Device(now, key, self._source, key)
            facts = replace(facts, trouble="", available=None)
            known = self._devices[key] = _Known(asset, facts, self._limits.burst, now)
        return known

    def _learn(self, device: _Known, told: Facts, now: int) -> None:
        before = device.facts
        if told.proof and before.identity not in ("", told.key, told.proof):
            self._ledger.received += 1
            self._refuse(
                device, "id-reused", f"{told.proof} says that it is {told.key}, as {before.identity} does", now
            )
            return
        self._learn_units(device, told.units, now)
        found = {name: getattr(told, name) or getattr(before, name) for name in ("name", "maker", "model", "version")}
        settable = [*before.settable, *(point for point in told.settable if point not in before.settable)]
        pinned = {name: point.unit for name, point in device.points.items()}
        facts = replace(before, identity=told.proof or before.identity, settable=settable, units=pinned, **found)
        if facts != before:
            device.facts, device.is_told = replace(facts, at=now), False

    def _learn_units(self, device: _Known, told: dict[str, str], now: int) -> None:
        for name, text in told.items():
            point = device.points.get(name)
            code = units.code(text)
            if point is None:
                if self._admits(device, name, now):
                    device.points[name] = _Point(code)
            elif code and not point.unit:
                point.unit = point.told = code
            elif code:
                point.told = code
                point.is_blocked = units.convert(0.0, code, point.unit) is None
                if point.is_blocked:
                    self._ledger.received += 1
                    self._refuse(device, "unit-changed", f"'{name}' was in {point.unit}, now in {code}", now)

    def _admits(self, device: _Known, name: str, now: int) -> bool:
        try:
            codec.check_points([name])
        except EventError as error:
            self._ledger.received += 1
            self._refuse(device, error.reason, error.message, now)
            return False
        if len(device.points) >= MAX_POINTS:
            self._ledger.received += 1
            self._refuse(device, "too-many-points", f"'{name[:40]}' would be one of more than {MAX_POINTS}", now)
            return False
        return True

    def _read(self, device: _Known, sample: Sample, now: int) -> list[Arrival]:
        self._ledger.received += 1
        if not self._has_token(device, now):
            self._refuse(device, "flood", f"more than {self._limits.rate_hz:g} messages a second", now)
            return []
        values: dict[str, float] = {}
        wrong: tuple[str, str] | None = None
        for name, value in sample.values.items():
            point = device.points.get(name)
            found = _value(point, value)
            if isinstance(found, float):
                if point is None and not self._introduce(device, name, now):
                    continue
                values[name] = found
            elif found is not None:
                wrong = (found, f"'{name}' is {str(value)[:40]!r}")
        if not values:
            if wrong:
                self._refuse(device, *wrong, now)
            else:
                self._ledger.received -= 1  # nothing was measured: a button, a name
            return []
        if wrong:
            self._note(device, *wrong, now)
        return [self._count(Arrival(device.asset, Reading(self._stamp(device, sample.at, now), values)), was_read=True)]

    def _introduce(self, device: _Known, name: str, now: int) -> bool:
        if not self._admits(device, name, now):
            return False
        point = device.points[name] = _Point()
        point.is_number = True
        self._change(device, now, units={each: one.unit for each, one in device.points.items()})
        return True

    def _stamp(self, device: _Known, at: int | None, now: int) -> int:
        if at is not None:
            if now - BEHIND_NS <= at <= now + AHEAD_NS:
                return at
            self._note(device, "time-off", f"its clock is {abs(at - now) // SECOND} s off", now)
        self._stamped = max(now, self._stamped + 1)
        return self._stamped

    def _has_token(self, device: _Known, now: int) -> bool:
        rate, burst = self._limits.rate_hz, self._limits.burst
        device.tokens = min(burst, device.tokens + max(0, now - device.filled) / SECOND * rate)
        device.filled = now
        if device.tokens < 1:
            return False
        device.tokens -= 1
        return True

    def _refuse(self, device: _Known, reason: str, message: str, now: int) -> None:
        """A message that yields nothing."""
        self._ledger.drop(reason, f"{device.asset}: {message}")
        self._note(device, reason, message, now)

    def _note(self, device: _Known, reason: str, message: str, now: int) -> None:
        """Tell the trouble with the device, but not each time."""
        if now - device.troubled > CALM_NS:
            device.troubles.clear()
        device.troubled = now
        is_new = reason not in device.troubles
        device.troubles[reason] = count = device.troubles.get(reason, 0) + 1
        if is_new or now - device.told_trouble >= TELL_NS:
            device.told_trouble = now
            remedy = REMEDIES.get(reason, "")
            times = f" ({count} times)" if count > 1 else ""
            self._change(
                device, now, trouble=f"{reason}{times}: {message[:120]}" + (f"\n  -> {remedy}" if remedy else "")
            )

    def _change(self, device: _Known, now: int, **changes: object) -> None:
        device.facts, device.is_told = replace(device.facts, at=now, **changes), False

    def _count(self, arrival: Arrival, *, was_read: bool = False) -> Arrival:
        self._ledger.received += not was_read
        return arrival


def _value(point: _Point | None, value: Value) -> float | str | None:
    """A number in the point's own unit; the reason why there is none; nothing where nothing was said."""
    if isinstance(value, str):
        word = value.strip().lower()
        found = _WORDS.get(word)
        if found is None:
            return "type-changed" if point is not None and point.is_number and word not in _ABSENT else None
    elif value is None:
        return None
    else:
        try:
            found = float(value)
        except OverflowError:
            return "not-finite"
        if not math.isfinite(found):
            return "not-finite"
    if point is None:
        return found
    if point.is_blocked:
        return "unit-changed"
    point.is_number = True
    if point.told != point.unit:
        return units.convert(found, point.told, point.unit)
    return found

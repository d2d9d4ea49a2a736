"""Zigbee2MQTT: bridges are found by themselves, whatever their base topic.

    [dialects.zigbee2mqtt]
    leave_out = ["linkquality"]

`<base>/bridge/devices` (retained) lists the devices with maker, model, and what they expose with its unit; a device is
its IEEE address, whatever name it bears. `<base>/<name>` has its values, `<base>/<name>/availability` its standing;
`<base>/<name>/set` writes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct, field, json

from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import (
    MAX_ANNOUNCEMENT,
    Facts,
    Listen,
    Outcome,
    Refused,
    Request,
    Sample,
    Standing,
    Words,
)
from appliance.errors import ConnectorError, EventError

MAX_BRIDGES = 16
MAX_DEVICES = 2000  # of all bridges
MAX_EXPOSES = 256  # of a device
_SET = 0b010  # of `access`: it can be written


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices of Zigbee2MQTT."""

    leave_out: Annotated[Words, Meta(description="Points that say nothing of a machine.")] = field(
        default_factory=lambda: ["linkquality", "last_seen", "update_available"]
    )


def create(settings: Settings) -> "Zigbee2Mqtt":
    return Zigbee2Mqtt(settings)


class _Point(Struct, frozen=True):
    unit: str = ""
    on: Any = True  # what a two-valued point says where it is on
    off: Any = False
    is_binary: bool = False
    can_be_set: bool = False


class _Device(Struct, frozen=True):
    base: str
    name: str
    points: dict[str, _Point]


class Zigbee2Mqtt:
    name = "zigbee2mqtt"
    filters = ("+/bridge/devices", "+/bridge/state")

    def __init__(self, settings: Settings) -> None:
        self._leave_out = frozenset(settings.leave_out)
        self._devices: dict[str, _Device] = {}  # by address
        self._keys: dict[str, str] = {}  # topic -> address
        self._bases: set[str] = set()

    def greet(self) -> Sequence[Request]:
        return ()

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        if topic.endswith("/bridge/devices") and topic.count("/") == 2:
            return list(self._introduced(topic.partition("/")[0], payload))
        if topic.endswith("/bridge/state") and topic.count("/") == 2:
            return self._bridge(topic.partition("/")[0], payload)
        base, mark, last = topic.rpartition("/")
        if mark and last == "availability" and base in self._keys:
            return [Standing(self._keys[base], _is_online(payload))]
        key = self._keys.get(topic)
        return [self._said(key, payload)] if key and payload else []

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        device = self._devices.get(key)
        known = device.points.get(point) if device else None
        if device is None or known is None or not known.can_be_set:
            raise ConnectorError(f"'{point}' of {key} cannot be set", "See 'millwright devices show' for what can.")
        said: Any = (known.on if value else known.off) if known.is_binary else value
        return [Request(f"{device.base}/{device.name}/set", json.encode({point: said}))]

    def _introduced(self, base: str, payload: bytes) -> Iterator[Outcome]:
        found = _json.parse(payload, MAX_ANNOUNCEMENT)
        if not isinstance(found, list):
            raise EventError("shape", "bridge/devices is no list")
        if base not in self._bases and len(self._bases) >= MAX_BRIDGES:
            raise EventError("too-many-devices", f"more than {MAX_BRIDGES} bridges")
        self._bases.add(base)
        before = {key for key, device in self._devices.items() if device.base == base}
        for one in found:
            if isinstance(one, dict) and one.get("type") != "Coordinator":
                yield from self._introduce(base, one)
                before.discard(_json.text(one.get("ieee_address")))
        for key in before:
            self._unname(key)
            del self._devices[key]
            yield Standing(key, False)

    def _introduce(self, base: str, one: dict[str, Any]) -> Iterator[Outcome]:
        key, name = _json.text(one.get("ieee_address")), _json.text(one.get("friendly_name"))
        if not key or not name or any(letter in name for letter in "+#"):
            return
        if key in self._devices and self._devices[key].base != base:
            yield Refused(key, "id-reused", f"{base} and {self._devices[key].base} both have {key}")
            return
        if key not in self._devices and len(self._devices) >= MAX_DEVICES:
            raise EventError("too-many-devices", f"more than {MAX_DEVICES} Zigbee devices")
        definition = _json.child(one, "definition")
        points = dict(_exposed(definition.get("exposes"), self._leave_out))
        self._unname(key)
        self._devices[key] = _Device(base, name, points)
        self._keys[f"{base}/{name}"] = key
        yield Facts(
            key,
            name,
            _json.text(definition.get("vendor")) or _json.text(one.get("manufacturer")),
            _json.text(definition.get("model")) or _json.text(one.get("model_id")),
            _json.text(one.get("software_build_id")),
            {point: known.unit for point, known in points.items()},
            tuple(point for point, known in points.items() if known.can_be_set),
        )
        yield Listen((f"{base}/{name}", f"{base}/{name}/availability"))

    def _unname(self, key: str) -> None:
        """Its name is free, unless another one has taken it."""
        known = self._devices.get(key)
        if known is not None and self._keys.get(topic := f"{known.base}/{known.name}") == key:
            del self._keys[topic]

    def _bridge(self, base: str, payload: bytes) -> Sequence[Outcome]:
        if _is_online(payload):
            return ()
        return [Standing(key, False) for key, device in self._devices.items() if device.base == base]

    def _said(self, key: str, payload: bytes) -> Outcome:
        try:
            values = _json.flat(_json.mapping(payload))
        except EventError as error:
            return Refused(key, error.reason, error.message)
        points = self._devices[key].points
        for name in [name for name in values if name in self._leave_out or name.startswith("update.")]:
            del values[name]
        for name, value in values.items():
            known = points.get(name)
            if known is not None and known.is_binary and value in (known.on, known.off):
                values[name] = value == known.on
        return Sample(key, values)


def _exposed(exposes: Any, leave_out: frozenset[str]) -> Iterator[tuple[str, _Point]]:
    """Points by the name under which their values come: features of features are flattened as their values are."""
    left = MAX_EXPOSES
    stack = [(one, "") for one in reversed(exposes)] if isinstance(exposes, list) else []
    while stack and left:
        one, above = stack.pop()
        left -= 1
        if not isinstance(one, Mapping):
            continue
        name = _json.text(one.get("property")) or _json.text(one.get("name"))
        inner = one.get("features")
        if isinstance(inner, list):  # a composite holds its features as an object, a light or a switch beside itself
            stack += [(each, f"{above}{name}." if one.get("type") == "composite" else above) for each in inner]
        elif name and name not in leave_out and one.get("type") in ("numeric", "binary"):
            yield f"{above}{name}", _point(one)


def _point(one: Mapping[str, Any]) -> _Point:
    access = one.get("access")
    return _Point(
        _json.text(one.get("unit")),
        one.get("value_on", True),
        one.get("value_off", False),
        one.get("type") == "binary",
        isinstance(access, int) and bool(access & _SET),
    )


def _is_online(payload: bytes) -> bool:
    """`online`, or `{"state": "online"}`."""
    if payload[:1] != b"{":
        return payload.strip() == b"online"
    return _json.mapping(payload).get("state") == "online"

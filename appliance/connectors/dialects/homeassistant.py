"""Whatever announces itself to Home Assistant over MQTT: its discovery as a source of readings.

    [dialects.homeassistant]
    prefix = "homeassistant"

Both forms are understood: one entry an entity, and one entry a device (`homeassistant/device/<id>/config`). Sensors,
binary sensors, switches and numbers become points of their device, with unit and maker. Of templates those are followed
that name a value (`{{ value_json.power }}`), which nearly all do. What a dialect of its own speaks (Zigbee2MQTT,
ESPHome) and what this box itself announces is left to it.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import (
    MAX_PAYLOAD,
    Facts,
    Listen,
    Outcome,
    Refused,
    Request,
    Sample,
    Standing,
    Value,
)
from appliance.errors import ConnectorError, EventError

MAX_DEVICES = 2000
MAX_ENTITIES = 20_000
MAX_COMPONENTS = 512  # of a device's entry
OWN = "millwright"  # name of the origin of what this box announces

# The abbreviations of Home Assistant's own table that matter here.
_LONG = {
    "stat_t": "state_topic",
    "unit_of_meas": "unit_of_measurement",
    "val_tpl": "value_template",
    "avty_t": "availability_topic",
    "avty": "availability",
    "t": "topic",
    "uniq_id": "unique_id",
    "dev": "device",
    "o": "origin",
    "cmps": "components",
    "cmd_t": "command_topic",
    "pl_on": "payload_on",
    "pl_off": "payload_off",
    "pl_avail": "payload_available",
    "obj_id": "object_id",
    "p": "platform",
    "ids": "identifiers",
    "mf": "manufacturer",
    "mdl": "model",
    "sw": "sw_version",
    "cns": "connections",
}
_KINDS = ("sensor", "binary_sensor", "switch", "number", "light", "fan")
_ELSEWHERE = ("mw/", "zigbee2mqtt/", "tele/", "stat/", "shellies/", "spBv1.0/", "te/")
_NATIVE = ("zigbee2mqtt", "esphome", "tasmota", OWN)
_INDEX = r"""\.\w+|\[(?:'[^']{1,64}'|"[^"]{1,64}"|\d{1,3})\]"""
_HARMLESS = r"(?:float|int|round|default|is_defined|abs)(?:\([^()]{0,20}\))?"
_PATH = re.compile(rf"\{{\{{\s*\(?\s*value(_json)?((?:{_INDEX})*)\s*\)?((?:\s*\|\s*{_HARMLESS})*)\s*\}}\}}")
_STEP = re.compile(r"""\.(\w+)|\[(?:'([^']*)'|"([^"]*)"|(\d+))\]""")


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices that announce themselves to Home Assistant."""

    prefix: Annotated[str, Meta(min_length=1, max_length=64, description="Where they do so.")] = "homeassistant"


def create(settings: Settings) -> "HomeAssistant":
    return HomeAssistant(settings.prefix)


class _Entity(Struct, frozen=True):
    key: str
    point: str
    path: tuple[str, ...] | None  # in the payload's JSON; none: the bare payload
    on: str
    off: str
    command: str
    entry: str  # the topic that announced it: several may speak on one topic, and be written anew one by one


class HomeAssistant:
    name = "homeassistant"

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.filters = (f"{prefix}/+/+/config", f"{prefix}/+/+/+/config")
        self._entities: dict[str, list[_Entity]] = {}  # by state topic
        self._standing: dict[str, tuple[str, str]] = {}  # availability topic -> key, payload that says yes
        self._of_entry: dict[str, list[str]] = {}  # topic of an entry -> its state topics
        self._keys: set[str] = set()
        self._count = 0

    def greet(self) -> Sequence[Request]:
        return ()

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        if topic.startswith(f"{self._prefix}/") and topic.endswith("/config"):
            self._forget(topic)
            return list(self._entry(topic, payload)) if payload else []
        found: list[Outcome] = []
        if topic in self._standing:
            key, yes = self._standing[topic]
            found.append(Standing(key, _said(payload) == yes))
        if topic in self._entities and payload:
            found += _samples(self._entities[topic], payload)
        return found

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        for entities in self._entities.values():
            for one in entities:
                if (one.key, one.point) == (key, point) and one.command:
                    said = (one.on if value else one.off) if one.on else f"{value:g}"
                    return [Request(one.command, said.encode())]
        raise ConnectorError(f"'{point}' of {key} cannot be set", "See 'millwright devices show' for what can.")

    def _entry(self, topic: str, payload: bytes) -> Iterator[Outcome]:
        told = _lengthened(_json.mapping(payload, MAX_PAYLOAD))
        parts = topic.split("/")
        if _is_elsewhere(told):
            return
        if parts[1] == "device":
            components = list(_json.child(told, "components").items())[:MAX_COMPONENTS]
            entities = [(name, _lengthened(one)) for name, one in components if isinstance(one, dict)]
        else:
            entities = [(parts[-2], told | {"platform": parts[1]})]
        key, facts = _device(told, parts[2])
        if key not in self._keys and len(self._keys) >= MAX_DEVICES:
            raise EventError("too-many-devices", f"more than {MAX_DEVICES} devices announced to Home Assistant")
        shared = {name: told[name] for name in ("state_topic", "availability_topic", "availability") if name in told}
        units: dict[str, str] = {}
        topics: list[str] = []
        settable: list[str] = []
        for name, one in entities:
            entity = self._entity(topic, key, name, shared | one)
            if isinstance(entity, Refused):
                yield entity
            elif entity is not None:
                state, made = entity
                self._entities.setdefault(state, []).append(made)
                self._count += 1
                units[made.point] = _json.text(one.get("unit_of_measurement"))
                topics += [state, *self._follow_availability(key, shared | one)]
                settable += [made.point] if made.command else []
        if units:
            self._keys.add(key)
            self._of_entry[topic] = topics
            yield Facts(key, *facts, units=units, settable=tuple(settable))
            yield Listen(tuple(dict.fromkeys(topics)))

    def _entity(self, entry: str, key: str, name: str, told: dict[str, Any]) -> tuple[str, _Entity] | Refused | None:
        state = _topic(told, "state_topic")
        kind = told.get("platform")
        if kind not in _KINDS or not state or state.startswith(_ELSEWHERE):
            return None
        if self._count >= MAX_ENTITIES:
            return Refused(key, "too-many-points", f"more than {MAX_ENTITIES} entities")
        point = _json.text(told.get("object_id")) or name
        template = _json.text(told.get("value_template"))
        path = _path(template)
        if path is None:
            return Refused(key, "template", f"{point}: {template[:80]!r} is more than the name of a value")
        two_valued = kind not in ("sensor", "number")
        on = _json.text(told.get("payload_on")) or ("ON" if two_valued else "")
        off = _json.text(told.get("payload_off")) or ("OFF" if two_valued else "")
        return state, _Entity(key, point, path if template else None, on, off, _topic(told, "command_topic"), entry)

    def _follow_availability(self, key: str, told: dict[str, Any]) -> list[str]:
        listed = told.get("availability")
        several = [_lengthened(one) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        first = several[0] if several else {}
        topic = _topic(told, "availability_topic") or _topic(first, "topic")
        if not topic or topic.startswith(_ELSEWHERE) or len(self._standing) >= MAX_ENTITIES:
            return []
        yes = _json.text((first or told).get("payload_available")) or "online"
        self._standing[topic] = (key, yes)
        return [topic]

    def _forget(self, topic: str) -> None:
        """An entry that is written anew, or deleted."""
        for state in self._of_entry.pop(topic, ()):
            before = self._entities.pop(state, [])
            if left := [one for one in before if one.entry != topic]:
                self._entities[state] = left
            self._count -= len(before) - len(left)


def _samples(entities: list[_Entity], payload: bytes) -> list[Outcome]:
    """One sample a device, of all its entities that this topic feeds."""
    values: dict[str, dict[str, Value]] = {}
    told: Any = None
    for one in entities:
        try:
            if one.path is None:
                value = _json.number(payload)
            else:
                told = _json.parse(payload) if told is None else told
                value = _found(told, one.path)
        except EventError as error:
            return [Refused(one.key, error.reason, error.message)]
        if one.on and str(value) in (one.on, one.off):
            value = str(value) == one.on
        values.setdefault(one.key, {})[one.point] = value
    return [Sample(key, points) for key, points in values.items()]


def _found(told: Any, path: tuple[str, ...]) -> Value:
    for step in path:
        if isinstance(told, dict):
            told = told.get(step)
        elif isinstance(told, list) and step.isdecimal() and int(step) < len(told):
            told = told[int(step)]
        else:
            return None
    return told if isinstance(told, bool | int | float | str) else None


def _path(template: str) -> tuple[str, ...] | None:
    """Of `{{ value_json.a['b'] | float }}`: a, b. Nothing where it is more than that."""
    if not template:
        return ()
    found = _PATH.fullmatch(template.strip())
    if found is None or (found[2] and not found[1]):
        return None
    return tuple(next(part for part in step if part) for step in _STEP.findall(found[2]))


def _device(told: dict[str, Any], node: str) -> tuple[str, tuple[str, str, str, str]]:
    """Its key, and name, maker, model and version."""
    device = _lengthened(_json.child(told, "device"))
    identifiers = device.get("identifiers")
    first = identifiers[0] if isinstance(identifiers, list) and identifiers else identifiers
    connections = device.get("connections")
    if not first and isinstance(connections, list) and connections and isinstance(connections[0], list):
        first = connections[0][-1] if connections[0] else ""
    key = _json.text(first) or node
    name = _json.text(device.get("name")) or _json.text(told.get("name")) or key
    maker, model, version = (_json.text(device.get(fact)) for fact in ("manufacturer", "model", "sw_version"))
    return key, (name, maker, model, version)


def _is_elsewhere(told: dict[str, Any]) -> bool:
    """Announced by something that has a dialect of its own, or by us."""
    device = _lengthened(_json.child(told, "device"))
    words = [_json.child(told, "origin").get("name"), device.get("sw_version"), device.get("identifiers")]
    text = str(words)[:1000].lower()
    return any(native in text for native in _NATIVE)


def _lengthened(told: dict[str, Any]) -> dict[str, Any]:
    found = {_LONG.get(name, name): value for name, value in told.items()}
    base = found.get("~")
    if isinstance(base, str):
        for name, value in found.items():
            if name.endswith("topic") and isinstance(value, str):
                found[name] = value.replace("~", base, 1) if value[:1] == "~" or value[-1:] == "~" else value
    return found


def _topic(told: dict[str, Any], name: str) -> str:
    """One that can be listened to by itself; empty for anything else."""
    found = told.get(name)
    is_good = isinstance(found, str) and 0 < len(found) < 500 and not set("+#\0") & set(found)
    return found if is_good and isinstance(found, str) else ""


def _said(payload: bytes) -> str:
    """`online`, or `{"state": "online"}`."""
    if payload[:1] == b"{":
        try:
            return _json.text(_json.mapping(payload).get("state"))
        except EventError:
            return ""
    return payload[:64].decode("utf-8", "replace").strip()

"""Tasmota, with any full topic.

    [dialects.tasmota]
    leave_out = ["Uptime", "Heap"]

Retained `tasmota/discovery/<MAC>/config` introduces a device with its topic and the order of its topics (`ft`, `tp`): a
full topic that was changed is found by it. `SENSOR` and `STATE` have the values, `LWT` the standing, `cmnd` writes.
Devices that do not introduce themselves (SetOption19 1) are heard below the default full topic, by their topic.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import (
    Facts,
    Listen,
    Outcome,
    Refused,
    Request,
    Sample,
    Standing,
    Value,
    Words,
)
from appliance.errors import ConnectorError, EventError

MAX_DEVICES = 2000
HOLD_NS = 3_000_000_000  # after the first message, in which retained introductions arrive
DEFAULT_TOPIC = "%prefix%/%topic%/"
DEFAULT_PREFIXES = ("cmnd", "stat", "tele")

# The unit by the last part of a value's name, where the device itself does not tell.
UNITS = {
    "Humidity": "%",
    "DewPoint": "°C",
    "CarbonDioxide": "ppm",
    "eCO2": "ppm",
    "TVOC": "ppb",
    "Illuminance": "lx",
    "Distance": "cm",
    "Voltage": "V",
    "Current": "A",
    "Power": "W",
    "ApparentPower": "VA",
    "ReactivePower": "var",
    "Factor": "",
    "Frequency": "Hz",
    "Total": "kWh",
    "Yesterday": "kWh",
    "Today": "kWh",
    "Period": "Wh",
    "PM1": "µg/m³",
    "PM2.5": "µg/m³",
    "PM10": "µg/m³",
    "Weight": "kg",
    "Vcc": "V",
    "RSSI": "%",
    "Signal": "dBm",
    "Battery": "%",
    "BatteryPercentage": "%",
}
_BY_TOLD = {"Temperature": "TempUnit", "ReferenceTemperature": "TempUnit", "DewPoint": "TempUnit",
            "Pressure": "PressureUnit", "SeaPressure": "PressureUnit", "Speed": "SpeedUnit"}  # fmt: skip
_TELLS = ("SENSOR", "STATE", "ENERGY")
_ZIGBEE = ("ZbReceived", "LwReceived")
_MAC = re.compile(r"[0-9A-Fa-f]{12}")
_POWER = re.compile(r"POWER\d{0,2}")


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices that run Tasmota."""

    leave_out: Annotated[Words, Meta(description="Values that say nothing of a machine.")] = field(
        default_factory=lambda: ["UptimeSec", "Heap", "Sleep", "LoadAvg", "MqttCount", "Epoch", "Wifi", "Berry", "Time"]
    )


def create(settings: Settings) -> "Tasmota":
    return Tasmota(settings)


class _Device(Struct, frozen=True):
    key: str
    prefix: str  # of its topics that tell, up to the last slash
    commands: str
    online: str = "Online"
    offline: str = "Offline"


class Tasmota:
    name = "tasmota"
    filters = ("tasmota/discovery/+/config", "tele/+/+", "stat/+/+")

    def __init__(self, settings: Settings) -> None:
        self._leave_out = frozenset(settings.leave_out)
        self._by_prefix: dict[str, _Device] = {}
        self._told: dict[str, dict[str, str]] = {}  # key -> units of its points
        self._since = 0

    def greet(self) -> Sequence[Request]:
        return ()

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        self._since = self._since or at
        if topic.startswith("tasmota/discovery/"):
            return self._introduced(topic.split("/")[2], payload)
        prefix, _, word = topic.rpartition("/")
        device = self._by_prefix.get(prefix)
        if device is None:
            device = self._unannounced(prefix, word, at)
        if device is None or not payload:
            return []
        try:
            return self._said(device, word, payload)
        except EventError as error:
            return [Refused(device.key, error.reason, error.message)]

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        device = next((one for one in self._by_prefix.values() if one.key == key), None)
        if device is None or not _POWER.fullmatch(point):
            raise ConnectorError(f"'{point}' of {key} cannot be set", "POWER, POWER1, ... can.")
        return [Request(f"{device.commands}/{point}", b"ON" if value else b"OFF")]

    def _introduced(self, mac: str, payload: bytes) -> Sequence[Outcome]:
        if not payload:
            return [Standing(mac.upper(), False)]
        told = _json.mapping(payload)
        topic, key = _json.text(told.get("t")), mac.upper()
        if not _MAC.fullmatch(mac) or not topic:
            raise EventError("shape", f"tasmota/discovery/{mac[:20]}: no topic 't'")
        full = _json.text(told.get("ft")) or DEFAULT_TOPIC
        prefixes = _prefixes(told.get("tp"))
        commands, stat, tele = (_resolved(full, prefix, topic, mac) for prefix in prefixes)
        other = self._by_prefix.get(tele)
        if other is not None and other.key not in (key, topic):
            return [Refused(key, "id-reused", f"{other.key} uses the topic {tele}, too")]
        key = other.key if other is not None else key
        if other is None and len(self._by_prefix) >= 2 * MAX_DEVICES:
            raise EventError("too-many-devices", f"more than {MAX_DEVICES} Tasmota devices")
        device = _Device(key, tele, commands, _json.text(told.get("onln")), _json.text(told.get("ofln")))
        for old in [prefix for prefix, one in self._by_prefix.items() if one.key == key]:
            del self._by_prefix[old]
        self._by_prefix[tele] = self._by_prefix[stat] = device
        return [_facts(key, told, mac), *_listening(tele, stat)]

    def _unannounced(self, prefix: str, word: str, at: int) -> _Device | None:
        """A device that was only heard, after those had time that introduce themselves."""
        kind, _, topic = prefix.partition("/")
        if kind != "tele" or not topic or "/" in topic or word not in (*_TELLS, "LWT") or at - self._since < HOLD_NS:
            return None
        if len(self._by_prefix) >= 2 * MAX_DEVICES:
            raise EventError("too-many-devices", f"more than {MAX_DEVICES} Tasmota devices")
        device = _Device(topic, prefix, f"cmnd/{topic}")
        self._by_prefix[prefix] = self._by_prefix[f"stat/{topic}"] = device
        return device

    def _said(self, device: _Device, word: str, payload: bytes) -> Sequence[Outcome]:
        if word == "LWT":
            said = payload.decode("utf-8", "replace").strip()
            return [Standing(device.key, said == device.online)] if said in (device.online, device.offline) else []
        if _POWER.fullmatch(word):
            return self._sampled(device.key, {word: _json.number(payload)}, {})
        if word not in (*_TELLS, "STATUS8", "STATUS10", "RESULT"):
            return []
        if payload[:1] != b"{" and word == "RESULT":
            return []
        told = _json.mapping(payload)
        told = _json.child(told, "StatusSNS") or told
        if any(name in told for name in _ZIGBEE):
            return self._of_bridge(device.key, told)
        if word == "RESULT":  # answers to commands: of these only switches are values
            told = {name: value for name, value in told.items() if _POWER.fullmatch(name)}
        kept = {name: value for name, value in told.items() if name not in self._leave_out}
        return self._sampled(device.key, _json.flat(kept), told)

    def _of_bridge(self, key: str, told: dict[str, Any]) -> Sequence[Outcome]:
        """Devices behind a bridge are devices of their own, below it."""
        found: list[Outcome] = []
        for name in _ZIGBEE:
            for address, values in list(_json.child(told, name).items())[:64]:
                if isinstance(values, dict):
                    identity = _json.text(values.get("Device")) or address
                    kept = {point: value for point, value in values.items() if point not in ("Endpoint", "Device")}
                    below = f"{key}/{identity}"
                    if below not in self._told:
                        found.append(Facts(below, _json.text(values.get("Name")) or address))
                    found += self._sampled(below, _json.flat(kept), {})
        return found

    def _sampled(self, key: str, values: dict[str, Value], told: dict[str, Any]) -> list[Outcome]:
        """The sample, and before it what is new of its units."""
        for name in [name for name in values if name.rpartition(".")[2] in ("Id", "MAC", "UID")]:
            del values[name]
        units = {name: _unit(name, told) for name in values if name not in ("TempUnit", "PressureUnit", "SpeedUnit")}
        if key not in self._told and len(self._told) >= 2 * MAX_DEVICES:
            raise EventError(
                "too-many-devices", f"more than {2 * MAX_DEVICES} devices, those behind bridges among them"
            )
        known = self._told.setdefault(key, {})
        new = {name: unit for name, unit in units.items() if known.get(name) != unit}
        if len(known) + len(new) > 4 * _json.MAX_POINTS:
            raise EventError("too-many-points", f"{len(known)} values of one device")
        known.update(new)
        settable = tuple(name for name in new if _POWER.fullmatch(name))
        facts: list[Outcome] = [Facts(key, units=new, settable=settable)] if new else []
        return [*facts, Sample(key, {name: values[name] for name in units})] if units else facts


def _facts(key: str, told: dict[str, Any], mac: str) -> Facts:
    names = told.get("fn")
    first = _json.text(names[0]) if isinstance(names, list) and names else ""
    name = _json.text(told.get("dn")) or first or _json.text(told.get("t"))
    return Facts(key, name, "Tasmota", _json.text(told.get("md")), _json.text(told.get("sw")), proof=mac.upper())


def _prefixes(told: Any) -> tuple[str, ...]:
    if not isinstance(told, list) or len(told) != 3:
        return DEFAULT_PREFIXES
    return tuple(_json.text(one) or default for one, default in zip(told, DEFAULT_PREFIXES, strict=True))


def _resolved(full: str, prefix: str, topic: str, mac: str) -> str:
    """A full topic without its last slash. EventError where it would listen to others."""
    found = full.replace("%prefix%", prefix).replace("%topic%", topic).replace("%id%", mac[-6:].upper())
    found = found.replace("%hostname%", topic).strip("/")
    if not found or "%" in found or "+" in found or "#" in found:
        raise EventError("shape", f"the full topic {full[:60]!r} cannot be followed")
    return found


def _listening(*prefixes: str) -> list[Outcome]:
    """Of what the default filters do not hear."""
    special = [prefix for prefix in dict.fromkeys(prefixes) if not re.fullmatch(r"(tele|stat)/[^/]+", prefix)]
    return [Listen(tuple(f"{prefix}/+" for prefix in special))] if special else []


def _unit(name: str, told: dict[str, Any]) -> str:
    leaf = name.rpartition(".")[2]
    unit = _json.text(told.get(_BY_TOLD[leaf])) if leaf in _BY_TOLD else ""
    return unit or UNITS.get(leaf, "")

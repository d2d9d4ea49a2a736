"""Shelly of the second generation and later (Plus, Pro, Gen3, Gen4): RPC over MQTT.

    [dialects.shelly2]
    prefixes = ["site/hall1/meter"]     # topic prefixes that have a slash in them; all others are found

`<prefix>/online` tells that a device is there; it is then asked for its status by `<prefix>/rpc`. What changes comes as
`NotifyStatus` on `<prefix>/events/rpc`, or as `<prefix>/status/<component:id>` where that is switched on.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct, field, json

from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import (
    Facts,
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
ANSWERS = "millwright/shelly"  # answers come to ANSWERS/rpc

UNITS = {
    "apower": "W",
    "act_power": "W",
    "aprt_power": "VA",
    "total_act_power": "W",
    "total_aprt_power": "VA",
    "voltage": "V",
    "current": "A",
    "total_current": "A",
    "n_current": "A",
    "pf": "",
    "freq": "Hz",
    "total": "Wh",
    "total_act_energy": "Wh",
    "total_act": "Wh",
    "tC": "°C",
    "rh": "%",
    "lux": "lx",
    "percent": "%",
    "V": "V",
    "rssi": "dBm",
    "current_pos": "%",
    "brightness": "%",
    "speed": "",
}
_PHASED = ("a_", "b_", "c_")
# Components and leaves that tell of the device's housekeeping.
_QUIET = {"sys", "mqtt", "cloud", "ws", "ble", "eth", "wifi", "script", "bthome", "ui", "matter", "knx"}
_NOT_POINTS = {"id", "source", "tF", "minute_ts", "timer_started_at", "timer_duration", "ts", "last_command_id"}
_SETTABLE = {"switch": "output", "light": "output"}


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Shelly devices of the second generation and later."""

    prefixes: Annotated[Words, Meta(description="Topic prefixes of several levels.")] = field(default_factory=list)


def create(settings: Settings) -> "Shelly2":
    return Shelly2(settings.prefixes)


class Shelly2:
    name = "shelly2"

    def __init__(self, prefixes: Sequence[str]) -> None:
        listened = [f"{prefix}/{rest}" for prefix in prefixes for rest in ("online", "events/rpc", "status/+")]
        self.filters = ("+/online", "+/events/rpc", "+/status/+", f"{ANSWERS}/rpc", *listened)
        self._prefixes = list(prefixes)
        self._keys: dict[str, str] = {}  # prefix -> key
        self._told: dict[str, set[str]] = {}  # key -> points that were introduced

    def greet(self) -> Sequence[Request]:
        return [_ask(prefix) for prefix in self._prefixes] + [Request("shellies/command", b"announce")]

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        if not payload or topic.startswith("shellies/"):
            return []
        if topic == f"{ANSWERS}/rpc":
            return list(self._answered(_json.mapping(payload)))
        prefix, _, rest = topic.rpartition("/")
        if rest == "online":
            return self._online(prefix, payload)
        if topic.endswith("/events/rpc"):
            return list(self._notified(topic.removesuffix("/events/rpc"), payload))
        above, _, word = prefix.rpartition("/")
        if word == "status" and ":" in rest and above in self._keys:
            return self._of_component(self._keys[above], rest, payload)
        return []

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        component, _, leaf = point.partition(".")
        kind, _, number = component.partition(":")
        prefix = next((prefix for prefix, known in self._keys.items() if known == key), None)
        if prefix is None or _SETTABLE.get(kind) != leaf or not number.isdecimal():
            raise ConnectorError(f"'{point}' of {key} cannot be set", "Switches and lights can: switch:0.output, ...")
        params = {"id": int(number), "on": bool(value)}
        return [Request(f"{prefix}/rpc", _call(f"{kind.capitalize()}.Set", params))]

    def _online(self, prefix: str, payload: bytes) -> Sequence[Outcome]:
        is_there = payload.strip() == b"true"
        if not is_there and payload.strip() != b"false":
            return []  # somebody else's topic that ends so
        known: list[Outcome] = [Standing(self._keys[prefix], is_there)] if prefix in self._keys else []
        return [*known, _ask(prefix)] if is_there else known

    def _answered(self, told: dict[str, Any]) -> Iterator[Outcome]:
        """`Shelly.GetDeviceInfo` or `Shelly.GetStatus`."""
        source, result = _json.text(told.get("src")), _json.child(told, "result")
        prefix = _json.text(told.get("id")).partition(" ")[2] or source
        if not source or not result or not self._admit(prefix, source):
            return
        if "model" in result or "app" in result:
            yield _facts(source, result)
        else:
            yield Facts(source, source, "Shelly", proof=_json.text(_json.child(result, "sys").get("mac")))
            yield from self._status(source, result)

    def _notified(self, prefix: str, payload: bytes) -> Iterator[Outcome]:
        told = _json.mapping(payload)
        source = _json.text(told.get("src"))
        if not source or told.get("method") not in ("NotifyStatus", "NotifyFullStatus", "NotifyEvent"):
            return
        is_new = prefix not in self._keys
        if not self._admit(prefix, source):
            yield Refused(self._keys.get(prefix, source), "id-reused", f"{prefix} is used by {source}, too")
            return
        if is_new:
            yield Facts(source, source, "Shelly")
            yield _ask(prefix)
        if told["method"] != "NotifyEvent":
            yield from self._status(source, _json.child(told, "params"))

    def _admit(self, prefix: str, source: str) -> bool:
        """One device a prefix, one prefix a device."""
        if prefix not in self._keys and len(self._keys) >= MAX_DEVICES:
            raise EventError("too-many-devices", f"more than {MAX_DEVICES} Shelly devices")
        return self._keys.setdefault(prefix, source) == source

    def _of_component(self, key: str, component: str, payload: bytes) -> Sequence[Outcome]:
        try:
            return list(self._status(key, {component: _json.mapping(payload)}))
        except EventError as error:
            return [Refused(key, error.reason, error.message)]

    def _status(self, key: str, status: dict[str, Any]) -> Iterator[Outcome]:
        values: dict[str, Value] = {}
        for component, fields in status.items():
            if component.partition(":")[0] not in _QUIET and isinstance(fields, dict):
                values |= _json.flat({component: fields})
        values = {point: value for point, value in values.items() if point.rpartition(".")[2] not in _NOT_POINTS}
        told = self._told.setdefault(key, set())
        new = [point for point in values if point not in told]
        if len(told) + len(new) > 4 * _json.MAX_POINTS:
            raise EventError("too-many-points", f"{len(told)} values of one device")
        if new:
            told.update(new)
            settable = tuple(
                point for point in new if _SETTABLE.get(point.partition(":")[0]) == point.partition(".")[2]
            )
            yield Facts(key, units={point: _unit(point) for point in new}, settable=settable)
        if values:
            yield Sample(key, values)


def _facts(key: str, told: dict[str, Any]) -> Facts:
    name, mac = _json.text(told.get("name")), _json.text(told.get("mac"))
    model = _json.text(told.get("model")) or _json.text(told.get("app"))
    return Facts(key, name or key, "Shelly", model, _json.text(told.get("ver")), proof=mac)


def _unit(point: str) -> str:
    leaf = point.rpartition(".")[2]
    return UNITS.get(leaf[2:] if leaf.startswith(_PHASED) else leaf, "")


def _ask(prefix: str) -> Request:
    return Request(f"{prefix}/rpc", _call("Shelly.GetStatus", None, prefix))


def _call(method: str, params: dict[str, Any] | None, prefix: str = "") -> bytes:
    call = {"id": f"mw {prefix}", "src": ANSWERS, "method": method}
    return json.encode(call | ({"params": params} if params else {}))

"""Shelly of the first generation: `shellies/<id>/...`.

    [dialects.shelly1]

`shellies/announce` and `shellies/<id>/info` introduce a device; each value has a topic of its own, such as
`shellies/shellyplug-s-DDEEFF/relay/0/power`; `.../online` is its last will. `relay/0/command` writes.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import Facts, Outcome, Refused, Request, Sample, Standing
from appliance.errors import ConnectorError, EventError

MAX_LEVELS = 4  # of a value's topic
MAX_TOLD = 50_000
_ROOT = "shellies/"

# The unit by the last level of a value's topic.
UNITS = {
    "power": "W",
    "energy": "W-min",
    "returned_energy": "W-min",
    "total": "Wh",
    "total_returned": "Wh",
    "voltage": "V",
    "current": "A",
    "pf": "",
    "reactive_power": "var",
    "temperature": "°C",
    "temperature_f": "°F",
    "humidity": "%",
    "battery": "%",
    "lux": "lx",
    "illuminance": "lx",
    "tilt": "°",
    "concentration": "ppm",
}
_SINGULAR = {"temperatures": "temperature", "humidities": "humidity"}
_NOT_POINTS = {"announce", "info", "online", "command", "input_event", "settings", "longpush", "temperature_f"}


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Shelly devices of the first generation."""


def create(settings: Settings) -> "Shelly1":
    return Shelly1()


class Shelly1:
    name = "shelly1"
    filters = ("shellies/#",)

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()  # points that were introduced

    def greet(self) -> Sequence[Request]:
        return [Request("shellies/command", b"announce")]

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        key, _, rest = topic.removeprefix(_ROOT).partition("/")
        if topic == f"{_ROOT}announce":
            told = _json.mapping(payload)
            return [_facts(_json.text(told.get("id")), told)] if told.get("id") else []
        if not topic.startswith(_ROOT) or not rest or not payload or key == "command":
            return []
        try:
            return self._of_device(key, rest, payload)
        except EventError as error:
            return [Refused(key, error.reason, error.message)]

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        if not point.startswith(("relay/", "relay.")) or point.count(".") + point.count("/") != 1:
            raise ConnectorError(f"'{point}' of {key} cannot be set", "Relays can: relay.0, relay.1, ...")
        return [Request(f"{_ROOT}{key}/{point.replace('.', '/')}/command", b"on" if value else b"off")]

    def _of_device(self, key: str, rest: str, payload: bytes) -> Sequence[Outcome]:
        if rest == "online":
            return [Standing(key, payload.strip() == b"true")]
        if rest in ("info", "announce"):
            told = _json.mapping(payload)
            return [_facts(key, told)] if rest == "announce" else self._status(key, told)
        levels = rest.split("/")
        if len(levels) > MAX_LEVELS or _NOT_POINTS & set(levels):
            return []
        point = ".".join(levels)
        sample = Sample(key, {point: _json.number(payload)})
        if (key, point) in self._told or len(self._told) >= MAX_TOLD:
            return [sample]
        self._told.add((key, point))
        settable = (point,) if levels[0] == "relay" and len(levels) == 2 else ()
        return [Facts(key, key, "Shelly", units={point: _unit(levels)}, settable=settable), sample]

    def _status(self, key: str, told: dict[str, Any]) -> Sequence[Outcome]:
        mac = _json.text(told.get("mac"))
        firmware = _json.text(_json.child(told, "update").get("old_version"))
        return [Facts(key, key, "Shelly", "", firmware, proof=mac)] if mac else []


def _facts(key: str, told: dict[str, Any]) -> Facts:
    return Facts(
        key,
        key,
        "Shelly",
        _json.text(told.get("model")),
        _json.text(told.get("fw_ver")),
        proof=_json.text(told.get("mac")),
    )


def _unit(levels: list[str]) -> str:
    """By the last level that names one: `relay/0/power`, but `ext_temperatures/0`."""
    names = [level.removeprefix("ext_") for level in reversed(levels)]
    return next((UNITS[name] for name in (*names, *(_SINGULAR.get(name, "") for name in names)) if name in UNITS), "")

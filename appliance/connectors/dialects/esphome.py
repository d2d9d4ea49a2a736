"""ESPHome with its `mqtt:` component.

    [dialects.esphome]

Retained `esphome/discover/<name>` introduces a node; it then speaks below its topic prefix, which is its name unless it
was changed: `<prefix>/<component>/<object>/state`, `<prefix>/status`. Units come with its entries for Home Assistant,
which also tell a prefix that was changed. `<prefix>/switch/<object>/command` writes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import Facts, Listen, Outcome, Refused, Request, Sample, Standing
from appliance.errors import ConnectorError, EventError

MAX_NODES = 2000
MAX_TOLD = 100_000  # points
_COMPONENTS = {"sensor", "binary_sensor", "switch", "number", "light", "fan", "valve", "lock", "cover", "climate"}
_SETTABLE = {"switch": (b"ON", b"OFF"), "light": (b'{"state":"ON"}', b'{"state":"OFF"}')}


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Nodes that run ESPHome."""


def create(settings: Settings) -> "EspHome":
    return EspHome()


class EspHome:
    name = "esphome"
    filters = ("esphome/discover/+", "homeassistant/+/+/+/config")

    def __init__(self) -> None:
        self._nodes: dict[str, str] = {}  # prefix -> key
        self._macs: dict[str, str] = {}  # key -> MAC
        self._told: set[tuple[str, str]] = set()

    def greet(self) -> Sequence[Request]:
        return [Request("esphome/discover", b"")]

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        if not payload:
            return []
        if topic.startswith("esphome/discover/"):
            return list(self._introduced(topic.rpartition("/")[2], _json.mapping(payload)))
        if topic.startswith("homeassistant/"):
            return list(self._entity(topic.split("/")[1], payload))
        return self._said(topic, payload)

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        component, _, name = point.partition(".")
        prefix = next((prefix for prefix, known in self._nodes.items() if known == key), None)
        if prefix is None or component not in (*_SETTABLE, "number"):
            raise ConnectorError(f"'{point}' of {key} cannot be set", "Switches, lights and numbers can.")
        on, off = _SETTABLE.get(component, (b"", b""))
        said = f"{value:g}".encode() if component == "number" else on if value else off
        return [Request(f"{prefix}/{component}/{name}/command", said)]

    def _introduced(self, name: str, told: dict[str, Any]) -> Iterator[Outcome]:
        mac = _json.text(told.get("mac")).upper()
        if name not in self._macs and len(self._macs) >= MAX_NODES:
            raise EventError("too-many-devices", f"{name[:40]!r}: {MAX_NODES} nodes are followed at most")
        if self._macs.setdefault(name, mac) != mac and mac:
            yield Refused(name, "id-reused", f"{mac} and {self._macs[name]} both are {name}")
            return
        model = _json.text(told.get("board")) or _json.text(told.get("platform"))
        maker = _json.text(told.get("project_name")) or "ESPHome"
        shown = _json.text(told.get("friendly_name")) or name
        yield Facts(name, shown, maker, model, _json.text(told.get("version")), proof=mac)
        yield from self._follow(name, name)

    def _entity(self, component: str, payload: bytes) -> Iterator[Outcome]:
        """An entry for Home Assistant, where an ESPHome node wrote it."""
        told = _json.mapping(payload)
        device = _json.child(told, "dev") or _json.child(told, "device")
        version = _json.text(device.get("sw")) or _json.text(device.get("sw_version"))
        state = _json.text(told.get("stat_t")) or _json.text(told.get("state_topic"))
        prefix, levels = _split(state)
        if "esphome" not in version.lower() or len(levels) != 3:
            return
        if prefix not in self._nodes:
            yield from self._follow(prefix, _json.text(device.get("name")) or prefix)
        unit = _json.text(told.get("unit_of_meas")) or _json.text(told.get("unit_of_measurement"))
        point = f"{levels[0]}.{levels[1]}"
        if len(self._told) < MAX_TOLD:
            self._told.add((prefix, point))
        settable = (point,) if levels[0] in (*_SETTABLE, "number") else ()
        yield Facts(self._nodes[prefix], units={point: unit}, settable=settable)

    def _follow(self, prefix: str, key: str) -> Iterator[Outcome]:
        if prefix in self._nodes:
            return
        if len(self._nodes) >= MAX_NODES or not prefix or any(letter in prefix for letter in "+#"):
            raise EventError("too-many-devices", f"{prefix[:40]!r}: {MAX_NODES} nodes are followed at most")
        self._nodes[prefix] = key
        yield Listen((f"{prefix}/+/+/state", f"{prefix}/status"))

    def _said(self, topic: str, payload: bytes) -> Sequence[Outcome]:
        if topic.endswith("/status"):
            key = self._nodes.get(topic.removesuffix("/status"))
            return [Standing(key, payload == b"online")] if key else []
        prefix, levels = _split(topic)
        known = self._nodes.get(prefix)
        if known is None or len(levels) != 3 or levels[0] not in _COMPONENTS:
            return []
        point = f"{levels[0]}.{levels[1]}"
        try:
            values = self._values(point, payload)
        except EventError as error:
            return [Refused(known, error.reason, error.message)]
        return [*self._introduce(prefix, known, point), Sample(known, values)]

    def _values(self, point: str, payload: bytes) -> dict[str, Any]:
        if payload[:1] == b"{":  # lights tell everything at once
            told = _json.mapping(payload)
            flat = _json.flat({name: value for name, value in told.items() if name != "color_mode"})
            return {f"{point}.{name}" if name != "state" else point: value for name, value in flat.items()}
        return {point: _json.number(payload)}

    def _introduce(self, prefix: str, key: str, point: str) -> list[Outcome]:
        if (prefix, point) in self._told or len(self._told) >= MAX_TOLD:
            return []
        self._told.add((prefix, point))
        return [Facts(key, units={point: ""}, settable=(point,) if point.partition(".")[0] in _SETTABLE else ())]


def _split(topic: str) -> tuple[str, list[str]]:
    """The prefix, and component, object and `state` after it."""
    parts = topic.rsplit("/", 3)
    return (parts[0], parts[1:]) if len(parts) == 4 and parts[3] == "state" else ("", [])

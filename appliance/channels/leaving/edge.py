"""A Sparkplug B edge node: births, data by alias, deaths, and the numbers that go with them. Pure: times come in.

The node is the box, each asset is a device of it. A device is born again when it gets a metric it did not have.
"""

from typing import Any, NamedTuple

from appliance.errors import EventError
from appliance.protocols import sparkplug, units
from appliance.protocols.sparkplug import Metric, Payload, Type, Verb

REBIRTH, BD_SEQ = "Node Control/Rebirth", "bdSeq"
SEQS = 256
LATE_MS = 10_000  # what is older than this when it leaves was waiting: it is marked as historical
MAX_DEVICES = 5000
MAX_METRICS = 1200  # of a device
_SCORES = (("score", Type.DOUBLE), ("threshold", Type.DOUBLE), ("stage", Type.STRING), ("cause", Type.STRING))
_MODEL = (("model", Type.STRING), ("version", Type.STRING), ("device", Type.STRING))
_ALARM = (("state", Type.STRING), ("active", Type.BOOLEAN), ("severity", Type.STRING), ("cause", Type.STRING))


class Saying(NamedTuple):
    topic: str
    payload: bytes


class _Device:
    def __init__(self, name: str) -> None:
        self.name = name
        self.metrics: dict[str, Metric] = {}  # with their latest values
        self.units: dict[str, str] = {}
        self.is_born = False


class EdgeNode:
    """`say` turns events into messages; `birth` begins a connection, whose last will is `death`."""

    def __init__(self, group: str, node: str) -> None:
        """EventError where a name cannot stand in a topic."""
        self._group, self._node = group, node
        self._devices: dict[str, _Device] = {}
        self._seq, self._aliases = 0, 0
        sparkplug.topic(group, Verb.NBIRTH, node)

    def topic(self, verb: Verb, device: str = "") -> str:
        return sparkplug.topic(self._group, verb, self._node, device)

    def death(self, bd_seq: int, now_ms: int) -> Saying:
        payload = Payload((Metric(BD_SEQ, bd_seq, Type.INT64),), now_ms)
        return Saying(self.topic(Verb.NDEATH), sparkplug.encode(payload))

    def birth(self, bd_seq: int, now_ms: int) -> list[Saying]:
        """Of the node and of every device it knows."""
        self._seq = 0
        metrics = (
            Metric(BD_SEQ, bd_seq, Type.INT64, timestamp=now_ms),
            Metric(REBIRTH, False, Type.BOOLEAN, timestamp=now_ms),
        )
        said = [self._said(Verb.NBIRTH, "", metrics, now_ms)]
        for device in self._devices.values():
            device.is_born = False
            said.append(self._born(device, now_ms))
        return said

    def say(self, kind: str, path: str, condition: str, fields: dict[str, Any], now_ms: int) -> list[Saying]:
        """The messages that an event becomes; none where there is nothing that Sparkplug could say. EventError for a
        name that no topic can have, or one device too many."""
        device = self._devices.get(path)
        if device is None:
            if len(self._devices) >= MAX_DEVICES:
                raise EventError("too-many-assets", f"more than {MAX_DEVICES} assets of a node")
            device = self._devices[path] = _Device(path.replace("/", ":"))
        if kind == "device":
            is_news = device.units != fields["units"]
            device.units = dict(fields["units"])
            return [self._born(device, now_ms)] if is_news and device.is_born else []
        metrics = self._metrics(device, _named(kind, condition, fields), fields["at"] // 1_000_000, now_ms)
        if not metrics:
            return []
        if not device.is_born:
            return [self._born(device, now_ms), self._said(Verb.DDATA, device.name, metrics, now_ms)]
        return [self._said(Verb.DDATA, device.name, metrics, now_ms)]

    def _metrics(
        self, device: _Device, named: list[tuple[str, Type, Any]], at_ms: int, now_ms: int
    ) -> tuple[Metric, ...]:
        """By alias; those that the device lacked are in its next birth."""
        is_late = now_ms - at_ms > LATE_MS
        found = []
        for name, kind, value in named:
            known = device.metrics.get(name)
            if known is None:
                if len(device.metrics) >= MAX_METRICS:
                    continue
                self._aliases += 1
                known = Metric(name, value, kind, self._aliases, at_ms)
                device.metrics[name] = known
                device.is_born = False
            elif at_ms >= (known.timestamp or 0):
                device.metrics[name] = Metric(name, value, kind, known.alias, at_ms)
            found.append(Metric("", value, kind, known.alias, at_ms, is_late))
        return tuple(found)

    def _born(self, device: _Device, now_ms: int) -> Saying:
        device.is_born = True
        metrics = (
            Metric(name, one.value, one.datatype, one.alias, one.timestamp, properties=_properties(device, name))
            for name, one in device.metrics.items()
        )
        return self._said(Verb.DBIRTH, device.name, tuple(metrics), now_ms)

    def _said(self, verb: Verb, device: str, metrics: tuple[Metric, ...], now_ms: int) -> Saying:
        payload = Payload(metrics, now_ms, self._seq)
        self._seq = (self._seq + 1) % SEQS
        return Saying(self.topic(verb, device), sparkplug.encode(payload))


def _properties(device: _Device, name: str) -> dict[str, sparkplug.Plain]:
    code = device.units.get(name, "")
    return {"engUnit": units.shown(code)} if code else {}


def _named(kind: str, condition: str, fields: dict[str, Any]) -> list[tuple[str, Type, Any]]:
    if kind == "reading":
        return [(name, Type.DOUBLE, float(value)) for name, value in fields["values"].items()]
    if kind == "score":
        told = [(f"Score/{name}", type_, fields.get(name)) for name, type_ in _SCORES]
        return told + [(f"Model/{name}", type_, fields.get(name)) for name, type_ in _MODEL]
    if kind == "alarm":
        return [(f"Alarm/{condition}/{name}", type_, fields.get(name)) for name, type_ in _ALARM]
    return []


def wants_rebirth(payload: bytes) -> bool:
    """A command to the node. EventError for what is no payload."""
    return any(metric.name == REBIRTH and metric.value is True for metric in sparkplug.decode(payload).metrics)

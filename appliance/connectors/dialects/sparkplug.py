"""Sparkplug B v3: edge nodes and their devices.

    [dialects.sparkplug]
    groups = []                  # empty: all
    host = "millwright"          # this side is a host application of that name

A node is `group/node`, a device `group/node/device`. A birth names metrics, types, aliases and units (`engUnit`); data
without a birth, or out of sequence, makes this side ask for a rebirth, at most every 10 s a node. A death that belongs
to an older birth is left aside. Cells of a data set are points `metric.column` (its last row), members of a template
`metric/member`. What a node kept while it was offline (historical) is counted and left out: it is not now.

Nodes may wait for a host application and keep what they have until it is there. With `host` this side is one: its state
is told when it comes, when it goes, and when somebody else has told it wrongly.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from appliance.connectors.dialects import _json
from appliance.connectors.dialects.port import (
    MAX_ANNOUNCEMENT,
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
from appliance.protocols import sparkplug
from appliance.protocols.sparkplug import Address, DataSet, HostState, Metric, Payload, Template, Type, Verb

ALL = (sparkplug.FILTER,)
MAX_NODES = 1000
MAX_DEVICES = 1000  # of a node
MAX_ALIASES = 50_000  # of a node
REBIRTH_NS = 10_000_000_000
REBIRTH = "Node Control/Rebirth"
_CONTROL = ("Node Control/", "Device Control/", "_types_/", "bdSeq")
_MS = 1_000_000


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Edge nodes that speak Sparkplug B."""

    groups: Annotated[Words, Meta(description="Groups that are heard; empty: all.")] = field(default_factory=list)
    host: Annotated[
        str,
        Meta(
            pattern=r"^[^#+/\x00-\x1f]{0,100}$",
            description="The host application that this side is to nodes that wait for one; empty: none.",
        ),
    ] = ""


def create(settings: Settings) -> "SparkplugB":
    return SparkplugB(settings.groups, settings.host)


class _Node:
    def __init__(self) -> None:
        self.aliases: dict[int, tuple[str, Type]] = {}
        self.types: dict[str, dict[str, Type]] = {}  # key -> metric -> type
        self.bd_seq: int | None = None
        self.next_seq: int | None = None  # none: there was no birth
        self.asked = 0  # for a rebirth, ns


class SparkplugB:
    name = "sparkplug"

    def __init__(self, groups: Sequence[str], host: str = "") -> None:
        self._host, self._since = sparkplug.host(host) if host else "", 0
        own = (self._host,) if host else ()
        self.filters = (*(f"{sparkplug.NAMESPACE}/{group}/#" for group in groups), *own) if groups else ALL
        self._nodes: dict[str, _Node] = {}

    def will(self, at: int) -> Request | None:
        self._since = at // _MS
        return self._state(online=False) if self._host else None

    def greet(self) -> Sequence[Request]:
        return [self._state(online=True)] if self._host else ()

    def _state(self, *, online: bool) -> Request:
        return Request(self._host, msgspec.json.encode(HostState(online, self._since)), stands=True)

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        if topic == self._host:  # told wrongly where it says that we are not there: by a session of ours that is over
            return [] if sparkplug.host_state(payload).online else [self._state(online=True)]
        if topic.startswith(f"{sparkplug.NAMESPACE}/STATE/"):
            return []
        address = sparkplug.parse(topic)
        if address.verb in (Verb.NCMD, Verb.DCMD):
            return []
        key = _key(address)
        try:
            return self._told(address, key, _decoded(payload), at)
        except EventError as error:
            return [Refused(key, error.reason, error.message)]

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        group, _, rest = key.partition("/")
        name, _, device = rest.partition("/")
        node = self._nodes.get(f"{group}/{name}")
        kind = node.types.get(key, {}).get(point) if node else None
        if kind is None:
            raise ConnectorError(f"'{point}' of {key} cannot be set", "It is in no birth of this node.")
        told: Value = bool(value) if kind is Type.BOOLEAN else value
        if kind not in (Type.FLOAT, Type.DOUBLE, Type.BOOLEAN):
            told = round(value)
        verb = Verb.DCMD if device else Verb.NCMD
        payload = Payload((Metric(point, told, kind),))
        return [Request(sparkplug.topic(group, verb, name, device), sparkplug.encode(payload))]

    def _told(self, address: Address, key: str, payload: Payload, at: int) -> Sequence[Outcome]:
        node = self._node(address)
        match address.verb:
            case Verb.NBIRTH:
                return self._node_born(node, address, key, payload)
            case Verb.NDEATH:
                return self._node_died(node, address, payload)
            case _ if node.next_seq is None:
                unborn = Refused(key, "no-birth", f"{address.verb} of {key} before a birth of its node")
                return [unborn, *_rebirth(node, address, at)]
        complaints = self._in_sequence(node, address, key, payload, at)
        match address.verb:
            case Verb.DBIRTH:
                return [*complaints, *_born(node, key, payload)]
            case Verb.DDEATH:
                return [*complaints, Standing(key, False)]
        return [*complaints, *self._data(node, address, key, payload, at)]

    def _node(self, address: Address) -> _Node:
        name = f"{address.group}/{address.node}"
        if name not in self._nodes:
            if len(self._nodes) >= MAX_NODES:
                raise EventError("too-many-devices", f"more than {MAX_NODES} Sparkplug nodes")
            self._nodes[name] = _Node()
        return self._nodes[name]

    def _node_born(self, node: _Node, address: Address, key: str, payload: Payload) -> Sequence[Outcome]:
        node.aliases, node.types = {}, {}
        bd_seq = next((metric.value for metric in payload.metrics if metric.name == "bdSeq"), None)
        node.bd_seq = bd_seq if type(bd_seq) is int else None
        node.next_seq = ((payload.seq or 0) + 1) % 256
        return list(_born(node, key, payload))

    def _node_died(self, node: _Node, address: Address, payload: Payload) -> Sequence[Outcome]:
        bd_seq = next((metric.value for metric in payload.metrics if metric.name == "bdSeq"), None)
        if node.bd_seq is not None and bd_seq is not None and bd_seq != node.bd_seq:
            return []  # the will of a session that was followed by another
        node.next_seq = None
        return [Standing(key, False) for key in (_key(address._replace(device="")), *node.types)]

    def _in_sequence(self, node: _Node, address: Address, key: str, payload: Payload, at: int) -> list[Outcome]:
        expected, found = node.next_seq, payload.seq
        if found is None:
            return [Refused(key, "sequence", f"{address.verb} of {key} without a sequence number")]
        node.next_seq = (found + 1) % 256
        if found == expected:
            return []
        missing = Refused(key, "sequence", f"{key}: number {found} where {expected} was due")
        return [missing, *_rebirth(node, address, at)]

    def _data(self, node: _Node, address: Address, key: str, payload: Payload, at: int) -> Iterator[Outcome]:
        known = node.types.get(key)
        if known is None:
            yield Refused(key, "no-birth", f"data of {key} before its birth")
            yield from _rebirth(node, address, at)
            return
        resolved, unknown, historical = _resolved(node, known, payload.metrics)
        if unknown:
            yield Refused(key, "unknown-metric", f"{key}: {unknown} metrics that no birth named")
            yield from _rebirth(node, address, at)
        if historical:
            yield Refused(key, "historical", f"{key}: {historical} values from before")
        yield from _samples(key, resolved, payload)


def _decoded(data: bytes) -> Payload:
    if len(data) > MAX_ANNOUNCEMENT:
        raise EventError("too-large", f"a payload of {len(data)} bytes")
    return sparkplug.decode(data)


def _key(address: Address) -> str:
    return "/".join(part for part in (address.group, address.node, address.device) if part)


def _rebirth(node: _Node, address: Address, at: int) -> list[Outcome]:
    """Asked for again only after a while: a node that cannot answer must not be flooded."""
    if at - node.asked < REBIRTH_NS and node.asked:
        return []
    node.asked = at
    order = Payload((Metric(REBIRTH, True, Type.BOOLEAN),))
    return [Request(sparkplug.topic(address.group, Verb.NCMD, address.node), sparkplug.encode(order))]


def _born(node: _Node, key: str, payload: Payload) -> Iterator[Outcome]:
    if key not in node.types and len(node.types) >= MAX_DEVICES:
        raise EventError("too-many-devices", f"more than {MAX_DEVICES} devices of a node")
    units: dict[str, str] = {}
    types = node.types[key] = {}
    for metric in payload.metrics:
        if metric.alias is not None and metric.name:
            taken = node.aliases.setdefault(metric.alias, (metric.name, metric.datatype))
            if taken[0] != metric.name:
                yield Refused(key, "id-reused", f"alias {metric.alias} is {taken[0]!r} and {metric.name!r}")
        if len(node.aliases) > MAX_ALIASES or len(types) >= _json.MAX_POINTS:
            raise EventError("too-many-points", f"{key} has more than {_json.MAX_POINTS} metrics")
        if metric.name and not metric.name.startswith(_CONTROL):
            types[metric.name] = metric.datatype
            if isinstance(metric.value, bool | int | float):
                units[metric.name] = _json.text(metric.properties.get("engUnit"))
    facts = {
        metric.name: _json.text(metric.value) for metric in payload.metrics if metric.name.startswith("Properties/")
    }
    yield Facts(
        key,
        key.rpartition("/")[2],
        facts.get("Properties/Hardware Make", ""),
        facts.get("Properties/Hardware Model", ""),
        facts.get("Properties/FW", ""),
        units,
        tuple(units),
    )
    yield Standing(key, True)
    yield from _samples(key, [one for one in payload.metrics if not one.is_historical], payload)


def _resolved(node: _Node, known: dict[str, Type], metrics: Sequence[Metric]) -> tuple[list[Metric], int, int]:
    """Metrics with name and type, how many no birth named, how many are historical."""
    found: list[Metric] = []
    unknown = historical = 0
    for metric in metrics:
        name, kind = metric.name, known.get(metric.name, metric.datatype)
        if not name and metric.alias is not None:
            name, kind = node.aliases.get(metric.alias, ("", Type.UNKNOWN))
        if metric.is_historical:
            historical += 1
        elif name in known or name.startswith(_CONTROL):
            typed = sparkplug.retyped(metric, metric.datatype or kind)
            found.append(Metric(name, typed.value, typed.datatype, timestamp=metric.timestamp))
        else:
            unknown += 1
    return found, unknown, historical


def _samples(key: str, metrics: Sequence[Metric], payload: Payload) -> Iterator[Sample]:
    """Values of one moment together."""
    moments: dict[int | None, dict[str, Value]] = {}
    for metric in metrics:
        if metric.name and not metric.name.startswith(_CONTROL):
            stamp = metric.timestamp if metric.timestamp is not None else payload.timestamp
            moments.setdefault(stamp, {}).update(_points(metric.name, metric.value))
    for stamp in sorted(moments, key=lambda one: one or 0):
        if moments[stamp]:
            yield Sample(key, moments[stamp], None if stamp is None else stamp * _MS)


def _points(name: str, value: sparkplug.Content) -> Iterator[tuple[str, Value]]:
    if isinstance(value, DataSet):
        for column, cell in zip(value.columns, value.rows[-1] if value.rows else (), strict=False):
            yield f"{name}.{column}", cell
    elif isinstance(value, Template):
        for member in value.metrics if not value.is_definition else ():
            yield from _points(f"{name}/{member.name}", member.value)
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, None
    elif not isinstance(value, bytes):
        yield name, value

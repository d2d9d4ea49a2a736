"""Sparkplug B v3: payloads to bytes and back, and the topics they travel on. Pure; both directions use it.

    decode(bytes) -> Payload        encode(Payload) -> bytes
    parse(topic) -> Address         topic("group", Verb.DDATA, "node", "device") -> str

The numbers are those of Eclipse Tahu's sparkplug_b.proto. Times are UTC milliseconds, as Sparkplug writes them. A
hostile payload costs what it weighs: everything in it is counted while it is read, and an EventError says which bound
it broke ("malformed", "too-many-points", "shape").
"""

import struct
from enum import IntEnum, StrEnum
from typing import NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from appliance.errors import EventError
from appliance.protocols import protobuf
from appliance.protocols.protobuf import put

NAMESPACE = "spBv1.0"
FILTER = f"{NAMESPACE}/#"

MAX_METRICS = 20_000  # a payload, those inside templates among them
MAX_CELLS = 100_000  # of all data sets of a payload
MAX_DEPTH = 4  # templates within templates
MAX_NAME = 512  # characters
MAX_PROPERTIES = 64  # a metric


class Verb(StrEnum):
    """What a message is: the third part of its topic."""

    NBIRTH = "NBIRTH"
    NDEATH = "NDEATH"
    NDATA = "NDATA"
    NCMD = "NCMD"
    DBIRTH = "DBIRTH"
    DDEATH = "DDEATH"
    DDATA = "DDATA"
    DCMD = "DCMD"


class Address(NamedTuple):
    group: str
    verb: Verb
    node: str
    device: str = ""  # empty: the node itself


class Type(IntEnum):
    """Data types by their numbers. Arrays are left as the bytes they are."""

    UNKNOWN = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATETIME = 13
    TEXT = 14
    UUID = 15
    DATASET = 16
    BYTES = 17
    FILE = 18
    TEMPLATE = 19
    PROPERTYSET = 20
    PROPERTYSETLIST = 21
    INT8ARRAY = 22
    INT16ARRAY = 23
    INT32ARRAY = 24
    INT64ARRAY = 25
    UINT8ARRAY = 26
    UINT16ARRAY = 27
    UINT32ARRAY = 28
    UINT64ARRAY = 29
    FLOATARRAY = 30
    DOUBLEARRAY = 31
    BOOLEANARRAY = 32
    STRINGARRAY = 33
    DATETIMEARRAY = 34


Plain = int | float | bool | str | None


class DataSet(Struct, frozen=True):
    """A table: every row has a value of each column's type."""

    columns: tuple[str, ...]
    types: tuple[Type, ...]
    rows: tuple[tuple[Plain, ...], ...] = ()


class Template(Struct, frozen=True):
    """A structure of metrics; a definition stands in a birth, instances refer to it."""

    metrics: "tuple[Metric, ...]" = ()
    reference: str = ""  # name of the definition that an instance follows
    is_definition: bool = False
    version: str = ""
    parameters: dict[str, Plain] = field(default_factory=dict)


Content = Plain | bytes | DataSet | Template


class Metric(Struct, frozen=True):
    """`value` None is null. Without `datatype` (data by alias) whole numbers are unsigned until `typed` reads them."""

    name: str = ""
    value: Content = None
    datatype: Type = Type.UNKNOWN
    alias: int | None = None
    timestamp: int | None = None
    is_historical: bool = False
    is_transient: bool = False
    properties: dict[str, Plain] = field(default_factory=dict)  # `engUnit` is the unit by custom


class Payload(Struct, frozen=True):
    metrics: tuple[Metric, ...] = ()
    timestamp: int | None = None
    seq: int | None = None
    uuid: str = ""
    body: bytes = b""


def parse(text: str) -> Address:
    """EventError("topic") where it is not a node's or a device's topic; host states are told by `host`."""
    parts = text.split("/")
    if parts[0] != NAMESPACE or not 4 <= len(parts) <= 5 or parts[2] not in Verb.__members__ or not all(parts):
        raise EventError("topic", f"'{text[:80]}' is not {NAMESPACE}/<group>/<message>/<node>[/<device>]")
    verb = Verb(parts[2])
    if (verb.value[0] == "D") != (len(parts) == 5):
        raise EventError("topic", f"'{text[:80]}': {verb} names {'a' if verb.value[0] == 'D' else 'no'} device")
    return Address(parts[1], verb, parts[3], parts[4] if len(parts) == 5 else "")


def topic(group: str, verb: Verb, node: str, device: str = "") -> str:
    """EventError("topic") where a part cannot stand in a topic."""
    parts = [group, verb.value, node, *([device] if device else [])]
    for part in parts:
        if not part or not part.isprintable() or any(letter in part for letter in "+#/"):
            raise EventError("topic", f"{part[:40]!r} cannot be part of a Sparkplug topic")
    return "/".join((NAMESPACE, *parts))


def host(identity: str) -> str:
    """The topic of a host application's state, `{"online": true, "timestamp": ms}`, retained and its last will."""
    return f"{NAMESPACE}/STATE/{identity}"


# Reading


class _Room:
    """What a payload may still hold."""

    def __init__(self) -> None:
        self.metrics, self.cells = MAX_METRICS, MAX_CELLS

    def take_metric(self) -> None:
        self.metrics -= 1
        if self.metrics < 0:
            raise EventError("too-many-points", f"more than {MAX_METRICS} metrics in a payload")

    def take_cells(self, count: int) -> None:
        self.cells -= count
        if self.cells < 0:
            raise EventError("too-many-points", f"more than {MAX_CELLS} cells in a payload's data sets")


def decode(data: bytes) -> Payload:
    """EventError for bytes that are no payload, or break a bound."""
    room, metrics = _Room(), list[Metric]()
    timestamp = seq = None
    uuid, body = "", b""
    for number, _, value in protobuf.fields(data):
        if number == 1:
            timestamp = protobuf.whole(value)
        elif number == 2:
            metrics.append(_metric(protobuf.raw(value), room, MAX_DEPTH))
        elif number == 3:
            seq = protobuf.whole(value)
        elif number == 4:
            uuid = protobuf.text(value)
        elif number == 5:
            body = protobuf.raw(value)
    return Payload(tuple(metrics), timestamp, seq, uuid, body)


def typed(value: Content, kind: Type) -> Content:
    """A value as its type means it: whole numbers travel unsigned, in the two's complement of 32 or 64 bits."""
    if type(value) is int and kind in _SIGNED:
        bits = _SIGNED[kind]
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> (bits - 1) else value
    if kind is Type.BOOLEAN and type(value) is int:
        return bool(value)
    return value


def retyped(metric: Metric, kind: Type) -> Metric:
    """A metric that named no type, with the one its birth gave it."""
    return replace(metric, datatype=kind, value=typed(metric.value, kind))


_SIGNED = {Type.INT8: 8, Type.INT16: 16, Type.INT32: 32, Type.INT64: 64}


def _metric(data: bytes, room: _Room, depth: int) -> Metric:
    room.take_metric()
    name, alias, timestamp, kind = "", None, None, Type.UNKNOWN
    value: Content = None
    properties: dict[str, Plain] = {}
    flags = {5: False, 6: False, 7: False}
    for number, _, found in protobuf.fields(data):
        if number in flags:
            flags[number] = bool(protobuf.whole(found))
        elif number == 1:
            name = _name(found)
        elif number == 2:
            alias = protobuf.whole(found)
        elif number == 3:
            timestamp = protobuf.whole(found)
        elif number == 4:
            kind = _type(found)
        elif number == 9:
            properties = _properties(protobuf.raw(found))
        elif 10 <= number <= 18:
            value = _content(number, found, room, depth)
    value = None if flags[7] else typed(value, kind)
    return Metric(name, value, kind, alias, timestamp, flags[5], flags[6], properties)


def _content(number: int, found: protobuf.Value, room: _Room, depth: int) -> Content:
    if number == 16:
        return protobuf.raw(found)
    if number == 17:
        return _dataset(protobuf.raw(found), room)
    if number == 18:
        if not depth:
            raise EventError("shape", f"templates in more than {MAX_DEPTH} levels")
        return _template(protobuf.raw(found), room, depth - 1)
    return _plain(number - 10, found)


def _plain(place: int, found: protobuf.Value) -> Plain:
    """A value by its place in the order int, long, float, double, boolean, string, which every message keeps."""
    if place in (0, 1):
        return protobuf.whole(found)
    if place in (2, 3):
        return protobuf.floating(found)
    return bool(protobuf.whole(found)) if place == 4 else protobuf.text(found)


def _properties(data: bytes) -> dict[str, Plain]:
    """Keys and plain values; sets within sets are left out."""
    keys: list[str] = []
    values: list[Plain] = []
    for number, _, found in protobuf.fields(data):
        if number == 1:
            keys.append(_name(found))
        elif number == 2:
            values.append(_parameter(protobuf.raw(found), kind_at=1, first=3))
        if max(len(keys), len(values)) > MAX_PROPERTIES:
            raise EventError("shape", f"more than {MAX_PROPERTIES} properties of a metric")
    return dict(zip(keys, values, strict=False))


def _parameter(data: bytes, kind_at: int, first: int) -> Plain:
    value: Plain = None
    kind = Type.UNKNOWN
    for number, _, found in protobuf.fields(data):
        if number == kind_at:
            kind = _type(found)
        elif first <= number <= first + 5:
            value = _plain(number - first, found)
    told = typed(value, kind)
    return told if not isinstance(told, bytes | DataSet | Template) else None


def _dataset(data: bytes, room: _Room) -> DataSet:
    columns: list[str] = []
    types: list[Type] = []
    rows: list[bytes] = []
    for number, wire, found in protobuf.fields(data):
        if number == 2:
            columns.append(_name(found))
        elif number == 3 and wire == protobuf.LENGTH:
            types += [_type(one) for one in _packed(protobuf.raw(found))]
        elif number == 3:
            types.append(_type(found))
        elif number == 4:
            rows.append(protobuf.raw(found))
        room.take_cells(1)
    if len(types) != len(columns):
        raise EventError("shape", f"a data set of {len(columns)} columns with {len(types)} types")
    return DataSet(tuple(columns), tuple(types), tuple(_row(row, types, room) for row in rows))


def _row(data: bytes, types: list[Type], room: _Room) -> tuple[Plain, ...]:
    cells: list[Plain] = []
    for number, _, found in protobuf.fields(data):
        if number != 1:
            continue
        room.take_cells(1)
        if len(cells) >= len(types):
            raise EventError("shape", f"a row of more than {len(types)} cells")
        told = typed(_cell(protobuf.raw(found)), types[len(cells)])
        cells.append(None if isinstance(told, bytes | DataSet | Template) else told)
    if len(cells) != len(types):
        raise EventError("shape", f"a row of {len(cells)} cells in a data set of {len(types)} columns")
    return tuple(cells)


def _cell(data: bytes) -> Plain:
    value: Plain = None
    for number, _, found in protobuf.fields(data):
        if 1 <= number <= 6:
            value = _plain(number - 1, found)
    return value


def _packed(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        number, at = protobuf.varint(data, at)
        found.append(number)
    return found


def _template(data: bytes, room: _Room, depth: int) -> Template:
    version = reference = ""
    is_definition = False
    metrics: list[Metric] = []
    parameters: dict[str, Plain] = {}
    for number, _, found in protobuf.fields(data):
        if number == 1:
            version = protobuf.text(found)
        elif number == 2:
            metrics.append(_metric(protobuf.raw(found), room, depth))
        elif number == 3 and len(parameters) < MAX_PROPERTIES:
            name, value = _named_parameter(protobuf.raw(found))
            parameters[name] = value
        elif number == 4:
            reference = protobuf.text(found)
        elif number == 5:
            is_definition = bool(protobuf.whole(found))
    return Template(tuple(metrics), reference, is_definition, version, parameters)


def _named_parameter(data: bytes) -> tuple[str, Plain]:
    name = next((_name(found) for number, _, found in protobuf.fields(data) if number == 1), "")
    return name, _parameter(data, kind_at=2, first=3)


def _name(found: protobuf.Value) -> str:
    name = protobuf.text(found)
    if len(name) > MAX_NAME:
        raise EventError("point-name", f"a name of {len(name)} characters: {name[:40]!r}")
    return name


def _type(found: protobuf.Value) -> Type:
    try:
        return Type(protobuf.whole(found))
    except ValueError:
        raise EventError("shape", f"there is no data type {found!r}") from None


# Writing


def encode(payload: Payload) -> bytes:
    """EventError("shape") for a value that its type cannot hold."""
    return b"".join(
        (
            b"" if payload.timestamp is None else put(1, payload.timestamp),
            *(put(2, _put_metric(metric)) for metric in payload.metrics),
            b"" if payload.seq is None else put(3, payload.seq),
            put(4, payload.uuid) if payload.uuid else b"",
            put(5, payload.body) if payload.body else b"",
        )
    )


def _put_metric(metric: Metric) -> bytes:
    return b"".join(
        (
            put(1, metric.name) if metric.name else b"",
            b"" if metric.alias is None else put(2, metric.alias),
            b"" if metric.timestamp is None else put(3, metric.timestamp),
            put(4, int(metric.datatype)) if metric.datatype else b"",
            put(5, 1) if metric.is_historical else b"",
            put(6, 1) if metric.is_transient else b"",
            put(7, 1) if metric.value is None else b"",
            put(9, _put_properties(metric.properties)) if metric.properties else b"",
            b"" if metric.value is None else _put_content(metric.value, metric.datatype),
        )
    )


def _put_content(value: Content, kind: Type) -> bytes:
    if isinstance(value, bytes):
        return put(16, value)
    if isinstance(value, DataSet):
        return put(17, _put_dataset(value))
    if isinstance(value, Template):
        return put(18, _put_template(value))
    return _put_plain(10, value, kind)


_LONG = (Type.INT64, Type.UINT64, Type.DATETIME)
_WHOLE = (Type.INT8, Type.INT16, Type.INT32, Type.UINT8, Type.UINT16, Type.UINT32)
_BITS = _SIGNED | {Type.UINT8: 8, Type.UINT16: 16, Type.UINT32: 32, Type.UINT64: 64, Type.DATETIME: 64}


def _put_plain(first: int, value: Plain, kind: Type) -> bytes:
    try:
        if kind in _LONG or kind in _WHOLE:
            return _put_whole(first, value, kind)
        if kind is Type.FLOAT:
            return protobuf.put_float(first + 2, float(value or 0.0))
        if kind is Type.DOUBLE:
            return protobuf.put_double(first + 3, float(value or 0.0))
        if kind is Type.BOOLEAN:
            return put(first + 4, int(bool(value)))
    except (ValueError, TypeError, OverflowError, struct.error):
        raise EventError("shape", f"{value!r} is no {kind.name}"[:200]) from None
    return put(first + 5, str(value))


def _put_whole(first: int, value: Plain, kind: Type) -> bytes:
    number, bits = int(value or 0), _BITS[kind]
    low = -(1 << (bits - 1)) if kind in _SIGNED else 0
    if not low <= number < low + (1 << bits):
        raise EventError("shape", f"{number} is no {kind.name}"[:200])
    # A negative one of 8 or 16 bits is widened to 32, as Tahu does.
    return put(first, number & 0xFFFFFFFF) if kind in _WHOLE else put(first + 1, number)


def _natural(value: Plain) -> Type:
    """The type that holds any value of this kind."""
    if isinstance(value, bool):
        return Type.BOOLEAN
    if isinstance(value, int):
        return Type.INT64
    return Type.DOUBLE if isinstance(value, float) else Type.STRING


def _put_properties(properties: dict[str, Plain]) -> bytes:
    values = (
        put(1, int(kind := _natural(value))) + (put(2, 1) if value is None else _put_plain(3, value, kind))
        for value in properties.values()
    )
    return b"".join([put(1, key) for key in properties] + [put(2, value) for value in values])


def _put_dataset(table: DataSet) -> bytes:
    rows = (
        b"".join(
            put(1, b"" if cell is None else _put_plain(1, cell, kind))
            for cell, kind in zip(row, table.types, strict=True)
        )
        for row in table.rows
    )
    return b"".join(
        [
            put(1, len(table.columns)),
            *(put(2, column) for column in table.columns),
            *(put(3, int(kind)) for kind in table.types),
            *(put(4, row) for row in rows),
        ]
    )


def _put_template(template: Template) -> bytes:
    parameters = (
        put(1, name) + put(2, int(kind := _natural(value))) + (b"" if value is None else _put_plain(3, value, kind))
        for name, value in template.parameters.items()
    )
    return b"".join(
        [
            put(1, template.version) if template.version else b"",
            *(put(2, _put_metric(metric)) for metric in template.metrics),
            *(put(3, parameter) for parameter in parameters),
            put(4, template.reference) if template.reference else b"",
            put(5, int(template.is_definition)),
        ]
    )

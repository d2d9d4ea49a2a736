"""Payloads out of bytes: everything is counted while it is read."""

from msgspec.structs import replace

from appliance.errors import EventError
from appliance.protocols import protobuf
from appliance.protocols.sparkplug.model import (
    MAX_CELLS,
    MAX_DEPTH,
    MAX_METRICS,
    MAX_NAME,
    MAX_PROPERTIES,
    SIGNED,
    Content,
    DataSet,
    Metric,
    Payload,
    Plain,
    Template,
    Type,
)


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
    if type(value) is int and kind in SIGNED:
        bits = SIGNED[kind]
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> (bits - 1) else value
    if kind is Type.BOOLEAN and type(value) is int:
        return bool(value)
    return value


def retyped(metric: Metric, kind: Type) -> Metric:
    """A metric that named no type, with the one its birth gave it."""
    return replace(metric, datatype=kind, value=typed(metric.value, kind))


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

"""Payloads to bytes."""

import struct

from appliance.errors import EventError
from appliance.protocols import protobuf
from appliance.protocols.protobuf import put
from appliance.protocols.sparkplug.model import SIGNED, Content, DataSet, Metric, Payload, Plain, Template, Type

_LONG = (Type.INT64, Type.UINT64, Type.DATETIME)
_WHOLE = (Type.INT8, Type.INT16, Type.INT32, Type.UINT8, Type.UINT16, Type.UINT32)
_BITS = SIGNED | {Type.UINT8: 8, Type.UINT16: 16, Type.UINT32: 32, Type.UINT64: 64, Type.DATETIME: 64}


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
    low = -(1 << (bits - 1)) if kind in SIGNED else 0
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

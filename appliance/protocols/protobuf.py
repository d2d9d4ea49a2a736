"""The wire format of Protocol Buffers, as much of it as Sparkplug needs. Pure.

`fields` cuts a message into (number, value): int for varints, 4 or 8 bytes for fixed numbers, bytes for the rest. A
message that is cut short or says nonsense is an EventError("malformed").
"""

import struct
from collections.abc import Iterator

from appliance.errors import EventError

Value = int | bytes

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_WIDTH = {FIXED64: 8, FIXED32: 4}
_MASK = (1 << 64) - 1


def fields(message: bytes) -> Iterator[tuple[int, int, Value]]:
    """Number, wire type and value of each field, in their order."""
    at, end = 0, len(message)
    while at < end:
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = varint(message, at)
            yield number, kind, value
            continue
        if kind == LENGTH:
            size, at = varint(message, at)
        elif kind in _WIDTH:
            size = _WIDTH[kind]
        else:
            raise EventError("malformed", f"wire type {kind} at byte {at}")
        if size > end - at or not number:
            raise EventError("malformed", f"a field of {size} bytes at byte {at} of {end}")
        yield number, kind, message[at : at + size]
        at += size


def varint(message: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of up to 64 bits, and where the next field begins."""
    value = shift = 0
    while shift < 70:
        if at >= len(message):
            raise EventError("malformed", f"cut short at byte {at}")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
    raise EventError("malformed", f"a number of more than 64 bits at byte {at}")


def text(value: Value) -> str:
    """Of a string field."""
    try:
        return raw(value).decode()
    except UnicodeDecodeError as error:
        raise EventError("malformed", f"text that is not UTF-8: {error}") from None


def raw(value: Value) -> bytes:
    if isinstance(value, int):
        raise EventError("malformed", "a number where bytes belong")
    return value


def whole(value: Value) -> int:
    if isinstance(value, bytes):
        raise EventError("malformed", "bytes where a number belongs")
    return value


def floating(value: Value) -> float:
    """Of a field of 4 or 8 bytes."""
    data = raw(value)
    if len(data) not in (4, 8):
        raise EventError("malformed", f"a floating point number of {len(data)} bytes")
    number: float = struct.unpack("<f" if len(data) == 4 else "<d", data)[0]
    return number


def put_varint(number: int) -> bytes:
    number &= _MASK
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def put(number: int, value: int | bytes | str) -> bytes:
    """A field: a varint of an int, otherwise bytes with their length."""
    if isinstance(value, int):
        return put_varint(number << 3 | VARINT) + put_varint(value)
    data = value.encode() if isinstance(value, str) else value
    return put_varint(number << 3 | LENGTH) + put_varint(len(data)) + data


def put_float(number: int, value: float) -> bytes:
    return put_varint(number << 3 | FIXED32) + struct.pack("<f", value)


def put_double(number: int, value: float) -> bytes:
    return put_varint(number << 3 | FIXED64) + struct.pack("<d", value)

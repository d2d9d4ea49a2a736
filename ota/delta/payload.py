"""The payload of a segment and the tables ahead of all of them, as bytes.

    tables    u8 logarithm of the lanes | context tables
    payload   number 2 * words + restart | [u32 x lanes, the states of a restart] | u16 x words
              | number of raw bytes | raw bytes | what RAW and GAP parts hold, one after the other

Numbers are LEB128; everything is little-endian.
"""

from dataclasses import dataclass

import numpy as np

from ota.delta import rans, tables
from ota.delta.errors import PatchError
from ota.delta.segments import MAX_PAYLOAD, MAX_TABLES


@dataclass(frozen=True)
class Payload:
    """`states` where the streams start again with this segment; `blobs` are cut by the parts."""

    words: rans.Words
    raw: bytes = b""
    blobs: bytes = b""
    states: rans.States | None = None


def write(payload: Payload) -> bytes:
    if not len(payload.words) and payload.states is None and not payload.raw and not payload.blobs:
        return b""
    states = b"" if payload.states is None else payload.states.astype("<u4").tobytes()
    head = _number(2 * len(payload.words) + (payload.states is not None))
    words = payload.words.astype("<u2").tobytes()
    return head + states + words + _number(len(payload.raw)) + payload.raw + payload.blobs


def read(data: bytes, lanes: int) -> Payload:
    """PatchError for a payload that is cut or too long."""
    if len(data) > MAX_PAYLOAD:
        raise PatchError(f"a payload of {len(data)} bytes; {MAX_PAYLOAD} are allowed")
    if not data:
        return Payload(np.zeros(0, np.uint16))
    count, place = _read_number(data, 0)
    states = None
    if count & 1:
        states = np.frombuffer(_cut(data, place, 4 * lanes), "<u4").astype(np.uint32)
        place += 4 * lanes
        if (states < rans.LOW).any():
            raise PatchError("a stream starts below its least state")
    words = np.frombuffer(_cut(data, place, 2 * (count >> 1)), "<u2").astype(np.uint16)
    place += 2 * len(words)
    length, place = _read_number(data, place)
    raw = _cut(data, place, length)
    return Payload(words, raw, data[place + length :], states)


def _cut(data: bytes, place: int, size: int) -> bytes:
    if place + size > len(data):
        raise PatchError("a payload ends too early")
    return data[place : place + size]


def _number(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_number(data: bytes, place: int) -> tuple[int, int]:
    number = 0
    for step in range(5):
        byte = _cut(data, place + step, 1)[0]
        number |= (byte & 127) << 7 * step
        if byte < 128:
            return number, place + step + 1
    raise PatchError("a number of a payload without end")


def write_tables(lanes: int, book: bytes) -> bytes:
    return bytes([lanes.bit_length() - 1]) + book


def read_tables(data: bytes) -> tuple[int, tables.Book]:
    """Lanes and context tables."""
    if not 1 <= len(data) <= MAX_TABLES:
        raise PatchError(f"context tables of {len(data)} bytes; {MAX_TABLES} are allowed")
    lanes = 1 << min(data[0], 31)
    if not rans.MIN_LANES <= lanes <= rans.MAX_LANES:
        raise PatchError(f"streams of {lanes} lanes; {rans.MIN_LANES} to {rans.MAX_LANES} are allowed")
    return lanes, tables.parse(data[1:])

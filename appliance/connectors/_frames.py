"""Serial frames: bytes as they come, cut into frames, and values out of frames. Pure and bounded.

lines      text up to a line's end: `61.2;3.5` or `T=61.2 P=3.5`
nmea       sentences of NMEA 0183 with a right checksum: `$IIMTW,17.5,C*10`
fixed      frames of one length behind a marker, numbers at places in them
"""

import math
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from appliance.errors import ConfigError, EventError

MAX_FRAME = 4096  # bytes
MAX_POINTS = 256

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PAIR = re.compile(rf"([A-Za-z_][\w.]*)\s*[=:]\s*({_NUMBER})")
_BARE = re.compile(rf"(?<![\w.]){_NUMBER}(?![\w.])")
_FORMATS = {
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "float32": "f",
    "float64": "d",
}


class Field(Struct, frozen=True, forbid_unknown_fields=True):
    """A value of a frame: its number in a line (from 0), or its place in a fixed frame."""

    name: Annotated[str, Meta(min_length=1, max_length=128, description="The point's name.")]
    at: Annotated[int, Meta(ge=0, le=MAX_FRAME, description="Number of the value, or offset in bytes.")] = 0
    type: Annotated[
        Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"],
        Meta(description="Of a fixed frame."),
    ] = "int16"
    order: Annotated[Literal["big", "little"], Meta(description="Which byte comes first.")] = "big"
    scale: Annotated[float, Meta(description="One step of the raw value.")] = 1.0
    offset: Annotated[float, Meta(description="Added after scaling.")] = 0.0
    unit: Annotated[str, Meta(max_length=40, description="As people write it.")] = ""


class Framing(Struct, frozen=True, forbid_unknown_fields=True):
    """How bytes become frames."""

    kind: Annotated[Literal["lines", "nmea", "fixed"], Meta(description="See the connector's docstring.")] = "lines"
    end: Annotated[str, Meta(min_length=1, max_length=8, description="What ends a line.")] = "\n"
    start_hex: Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{2}){0,8}$", description="First bytes of a frame.")] = ""
    length: Annotated[int, Meta(ge=0, le=MAX_FRAME, description="Bytes of a fixed frame, its first among them.")] = 0
    checksum: Annotated[
        Literal["", "sum8", "xor8", "crc16-modbus"], Meta(description="At the end of a fixed frame; empty: none.")
    ] = ""
    fields: Annotated[
        list[Field], Meta(max_length=MAX_POINTS, description="Values; of lines: all that are numbers.")
    ] = field(default_factory=list)


def check(framing: Framing) -> None:
    """ConfigError for what cannot be."""
    if framing.kind != "fixed":
        return
    if not framing.length or not framing.fields:
        raise ConfigError("a fixed frame needs its length and its fields", "Set `length` and `fields` of `framing`.")
    for one in framing.fields:
        if one.at + struct.calcsize(_FORMATS[one.type]) > framing.length:
            raise ConfigError(f"'{one.name}' stands beyond the frame's {framing.length} bytes", "Look at its `at`.")


class Cutter:
    """`feed` it what arrives: whole frames come out. Bytes that begin no frame are counted as `skipped`."""

    def __init__(self, framing: Framing) -> None:
        self._framing, self._buffer = framing, bytearray()
        self._end = "\n" if framing.kind == "nmea" else framing.end
        self._start = bytes.fromhex(framing.start_hex)
        self.skipped = 0

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        frames = list(self._fixed() if self._framing.kind == "fixed" else self._lines())
        if len(self._buffer) > MAX_FRAME:
            self.skipped += len(self._buffer)
            self._buffer.clear()
        return frames

    def _lines(self) -> Iterator[bytes]:
        end = self._end.encode()
        while (at := self._buffer.find(end)) >= 0:
            frame = bytes(self._buffer[:at]).strip()
            del self._buffer[: at + len(end)]
            if frame:
                yield frame

    def _fixed(self) -> Iterator[bytes]:
        length = self._framing.length
        while len(self._buffer) >= length:
            at = self._buffer.find(self._start)
            if at:
                dropped = at if at > 0 else len(self._buffer) - len(self._start) + 1
                self.skipped += dropped
                del self._buffer[:dropped]
                continue
            frame = bytes(self._buffer[:length])
            if _is_right(frame, self._framing.checksum):
                del self._buffer[:length]
                yield frame
            else:  # a marker within another frame: the next one may be the right one
                del self._buffer[:1]
                self.skipped += 1


def values(framing: Framing, frame: bytes) -> dict[str, float]:
    """EventError for a frame that says nothing."""
    if framing.kind == "fixed":
        found = dict(_placed(framing.fields, frame))
    elif framing.kind == "nmea":
        found = dict(_sentence(frame))
    else:
        found = dict(_numbers(framing.fields, frame.decode("utf-8", "replace")))
    finite = {name: value for name, value in found.items() if math.isfinite(value)}
    if not finite:
        raise EventError("empty", f"no number in {frame[:60]!r}")
    return finite


def _placed(fields: Sequence[Field], frame: bytes) -> Iterator[tuple[str, float]]:
    for one in fields:
        (raw,) = struct.unpack_from((">" if one.order == "big" else "<") + _FORMATS[one.type], frame, one.at)
        yield one.name, float(raw) * one.scale + one.offset


def _numbers(fields: Sequence[Field], text: str) -> Iterator[tuple[str, float]]:
    pairs = _PAIR.findall(text)[:MAX_POINTS]
    bare = [float(one) for one in _BARE.findall(text)[:MAX_POINTS]]
    if fields:
        by_name = {name: float(value) for name, value in pairs}
        for one in fields:
            raw = by_name.get(one.name, bare[one.at] if one.at < len(bare) and not by_name else math.nan)
            yield one.name, raw * one.scale + one.offset
    elif pairs:
        yield from ((name, float(value)) for name, value in pairs)
    else:
        yield from ((f"value{number}", value) for number, value in enumerate(bare))


def _sentence(frame: bytes) -> Iterator[tuple[str, float]]:
    """Numbers of a sentence by its name and the number of the field: `MTW.1`. Positions as degrees: `GGA.latitude`."""
    text = frame.decode("ascii", "replace")
    body, mark, told = text[1:].partition("*")
    if text[:1] not in ("$", "!") or not mark:
        raise EventError("shape", f"no sentence of NMEA: {text[:60]!r}")
    right = 0
    for letter in body.encode("ascii", "replace"):
        right ^= letter
    if told[:2].upper() != f"{right:02X}":
        raise EventError("checksum", f"{told[:2]!r} where {right:02X} is right: {text[:60]!r}")
    talker, *parts = body.split(",")
    name = talker if talker[:1] == "P" else talker[2:]
    for number, part in enumerate(parts[:64], 1):
        hemisphere = parts[number] if number < len(parts) else ""
        if hemisphere in ("N", "S", "E", "W") and re.fullmatch(r"\d{3,5}\.\d+", part):
            degrees = float(part[: part.index(".") - 2]) + float(part[part.index(".") - 2 :]) / 60
            axis = "latitude" if hemisphere in ("N", "S") else "longitude"
            yield f"{name}.{axis}", -degrees if hemisphere in ("S", "W") else degrees
        elif re.fullmatch(_NUMBER, part):
            yield f"{name}.{number}", float(part)


def _is_right(frame: bytes, checksum: str) -> bool:
    if checksum == "sum8":
        return sum(frame[:-1]) & 0xFF == frame[-1]
    if checksum == "xor8":
        found = 0
        for byte in frame[:-1]:
            found ^= byte
        return found == frame[-1]
    if checksum == "crc16-modbus":
        return _crc16(frame[:-2]) == int.from_bytes(frame[-2:], "little")
    return True


def _crc16(data: bytes) -> int:
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc

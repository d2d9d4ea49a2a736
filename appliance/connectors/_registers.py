"""Modbus registers: points declared, grouped into the fewest requests, decoded and encoded. Pure.

blocks = plan(points, max_gap=8)            # [Block("input", 0, 10, (...points...)), ...]
decode(point, registers)                    # 230.1, from the words that belong to it
encode(point, 230.1)                        # [0x4366, 0x199A]
"""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from appliance.errors import ConfigError, ConnectorError, EventError

MAX_REGISTERS, MAX_BITS = 125, 2000  # of a request, by the specification

TableName = Literal["holding", "input", "coil", "discrete"]
TypeName = Literal["bool", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
Order = Literal["big", "little"]

_FORMATS: dict[str, str] = {
    "bool": ">H",
    "uint16": ">H",
    "int16": ">h",
    "uint32": ">I",
    "int32": ">i",
    "uint64": ">Q",
    "int64": ">q",
    "float32": ">f",
    "float64": ">d",
}
_BIT_TABLES = ("coil", "discrete")


class Point(Struct, frozen=True, forbid_unknown_fields=True):
    """One value of a slave. The value is raw * scale + offset."""

    name: Annotated[str, Meta(min_length=1, max_length=128, description="The point's name.")]
    address: Annotated[int, Meta(ge=0, le=65535, description="Of its first register, counted from 0.")]
    table: Annotated[TableName, Meta(description="Where it stands.")] = "holding"
    type: Annotated[TypeName, Meta(description="How its registers are read; of coils and discretes: bool.")] = "uint16"
    words: Annotated[Order, Meta(description="Which word of a wider value comes first.")] = "big"
    bytes: Annotated[Order, Meta(description="Which byte of a word comes first; Modbus says big.")] = "big"
    bit: Annotated[Annotated[int, Meta(ge=0, le=15)] | None, Meta(description="Only this bit of a register.")] = None
    scale: Annotated[float, Meta(description="One step of the raw value, in `unit`.")] = 1.0
    offset: Annotated[float, Meta(description="Added after scaling.")] = 0.0
    unit: Annotated[str, Meta(max_length=40, description="As people write it: °C, kWh.")] = ""
    writable: Annotated[bool, Meta(description="It may be set; nothing else ever is.")] = False
    min: Annotated[float | None, Meta(description="The smallest value that may be set.")] = None
    max: Annotated[float | None, Meta(description="The largest value that may be set.")] = None

    @property
    def width(self) -> int:
        """Registers, or bits, that it takes."""
        return 1 if self.table in _BIT_TABLES else struct.calcsize(_FORMATS[self.type]) // 2


class Block(NamedTuple):
    """One request and the points that it answers."""

    table: str
    address: int
    size: int  # registers, or bits
    points: tuple[Point, ...]


def check(point: Point) -> None:
    """ConfigError for what cannot be."""
    if point.address + point.width > 65_536:
        raise ConfigError(f"'{point.name}' reaches beyond register 65535", "Look at its address and type.")
    if point.writable and point.table in ("input", "discrete"):
        raise ConfigError(f"'{point.name}' is in a table that nobody can write", "Leave out `writable`.")
    if point.writable and (point.bit is not None or not point.scale):
        raise ConfigError(f"'{point.name}' cannot be set", "A bit of a register, or a scale of 0, cannot be written.")
    if point.bit is not None and (point.width != 1 or point.table in _BIT_TABLES):
        raise ConfigError(f"'{point.name}' names a bit of more than one register", 'Use type = "uint16".')


def plan(points: Sequence[Point], max_gap: int, max_count: int = MAX_REGISTERS) -> list[Block]:
    """The fewest requests: points of a table are read together over gaps of at most `max_gap` unused registers."""
    blocks: list[Block] = []
    for table in ("coil", "discrete", "input", "holding"):
        most = min(max_count, MAX_REGISTERS) if table not in _BIT_TABLES else min(max_count * 16, MAX_BITS)
        chosen = sorted((point for point in points if point.table == table), key=lambda point: point.address)
        run: list[Point] = []
        end = 0
        for point in chosen:
            reach = max(end, point.address + point.width)
            if run and (point.address - end > max_gap or reach - run[0].address > most):
                blocks.append(_block(run))
                run, end = [], 0
            run.append(point)
            end = max(end, point.address + point.width)
        if run:
            blocks.append(_block(run))
    return blocks


def split(block: Block) -> list[Block]:
    """What to ask where a slave refuses a block: the same without gaps; where there is none, point by point."""
    dense = plan(block.points, 0, block.size)
    return dense if len(dense) > 1 else [_block([point]) for point in block.points]


def decode(point: Point, raw: Sequence[int] | Sequence[bool]) -> float:
    """The value of the registers or bits that belong to it. EventError("not-finite")."""
    if point.table in _BIT_TABLES:
        return float(bool(raw[0]))
    data = b"".join(struct.pack(">H", word) for word in _ordered(point, raw))
    (value,) = struct.unpack(_FORMATS[point.type], data)
    if point.bit is not None:
        return float(value >> point.bit & 1)
    if point.type == "bool":
        value = bool(value)
    scaled = float(value) * point.scale + point.offset
    if not math.isfinite(scaled):
        raise EventError("not-finite", f"'{point.name}' is {value}")
    return scaled


def encode(point: Point, value: float) -> list[int]:
    """The registers, or the bit, that say it. ConnectorError where it may not be set to that."""
    if not point.writable:
        raise ConnectorError(f"'{point.name}' is read only", "Declare it with writable = true to let it be set.")
    low, high = point.min, point.max
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        bounds = f"{'-' if low is None else low} to {'-' if high is None else high}"
        raise ConnectorError(f"'{point.name}' may not be set to {value:g}", f"Its limits are {bounds}.")
    if point.table in _BIT_TABLES:
        return [int(bool(value))]
    raw: float | int = (value - point.offset) / point.scale
    if not point.type.startswith("float"):
        raw = round(raw)
    try:
        data = struct.pack(_FORMATS[point.type], raw)
    except (struct.error, OverflowError):
        raise ConnectorError(f"'{point.name}' cannot hold {value:g}", f"It is a {point.type}.") from None
    words = struct.unpack(f">{len(data) // 2}H", data)
    return _ordered(point, words)


def _block(points: Sequence[Point]) -> Block:
    first = min(point.address for point in points)
    end = max(point.address + point.width for point in points)
    return Block(points[0].table, first, end - first, tuple(points))


def _ordered(point: Point, words: Sequence[int]) -> list[int]:
    """To the order of Modbus and back: both swaps undo themselves."""
    found = list(words) if point.words == "big" else list(reversed(words))
    return found if point.bytes == "big" else [(word & 0xFF) << 8 | word >> 8 for word in found]

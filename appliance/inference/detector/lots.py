"""Rows of one asset that come together, and how many of them become rows of blocks at once.

On their way out of Python they are MessagePack, in which each float has nine bytes at a known place: that and one copy
by numpy are a third of the price of any other way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from appliance.events.rows import Row

MAX_WIDTH = (1 << 16) - 1  # beyond, the head of a list has another length
_FLOAT = 9  # bytes: a marker, then eight of them, the highest first
_LONG = 16  # elements from which on the head of a list has three bytes instead of one
_encode = msgspec.msgpack.Encoder().encode


class Lot(NamedTuple):
    """`packed` by `pack`: finite values of `points`, in their order."""

    asset: str
    points: list[str]
    size: int  # rows
    packed: bytes


def pack(rows: Sequence[Row]) -> bytes:
    """Of rows of one width; the floats may be let go, which keeps them few."""
    data = _encode(rows)
    return data[_head(len(rows)) :]


def block_rows(lots: Sequence[Lot], at: int) -> memoryview:
    """The bytes of rows of a block, of lots of one width; their times begin at `at` and are a nanosecond apart."""
    width, count = len(lots[0].points), sum(lot.size for lot in lots)
    head = _head(width)
    packed = b"".join([lot.packed for lot in lots])
    words = np.empty((count, width + 1))
    words[:, :width] = np.ndarray((count, width), ">f8", packed, head + 1, (head + width * _FLOAT, _FLOAT))
    words.view(np.int64)[:, width] = np.arange(at, at + count)
    return words.data.cast("B")


def _head(elements: int) -> int:
    """Bytes before a list's elements."""
    return 1 if elements < _LONG else 3 if elements <= MAX_WIDTH else 5

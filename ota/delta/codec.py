"""Pairs of tensors become segments, and segments become the new tensors again, bit for bit.

The boundary between the codec and the container around it:

    encoded = encode(old, new, pairs)     analyses everything, keeps what it found in a temporary file
    encoded.tables                        context tables: once, ahead of the first segment
    encoded.segments()                    in the order in which they are to be decoded
    decoder = Decoder(old, new, tables)   `new` reads back what was decoded and written before: scales come first
    decoder.decode(segment)               the bytes of its parts, one after the other
    decoder.state(); decoder.resume(b)    between two segments: what a journal keeps to go on from there

A segment is made of parts, each one range of the new file. It holds either nothing but COPY parts, of any size, without
a payload, which whoever applies it copies range by range from the old file (`part.params[0]` is the old offset less the
new one), or parts of other operations that give at most MAX_SEGMENT bytes together.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ota.delta.decoding import Decoder
from ota.delta.segments import (
    MAX_PARTS,
    MAX_PAYLOAD,
    MAX_SEGMENT,
    MAX_TABLES,
    Hints,
    Operation,
    Pair,
    Part,
    Segment,
)
from ota.delta.tensors import Source

if TYPE_CHECKING:
    from ota.delta.writing import Encoded

__all__ = [
    "encode",
    "Decoder",
    "Hints",
    "Pair",
    "Segment",
    "Part",
    "Operation",
    "MAX_SEGMENT",
    "MAX_PAYLOAD",
    "MAX_PARTS",
    "MAX_TABLES",
]


def encode(old: Source, new: Source, pairs: Sequence[Pair]) -> "Encoded":
    """See `encoding.encode`, which is imported when it is called: a box has no need of it."""
    from ota.delta import encoding

    return encoding.encode(old, new, pairs)

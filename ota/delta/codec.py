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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ota.delta.tensors import Source, Tensor

MAX_SEGMENT = 4 << 20  # bytes of output
MAX_PAYLOAD = MAX_SEGMENT + (MAX_SEGMENT >> 2) + (1 << 20)  # bytes; the states of a restart are within
MAX_PARTS = 4096  # a segment
MAX_TABLES = 1 << 16  # bytes


class Operation(StrEnum):
    COPY = "copy"  # old bytes as they are
    RAW = "raw"  # new bytes, by zstd or stored
    GAP = "gap"  # zstd with old bytes as its dictionary
    DELTA = "delta"  # residuals against a prediction


@dataclass(frozen=True)
class Hints:
    """What else is known about a pair.

    Scales and zero points belong to quantised weights, one an output channel or one a group of each: their shapes start
    with the weights' own. They are tensors of the same two files. `factors` are those of a low rank change handed over
    by the trainer, U [rows, rank] and V [rank, columns]: new is about old + U V in the units of the floats, or of
    weight x scale.
    """

    old_scale: Tensor | None = None
    new_scale: Tensor | None = None
    old_zero: Tensor | None = None
    new_zero: Tensor | None = None
    factors: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Pair:
    """A range of the new file and the range of the old one that resembles it, if any.

    Pairs cover the new file once, gaps between tensors (kind `bytes`) included, in any order.
    """

    new: Tensor
    old: Tensor | None = None
    hints: Hints = field(default=Hints())


@dataclass(frozen=True)
class Part:
    """`params` are integers, small where they can be: the meaning is the operation's own."""

    operation: Operation
    offset: int
    size: int
    params: tuple[int, ...] = ()


@dataclass(frozen=True)
class Segment:
    parts: tuple[Part, ...]
    payload: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the new file it gives."""
        return sum(part.size for part in self.parts)

    @property
    def is_copy(self) -> bool:
        return not self.payload and all(part.operation is Operation.COPY for part in self.parts)


class Encoded:
    """What `encode` found."""

    tables: bytes

    def segments(self) -> Iterator[Segment]:
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of the temporary file."""
        raise NotImplementedError


def encode(old: Source, new: Source, pairs: Sequence[Pair], **settings: Any) -> Encoded:
    """Finds the smallest operation for every pair. Memory: one tensor of each file; disk: about the new file."""
    raise NotImplementedError


class Decoder:
    """Gives the new bytes back, segment by segment, in bounded memory; DeltaError for whatever is not as it should."""

    def __init__(self, old: Source, new: Source, tables: bytes) -> None:
        raise NotImplementedError

    def decode(self, segment: Segment) -> bytes:
        """The bytes of all its parts in order, to be written to their places before the next segment is decoded."""
        raise NotImplementedError

    def state(self) -> bytes:
        """What a decoder needs, besides the tables, to go on with the next segment."""
        raise NotImplementedError

    def resume(self, state: bytes) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """To be called after the last segment: DeltaError unless every stream came out even."""
        raise NotImplementedError

"""What the codec and the container around it hand to each other. `codec` tells how."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ota.delta.tensors import Tensor

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

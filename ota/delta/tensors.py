"""What a model file holds: named tensors at byte ranges that do not overlap.

Four-bit kinds keep two elements a byte, the low nibble first; a tensor of an odd count ends in half a byte of filling.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Protocol

from ota.delta.errors import LayoutError

MAX_DIMENSIONS = 16
MAX_BYTES = 1 << 46


class Kind(StrEnum):
    """How the bytes of a tensor are to be read, little-endian; `bytes` is everything that has no better name."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U8 = "u8"
    I4 = "i4"
    U4 = "u4"
    BYTES = "bytes"

    @property
    def bits(self) -> int:
        return _BITS[self]

    @property
    def is_float(self) -> bool:
        return self in (Kind.F64, Kind.F32, Kind.F16, Kind.BF16)


_BITS = {
    Kind.F64: 64,
    Kind.F32: 32,
    Kind.F16: 16,
    Kind.BF16: 16,
    Kind.I64: 64,
    Kind.I32: 32,
    Kind.I16: 16,
    Kind.I8: 8,
    Kind.U8: 8,
    Kind.I4: 4,
    Kind.U4: 4,
    Kind.BYTES: 8,
}


class Source(Protocol):
    """Bytes at rest, read by range: a model is never read whole."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on; DeltaError where they are not there."""
        ...


@dataclass(frozen=True)
class Memory:
    """A source that is in memory already: small files, tests."""

    data: bytes

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise LayoutError(f"bytes {offset} to {offset + size} of a file of {len(self.data)}")
        return self.data[offset : offset + size]


@dataclass(frozen=True)
class Tensor:
    """`shape` counts elements, the first axis the output channels; `offset` and `size` are bytes of its file."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    offset: int
    size: int

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_DIMENSIONS or any(length < 0 for length in self.shape):
            raise LayoutError(f"tensor {self.name}: shape {self.shape}")
        if not (0 <= self.offset <= MAX_BYTES and 0 <= self.size <= MAX_BYTES):
            raise LayoutError(f"tensor {self.name}: {self.size} bytes at {self.offset}")
        if self.size != (self.count * self.kind.bits + 7) // 8:
            raise LayoutError(f"tensor {self.name}: {self.size} bytes do not hold {self.shape} of {self.kind}")

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True)
class Layout:
    """The tensors of one file of `size` bytes, by offset; what lies between them is bytes."""

    size: int
    tensors: tuple[Tensor, ...] = field(default=())

    def __post_init__(self) -> None:
        end = 0
        for tensor in self.tensors:
            if tensor.offset < end:
                raise LayoutError(f"tensor {tensor.name} overlaps the one before it, or comes out of order")
            end = tensor.end
        if end > self.size:
            raise LayoutError(f"tensors end at byte {end} of a file of {self.size}")

    def gaps(self) -> tuple[Tensor, ...]:
        """The ranges that no tensor covers, as tensors of kind `bytes` named by their place."""
        found, end = [], 0
        for start, stop in [(tensor.offset, tensor.end) for tensor in self.tensors] + [(self.size, self.size)]:
            if start > end:
                found.append(Tensor(f"gap@{end}", Kind.BYTES, (start - end,), end, start - end))
            end = stop
        return tuple(found)

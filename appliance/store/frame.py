"""A frame: what one group commit brought, of all assets, just as it came. Pure and quick; chunks are made of it later.

Readings are packed as they arrive, so that a queue of them is bounded in bytes.
"""

from array import array
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from appliance.store.seal import RotError, seal, unseal

LEVEL = 1  # of zstandard: a frame lives for minutes

Points = tuple[str, ...]


class Part(NamedTuple):
    """Readings of one asset that have the same points."""

    points: Points
    times: bytes  # int64, UTC ns
    values: bytes  # float64, one reading after the other


class Run:
    """A part that still grows. `weight` in bytes is what it weighs besides times and values."""

    __slots__ = ("points", "times", "values", "weight")

    def __init__(self, points: Points, weight: int = 0) -> None:
        self.points, self.weight = points, weight
        self.times = array("q")
        self.values = array("d")

    def part(self) -> Part:
        return Part(self.points, self.times.tobytes(), self.values.tobytes())


class Section(msgspec.Struct, array_like=True, frozen=True):
    """A part as a frame has it: asset and points are keys of the database."""

    asset: int
    layout: int
    times: bytes
    values: bytes


_SECTION_BYTES = 64  # what a section weighs besides times and values, when it is open

_sections = msgspec.msgpack.Decoder(list[Section])


def encode(sections: Iterable[Section]) -> bytes:
    return seal(msgspec.msgpack.encode(list(sections)), LEVEL)


def decode(blob: bytes) -> list[Section]:
    """RotError where the blob is not what `encode` made."""
    try:
        return _sections.decode(unseal(blob))
    except msgspec.DecodeError as error:
        raise RotError(str(error)) from error


def size(section: Section) -> int:
    """Bytes that it takes when it is open."""
    return _SECTION_BYTES + len(section.times) + len(section.values)

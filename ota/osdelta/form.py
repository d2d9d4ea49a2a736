"""The file of a difference: its head, and frames that each make the next 4 MiB of the new image. Pure.

An image is a root file system, or a kernel; its last block may be short, and counts as filled up with zeros.

    "mwosd1\\n" | u32 bytes of the head | head, JSON
    and for each frame:  u32 steps | u32 ranges | u32 raw bytes | u32 packed bytes | steps | ranges | packed bytes

Numbers are little-endian; those of steps and ranges have 7 bits a byte, the low ones first. A step is a kind and a
number of blocks, `blocks << 2 | kind`: ZERO blocks, blocks to COPY (then the distance from where the last copy ended,
zigzag), or blocks that are NEW, which come from the packed bytes in turn. These are one zstd frame; its dictionary is
what stands in the ranges of the old image, each a first block and a number of blocks, one behind the other.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ota.errors import OtaError

MAGIC = b"mwosd1\n"
BLOCK = 4096
FRAME_BLOCKS = 1024
DICTIONARY_BLOCKS = 2048  # of the old image, in memory while a frame is made or applied
MAX_RANGES = 64
MAX_HEAD = 4096
MAX_BYTES = 1 << 36  # of an image
ZERO, COPY, NEW = 0, 1, 2
_FRAME = struct.Struct("<4I")
_LENGTH = struct.Struct("<I")

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Meta(ge=1, le=MAX_BYTES)]


class DifferenceError(OtaError):
    """A file that is no difference, or that is not for this image."""


class Image(Struct, frozen=True, forbid_unknown_fields=True):
    sha256: Digest
    length: Size


class Tree(Struct, frozen=True, forbid_unknown_fields=True):
    """What a tree over an image depends on besides the image."""

    blocks: Annotated[int, Meta(ge=1, le=MAX_BYTES // BLOCK)]  # of the image
    salt: Annotated[str, Meta(pattern=r"^([0-9a-f]{2}){0,256}$")]
    uuid: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


def whole_blocks(image: Image) -> int:
    """That may be copied, or stand in a dictionary."""
    return image.length // BLOCK


def padded(image: Image) -> int:
    """Bytes of all its blocks."""
    return -(-image.length // BLOCK) * BLOCK


class Head(Struct, frozen=True, forbid_unknown_fields=True):
    old: Image
    new: Image


@dataclass(frozen=True)
class Frame:
    """`steps`: kind, blocks, and for a copy the first old block; `packed` makes `raw` bytes."""

    steps: tuple[tuple[int, int, int], ...]
    ranges: tuple[tuple[int, int], ...]
    raw: int
    packed: bytes

    @property
    def blocks(self) -> int:
        return sum(count for _, count, _ in self.steps)


def encode_head(head: Head) -> bytes:
    text = msgspec.json.encode(head)
    return MAGIC + _LENGTH.pack(len(text)) + text


def decode_head(data: bytes) -> tuple[Head, int]:
    """Of the file's first bytes; and where the frames begin. DifferenceError."""
    start = len(MAGIC) + _LENGTH.size
    if len(data) < start or not data.startswith(MAGIC):
        raise DifferenceError("this is no difference of system images", "Fetch it again.")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    if length > MAX_HEAD or len(data) < start + length:
        raise DifferenceError("a head that is too long", "Fetch it again.")
    try:
        head = msgspec.json.decode(data[start : start + length], type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DifferenceError(f"a head that is none: {error}", "Fetch it again.") from error
    return head, start + length


FRAME_HEAD = _FRAME.size
MAX_STEPS_BYTES = FRAME_BLOCKS * 10
MAX_RANGES_BYTES = MAX_RANGES * 10
MAX_PACKED = FRAME_BLOCKS * BLOCK + 4096


def encode_frame(frame: Frame, copied_to: int) -> bytes:
    """`copied_to`: the old block after the last copy, of frames before this one."""
    steps = bytearray()
    for kind, count, first in frame.steps:
        steps += _variable(count << 2 | kind)
        if kind == COPY:
            steps += _variable(_zigzag(first - copied_to))
            copied_to = first + count
    ranges = b"".join(_variable(first) + _variable(count) for first, count in frame.ranges)
    return _FRAME.pack(len(steps), len(ranges), frame.raw, len(frame.packed)) + steps + ranges + frame.packed


def frame_sizes(data: bytes) -> tuple[int, int, int, int]:
    """Bytes of steps, of ranges, raw and packed, all within bounds. DifferenceError."""
    if len(data) != FRAME_HEAD:
        raise DifferenceError("the difference ends in the middle of a frame", "Fetch it again.")
    steps, ranges, raw, packed = _FRAME.unpack(data)
    if steps > MAX_STEPS_BYTES or ranges > MAX_RANGES_BYTES or raw > FRAME_BLOCKS * BLOCK or packed > MAX_PACKED:
        raise DifferenceError("a frame that is too large", "Fetch it again.")
    return steps, ranges, raw, packed


def decode_frame(body: bytes, sizes: tuple[int, int, int, int], copied_to: int, old_blocks: int) -> Frame:
    """Of everything after the frame's head. DifferenceError where it asks for what the old image does not have."""
    steps_bytes, ranges_bytes, raw, packed = sizes
    if len(body) != steps_bytes + ranges_bytes + packed:
        raise DifferenceError("the difference ends in the middle of a frame", "Fetch it again.")
    steps = tuple(_steps(body[:steps_bytes], copied_to, old_blocks))
    ranges = tuple(_ranges(body[steps_bytes : steps_bytes + ranges_bytes], old_blocks))
    frame = Frame(steps, ranges, raw, body[steps_bytes + ranges_bytes :])
    new = sum(count for kind, count, _ in steps if kind == NEW)
    if not 0 < frame.blocks <= FRAME_BLOCKS or new * BLOCK != raw:
        raise DifferenceError("a frame that makes too much or nothing", "Fetch it again.")
    return frame


def _steps(data: bytes, copied_to: int, old_blocks: int) -> Iterator[tuple[int, int, int]]:
    numbers = _numbers(data)
    for number in numbers:
        kind, count, first = number & 3, number >> 2, 0
        if kind == COPY:
            first = copied_to + _unzigzag(next(numbers, 0))
            if first < 0 or first + count > old_blocks:
                raise DifferenceError("a copy of what the old image does not have", "Fetch it again.")
            copied_to = first + count
        if kind > NEW or not 0 < count <= FRAME_BLOCKS:
            raise DifferenceError("a step that is none", "Fetch it again.")
        yield kind, count, first


def _ranges(data: bytes, old_blocks: int) -> Iterator[tuple[int, int]]:
    numbers, total = _numbers(data), 0
    for first in numbers:
        count = next(numbers, 0)
        total += count
        if not count or first + count > old_blocks or total > DICTIONARY_BLOCKS:
            raise DifferenceError("a dictionary that the old image does not have", "Fetch it again.")
        yield first, count


def _variable(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def _numbers(data: bytes) -> Iterator[int]:
    number, shift = 0, 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number, shift = 0, 0
        elif shift > 42:
            raise DifferenceError("a number that is too long", "Fetch it again.")
    if shift:
        raise DifferenceError("a number that ends too early", "Fetch it again.")


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def _unzigzag(number: int) -> int:
    return number >> 1 if not number & 1 else -((number + 1) >> 1)

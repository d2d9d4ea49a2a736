"""Makes the difference between two images, on the machine that publishes: both are read twice, in memory is an index
of the old one's blocks (about 150 bytes for each 4 KiB) and one frame."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from ota.osdelta.form import (
    BLOCK,
    COPY,
    DICTIONARY_BLOCKS,
    FRAME_BLOCKS,
    MAX_RANGES,
    NEW,
    ZERO,
    Frame,
    Head,
    Image,
    encode_frame,
    encode_head,
    whole_blocks,
)
from ota.osdelta.reading import blocks_of, described, dictionary

LEVEL = 19
MARGIN = 64  # blocks around where the old form of something new is thought to be
_EMPTY = bytes(BLOCK)

Step = tuple[int, int, int]


def make(old: Path, new: Path, out: Path) -> Head:
    """The difference that makes `new` of `old`; the same files give the same bytes. DifferenceError, OSError."""
    head = Head(described(old), described(new))
    with old.open("rb") as before, new.open("rb") as after, out.open("wb") as file:
        index = _indexed(before, head.old)
        file.write(encode_head(head))
        copied_to = 0
        for blocks in _batches(after, head.new):
            frame = _framed(blocks, index, before, whole_blocks(head.old), copied_to)
            file.write(encode_frame(frame, copied_to))
            copied_to = _after(frame.steps, copied_to)
    return head


def _indexed(file: BinaryIO, image: Image) -> dict[bytes, int]:
    """Where each content is first."""
    index: dict[bytes, int] = {}
    for number, block in enumerate(blocks_of(file, whole_blocks(image) * BLOCK)):
        if block != _EMPTY:
            index.setdefault(_name(block), number)
    return index


def _name(block: bytes) -> bytes:
    return hashlib.sha256(block).digest()[:16]


def _batches(file: BinaryIO, image: Image) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for block in blocks_of(file, image.length):
        batch.append(block)
        if len(batch) == FRAME_BLOCKS:
            yield batch
            batch = []
    if batch:
        yield batch


def _framed(blocks: list[bytes], index: dict[bytes, int], old: BinaryIO, old_blocks: int, copied_to: int) -> Frame:
    steps = list(_steps(blocks, index, copied_to))
    ranges = tuple(_likely(steps, copied_to, old_blocks))
    new = b"".join(_new(steps, blocks))
    return Frame(tuple(steps), ranges if new else (), len(new), _packed(new, old, ranges) if new else b"")


def _steps(blocks: list[bytes], index: dict[bytes, int], copied_to: int) -> Iterator[Step]:
    """Runs of one kind. Where the block after the last copy fits, it is taken, for a longer run."""
    run: Step | None = None
    for block in blocks:
        kind, first = _found(block, index)
        if run and run[0] == kind and (kind != COPY or first == run[2] + run[1]):
            run = (kind, run[1] + 1, run[2])
            continue
        if run:
            yield run
        run = (kind, 1, first)
    if run:
        yield run


def _found(block: bytes, index: dict[bytes, int]) -> tuple[int, int]:
    if block == _EMPTY:
        return ZERO, 0
    first = index.get(_name(block))
    return (NEW, 0) if first is None else (COPY, first)


def _after(steps: tuple[Step, ...] | list[Step], copied_to: int) -> int:
    copies = [first + count for kind, count, first in steps if kind == COPY]
    return copies[-1] if copies else copied_to


def _new(steps: list[Step], blocks: list[bytes]) -> Iterator[bytes]:
    at = 0
    for kind, count, _ in steps:
        if kind == NEW:
            yield b"".join(blocks[at : at + count])
        at += count


def _likely(steps: list[Step], copied_to: int, old_blocks: int) -> Iterator[tuple[int, int]]:
    """Where the old image has what the new blocks were before: between the copies around them, and about as much."""
    wanted: list[tuple[int, int]] = []
    at = copied_to
    for kind, count, first in steps:
        if kind == COPY:
            at = first + count
        elif kind == NEW:
            wanted.append((max(at - MARGIN, 0), min(at + count + MARGIN, old_blocks)))
            at = min(at + count, old_blocks)
    left = DICTIONARY_BLOCKS
    for start, end in _united(wanted)[:MAX_RANGES]:
        if count := min(end - start, left):
            yield start, count
            left -= count


def _united(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif end > start:
            found.append((start, end))
    return found


def _packed(new: bytes, old: BinaryIO, ranges: tuple[tuple[int, int], ...]) -> bytes:
    known = dictionary(old, ranges)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, source_size=len(new), dict_size=len(known), window_log=24, write_checksum=0
    )
    shared = zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if known else None
    return zstandard.ZstdCompressor(dict_data=shared, compression_params=parameters).compress(new)

"""What a disk was told to write, in order, and what a power cut would leave of it.

    recording = writes.read(folder / "writes.log")        # by QEMU's driver blklogwrites: `Machine.recording`
    replay = Replay(disk_as_it_was, recording)
    with replay.cut(moment, dice):                        # the disk is what that cut leaves; undone behind the block
        ...

The form is that of Linux's dm-log-writes: a superblock, then for each write a sector of header and the data. A flush
makes durable what was written before it. What was written since stands by luck: whole, in part, or not at all.
"""

import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

MAGIC, VERSION = 0x6A736677736872, 1
FLUSH, FUA, DISCARD = 1, 2, 4
SECTOR = 512
_SUPERBLOCK = struct.Struct("<QQQI")
_HEADER = struct.Struct("<QQQQ")


class RecordingError(Exception):
    """It is not a recording, or is cut off."""


@dataclass(frozen=True)
class Write:
    at: int  # bytes, on the disk
    size: int
    data: int  # where its bytes lie in the recording
    flags: int = 0

    def touches(self, begin: int, length: int) -> bool:
        return self.at < begin + length and begin < self.at + self.size


@dataclass(frozen=True)
class Recording:
    raw: bytes | mmap
    writes: Sequence[Write]

    def data(self, write: Write, size: int) -> bytes:
        return bytes(self.raw[write.data : write.data + size])

    def flushed(self, moment: int) -> int:
        """How many writes are durable for sure, of the first `moment`."""
        return next((one + 1 for one in range(moment - 1, -1, -1) if self.writes[one].flags & FLUSH), 0)

    def touching(self, begin: int, length: int) -> list[int]:
        """Which writes lie there, in part at least."""
        return [number for number, write in enumerate(self.writes) if write.touches(begin, length)]


def read(path: Path) -> Recording:
    """RecordingError."""
    with path.open("rb") as file:
        return parse(mmap(file.fileno(), 0, access=ACCESS_READ))


def parse(raw: bytes | mmap) -> Recording:
    """RecordingError."""
    if len(raw) < SECTOR:
        raise RecordingError("it ends before its first sector does")
    magic, version, count, sector = _SUPERBLOCK.unpack_from(raw)
    if (magic, version, sector) != (MAGIC, VERSION, SECTOR):
        raise RecordingError(f"not a recording of writes by sectors of {SECTOR} bytes")
    writes, place = [], SECTOR
    for number in range(count):
        if place + SECTOR > len(raw):
            raise RecordingError(f"it ends before write {number} of {count}")
        begin, sectors, flags, _ = _HEADER.unpack_from(raw, place)
        size = 0 if flags & DISCARD else sectors * SECTOR
        place += SECTOR
        writes.append(Write(begin * SECTOR, size, place, flags))
        place += size
    if place > len(raw):
        raise RecordingError("it ends before its last write does")
    return Recording(raw, writes)


def standing(recording: Recording, moment: int, dice: random.Random) -> Iterator[tuple[Write, int]]:
    """Of the writes that no flush has made durable before `moment`: which stand, and how many of their bytes."""
    for write in recording.writes[recording.flushed(moment) : moment]:
        sectors = write.size // SECTOR
        luck = 1.0 if write.flags & FUA else dice.random()
        kept = sectors if luck > 2 / 3 else dice.randrange(sectors) if sectors and luck > 1 / 3 else 0
        if kept:
            yield write, kept * SECTOR


class Replay:
    """`disk` is changed: a copy of what it was when the recording began. Moments come in order."""

    def __init__(self, disk: Path, recording: Recording) -> None:
        self._disk, self._recording, self._durable = disk, recording, 0

    @contextmanager
    def cut(self, moment: int, dice: random.Random) -> Iterator[None]:
        flushed = self._recording.flushed(moment)
        if flushed < self._durable:
            raise ValueError(f"moment {moment} lies before what was made durable")
        for write in self._recording.writes[self._durable : flushed]:
            self._put(write.at, self._recording.data(write, write.size))
        self._durable = flushed
        lucky = standing(self._recording, moment, dice)
        before = [(write.at, self._put(write.at, self._recording.data(write, kept))) for write, kept in lucky]
        try:
            yield
        finally:
            for at, data in reversed(before):
                self._put(at, data)

    def _put(self, at: int, data: bytes) -> bytes:
        """What was there."""
        with self._disk.open("r+b") as disk:
            disk.seek(at)
            before = disk.read(len(data))
            disk.seek(at)
            disk.write(data)
        return before

"""Where the bytes of a new file are in the old one: ranges that are the same, or nearly.

Blocks of the old file are looked up by hash at every byte of the new one; a hit grows both ways as long as more bytes
agree than not, which is what machine code and tables want whose addresses moved. Where bsdiff or HDiffPatch is
installed, `of_tools` takes the ranges that they find. Host only: both files are mapped into memory.
"""

import bz2
import importlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

SMALL = 1 << 20  # bytes of an old file that is looked up in smaller blocks
STEP = 1 << 20  # bytes of the new file at a time
FACTOR = np.uint64(0x9E3779B97F4A7C15)
FILTER_BITS = 24
PATIENCE = 256  # bytes by which disagreement may outweigh before a range is taken to have ended
LEAST = 12  # bytes by which agreement must outweigh for a range to be worth its entry
BSDIFF_BYTES = 96 << 20  # of an old file; bsdiff takes 17 times as much memory


@dataclass(frozen=True)
class Cover:
    """`size` bytes at `new` of the new file resemble those at `old` of the old one."""

    new: int
    old: int
    size: int


def find(old: Bytes, new: Bytes) -> list[Cover]:
    """Rising, without overlaps."""
    return _joined(old, new, _found(old, new))


def _found(old: Bytes, new: Bytes) -> list[Cover]:
    width = 16 if len(old) <= SMALL else 32
    if len(old) < width or len(new) < width:
        return []
    found: list[Cover] = []
    for place, source in _candidates(old, new, width, found):
        end = _end(found)
        if place < end or not np.array_equal(old[source : source + width], new[place : place + width]):
            continue
        cover = _grown(old, new, place, source, end)
        if cover:
            found.append(cover)
    return found


def _end(covers: list[Cover]) -> int:
    return covers[-1].new + covers[-1].size if covers else 0


def _candidates(old: Bytes, new: Bytes, width: int, found: list[Cover]) -> Iterator[tuple[int, int]]:
    """Places of both files whose blocks have the same hash; those that are `found` already are left out."""
    keys, places = _indexed(old, width)
    known = np.zeros(1 << FILTER_BITS, np.bool_)
    known[(keys >> np.uint64(64 - FILTER_BITS)).astype(np.int64)] = True
    start = 0
    while start + width <= len(new):
        hashes = _rolling(new[start : start + STEP + width - 1], width)
        likely = np.flatnonzero(known[(hashes >> np.uint64(64 - FILTER_BITS)).astype(np.int64)])
        at = np.minimum(np.searchsorted(keys, hashes[likely]), len(keys) - 1)
        hits = keys[at] == hashes[likely]
        likely, at = likely[hits] + start, at[hits]
        number = 0
        while number < len(likely):
            if likely[number] < _end(found):
                number = int(np.searchsorted(likely, _end(found)))
                continue
            yield int(likely[number]), int(places[at[number]])
            number += 1
        start = max(start + STEP, _end(found))


def _indexed(old: Bytes, width: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the blocks at every `width` bytes, rising, and where each comes first."""
    hashes = np.concatenate(
        [
            _rolling(old[start : start + STEP], width)[::width]
            for start in range(0, len(old) - width + 1, STEP)
            if len(old) - start >= width
        ]
    )
    keys, first = np.unique(hashes, return_index=True)
    return keys, first.astype(np.int64) * width


def _rolling(data: Bytes, width: int) -> NDArray[np.uint64]:
    """A hash of the `width` bytes from every place on, by doubling."""
    hashes = (data.astype(np.uint64) + np.uint64(1)) * FACTOR
    factor, span = FACTOR, 1
    with np.errstate(over="ignore"):
        while span < width:
            hashes = hashes[:-span] * factor + hashes[span:]
            factor, span = factor * factor, span * 2
        hashes ^= hashes >> np.uint64(29)
        hashes *= FACTOR
    return hashes


def _grown(old: Bytes, new: Bytes, place: int, source: int, end: int) -> Cover | None:
    """The range around a hit, as far back as `end`."""
    ahead, won = _agreement(old[source:], new[place:])
    room = min(place - end, source)
    back, more = _agreement(old[source - room : source][::-1], new[place - room : place][::-1])
    if won + more < LEAST:
        return None
    return Cover(place - back, source - back, back + ahead)


def _agreement(old: Bytes, new: Bytes) -> tuple[int, int]:
    """How many first bytes agree more often than not, and by how many more."""
    size, best, score, length = min(len(old), len(new)), 0, 0, 0
    start, step = 0, 1 << 10
    while start < size:
        stop = min(size, start + step)
        signs = (old[start:stop] == new[start:stop]).astype(np.int64) * 2 - 1
        scores = np.cumsum(signs) + score
        top = int(np.argmax(scores))
        if scores[top] > best:
            best, length = int(scores[top]), start + top + 1
        score = int(scores[-1])
        if score < best - PATIENCE:
            break
        start, step = stop, min(step * 2, STEP)
    return length, best


def _joined(old: Bytes, new: Bytes, covers: list[Cover]) -> list[Cover]:
    """Neighbours at the same distance become one where the difference between them says less than the new bytes.

    So does the beginning of both files, and their end.
    """
    found = [Cover(0, 0, 0)]
    for cover in [*covers, Cover(len(new), len(old), 0)]:
        before = found[-1]
        start, source = before.new + before.size, before.old + before.size
        gap = cover.new - start
        if cover.old - source == gap and _worth(old[source : source + gap], new[start : start + gap]):
            found[-1] = Cover(before.new, before.old, before.size + gap + cover.size)
        else:
            found.append(cover)
    return [cover for cover in found if cover.size]


def _worth(old: Bytes, new: Bytes) -> bool:
    return _bits(new - old) <= _bits(new)


def _bits(data: Bytes) -> float:
    """What the bytes take when each is coded by how often it comes."""
    counts = np.bincount(data, minlength=256).astype(np.float64)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / max(len(data), 1))).sum())


# What other tools find


def of_tools(old: Path, new: Path) -> Iterator[list[Cover]]:
    """One list for every tool that is installed and can take files of this size."""
    if old.stat().st_size <= BSDIFF_BYTES and shutil.which("bsdiff"):
        yield _of_bsdiff(old, new)
    hdiffpatch = _of_hdiffpatch(old, new)
    if hdiffpatch is not None:
        yield hdiffpatch


def _of_bsdiff(old: Path, new: Path) -> list[Cover]:
    with tempfile.TemporaryDirectory(prefix="mw-delta-") as folder:
        patch = Path(folder) / "patch"
        subprocess.run(["bsdiff", old, new, patch], check=True, capture_output=True)
        data = patch.read_bytes()
    length = int.from_bytes(data[8:16], "little")
    numbers = np.frombuffer(bz2.decompress(data[32 : 32 + length]), "<u8")
    signed = np.where(numbers >> np.uint64(63), -(numbers & np.uint64((1 << 63) - 1)).astype(np.int64), numbers)
    found, place, source = [], 0, 0
    for size, extra, seek in signed.astype(np.int64).reshape(-1, 3).tolist():
        if size:
            found.append(Cover(place, source, size))
        place, source = place + size + extra, source + size + seek
    return within(found, old.stat().st_size)


def _of_hdiffpatch(old: Path, new: Path) -> list[Cover] | None:
    try:
        hdiffpatch = importlib.import_module("hdiffpatch")
    except ImportError:
        return None
    return within(_hdiff_covers(hdiffpatch.diff(old.read_bytes(), new.read_bytes())), old.stat().st_size)


def _hdiff_covers(data: bytes) -> list[Cover]:
    """Of an uncompressed `HDIFF13` patch: version, eleven sizes, then the covers as variable-length integers."""
    place = data.index(b"\0") + 1
    sizes = []
    for _ in range(11):
        number, place = _variable(data, place, 7)
        sizes.append(number)
    count = sizes[2]
    found, source_end, new_end = [], 0, 0
    for _ in range(count):
        negative = data[place] >> 7
        moved, place = _variable(data, place, 6)
        gap, place = _variable(data, place, 7)
        size, place = _variable(data, place, 7)
        source = source_end - moved if negative else source_end + moved
        if size:
            found.append(Cover(new_end + gap, source, size))
        source_end, new_end = source + size, new_end + gap + size
    return found


def _variable(data: bytes, place: int, bits: int) -> tuple[int, int]:
    """An integer, most significant bits first, of whose first byte only `bits` bits are its own."""
    byte = data[place]
    number = byte & ((1 << bits) - 1)
    more = byte >> bits & 1
    place += 1
    while more:
        byte = data[place]
        number = number << 7 | byte & 0x7F
        more = byte >> 7
        place += 1
    return number, place


def within(covers: list[Cover], size: int) -> list[Cover]:
    """The covers cut to an old file of `size` bytes; bsdiff's may begin before it or reach beyond it."""
    found = []
    for cover in covers:
        start, stop = max(0, -cover.old), min(cover.size, size - cover.old)
        if start < stop:
            found.append(Cover(cover.new + start, cover.old + start, stop - start))
    return found

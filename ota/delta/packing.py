"""Packs any file as bytes, in the forms that `generic` describes and unpacks. Host only."""

import bz2
import lzma
from collections.abc import Iterator, Sequence

import numpy as np
import zstandard

from ota.delta.covers import Bytes, Cover
from ota.delta.generic import BZIP2, FRAME, MAX_WINDOW, MIN_WINDOW, SHAPES, filters, unpacker

HOPE, HOPE_LARGE = 1.6, 1.25  # times that a quick look may take what is hoped for; the latter for LARGE files
LARGE = 2 << 20
EXACT = (64, 1024, 1 << 40)  # bytes of a range that are the same, for them to get an instruction of their own
EXACTLY = 16 << 20  # bytes of a file up to which all of these are tried
_CUT = 512  # bytes of packed stream by which frames are cut


def by_dictionary(old: bytes, new: bytes) -> bytes:
    """One zstd frame."""
    window = max(10, min(27, (len(old) + len(new)).bit_length()))
    settings = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=window, enable_ldm=False, write_content_size=True, write_checksum=False
    )
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=settings).compress(new)


_Share = tuple[int, int, int]  # bytes that a frame holds of each stream, unpacked


def by_covers(old: Bytes, new: Bytes, covers: Sequence[Cover], most: int | None = None) -> list[bytes] | None:
    """The frames; None where a quick look says that they will not come near `most` bytes."""
    told = [_streams(old, new, covers, least) for least in (EXACT if len(new) <= EXACTLY else EXACT[:1])]
    hope = HOPE if len(new) < LARGE else HOPE_LARGE
    if most is not None and min(_quickly(streams) for streams, _ in told) > hope * most:
        return None
    tried = [([_packed(stream) for stream in streams], shares) for streams, shares in told]
    packed, shares = min(tried, key=lambda found: sum(map(len, found[0])))
    cuts = [_cuts(data, [share[number] for share in shares]) for number, data in enumerate(packed)]
    frames = []
    for place, share in enumerate(shares):
        parts = [data[1 + cut[place] : 1 + cut[place + 1]] for data, cut in zip(packed, cuts, strict=True)]
        head = [share[0], len(parts[0]), len(parts[1])]
        frames.append(b"".join([*(number.to_bytes(4, "little") for number in head), *parts]))
    if frames:
        frames[0] = bytes(data[0] for data in packed) + frames[0]
    return frames


def _streams(old: Bytes, new: Bytes, covers: Sequence[Cover], least: int) -> tuple[list[bytes], list[_Share]]:
    instructions, differences, fresh = bytearray(), bytearray(), bytearray()
    shares, end, source, before = [], 0, 0, (0, 0, 0)
    for start, cover in _framed([part for whole in covers for part in _split(old, new, whole, least)], len(new)):
        instructions += _number(cover.new - end) + _number(cover.size)
        fresh += new[end : cover.new].tobytes()
        if cover.size:
            distance = cover.old - source
            source = cover.old + cover.size
            difference = new[cover.new : cover.new + cover.size] - old[cover.old : source]
            exact = not difference.any()
            instructions += _number(abs(distance) << 2 | (distance < 0) << 1 | exact)
            differences += b"" if exact else difference.tobytes()
        end = cover.new + cover.size
        if end == min(start + FRAME, len(new)):
            now = (len(instructions), len(differences), len(fresh))
            shares.append((now[0] - before[0], now[1] - before[1], now[2] - before[2]))
            before = now
    return [bytes(instructions), bytes(differences), bytes(fresh)], shares


def _split(old: Bytes, new: Bytes, cover: Cover, least: int) -> Iterator[Cover]:
    """Ranges of more than `least` bytes that are the same apart from those where something differs."""
    same = new[cover.new : cover.new + cover.size] == old[cover.old : cover.old + cover.size]
    differing = np.flatnonzero(~same)
    begin = 0
    for place in np.flatnonzero(np.diff(differing, prepend=-1, append=cover.size) > least).tolist():
        first = int(differing[place - 1]) + 1 if place else 0
        last = int(differing[place]) if place < len(differing) else cover.size
        for start, stop in ((begin, first), (first, last)):
            if start < stop:
                yield Cover(cover.new + start, cover.old + start, stop - start)
        begin = last
    if begin < cover.size:
        yield Cover(cover.new + begin, cover.old + begin, cover.size - begin)


def _framed(covers: Sequence[Cover], size: int) -> Iterator[tuple[int, Cover]]:
    """Where its frame starts, and the cover, cut at the frames; one of no bytes ends a frame that ends in new bytes."""
    waiting = list(reversed(covers))
    for start in range(0, size, FRAME):
        stop, end = min(size, start + FRAME), start
        while waiting and waiting[-1].new < stop:
            cover = waiting.pop()
            kept = min(cover.size, stop - cover.new)
            if kept < cover.size:
                waiting.append(Cover(cover.new + kept, cover.old + kept, cover.size - kept))
            yield start, Cover(cover.new, cover.old, kept)
            end = cover.new + kept
        if end < stop:
            yield start, Cover(stop, 0, 0)


def _quickly(streams: Sequence[bytes]) -> int:
    packer = zstandard.ZstdCompressor(3)
    return sum(len(packer.compress(stream)) for stream in streams)


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _packed(stream: bytes) -> bytes:
    """The smallest of the shapes, after the byte that says how; shapes are tried on a sample where it is long."""
    window = max(MIN_WINDOW, min(MAX_WINDOW, (max(len(stream), 1) - 1).bit_length()))
    codes = [BZIP2] + [(window - MIN_WINDOW) << 2 | shape for shape in range(len(SHAPES))]
    sample = stream if len(stream) <= 1 << 20 else stream[len(stream) // 2 :][: 1 << 20]
    best = min(codes, key=lambda code: len(_compressed(sample, code)))
    return bytes([best]) + _compressed(stream, best)


def _compressed(stream: bytes, code: int) -> bytes:
    if not stream:
        return b""
    if code == BZIP2:
        return bz2.compress(stream)
    settings = filters(code)[0] | {"preset": 9 | lzma.PRESET_EXTREME}
    return lzma.compress(stream, lzma.FORMAT_RAW, filters=[settings])


def _cuts(packed: bytes, lengths: Sequence[int]) -> list[int]:
    """Where the frames cut a packed stream, so that each finds all that it unpacks in itself and those before."""
    cuts, fed, given, wanted = [0], 0, 0, 0
    stream = unpacker(packed[0])
    for length in lengths:
        wanted += length
        while given < wanted and fed < len(packed) - 1:
            part = packed[1 + fed : 1 + fed + _CUT]
            given += len(stream.decompress(part))
            fed += len(part)
        cuts.append(fed)
    cuts[-1] = len(packed) - 1
    return cuts

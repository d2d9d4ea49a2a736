"""Any file as bytes: what a general tool would send, in frames, so that it is applied in bounded memory.

Way `covers`: three streams run through all frames of a file, each packed by LZMA: instructions, differences, and bytes
that are new. An instruction is three variable-length integers (7 bits a byte, low first): how many new bytes come, then
how many old bytes that a difference is added to, and from where: the distance to the end of the last, with its sign as
the lowest bit. A frame gives the next FRAME bytes of the file (the last one what is left) and holds

    u32 bytes of instructions | u32 packed bytes of instructions | u32 of differences | the three, the rest is new bytes

and only the first has, ahead of that, a byte a stream that says how it is packed (`_filters`).

Way `dictionary`: one zstd frame whose dictionary is the whole old file; both are small.
"""

import lzma
from collections.abc import Iterator, Sequence

import numpy as np
import zstandard

from ota.delta.covers import Bytes, Cover
from ota.delta.errors import PatchError
from ota.delta.tensors import Source

FRAME = 4 << 20  # bytes of output
DICTIONARY_BYTES = 8 << 20  # of an old or new file that the way `dictionary` takes
MAX_WINDOW = 23  # log2 bytes: what unpacking keeps in memory, a stream
MIN_WINDOW = 12
STREAMS = 3
_HEAD = 4 * STREAMS
_SHAPES = ((3, 0, 2), (0, 0, 0), (4, 0, 0), (3, 1, 1))  # lc, lp, pb
HOPE = 1.6  # times that a quick look may take what is hoped for
_CUT = 512  # bytes of packed stream by which frames are cut


def _filters(code: int) -> list[dict[str, int]]:
    """Of a stream: the low two bits say what its bytes are like, the others the window."""
    lc, lp, pb = _SHAPES[code & 3]
    window = (code >> 2) + MIN_WINDOW
    if window > MAX_WINDOW:
        raise PatchError(f"a window of {1 << window} bytes")
    return [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << window, "lc": lc, "lp": lp, "pb": pb}]


# Making


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
    streams, shares = _streams(old, new, covers)
    if most is not None and _quickly(streams) > HOPE * most:
        return None
    packed = [_packed(stream) for stream in streams]
    cuts = [_cuts(data, [share[number] for share in shares]) for number, data in enumerate(packed)]
    frames = []
    for place, share in enumerate(shares):
        parts = [data[1 + cut[place] : 1 + cut[place + 1]] for data, cut in zip(packed, cuts, strict=True)]
        head = [share[0], len(parts[0]), len(parts[1])]
        frames.append(b"".join([*(number.to_bytes(4, "little") for number in head), *parts]))
    if frames:
        frames[0] = bytes(data[0] for data in packed) + frames[0]
    return frames


def _streams(old: Bytes, new: Bytes, covers: Sequence[Cover]) -> tuple[list[bytes], list[_Share]]:
    instructions, differences, fresh = bytearray(), bytearray(), bytearray()
    shares, end, source, before = [], 0, 0, (0, 0, 0)
    for start, cover in _framed(covers, len(new)):
        instructions += _number(cover.new - end) + _number(cover.size)
        if cover.size:
            distance = cover.old - source
            instructions += _number(abs(distance) << 1 | (distance < 0))
            source = cover.old + cover.size
        fresh += new[end : cover.new].tobytes()
        differences += (new[cover.new : cover.new + cover.size] - old[cover.old : cover.old + cover.size]).tobytes()
        end = cover.new + cover.size
        if end == min(start + FRAME, len(new)):
            now = (len(instructions), len(differences), len(fresh))
            shares.append((now[0] - before[0], now[1] - before[1], now[2] - before[2]))
            before = now
    return [bytes(instructions), bytes(differences), bytes(fresh)], shares


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
    codes = [(window - MIN_WINDOW) << 2 | shape for shape in range(len(_SHAPES))]
    sample = stream if len(stream) <= 1 << 20 else stream[len(stream) // 2 :][: 1 << 20]
    best = min(codes, key=lambda code: len(_compressed(sample, code)))
    return bytes([best]) + _compressed(stream, best)


def _compressed(stream: bytes, code: int) -> bytes:
    if not stream:
        return b""
    settings = _filters(code)[0] | {"preset": 9 | lzma.PRESET_EXTREME}
    return lzma.compress(stream, lzma.FORMAT_RAW, filters=[settings])


def _cuts(packed: bytes, lengths: Sequence[int]) -> list[int]:
    """Where the frames cut a packed stream, so that each finds all that it unpacks in itself and those before."""
    cuts, fed, given, wanted = [0], 0, 0, 0
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(packed[0]))
    for length in lengths:
        wanted += length
        while given < wanted and fed < len(packed) - 1:
            part = packed[1 + fed : 1 + fed + _CUT]
            given += len(unpacker.decompress(part))
            fed += len(part)
        cuts.append(fed)
    cuts[-1] = len(packed) - 1
    return cuts


# Applying


def from_dictionary(old: bytes, frame: bytes, size: int) -> bytes:
    """The file of `size` bytes; PatchError where the frame gives anything else."""
    if max(len(old), size) > DICTIONARY_BYTES:
        raise PatchError(f"a dictionary of {len(old)} bytes for {size}")
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    try:
        if zstandard.frame_content_size(frame) != size:
            raise PatchError("a zstd frame of another size than the file")
        unpacker = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << 25)
        return unpacker.decompress(frame, max_output_size=size)
    except zstandard.ZstdError as error:
        raise PatchError(f"a zstd frame is damaged: {error}") from error


class _Stream:
    """One packed stream: fed frame by frame, it gives as many bytes as are asked for, and never more."""

    def __init__(self, code: int) -> None:
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(code))
        self._waiting = b""

    def feed(self, packed: bytes) -> None:
        self._waiting += packed

    def take(self, size: int) -> bytes:
        parts, missing = [], size
        try:
            while missing and not self._unpacker.eof:
                if not self._waiting and self._unpacker.needs_input:
                    break
                part = self._unpacker.decompress(self._waiting, missing)
                self._waiting = b""
                parts.append(part)
                missing -= len(part)
        except lzma.LZMAError as error:
            raise PatchError(f"an LZMA stream is damaged: {error}") from error
        if missing:
            raise PatchError("a frame lacks bytes")
        return b"".join(parts)


class Covers:
    """Gives a file back, frame by frame, from the first on."""

    def __init__(self, old: Source | None, old_size: int, size: int) -> None:
        self._old, self._old_size = old, old_size
        self._left, self._source = size, 0
        self._streams: list[_Stream] = []

    def decode(self, frame: bytes, wanted: bool = True) -> bytes:
        """The next FRAME bytes of the new file; nothing where they are not `wanted`, which is faster."""
        if not self._streams:
            if len(frame) < STREAMS:
                raise PatchError("a frame that is cut off")
            self._streams = [_Stream(code) for code in frame[:STREAMS]]
            frame = frame[STREAMS:]
        size = min(FRAME, self._left)
        instructions = self._fed(frame)
        parts: list[bytes] = []
        given = 0
        while given < size:
            fresh, covered = _next(instructions), _next(instructions)
            given += fresh + covered
            if given > size or not fresh + covered:
                raise PatchError("a frame that gives more than it may")
            parts.append(self._streams[2].take(fresh))
            if covered:
                parts.append(self._covered(_next(instructions), covered, wanted))
        if next(instructions, None) is not None:
            raise PatchError("instructions that give nothing")
        self._left -= size
        return b"".join(parts) if wanted else b""

    def _fed(self, frame: bytes) -> Iterator[int]:
        """The integers of the frame's instructions, once every stream has its share."""
        if len(frame) < _HEAD:
            raise PatchError("a frame that is cut off")
        count, first, second = (int.from_bytes(frame[at : at + 4], "little") for at in range(0, _HEAD, 4))
        if count > 4 * FRAME or first + second > len(frame) - _HEAD:
            raise PatchError("a frame that is cut off")
        bounds = (_HEAD, _HEAD + first, _HEAD + first + second, len(frame))
        for number, stream in enumerate(self._streams):
            stream.feed(frame[bounds[number] : bounds[number + 1]])
        return _numbers(self._streams[0].take(count))

    def _covered(self, moved: int, size: int, wanted: bool) -> bytes:
        offset = self._source - (moved >> 1) if moved & 1 else self._source + (moved >> 1)
        if self._old is None or not 0 <= offset <= self._old_size - size:
            raise PatchError(f"old bytes {offset} to {offset + size} of {self._old_size}")
        self._source = offset + size
        differences = self._streams[1].take(size)
        if not wanted:
            return b""
        old = np.frombuffer(self._old.read(offset, size), np.uint8)
        return (old + np.frombuffer(differences, np.uint8)).tobytes()


def _numbers(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0
        elif shift > 56:
            raise PatchError("an integer that is too long")
    if shift:
        raise PatchError("an integer that is cut off")


def _next(numbers: Iterator[int]) -> int:
    found = next(numbers, None)
    if found is None:
        raise PatchError("instructions that are cut off")
    return found

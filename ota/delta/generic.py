"""Any file as bytes: what a general tool would send, in frames, so that it is applied in bounded memory.

Way `covers`: three streams run through all frames of a file, each packed by LZMA or bzip2: instructions, differences,
and bytes that are new. An instruction is three variable-length integers (7 bits a byte, low first): how many new bytes
come, then how many old bytes, and from where: the distance to the end of the last of them, ahead of two bits: whether
it is backwards, and whether the bytes are taken as they are; else each is added to one of the differences. No old
bytes, no third integer. A frame gives the next FRAME bytes of the file (the last one what is left) and holds

    u32 bytes of instructions | u32 packed bytes of instructions | u32 of differences | the three, the rest is new bytes

and only the first has, ahead of that, a byte a stream that says how it is packed (`unpacker`).

Way `dictionary`: one zstd frame whose dictionary is the whole old file; both are small.
"""

import bz2
import lzma
from collections.abc import Iterator

import numpy as np
import zstandard

from ota.delta.errors import PatchError
from ota.delta.tensors import Source

FRAME = 4 << 20  # bytes of output
DICTIONARY_BYTES = 8 << 20  # of an old or new file that the way `dictionary` takes
MAX_WINDOW = 23  # log2 bytes: what unpacking keeps in memory, a stream
MIN_WINDOW = 12
STREAMS = 3
BZIP2 = 255  # how a stream is packed by bzip2; every other number is one of LZMA's

Unpacker = lzma.LZMADecompressor | bz2.BZ2Decompressor
_HEAD = 4 * STREAMS
SHAPES = ((3, 0, 2), (0, 0, 0), (4, 0, 0), (3, 1, 1))  # lc, lp, pb


def filters(code: int) -> list[dict[str, int]]:
    """Of a stream by LZMA: the low two bits say what its bytes are like, the others the window."""
    lc, lp, pb = SHAPES[code & 3]
    window = (code >> 2) + MIN_WINDOW
    if window > MAX_WINDOW:
        raise PatchError(f"a window of {1 << window} bytes")
    return [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << window, "lc": lc, "lp": lp, "pb": pb}]


def unpacker(code: int) -> Unpacker:
    return bz2.BZ2Decompressor() if code == BZIP2 else lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters(code))


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
        self._unpacker = unpacker(code)
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
        except (lzma.LZMAError, OSError, ValueError) as error:
            raise PatchError(f"a packed stream is damaged: {error}") from error
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
        distance, backwards, exact = moved >> 2, moved & 2, moved & 1
        offset = self._source - distance if backwards else self._source + distance
        if self._old is None or not 0 <= offset <= self._old_size - size:
            raise PatchError(f"old bytes {offset} to {offset + size} of {self._old_size}")
        self._source = offset + size
        differences = b"" if exact else self._streams[1].take(size)
        if not wanted:
            return b""
        if exact:
            return self._old.read(offset, size)
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

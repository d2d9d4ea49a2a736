"""Packs bytes for the database: zstandard inside a checksum, so that rot is noticed before anything is believed.

A sealed blob is the CRC-32 of all that follows (4 bytes, little endian) and one zstandard frame that states its size.
"""

import zlib

import zstandard

MAX_OPEN = 1 << 24  # bytes; nothing that is sealed here is larger

_CRC = 4


class RotError(ValueError):
    """A blob is not what was sealed. Never leaves the store: the blob is skipped and counted."""


def seal(body: bytes, level: int, context: bytes = b"") -> bytes:
    """`context` is not stored but must be the same when the blob is opened."""
    packed = zstandard.ZstdCompressor(level=level).compress(body)
    return _crc(packed, context) + packed


def unseal(blob: bytes, context: bytes = b"") -> bytes:
    """What was sealed; RotError where a bit of the blob or of the context differs."""
    packed = blob[_CRC:]
    if blob[:_CRC] != _crc(packed, context):
        raise RotError("the checksum differs")
    size = zstandard.frame_content_size(packed)
    if not 0 <= size <= MAX_OPEN:
        raise RotError(f"a blob of {size} bytes")
    return zstandard.ZstdDecompressor().decompress(packed)


def _crc(packed: bytes, context: bytes) -> bytes:
    return zlib.crc32(packed, zlib.crc32(context)).to_bytes(_CRC, "little")

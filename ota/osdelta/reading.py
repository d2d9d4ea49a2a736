"""Images, read block by block: files, or the partition of a slot."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ota.osdelta.form import BLOCK, DifferenceError, Image

_CHUNK = 1 << 20


def described(path: Path) -> Image:
    """Length and digest. DifferenceError where it is empty."""
    with path.open("rb") as file:
        length = file.seek(0, 2)
        if not length:
            raise DifferenceError(f"{path} is empty", "Name an image.")
        return Image(digest(file, length), length)


def digest(file: BinaryIO, length: int) -> str:
    """SHA-256 of the first `length` bytes."""
    file.seek(0)
    found = hashlib.sha256()
    while length and (chunk := file.read(min(_CHUNK, length))):
        found.update(chunk)
        length -= len(chunk)
    return found.hexdigest() if not length else ""


def blocks_of(file: BinaryIO, length: int) -> Iterator[bytes]:
    """The last one filled up with zeros. DifferenceError where the file is shorter."""
    for chunk in chunks_of(file, length):
        for start in range(0, len(chunk), BLOCK):
            yield chunk[start : start + BLOCK].ljust(BLOCK, b"\0")


def chunks_of(file: BinaryIO, length: int) -> Iterator[bytes]:
    """Of whole blocks, but for the last one. DifferenceError, as above."""
    file.seek(0)
    while length:
        chunk = file.read(min(_CHUNK, length))
        if not chunk:
            raise DifferenceError("an image that ends too early", "Name a whole one.")
        length -= len(chunk)
        yield chunk


def dictionary(old: BinaryIO, ranges: tuple[tuple[int, int], ...]) -> bytes:
    found = []
    for first, count in ranges:
        old.seek(first * BLOCK)
        found.append(old.read(count * BLOCK))
    return b"".join(found)

"""A bundle as one file, to travel whole, and the hash that names it.

    MWPACK01 | u32 length of the head | head | one zstd frame with the content of the files, one after the other

The head is JSON, `[[name, bytes], ...]` in the order of the names. A bundle is a flat folder of files; its hash is the
SHA-256 of what `LC_ALL=C sha256sum *` prints in it: a person can check it by hand.

A pack is only opened after its own hash was verified against signed data. Everything in it is bounded all the same.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import zstandard

from ota import durable
from ota.errors import ManifestError

MAGIC = b"MWPACK01"
MAX_FILES = 64
MAX_BYTES = 1 << 42
_MAX_HEAD = 16 << 10
_MAX_WINDOW = 1 << 27  # bytes of memory that zstd may take to unpack
_CHUNK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def digest(folder: Path) -> str:
    """The content hash of a bundle. ManifestError where it holds anything but plain files."""
    lines = (f"{_sha256(folder / name)}  {name}\n" for name in names(folder))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def size(folder: Path) -> int:
    """Bytes of its files."""
    return sum((folder / name).stat().st_size for name in names(folder))


def names(folder: Path) -> list[str]:
    """Of its files, in the order of their bytes."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False) or not _NAME.fullmatch(entry.name):
                raise ManifestError(f"{folder}: '{entry.name}' is no part of a bundle", "A bundle is a flat folder.")
            found.append(entry.name)
    if not 0 < len(found) <= MAX_FILES:
        raise ManifestError(f"{folder}: {len(found)} files", f"A bundle has 1 to {MAX_FILES} files.")
    return sorted(found)


def pack(folder: Path, target: Path, level: int = 19) -> None:
    """The same bytes for the same content, with the same release of zstd."""
    listed = [(name, (folder / name).stat().st_size) for name in names(folder)]
    head = msgspec.json.encode(listed)
    # A long window finds what repeats within a model; it is what unpacking takes in memory.
    settings = zstandard.ZstdCompressionParameters.from_level(level, window_log=23, write_checksum=False)
    with target.open("wb") as packed:
        packed.write(MAGIC + len(head).to_bytes(4, "little") + head)
        with zstandard.ZstdCompressor(compression_params=settings).stream_writer(packed, closefd=False) as stream:
            for name, _ in listed:
                for chunk in _chunks(folder / name):
                    stream.write(chunk)


def unpack(source: Path, folder: Path, limit: int) -> None:
    """Into a folder that does not exist yet, synced. ManifestError: no pack, damaged, or more than `limit` bytes."""
    with source.open("rb") as packed:
        listed = _head(packed, limit)
        folder.mkdir(mode=0o700)
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        with decompressor.stream_reader(packed, closefd=False) as stream:
            try:
                for name, length in listed:
                    _extract(stream, folder / name, length)
                if stream.read(1) or packed.read(1):
                    raise _damaged("there is more than its files")
            except zstandard.ZstdError as error:
                raise _damaged(str(error)) from error
    durable.sync_folder(folder)


def _head(packed: BinaryIO, limit: int) -> list[tuple[str, int]]:
    if packed.read(len(MAGIC)) != MAGIC:
        raise _damaged("it does not begin like a pack")
    length = int.from_bytes(packed.read(4), "little")
    if length > _MAX_HEAD:
        raise _damaged("its head is too long")
    try:
        listed = msgspec.json.decode(packed.read(length), type=list[tuple[str, int]])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged("its head cannot be read") from error
    given = [name for name, _ in listed]
    if not 0 < len(listed) <= MAX_FILES or given != sorted(set(given)) or not all(map(_NAME.fullmatch, given)):
        raise _damaged("it names files that cannot be")
    if any(size < 0 for _, size in listed) or sum(size for _, size in listed) > limit:
        raise _damaged(f"it would take more than {limit:,} bytes")
    return listed


def _extract(stream: zstandard.ZstdDecompressionReader, path: Path, length: int) -> None:
    with path.open("xb") as file:
        while length:
            chunk = stream.read(min(length, _CHUNK))
            if not chunk:
                raise _damaged(f"'{path.name}' is cut off")
            file.write(chunk)
            length -= len(chunk)
        file.flush()
        os.fsync(file.fileno())


def _chunks(path: Path) -> Iterator[bytes]:
    # O_NOFOLLOW: it was looked at before, and may have been swapped for a link since.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    for chunk in _chunks(path):
        found.update(chunk)
    return found.hexdigest()


def _damaged(what: str) -> ManifestError:
    return ManifestError(f"a packed bundle: {what}", "Publish it anew.")

"""Files read and written by range, digests in bounded memory, and the order of writes that a power cut cannot break."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ota.delta.errors import DeltaError, MismatchError

CHUNK = 1 << 20  # bytes at a time


class File:
    """A source of `ota.delta.tensors` over a file; with `writable` it is made where it is missing."""

    def __init__(self, path: Path, writable: bool = False) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        try:
            self._file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DeltaError(f"{path}: {error.strerror}", "check the path and who may read it") from error

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0:
            raise MismatchError(f"{self.path}: {size} bytes at {offset}")
        data = os.pread(self._file, size, offset)
        while len(data) < size:  # a read may stop early, at 2 GiB for one
            more = os.pread(self._file, size - len(data), offset + len(data))
            if not more:
                raise MismatchError(f"{self.path} ends at byte {offset + len(data)}, before {offset + size}")
            data += more
        return data

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def copy(self, old: "File", offset: int, place: int, size: int) -> None:
        """`size` bytes at `offset` of `old` to `place`: shared blocks where the filesystem can, through memory else."""
        while size and (moved := _cloned(old._file, self._file, size, offset, place)):
            offset, place, size = offset + moved, place + moved, size - moved
        while size:
            part = old.read(offset, min(size, CHUNK))
            self.write(place, part)
            offset, place, size = offset + len(part), place + len(part), size - len(part)

    def resize(self, size: int) -> None:
        os.ftruncate(self._file, size)

    def sync(self) -> None:
        os.fdatasync(self._file)

    def digest(self, size: int | None = None) -> bytes:
        """SHA-256 of the first `size` bytes, of all by default."""
        found = hashlib.sha256()
        for part in self.parts(0, self.size if size is None else size):
            found.update(part)
        return found.digest()

    def parts(self, offset: int, size: int) -> Iterator[bytes]:
        for start in range(offset, offset + size, CHUNK):
            yield self.read(start, min(CHUNK, offset + size - start))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "File":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _cloned(source: int, target: int, size: int, offset: int, place: int) -> int:
    """Bytes that the kernel copied by itself; 0 where it cannot between these two files."""
    try:
        return os.copy_file_range(source, target, min(size, 1 << 30), offset, place)
    except (OSError, AttributeError):
        return 0


def sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in it is on disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

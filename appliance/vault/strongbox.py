"""The vault's file on a disk: two copies, so that what rots in one is mended from the other.

    <folder>/vault.1      read and written as a whole
    <folder>/vault.2      the same bytes; after a power cut perhaps those of one write before
    <folder>/vault.?.new  being written; whoever comes next writes over it
    <folder>/lock         held by the one process that has the vault open

A write puts both new copies beside the old ones and on the disk, then renames the first, then the second. So a full
disk is met before anything changed, and at every moment one copy at least is whole.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.errors import StoreError
from appliance.runtime import files

COPIES = ("vault.1", "vault.2")
LOCK = "lock"
_NEW, _ASIDE = ".new", ".replaced"
_CHUNK = 1 << 20


class Disk:
    """What the strongbox asks of a file system, one step a call: tests end it between any two. OSError from all."""

    def read(self, path: Path, limit: int) -> bytes | None:
        """At most `limit` bytes and one more; None where there is no file."""
        try:
            with path.open("rb") as file:
                return file.read(limit + 1)
        except FileNotFoundError:
            return None

    def write(self, path: Path, data: bytes) -> None:
        """Not yet safe from a power cut. A link is not followed, and nobody else may read it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "wb", buffering=0) as file:  # noqa: PTH123  # an open descriptor
            for at in range(0, len(data), _CHUNK):
                _write_all(file.fileno(), data[at : at + _CHUNK])

    def sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        path.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        files.sync_folder(folder)

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """StoreError where another process has the vault open."""
        with files.held(folder / LOCK, "has the vault open"):
            yield


DISK = Disk()


class Strongbox:
    """`limit` in bytes a copy."""

    def __init__(self, folder: Path, limit: int, disk: Disk = DISK) -> None:
        self.folder, self._limit, self._disk = folder, limit, disk
        self._copies = [folder / name for name in COPIES]

    def read(self) -> tuple[bytes, ...]:
        """The copies there are, in order; a missing one is empty, one over the limit is cut. StoreError."""
        try:
            return tuple((self._disk.read(copy, self._limit) or b"")[: self._limit] for copy in self._copies)
        except OSError as error:
            raise _unusable(self.folder, "read", error) from error

    def exists(self) -> bool:
        """Whether there is a copy at all. StoreError."""
        try:
            return any(self._disk.read(copy, 0) is not None for copy in self._copies)
        except OSError as error:
            raise _unusable(self.folder, "read", error) from error

    def write(self, content: bytes) -> str:
        """Both copies. StoreError: before the first rename nothing has changed; after it the new content may be what a
        later read gives, though this call failed. Where only the second copy cannot be renamed the content is safe,
        and what is returned says what is wrong; else that is empty."""
        try:
            self._stage(content)
            self._exchange(self._copies[0])
        except OSError as error:
            self._clear()
            raise _unusable(self.folder, "written", error) from error
        try:
            self._exchange(self._copies[1])
        except OSError as error:
            self._clear()
            return f"the second copy of the vault cannot be written: {error.strerror}"
        return ""

    def preserve(self, copies: Sequence[bytes]) -> tuple[Path, ...]:
        """Keep what `read` gave beside the copies as `.replaced`, over what is there; where. StoreError."""
        kept = []
        try:
            for copy, content in zip(self._copies, copies, strict=True):
                if content:
                    self._disk.write(aside := copy.with_name(copy.name + _ASIDE), content)
                    self._disk.sync(aside)
                    kept.append(aside)
            self._disk.sync_folder(self.folder)
        except OSError as error:
            raise _unusable(self.folder, "written", error) from error
        return tuple(kept)

    def prepare(self) -> None:
        """Make a new folder safe from a power cut. StoreError."""
        try:
            self._disk.sync_folder(self.folder.parent)
        except OSError as error:
            raise _unusable(self.folder, "written", error) from error

    def _stage(self, content: bytes) -> None:
        for copy in self._copies:
            self._disk.write(_new(copy), content)
            self._disk.sync(_new(copy))

    def _exchange(self, copy: Path) -> None:
        self._disk.rename(_new(copy), copy)
        self._disk.sync_folder(self.folder)

    def _clear(self) -> None:
        """Give the room back; what stays is written over later."""
        for copy in self._copies:
            with suppress(OSError):
                self._disk.remove(_new(copy))


def _new(copy: Path) -> Path:
    return copy.with_name(copy.name + _NEW)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _unusable(folder: Path, verb: str, error: OSError) -> StoreError:
    return StoreError(
        f"the vault in {folder} cannot be {verb}: {error.strerror or error}",
        "Make room, or give the right to it; what it held before is still there.",
    )

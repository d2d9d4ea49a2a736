"""Two places where a box keeps 32 random bytes of its own: a UEFI variable, which is off the disk, and a file.

Both are made once, whole or not at all, and read by root. `read` gives None where there is nothing yet; every other
trouble is an OSError.
"""

import errno
import fcntl
import os
import secrets
import stat
import struct
from contextlib import suppress
from pathlib import Path

BYTES = 32
VARIABLE = "MillwrightVault-5c3f0a1e-8d52-4b7b-9c1f-6f0e2b9d7a44"

# efivarfs: four bytes of attributes, then the content. Non-volatile, seen by boot services and by the running system.
ATTRIBUTES = struct.pack("<I", 0x7)
# ioctl numbers of <linux/fs.h> carry the size of a long, although an int is passed.
_LONG = struct.calcsize("l")
GET_FLAGS = 0x80006601 | _LONG << 16
SET_FLAGS = 0x40006602 | _LONG << 16
IMMUTABLE = 0x10


class HostFile:
    """A file that only root reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def what(self) -> str:
        return f"the host secret {self._path}"

    def read(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                return _whole(file.read(BYTES + 1), self.what)
        except FileNotFoundError:
            return None

    def create(self) -> bytes:
        """The secret that is there, or a new one. On return it survives a power cut."""
        there = self.read()
        if there is not None:
            return there
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = folder / f".{self._path.name}.{os.getpid()}.{secrets.token_hex(4)}.new"
        try:
            _write_synced(draft, secrets.token_bytes(BYTES))
            self._publish(draft)
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(folder)
        _sync_folder(folder.parent)
        made = self.read()
        if made is None:
            raise OSError(errno.EIO, "was written and is not there", self.what)
        return made

    def _publish(self, draft: Path) -> None:
        with suppress(FileExistsError):  # unlike a rename, a link never replaces what another process has just made
            os.link(draft, self._path)


class Variable:
    """A UEFI variable. Linux marks it immutable, so that `rm -rf` does not break a board: that is undone around every
    write. Whoever is logged in might read it after a reboot, so its mode is narrowed each time it is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / VARIABLE

    @property
    def what(self) -> str:
        return f"the UEFI variable {VARIABLE}"

    def read(self) -> bytes | None:
        # Without efivarfs the kernel leaves an empty folder; every firmware has variables of its own.
        if not self._folder.is_dir() or not any(self._folder.iterdir()):
            raise OSError(errno.ENODEV, "efivarfs is not mounted", str(self._folder))
        try:
            with self._path.open("rb") as file:
                raw = file.read(len(ATTRIBUTES) + BYTES + 1)
        except FileNotFoundError:
            return None
        if not raw:  # a file that was made and never written: the firmware knows nothing of it
            return None
        self._narrow()
        return _whole(raw[len(ATTRIBUTES) :], self.what)

    def create(self) -> bytes:
        """The secret that is there, or a new one, read back from the firmware."""
        there = self.read()
        if there is not None:
            return there
        content = secrets.token_bytes(BYTES)
        self._write(ATTRIBUTES + content)
        if self.read() != content:
            raise OSError(errno.EIO, "the firmware took the variable and does not give it back", self.what)
        return content

    def remove(self) -> None:
        """What is sealed with it opens no more."""
        if self._path.exists():
            _set_immutable(self._path, False)
            self._path.unlink()

    def _write(self, raw: bytes) -> None:
        """One write, or the firmware would take the first part for the whole."""
        if self._path.exists():
            _set_immutable(self._path, False)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if os.write(descriptor, raw) != len(raw):
                raise OSError(errno.EIO, "the firmware took a part of the variable", self.what)
            _sync(descriptor)
        except OSError:
            self.remove()  # half a variable is worse than none
            raise
        finally:
            os.close(descriptor)

    def _narrow(self) -> None:
        if not stat.S_IMODE(self._path.stat().st_mode) & 0o077:
            return
        try:
            was = _set_immutable(self._path, False)
            self._path.chmod(0o600)
            if was:
                _set_immutable(self._path, True)
        except OSError:
            pass  # not root, or read-only: it is a second lock, the host secret is the first


def _set_immutable(path: Path, wanted: bool) -> bool:
    """Whether it was immutable before. File systems that know no flags have none."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flags: int = struct.unpack_from("i", fcntl.ioctl(descriptor, GET_FLAGS, bytes(_LONG)))[0]
        changed = flags | IMMUTABLE if wanted else flags & ~IMMUTABLE
        if changed != flags:
            fcntl.ioctl(descriptor, SET_FLAGS, struct.pack("i", changed).ljust(_LONG, b"\0"))
        return bool(flags & IMMUTABLE)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    finally:
        os.close(descriptor)


def _whole(content: bytes, what: str) -> bytes:
    if len(content) != BYTES:
        raise OSError(errno.EBADMSG, f"holds {len(content)} bytes, not {BYTES}: it is damaged", what)
    return content


def _write_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # efivarfs has nothing to sync: the firmware has it already
            raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

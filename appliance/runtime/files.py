"""Files that survive a power cut: written whole or not at all."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.errors import DamagedError, HeldError, StoreError

PRIVATE = 0o600  # whatever the umask
_DIGEST = 32  # bytes of SHA-256 in front of a sealed file's content


def write_atomic(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Temporary file, fsync, rename, fsync of the folder: at every moment the old content or the new one is there.

    In a folder that others may write to, too: what somebody has laid there under either name is not written through.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            _belong(file.fileno(), path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", "Make room or give the right to write."
        ) from error


def write_sealed(path: Path, data: bytes) -> None:
    """`write_atomic` with a digest in front, so that rot is seen on reading."""
    write_atomic(path, hashlib.sha256(data).digest() + data)


def read_sealed(path: Path, limit: int) -> bytes | None:
    """The content, None where there is no file. DamagedError: its digest is wrong, or over `limit` bytes."""
    try:
        if path.stat().st_size > limit + _DIGEST:
            raise DamagedError(f"{path} is larger than {limit} bytes", "It is not a file of this program.")
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", "Give the right to read it.") from error
    if hashlib.sha256(raw[_DIGEST:]).digest() != raw[:_DIGEST]:
        raise DamagedError(f"{path} is damaged", "It is set aside; what it held is learned anew.")
    return raw[_DIGEST:]


def set_aside(path: Path, now: int) -> Path:
    """Rename a damaged file so that a person can look at it; `now` in UTC ns makes the name."""
    aside = path.with_name(f"{path.name}.damaged-{now // 1_000_000_000}")
    path.replace(aside)
    sync_folder(path.parent)
    return aside


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """A lock for as long as the block lasts and this process lives. HeldError where another process has it; `what` is
    what that one does."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE), "w")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", "Set paths.state and paths.run.") from error
    with file:
        _belong(file.fileno(), path.parent)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(
                f"another Millwright {what} on {path.parent}", "Stop it, or set other paths.state and paths.run."
            ) from None
        yield


def _belong(descriptor: int, folder: Path) -> None:
    """What root writes in a service's own folder belongs to that service, which could not read it otherwise."""
    if os.geteuid() != 0:
        return
    facts = folder.stat()
    if facts.st_uid:
        os.fchown(descriptor, facts.st_uid, facts.st_gid)


def sync_folder(folder: Path) -> None:
    """Make what was renamed, linked or removed in a folder safe from a power cut. OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

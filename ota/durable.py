"""Writes that a power cut leaves done or undone, never half done."""

import os
from pathlib import Path

from ota.errors import StorageError


def write(path: Path, data: bytes) -> None:
    """Temporary file, fsync, rename, fsync of the folder; by one at a time. StorageError.

    The temporary file has one name: what a killed process has left of it is written over, and not left for ever.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unusable(path, error) from error


def move(source: Path, target: Path) -> None:
    """A rename that lasts; what is moved has been synced. OSError."""
    source.replace(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in it is on disk. OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Its content is on disk. OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unusable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{error.filename or path}: {error.strerror}", "Make room or give the right to write.")

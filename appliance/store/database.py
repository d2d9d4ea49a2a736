"""Opens SQLite files: at the right version, with the right durability, foreign errors told as ours."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Literal

from appliance.errors import DamagedError, StoreError
from appliance.runtime import files
from appliance.store import migrations

_BUSY_S = 5.0
_REMEDIES = {
    sqlite3.SQLITE_FULL: "Make room on its disk.",
    sqlite3.SQLITE_IOERR: "Make room on its disk. Where it has room, it fails to read or write: replace it.",
    sqlite3.SQLITE_CANTOPEN: "Check that the folder exists and may be written.",
    sqlite3.SQLITE_READONLY: "Give the right to write the file and its folder.",
    sqlite3.SQLITE_BUSY: "Another program holds the file; close it.",
}


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of sqlite3 and the system as StoreError, or DamagedError where the file's content is the cause."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise DamagedError(f"{path} is damaged: {error}", "It is set aside and a new one begun.") from error
        raise StoreError(f"{path}: {error}", _REMEDIES.get(code, "")) from error
    except OSError as error:
        raise StoreError(f"{path}: {error}", "Look at its folder and its disk.") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; begins as a writer, so that it cannot be overtaken."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def open_writing(path: Path, schema: str, synchronous: Literal["NORMAL", "FULL"]) -> sqlite3.Connection:
    """A file at the newest version of its schema, made where there is none. It is the only writer.

    StoreError where the file is of a newer release; DamagedError where it is no database.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent} cannot be made: {error.strerror}", "Give the right to write there.") from error
    with translated(path):
        with closing(_connect(path)) as connection:
            version = _check_version(path, connection, schema)
        if version < migrations.latest(schema):
            migrations.migrate(path, schema)
        connection = _connect(path)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


def open_reading(path: Path, schema: str) -> sqlite3.Connection:
    """Read while the service writes, or when it is at rest. StoreError where there is no file of this release."""
    if not path.exists():
        raise StoreError(f"there is no {path}", "It is made when the record service first runs.")
    with translated(path), ExitStack() as opening:
        connection = opening.enter_context(closing(_connect_reading(path)))
        if _check_version(path, connection, schema) < migrations.latest(schema):
            raise StoreError(f"{path} is of an older release", "Start Millwright once: it brings the file up to date.")
        opening.pop_all()
    return connection


def set_aside(path: Path, now: int) -> Path:
    """Move a damaged database away, with its journal. The journal goes first: a new file must never meet it."""
    aside = path.with_name(f"{path.name}.damaged-{now // 1_000_000_000}")
    try:
        if _beside(path, "-wal").exists():
            _beside(path, "-wal").replace(_beside(aside, "-wal"))
        _beside(path, "-shm").unlink(missing_ok=True)
        return files.set_aside(path, now)
    except OSError as error:
        raise StoreError(f"{path} is damaged and cannot be moved away: {error.strerror}", "Move it by hand.") from error


def aside(path: Path) -> list[Path]:
    """Databases that were set aside here, oldest first."""
    return sorted(found for found in path.parent.glob(f"{path.name}.damaged-*") if not found.name.endswith("-wal"))


def bytes_on_disk(path: Path) -> int:
    """A database and its journal."""
    return _size(path) + _size(_beside(path, "-wal"))


def delete(path: Path) -> None:
    for file in (path, _beside(path, "-wal"), _beside(path, "-shm")):
        file.unlink(missing_ok=True)


def sync_journal(path: Path) -> None:
    """Bring all commits so far to the disk: with `synchronous = NORMAL` a commit alone does not."""
    try:
        descriptor = os.open(_beside(path, "-wal"), os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        raise StoreError(f"{path}: its journal cannot be written: {error.strerror}", "Look at the disk.") from error
    finally:
        os.close(descriptor)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


def _connect_reading(path: Path) -> sqlite3.Connection:
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=_BUSY_S, isolation_level=None)
    try:
        connection.execute("PRAGMA user_version")
    except sqlite3.OperationalError:
        # A journal cannot be made in a folder that is not ours. Where there is none, nobody writes either.
        if _beside(path, "-wal").exists():
            raise
        connection.close()
        connection = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None)
    return connection


def _check_version(path: Path, connection: sqlite3.Connection, schema: str) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    known = migrations.latest(schema)
    if version > known:
        raise StoreError(
            f"{path} is of a newer release (version {version}; this one knows up to {known})",
            "Update Millwright, or move the file away to begin a new one.",
        )
    return version


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it is not there, or the disk fails, which whoever reads or writes will say
        return 0

"""Every state of every alarm, and what people said of spans of time, durable when `record` returns. Blocking.

A state that is told again (after a crash, after a lost connection) leaves one row.
"""

import math
import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from appliance.errors import EventError, StoreError
from appliance.events.schema import Alarm, AlarmState
from appliance.store import database, labels
from appliance.store.database import transaction, translated
from appliance.store.labels import Labelled

FILE = "alarms.sqlite"  # in the folder of states
MAX_CHANGES = 500_000  # about 150 MB; beyond it the oldest changes of alarms that ended go
MAX_TEXT = 200  # characters; longer ones are cut

_FIELDS = tuple(field.name for field in msgspec.structs.fields(Alarm))
_COLUMNS = ", ".join(f'"{name}"' for name in _FIELDS)
_INSERT = f"INSERT OR IGNORE INTO change (asset, {_COLUMNS}) VALUES ({', '.join('?' * (len(_FIELDS) + 1))})"
_WHOLE = ("at", "raised", "until")
_LONGEST = 1 << 63
_AT_ONCE = 1000  # changes deleted

# A later arrival is the later state where the times are equal.
_LATEST = """NOT EXISTS (SELECT 1 FROM change AS later WHERE later.asset = change.asset AND later.id = change.id
             AND (later.at, later.seq) > (change.at, change.seq))"""


class Change(NamedTuple):
    """An asset's alarm in one of its states."""

    asset: str
    alarm: Alarm


def latest(path: Path, limit: int = 1000) -> list[Change]:
    """The newest state of every alarm that was ever recorded, the newest first, read beside the service that writes."""
    with closing(database.open_reading(path, "alarms")) as connection, translated(path):
        return _changes(connection, f"WHERE {_LATEST} ORDER BY at DESC, seq DESC LIMIT ?", limit)


def check(alarm: Alarm) -> None:
    """EventError("shape") for what the database cannot hold."""
    if not all(0 <= getattr(alarm, name) < _LONGEST for name in _WHOLE):
        raise EventError("shape", f"alarm '{alarm.id[:40]}': a time is not UTC nanoseconds")
    if not (math.isfinite(alarm.score) and math.isfinite(alarm.threshold)):
        raise EventError("not-finite", f"alarm '{alarm.id[:40]}': score {alarm.score}, threshold {alarm.threshold}")


class Alarms:
    """Opened at the first use, and again after a failure."""

    def __init__(self, path: Path, max_changes: int = MAX_CHANGES) -> None:
        self.path, self._max_changes = path, max_changes
        self._db: sqlite3.Connection | None = None
        self._lock = threading.RLock()  # whoever closes waits for a commit that still runs

    def record(self, changes: Iterable[Change]) -> int:
        """How many were new. When it returns they are on the disk; with a StoreError none may be."""
        rows = [_row(change) for change in changes]
        try:
            with self._lock, translated(self.path):
                return self._insert(rows)
        except StoreError:
            self.close()
            raise

    def record_labels(self, found: list[Labelled]) -> int:
        """As `record`, of labels."""
        try:
            with self._lock, translated(self.path):
                connection = self._connection()
                with transaction(connection):
                    return labels.insert(connection, found)
        except StoreError:
            self.close()
            raise

    def count(self) -> int:
        with self._lock, translated(self.path):
            return int(self._connection().execute("SELECT COUNT(*) FROM change").fetchone()[0])

    def standing(self) -> list[Change]:
        """The newest state of every alarm that has not returned to normal for good."""
        return self._select(f"WHERE state <> ? AND {_LATEST} ORDER BY raised, seq", AlarmState.NORMAL.value)

    def changes(self, since: int = 0, limit: int = -1) -> list[Change]:
        """All states since a time (UTC ns), oldest first; of more than `limit` the newest."""
        return self._select("WHERE at >= ? ORDER BY at DESC, seq DESC LIMIT ?", since, limit)[::-1]

    def set_aside(self, now: int) -> Path:
        """Move the damaged database away: where it is now. Of those that were before it the newest is kept."""
        self.close()
        for old in database.aside(self.path)[:-1]:
            database.delete(old)
        return database.set_aside(self.path, now)

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _insert(self, rows: list[tuple[object, ...]]) -> int:
        connection = self._connection()
        with transaction(connection):
            new = connection.executemany(_INSERT, rows).rowcount if rows else 0
            if connection.execute("SELECT COUNT(*) FROM change").fetchone()[0] > self._max_changes:
                self._make_room(connection)
        return new

    def _make_room(self, connection: sqlite3.Connection) -> None:
        gone = f"SELECT seq FROM change WHERE NOT (state <> 'normal' AND {_LATEST}) ORDER BY seq LIMIT {_AT_ONCE}"
        connection.execute(f"DELETE FROM change WHERE seq IN ({gone})")

    def _select(self, condition: str, *values: object) -> list[Change]:
        with self._lock, translated(self.path):
            return _changes(self._connection(), condition, *values)

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = database.open_writing(self.path, "alarms", "FULL")
        return self._db


def _changes(connection: sqlite3.Connection, condition: str, *values: object) -> list[Change]:
    found = connection.execute(f"SELECT asset, {_COLUMNS} FROM change {condition}", values)
    return [Change(asset, _alarm(fields)) for asset, *fields in found]


def _row(change: Change) -> tuple[object, ...]:
    values = (getattr(change.alarm, name) for name in _FIELDS)
    return (change.asset, *(str(value)[:MAX_TEXT] if isinstance(value, str) else value for value in values))


def _alarm(fields: list[Any]) -> Alarm:
    return msgspec.convert(dict(zip(_FIELDS, fields, strict=True)), Alarm, strict=False)  # 0 and 1 are truth values

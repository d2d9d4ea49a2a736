"""The open history file and what all who work on it share: keys, counts, space."""

import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import StoreError
from appliance.store import database
from appliance.store.frame import Points
from appliance.store.seal import RotError
from appliance.store.space import PAGE, Space

log = logging.getLogger(__name__)


class Tally(msgspec.Struct):
    """What the store did since the service began."""

    rows: int = 0
    commits: int = 0
    repeats: int = 0  # readings of a time that was recorded already, found when frames became chunks
    rotten: int = 0  # frames, chunks and blocks whose checksum was wrong
    deleted: int = 0  # chunks and blocks that made room


class Shelf:
    def __init__(self, path: Path, space: Space) -> None:
        self.path, self.space, self.tally = path, space, Tally()
        self.tail_bytes = 0  # of all frames, open, and of layouts
        self.tail_since: int | None = None  # UTC ns; since when there are some
        self.block_bytes = 0  # of all blocks
        self.deleted = False  # something was, since the keys were last cleaned
        self.forgotten: list[str] = []  # assets of which nothing is left; whoever reads this empties it
        self._db: sqlite3.Connection | None = None
        self._assets: dict[str, int] = {}
        self._layouts: dict[Points, int] = {}
        self._next_id = 1

    def open(self) -> None:
        self.close()
        self._db = database.open_writing(self.path, "history", "NORMAL")
        self.execute(f"PRAGMA wal_autocheckpoint = {self.space.journal // PAGE}")
        self.execute(f"PRAGMA journal_size_limit = {self.space.journal}")
        newest = "SELECT MAX(id) FROM {}".format
        self._next_id = 1 + max(self.value(newest(table)) or 0 for table in ("frame", "chunk", "block"))
        self.tail_bytes = self.value("SELECT SUM(size) FROM frame") or 0
        self.tail_since = 0 if self.tail_bytes else None  # those of a former run are old
        self.block_bytes = self.value("SELECT SUM(size) FROM block") or 0

    def close(self) -> None:
        self.forget_keys()
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def is_open(self) -> bool:
        return self._db is not None

    @property
    def connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError(f"{self.path} is not open")
        return self._db

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self.connection.execute(statement, values)

    def value(self, statement: str, *values: object) -> Any:
        """The one value of the one row."""
        return self.execute(statement, *values).fetchone()[0]

    def pages(self) -> tuple[int, int]:
        """All and free ones."""
        return self.value("PRAGMA page_count"), self.value("PRAGMA freelist_count")

    # Keys: `id` rises in order of arrival over frames, chunks and blocks

    def take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def asset(self, path: str) -> int:
        key = self._assets.get(path)
        if key is None:
            key = self._assets[path] = self._key("asset", "path", path)
        return key

    def layout(self, points: Points) -> int:
        key = self._layouts.get(points)
        if key is None:
            text = json.dumps(points, ensure_ascii=False, separators=(",", ":"))
            key = self._layouts[points] = self._key("layout", "points", text)
            self.tail_bytes += len(text)  # so that a flood of names brings the next fold, which drops them
        return key

    def forget_keys(self) -> None:
        """After a rollback: some may have been given out by what is undone."""
        self._assets.clear()
        self._layouts.clear()

    def report_rot(self, what: str, error: RotError) -> None:
        self.tally.rotten += 1
        log.error("%s: %s is damaged (%s); it is left out", self.path, what, error)

    def _key(self, table: str, column: str, value: str) -> int:
        self.execute(f"INSERT OR IGNORE INTO {table} ({column}) VALUES (?)", value)
        key: int = self.value(f"SELECT id FROM {table} WHERE {column} = ?", value)
        return key

"""The open database of an outbox: frames of entries, and the book that counts them. One thread at a time.

Each statement lets other threads run, and may wait long until they let it go on: so there are few of them a commit.
"""

import secrets
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from appliance.store import database, parcels
from appliance.store.parcels import Lane, Load, RottenError

JOURNAL_PAGES = 256, 4096  # 1 to 16 MiB: what has left before the journal is written back is never written back
_OPEN = 8  # frames in memory
_PAGE = 4096  # bytes; a row takes two pages more than it holds, at most: its last one, and one of an index


class Stock:
    """`budget` in bytes: a quarter of it may lie in the journal. `grown`: bytes that the file may have grown by since
    they were counted."""

    def __init__(self, path: Path, budget: int) -> None:
        self.book: Counter[str] = Counter()  # as in the database
        self.grown = 0
        self._opened: dict[int, Load] = {}  # frames that were written or sent from last
        self._db = database.open_writing(path, "outbox", "FULL")
        try:
            least, most = JOURNAL_PAGES
            self.execute(f"PRAGMA wal_autocheckpoint = {min(max(least, budget // 4 // _PAGE), most)}")
            self._read()
        except BaseException:
            self.close()
            raise

    @property
    def connection(self) -> sqlite3.Connection:
        return self._db

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def close(self) -> None:
        self._opened.clear()
        self._db.close()

    # Frames

    def append(self, lane: Lane, load: Load) -> None:
        """Entries that have their numbers from the beginning. They leave soon, where the line holds, and need not be
        read again then."""
        first = self.book[f"numbered.{lane}"] + 1
        self.book[f"numbered.{lane}"] += len(load.topics)
        self.book[f"queued.{lane}"] += len(load.topics)
        self._keep_open(self.insert(lane, load, first, first + len(load.topics) - 1), load)

    def insert(
        self, lane: Lane, load: Load, first: int, last: int, *, key: str = "", level: int = 0, at: int | None = None
    ) -> int:
        """Its id, `at` where that is given."""
        data = parcels.pack(load)
        self.grown += len(data) + len(key) + 2 * _PAGE
        done = self.execute(
            "INSERT INTO frame (id, lane, first, last, count, level, key, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(at, int(lane), first, last, len(load.topics), level, key, data),
        )
        return int(done.lastrowid or 0)

    def load(self, key: int, lane: Lane, count: int) -> Load | None:
        """None where it is rotten: it is left out then."""
        load = self._opened.get(key)
        if load is None:
            data = self.execute("SELECT data FROM frame WHERE id = ?", key).fetchone()[0]
            load = self.unpacked(key, data, lane, count)
            if load is not None:
                self._keep_open(key, load)
        return load

    def unpacked(self, key: int, data: bytes, lane: Lane, count: int) -> Load | None:
        try:
            return parcels.unpack(data)
        except RottenError:
            self.execute("DELETE FROM frame WHERE id = ?", key)
            self.drop("rotten", count, lane)
            return None

    def delete(self, keys: Sequence[int]) -> None:
        for key in keys:
            self._opened.pop(key, None)
        self._db.executemany("DELETE FROM frame WHERE id = ?", [(key,) for key in keys])

    def bytes_used(self) -> int:
        """Of the database without its free pages."""
        pages, free, size = (
            self.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _keep_open(self, key: int, load: Load) -> None:
        self._opened[key] = load
        while len(self._opened) > _OPEN:
            del self._opened[next(iter(self._opened))]

    # The book

    def drop(self, reason: str, count: int = 1, lane: Lane | None = None) -> None:
        """With its lane where it waited."""
        self.book[f"dropped.{reason}"] += count
        if lane is not None:
            self.book[f"queued.{lane}"] -= count

    def write_book(self, before: Mapping[str, int]) -> None:
        """What has changed since."""
        changed = {name: value for name, value in self.book.items() if before.get(name) != value}
        if changed:
            self.execute(
                "INSERT OR REPLACE INTO book (name, value) SELECT key, value FROM json_each(?)",
                msgspec.json.encode(changed).decode(),
            )

    def _read(self) -> None:
        self.book = Counter(dict(self.execute("SELECT name, value FROM book")))
        if not self.book["identity"]:
            self.book["identity"] = secrets.randbits(47) + 1
            self.write_book({})

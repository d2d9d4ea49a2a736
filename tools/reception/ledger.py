"""What has been received, in SQLite: events and the highest number of each sender and lane, in one transaction."""

import sqlite3
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec

from appliance.channels.leaving import envelope

Row = tuple[str, str, int, str, bytes]
ROWS = 64  # in a statement: after each, other threads want to run
_INSERT = "INSERT INTO event VALUES (?, ?, ?, ?, ?)"
_INSERT_MANY = _INSERT + ", (?, ?, ?, ?, ?)" * (ROWS - 1)


class Letter(NamedTuple):
    topic: str
    payload: bytes


class Taken(NamedTuple):
    marks: dict[str, dict[str, int]]  # of the senders that were heard
    fresh: int
    repeated: int
    missing: bool  # something before one of them has not come: it is not taken, and must be sent again


class Ledger:
    """`synchronous = FULL`: what `take` has returned from survives a power cut."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL").fetchall()
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("CREATE TABLE IF NOT EXISTS event (sender, lane, seq, topic, payload)")
        self._db.execute("CREATE TABLE IF NOT EXISTS mark (sender, lane, seq, PRIMARY KEY (sender, lane))")
        self._marks: dict[tuple[str, str], int] = {
            (sender, lane): seq for sender, lane, seq in self._db.execute("SELECT sender, lane, seq FROM mark")
        }

        self._gaps: dict[tuple[str, str], int] = {}  # before which number something was missing
        self.refused = 0  # letters that are no envelopes

    def begin(self) -> None:
        """A new connection: what comes now may be what came before."""
        self._gaps.clear()

    def take(self, letters: Iterable[Letter]) -> Taken:
        rows: list[Row] = []
        marks = dict(self._marks)
        repeated, missing = 0, False
        heard: set[str] = set()
        for topic, payload in letters:
            try:
                head = envelope.head(payload)
            except msgspec.MsgspecError:
                self.refused += 1
                continue
            heard.add(head.sender)
            key = (head.sender, head.lane)
            mark = marks.get(key, 0)
            if head.prev == mark < head.seq and not self._gaps:  # as nearly all: what follows what is here
                marks[key] = head.seq
                rows.append((head.sender, head.lane, head.seq, topic, payload))
                continue
            verdict = envelope.judge(head.seq, head.prev, mark)
            if verdict.missing and not self._is_gone(key, head.prev):
                missing = True
            elif verdict.fresh or verdict.missing:
                marks[key] = head.seq
                self._gaps.pop(key, None)
                rows.append((head.sender, head.lane, head.seq, topic, payload))
            else:
                repeated += 1
        self._write(rows, marks)
        told = {sender: {lane: seq for (who, lane), seq in marks.items() if who == sender} for sender in heard}
        return Taken(told, len(rows), repeated, missing)

    def _is_gone(self, key: tuple[str, str], prev: int) -> bool:
        """The same gap again, after it was asked for: the sender has forgotten it, since somebody confirmed it."""
        known = self._gaps.get(key)
        self._gaps[key] = prev if known is None else min(known, prev)
        return known == prev

    def close(self) -> None:
        self._db.close()

    def _write(self, rows: list[Row], marks: dict[tuple[str, str], int]) -> None:
        if rows:
            changed = [(*key, seq) for key, seq in marks.items() if self._marks.get(key) != seq]
            self._db.execute("BEGIN IMMEDIATE")
            many = len(rows) - len(rows) % ROWS
            for place in range(0, many, ROWS):
                self._db.execute(_INSERT_MANY, list(chain.from_iterable(rows[place : place + ROWS])))
            self._db.executemany(_INSERT, rows[many:])
            self._db.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", changed)
            self._db.execute("COMMIT")
        self._marks = marks

"""What waits to leave the box for one destination, durable when `turn` returns. Blocking; one thread at a time.

One transaction takes in what came, settles what the destination has confirmed and numbers what is sent next, with the
books beside it: received = sent + queued + dropped holds at every moment, also after a power cut.

Scores and readings leave in the order of their arrival. Alarms and states are numbered when they are sent, the newest
first: after an outage what stands now is told before what was. Of a state only the last waits.
"""

import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from appliance.store import database, parcels, thinning
from appliance.store.database import transaction, translated
from appliance.store.parcels import SINGLE, Entry, Lane, Load, Parcel, RottenError
from appliance.store.thinning import Facts, Halve, WhenFull

REASONS = {
    "unchanged": "a state or alarm that was told already",
    "superseded": "a state that changed again before it could leave",
    "duplicate": "the bus delivered it a second time",
    "thinned": "left out so that the others find room: every second one of an asset",
    "budget": "there was no room left, though all were thinned",
    "rejected": "the destination says that it will never take it",
    "rotten": "the disk gave back other bytes than were written",
}
SETTLED = ("unchanged", "superseded", "duplicate")  # of these the destination lacks nothing
STEPS = 8  # of making room in one transaction
_SINGLES = 1024  # alarms or states numbered at once
_REMEMBERED = 32_768  # marks of what the bus delivered
_COMMITS = 1024  # whose marks are kept
_SAID = 50_000  # keys whose last state is remembered
_MARK = 8  # bytes
_OPEN = 8  # frames in memory
_FRAMES = 512  # looked through for what leaves next


class Confirmed(NamedTuple):
    """What the destination has for good: of each lane the last number, and how many since the one before."""

    marks: dict[Lane, int]
    counts: dict[Lane, int]
    refused: bool = False  # it has said that it will never take them


NOTHING = Confirmed({}, {})


class Books(NamedTuple):
    """received = sent + the sum of queued + the sum of dropped."""

    received: int
    sent: int
    queued: dict[Lane, int]
    dropped: dict[str, int]

    @property
    def waiting(self) -> int:
        return sum(self.queued.values())


def settled(sent: Sequence[Parcel]) -> Confirmed:
    """All of these."""
    return Confirmed({one.lane: one.seq for one in sent}, dict(Counter(one.lane for one in sent)))


class Outbox:
    """`budget` in bytes. Opened at the first use, and again after a failure."""

    def __init__(self, path: Path, budget: int, when_full: WhenFull = "thin") -> None:
        self.path = path
        self._budget, self._when_full = budget, when_full
        self._db: sqlite3.Connection | None = None
        self._book: Counter[str] = Counter()  # as in the database
        self._recent: dict[bytes, None] = {}
        self._opened: dict[int, Load] = {}  # frames that were written or sent from last

    @property
    def identity(self) -> str:
        """By which receivers know these numbers: a new outbox begins to count anew."""
        return f"{self._book['identity']:012x}"

    def turn(
        self,
        entries: Sequence[Entry] = (),
        confirmed: Confirmed = NOTHING,
        want: int = 0,
        under_way: Mapping[Lane, int] | None = None,
    ) -> list[Parcel]:
        """Take in, settle, and give at most about `want` that leave next: what was not confirmed comes again, but for
        what is still under way, up to these numbers.

        StoreError, DamagedError: nothing is changed.
        """
        before = self._book.copy()
        try:
            with translated(self.path):
                connection = self._connection()
                before = self._book.copy()
                with transaction(connection):
                    fresh = self._take_in(entries)
                    self._settle(confirmed)
                    if entries:
                        self._make_room()
                    found = self._next(want, under_way or {}) if want else []
                    self._write_book(before)
        except BaseException:
            self.close()  # what the file says counts, when it is opened again
            self._book = before
            raise
        self._remember(fresh)
        return found

    def books(self) -> Books:
        book = self._book
        dropped = {name.removeprefix("dropped."): count for name, count in book.items() if name.startswith("dropped.")}
        return Books(book["received"], book["sent"], {lane: book[f"queued.{lane}"] for lane in Lane}, dropped)

    @property
    def is_paused(self) -> bool:
        return bool(self._book["paused"])

    def pause(self, is_paused: bool) -> None:
        """Remembered over a restart. StoreError."""
        with translated(self.path):
            connection = self._connection()
            with transaction(connection):
                self._execute("INSERT OR REPLACE INTO book (name, value) VALUES ('paused', ?)", int(is_paused))
        self._book["paused"] = int(is_paused)

    def bytes_used(self) -> int:
        with translated(self.path):
            return self._used()

    def set_aside(self, now: int) -> Path:
        """Move the damaged database away: where it is now. What waited in it is lost to this outbox."""
        self.close()
        self._book.clear()
        self._recent.clear()
        return database.set_aside(self.path, now)

    def close(self) -> None:
        self._opened.clear()
        if self._db is not None:
            self._db.close()
            self._db = None

    # Taking in

    def _take_in(self, entries: Sequence[Entry]) -> list[bytes]:
        """Marks of those that are new."""
        fresh: dict[bytes, None] = {}
        plain: list[Entry] = []
        for entry in entries:
            if entry.mark and (entry.mark in self._recent or entry.mark in fresh):
                self._drop("duplicate")
                continue
            if entry.mark:
                fresh[entry.mark] = None
            if entry.key:
                self._take_keyed(entry)
            else:
                plain.append(entry)
        self._book["received"] += len(entries)
        for lane, some in groupby(sorted(plain, key=lambda entry: entry.lane), key=lambda entry: entry.lane):
            self._append(lane, list(some))
        if fresh:
            self._execute("INSERT INTO recent (marks) VALUES (?)", b"".join(fresh))
        return list(fresh)

    def _append(self, lane: Lane, entries: Sequence[Entry]) -> None:
        first = self._book[f"numbered.{lane}"] + 1
        self._book[f"numbered.{lane}"] += len(entries)
        load = Load([one.topic for one in entries], [one.payload for one in entries])
        self._keep_open(self._insert(lane, load, first), load)
        self._book[f"queued.{lane}"] += len(entries)

    def _take_keyed(self, entry: Entry) -> None:
        digest = parcels.digest(entry.sense or entry.payload)
        known = self._execute("SELECT digest FROM said WHERE key = ?", entry.key).fetchone()
        if known is not None and known[0] == digest:
            self._drop("unchanged")
            return
        self._execute("INSERT OR REPLACE INTO said (key, digest) VALUES (?, ?)", entry.key, digest)
        if entry.lane is not Lane.ALARM:
            gone = self._execute("DELETE FROM frame WHERE key = ? AND first = 0 RETURNING lane", entry.key).fetchall()
            for (lane,) in gone:
                self._drop("superseded", lane=Lane(lane))
        lane = entry.lane if entry.lane is Lane.ALARM else Lane.STATE
        self._insert(lane, Load([entry.topic], [entry.payload]), 0, key=entry.key)
        self._book[f"queued.{lane}"] += 1

    def _insert(self, lane: Lane, load: Load, first: int, key: str = "") -> int:
        """Its id."""
        last = first + len(load.topics) - 1 if first else 0
        done = self._execute(
            "INSERT INTO frame (lane, first, last, count, level, key, data) VALUES (?, ?, ?, ?, 0, ?, ?)",
            *(int(lane), first, last, len(load.topics), key, parcels.pack(load)),
        )
        return int(done.lastrowid or 0)

    def _keep_open(self, key: int, load: Load) -> None:
        """What has just come leaves soon, where the line holds: it need not be read again."""
        self._opened[key] = load
        while len(self._opened) > _OPEN:
            del self._opened[next(iter(self._opened))]

    def _remember(self, fresh: Iterable[bytes]) -> None:
        self._recent.update(dict.fromkeys(fresh))
        while len(self._recent) > _REMEMBERED:
            del self._recent[next(iter(self._recent))]

    # Settling

    def _settle(self, confirmed: Confirmed) -> None:
        for lane, mark in confirmed.marks.items():
            if mark <= self._book[f"confirmed.{lane}"]:
                continue
            self._execute("DELETE FROM frame WHERE lane = ? AND first > 0 AND last <= ?", int(lane), mark)
            self._book[f"confirmed.{lane}"] = mark
            self._book[f"queued.{lane}"] -= confirmed.counts[lane]
            self._book["dropped.rejected" if confirmed.refused else "sent"] += confirmed.counts[lane]

    # Sending

    def _next(self, want: int, under_way: Mapping[Lane, int]) -> list[Parcel]:
        found: list[Parcel] = []
        for lane in Lane:
            if len(found) < want:
                mark = max(self._book[f"confirmed.{lane}"], under_way.get(lane, 0))
                found += self._singles(lane, mark) if lane in SINGLE else self._many(lane, mark, want - len(found))
        return found

    def _singles(self, lane: Lane, mark: int) -> list[Parcel]:
        """Those that were numbered before, in that order; then the others, the newest first."""
        columns = "SELECT id, first, key, data FROM frame WHERE lane = ?"
        rows = self._execute(f"{columns} AND first > ? ORDER BY first", int(lane), mark).fetchall()
        if len(rows) < _SINGLES:
            room = _SINGLES - len(rows)
            rows += self._execute(f"{columns} AND first = 0 ORDER BY id DESC LIMIT ?", int(lane), room).fetchall()
        found: list[Parcel] = []
        prev = mark
        for key, first, name, data in rows:
            load = self._unpacked(key, data, lane, 1)
            if load is not None:
                seq = first or self._number(key, lane)
                newest = self._is_newest(name, load.payloads[0]) if lane is Lane.ALARM else True
                found.append(Parcel(lane, seq, prev, load.topics[0], load.payloads[0], name, newest))
                prev = seq
        return found

    def _number(self, key: int, lane: Lane) -> int:
        self._book[f"numbered.{lane}"] += 1
        seq = self._book[f"numbered.{lane}"]
        self._execute("UPDATE frame SET first = ?, last = ? WHERE id = ?", seq, seq, key)
        return seq

    def _is_newest(self, key: str, payload: bytes) -> bool:
        known = self._execute("SELECT digest FROM said WHERE key = ?", key).fetchone()
        return known is None or known[0] == parcels.digest(payload)

    def _many(self, lane: Lane, mark: int, want: int) -> list[Parcel]:
        found: list[Parcel] = []
        prev = mark
        for key, first, count in self._execute(
            "SELECT id, first, count FROM frame WHERE lane = ? AND first > 0 AND last > ? ORDER BY first LIMIT ?",
            *(int(lane), mark, _FRAMES),
        ).fetchall():
            load = self._frame(key, lane, count)
            if load is None:
                continue
            for seq, topic, payload in zip(parcels.numbers(load, first), load.topics, load.payloads, strict=True):
                if seq > mark:
                    found.append(Parcel(lane, seq, prev, topic, payload))
                    prev = seq
            if len(found) >= want:
                break
        del found[want:]
        if found:
            # What was handed over once may have arrived: it no longer gives way.
            self._book[f"offered.{lane}"] = max(self._book[f"offered.{lane}"], found[-1].seq)
        return found

    def _frame(self, key: int, lane: Lane, count: int) -> Load | None:
        load = self._opened.get(key)
        if load is None:
            data = self._execute("SELECT data FROM frame WHERE id = ?", key).fetchone()[0]
            load = self._unpacked(key, data, lane, count)
            if load is not None:
                self._keep_open(key, load)
        return load

    def _unpacked(self, key: int, data: bytes, lane: Lane, count: int) -> Load | None:
        try:
            return parcels.unpack(data)
        except RottenError:
            self._execute("DELETE FROM frame WHERE id = ?", key)
            self._drop("rotten", count, lane)
            return None

    # Making room

    def _make_room(self) -> None:
        self._execute("DELETE FROM recent WHERE id <= (SELECT MAX(id) FROM recent) - ?", _COMMITS)
        self._execute("DELETE FROM said WHERE id <= (SELECT MAX(id) FROM said) - ?", _SAID)
        if self._used() <= self._budget:
            return
        for _ in range(STEPS):
            step = thinning.choose(list(self._yielding()), self._when_full)
            if step is None:
                return
            if isinstance(step, Halve):
                self._halve(step.frames)
            else:
                self._give_up(step.frames)
            if self._used() <= self._budget - self._budget // 32:
                return

    def _yielding(self) -> Iterator[Facts]:
        for lane in (Lane.SCORE, Lane.READING):
            found = self._execute(
                "SELECT id, level, count FROM frame WHERE lane = ? AND first > ? ORDER BY first",
                *(int(lane), self._book[f"offered.{lane}"]),
            )
            for key, level, count in found.fetchall():
                yield Facts(key, lane, level, count)

    def _halve(self, keys: Sequence[int]) -> None:
        """Several frames become one of half as many entries."""
        rows = [
            self._execute("SELECT id, lane, first, count, level, data FROM frame WHERE id = ?", key).fetchone()
            for key in keys
        ]
        seqs: list[int] = []
        whole = Load([], [])
        for key, lane, first, count, _, data in rows:
            load = self._unpacked(key, data, Lane(lane), count)
            if load is not None:
                whole.topics.extend(load.topics)
                whole.payloads.extend(load.payloads)
                seqs.extend(parcels.numbers(load, first))
        left = thinning.halve(whole, seqs)
        lane, level = Lane(rows[0][1]), rows[0][4]
        self._opened.clear()
        self._delete(keys)
        if left.seqs:
            self._execute(
                "INSERT INTO frame (id, lane, first, last, count, level, key, data) VALUES (?, ?, ?, ?, ?, ?, '', ?)",
                *(keys[0], int(lane), left.seqs[0], left.seqs[-1], len(left.seqs), level + 1, parcels.pack(left)),
            )
        self._drop(thinning.THINNED, len(seqs) - len(left.topics), lane)

    def _give_up(self, keys: Sequence[int]) -> None:
        for key in keys:
            lane, count = self._execute("SELECT lane, count FROM frame WHERE id = ?", key).fetchone()
            self._drop(thinning.DROPPED, count, Lane(lane))
        self._delete(keys)

    def _delete(self, keys: Sequence[int]) -> None:
        self._connection().executemany("DELETE FROM frame WHERE id = ?", [(key,) for key in keys])

    def _used(self) -> int:
        """Bytes of the database without its free pages."""
        facts = [
            self._execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        ]
        return int((facts[0] - facts[1]) * facts[2])

    # The database

    def _drop(self, reason: str, count: int = 1, lane: Lane | None = None) -> None:
        """With its lane where it waited."""
        self._book[f"dropped.{reason}"] += count
        if lane is not None:
            self._book[f"queued.{lane}"] -= count

    def _write_book(self, before: Mapping[str, int]) -> None:
        changed = [(name, value) for name, value in self._book.items() if before.get(name) != value]
        self._connection().executemany("INSERT OR REPLACE INTO book (name, value) VALUES (?, ?)", changed)

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._connection().execute(statement, values)

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = database.open_writing(self.path, "outbox", "FULL")
            try:
                self._read()
            except BaseException:
                self.close()
                raise
        return self._db

    def _read(self) -> None:
        self._book = Counter(dict(self._execute("SELECT name, value FROM book")))
        if not self._book["identity"]:
            self._book["identity"] = secrets.randbits(47) + 1
            self._write_book({})
        self._recent = {}
        for (marks,) in self._execute("SELECT marks FROM recent ORDER BY id").fetchall():
            self._remember(marks[at : at + _MARK] for at in range(0, len(marks), _MARK))

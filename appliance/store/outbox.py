"""What waits to leave the box for one destination, durable when `turn` returns. Blocking; one thread at a time.

One transaction takes in what came, settles what the destination has confirmed and numbers what is sent next, with the
books beside it: received = sent + queued + dropped holds at every moment, also after a power cut.

Scores and readings leave in the order of their arrival. Alarms and states are numbered when they are sent, the newest
first: after an outage what stands now is told before what was. Of a state only the last waits.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from appliance.store import database, parcels
from appliance.store.database import transaction, translated
from appliance.store.outbox_leaving import departures
from appliance.store.outbox_room import Room
from appliance.store.outbox_stock import Stock
from appliance.store.parcels import Entry, Lane, Load, Parcel
from appliance.store.thinning import WhenFull

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
_REMEMBERED = 32_768  # marks of what the bus delivered
_COMMITS = 1024  # whose marks are kept
_SWEEP = 64  # commits or states between two looks for what may be forgotten
_SAID = 50_000  # keys whose last state is remembered
_MARK = 8  # bytes


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
        self._budget, self._room = budget, Room(budget, when_full)
        self._stock: Stock | None = None
        self._book: Counter[str] = Counter()  # as it was last committed
        self._recent: dict[bytes, None] = {}

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
        try:
            with translated(self.path):
                stock = self._opened()
                with transaction(stock.connection):
                    fresh = self._take_in(stock, entries)
                    _settle(stock, confirmed)
                    if entries:
                        self._room.make(stock)
                    found = departures(stock, want, under_way or {}) if want else []
                    stock.write_book(self._book)
        except BaseException:
            self.close()  # what the file says counts, when it is opened again
            raise
        self._book = stock.book.copy()
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
            stock = self._opened()
            stock.book["paused"] = int(is_paused)
            with transaction(stock.connection):
                stock.write_book(self._book)
        self._book = stock.book.copy()

    def bytes_used(self) -> int:
        with translated(self.path):
            return self._opened().bytes_used()

    def set_aside(self, now: int) -> Path:
        """Move the damaged database away: where it is now. What waited in it is lost to this outbox."""
        self.close()
        self._book.clear()
        self._recent.clear()
        return database.set_aside(self.path, now)

    def close(self) -> None:
        if self._stock is not None:
            self._stock.close()
            self._stock = None

    def _opened(self) -> Stock:
        if self._stock is None:
            self._stock = self._open()
            self._book = self._stock.book.copy()
            self._room.forget()
        return self._stock

    def _open(self) -> Stock:
        stock = Stock(self.path, self._budget)
        try:
            rows = stock.execute("SELECT marks FROM recent ORDER BY id").fetchall()
        except BaseException:
            stock.close()
            raise
        self._recent = {}
        for (marks,) in rows:
            self._remember(marks[at : at + _MARK] for at in range(0, len(marks), _MARK))
        return stock

    def _remember(self, fresh: Iterable[bytes]) -> None:
        self._recent.update(dict.fromkeys(fresh))
        while len(self._recent) > _REMEMBERED:
            del self._recent[next(iter(self._recent))]

    def _take_in(self, stock: Stock, entries: Sequence[Entry]) -> list[bytes]:
        """Marks of those that are new."""
        fresh: dict[bytes, None] = {}
        lanes: dict[Lane, Load] = {}
        for entry in entries:
            if entry.mark:
                if entry.mark in self._recent or entry.mark in fresh:
                    stock.drop("duplicate")
                    continue
                fresh[entry.mark] = None
            if entry.key:
                _take_keyed(stock, entry)
            else:
                topics, payloads, _ = lanes.get(entry.lane) or lanes.setdefault(entry.lane, Load([], []))
                topics.append(entry.topic)
                payloads.append(entry.payload)
        stock.book["received"] += len(entries)
        for lane, load in lanes.items():
            stock.append(lane, load)
        if fresh:
            _note(stock, b"".join(fresh))
        return list(fresh)


def _take_keyed(stock: Stock, entry: Entry) -> None:
    digest = parcels.digest(entry.sense or entry.payload)
    known = stock.execute("SELECT digest FROM said WHERE key = ?", entry.key).fetchone()
    if known is not None and known[0] == digest:
        stock.drop("unchanged")
        return
    said = stock.execute("INSERT OR REPLACE INTO said (key, digest) VALUES (?, ?)", entry.key, digest).lastrowid or 0
    if said % _SWEEP == 0:
        stock.execute("DELETE FROM said WHERE id <= ?", said - _SAID)
    if entry.lane is not Lane.ALARM:
        gone = stock.execute("DELETE FROM frame WHERE key = ? AND first = 0 RETURNING lane", entry.key).fetchall()
        for (lane,) in gone:
            stock.drop("superseded", lane=Lane(lane))
    lane = entry.lane if entry.lane is Lane.ALARM else Lane.STATE
    stock.insert(lane, Load([entry.topic], [entry.payload]), 0, 0, key=entry.key)
    stock.book[f"queued.{lane}"] += 1


def _note(stock: Stock, marks: bytes) -> None:
    """Those of one commit, by which what the bus delivers a second time is recognised."""
    noted = stock.execute("INSERT INTO recent (marks) VALUES (?)", marks).lastrowid or 0
    stock.grown += len(marks)
    if noted % _SWEEP == 0:
        stock.execute("DELETE FROM recent WHERE id <= ?", noted - _COMMITS)


def _settle(stock: Stock, confirmed: Confirmed) -> None:
    for lane, mark in confirmed.marks.items():
        if mark <= stock.book[f"confirmed.{lane}"]:
            continue
        # A frame ends behind its beginning: that bounds what the index is searched for.
        stock.execute(
            "DELETE FROM frame WHERE lane = ? AND first > 0 AND first <= ? AND last <= ?", int(lane), mark, mark
        )
        stock.book[f"confirmed.{lane}"] = mark
        stock.book[f"queued.{lane}"] -= confirmed.counts[lane]
        stock.book["dropped.rejected" if confirmed.refused else "sent"] += confirmed.counts[lane]

"""What leaves an outbox next, lane by lane: what was not confirmed comes again."""

from collections.abc import Iterator, Mapping

from appliance.store import parcels
from appliance.store.outbox_stock import Stock
from appliance.store.parcels import SINGLE, Lane, Parcel

_SINGLES = 1024  # alarms or states numbered at once
_FRAMES = 16  # looked up at once
_MOST_FRAMES = 512  # looked through for what leaves next


def departures(stock: Stock, want: int, under_way: Mapping[Lane, int]) -> list[Parcel]:
    """About `want` at most; after those that are under way, up to these numbers. In a transaction: it numbers."""
    found: list[Parcel] = []
    for lane in Lane:
        if len(found) < want and stock.book[f"queued.{lane}"]:
            mark = max(stock.book[f"confirmed.{lane}"], under_way.get(lane, 0))
            found += _singles(stock, lane, mark) if lane in SINGLE else _many(stock, lane, mark, want - len(found))
    return found


def _singles(stock: Stock, lane: Lane, mark: int) -> list[Parcel]:
    """Those that were numbered before, in that order; then the others, the newest first."""
    columns = "SELECT id, first, key, data FROM frame WHERE lane = ?"
    rows = stock.execute(f"{columns} AND first > ? ORDER BY first", int(lane), mark).fetchall()
    if len(rows) < _SINGLES:
        room = _SINGLES - len(rows)
        rows += stock.execute(f"{columns} AND first = 0 ORDER BY id DESC LIMIT ?", int(lane), room).fetchall()
    found: list[Parcel] = []
    prev = mark
    for key, first, name, data in rows:
        load = stock.unpacked(key, data, lane, 1)
        if load is not None:
            seq = first or _number(stock, key, lane)
            newest = _is_newest(stock, name, load.payloads[0]) if lane is Lane.ALARM else True
            found.append(Parcel(lane, seq, prev, load.topics[0], load.payloads[0], name, newest))
            prev = seq
    return found


def _number(stock: Stock, key: int, lane: Lane) -> int:
    stock.book[f"numbered.{lane}"] += 1
    seq = stock.book[f"numbered.{lane}"]
    stock.execute("UPDATE frame SET first = ?, last = ? WHERE id = ?", seq, seq, key)
    return seq


def _is_newest(stock: Stock, key: str, payload: bytes) -> bool:
    known = stock.execute("SELECT digest FROM said WHERE key = ?", key).fetchone()
    return known is None or known[0] == parcels.digest(payload)


def _many(stock: Stock, lane: Lane, mark: int, want: int) -> list[Parcel]:
    found: list[Parcel] = []
    prev = mark
    for key, first, count in _frames(stock, lane, mark):
        load = stock.load(key, lane, count)
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
        stock.book[f"offered.{lane}"] = max(stock.book[f"offered.{lane}"], found[-1].seq)
    return found


def _frames(stock: Stock, lane: Lane, mark: int) -> Iterator[tuple[int, int, int]]:
    """Those that hold what comes after the mark."""
    after = 0
    for _ in range(_MOST_FRAMES // _FRAMES):
        rows = stock.execute(
            "SELECT id, first, count FROM frame WHERE lane = ? AND first > ? AND last > ? ORDER BY first LIMIT ?",
            *(int(lane), after, mark, _FRAMES),
        ).fetchall()
        yield from rows
        if len(rows) < _FRAMES:
            return
        after = rows[-1][1]

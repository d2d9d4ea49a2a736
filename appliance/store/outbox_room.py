"""Room in an outbox: what gives way when its file is larger than the budget. A step looks at a bounded part of it."""

from collections.abc import Iterator, Sequence

from appliance.store import parcels, thinning
from appliance.store.outbox_stock import Stock
from appliance.store.parcels import Lane, Load
from appliance.store.thinning import Facts, Halve, WhenFull

STEPS = 32  # in one transaction


class Room:
    """`budget` in bytes."""

    def __init__(self, budget: int, when_full: WhenFull) -> None:
        self._budget, self._when_full = budget, when_full
        self._used = budget  # when it was last counted; at first nobody knows

    def make(self, stock: Stock) -> None:
        if self._used + stock.grown <= self._budget or self._count(stock) <= self._budget:
            return
        goal = self._budget - self._budget // 32
        for _ in range(STEPS):
            step = thinning.choose(list(self._yielding(stock)), self._when_full, self._used - goal)
            if step is None:
                return
            if isinstance(step, Halve):
                _halve(stock, step.frames)
            else:
                _give_up(stock, step.frames)
            if self._count(stock) <= goal:
                return

    def forget(self) -> None:
        """What was counted: the file is opened anew."""
        self._used = self._budget

    def _count(self, stock: Stock) -> int:
        self._used, stock.grown = stock.bytes_used(), 0
        return self._used

    def _yielding(self, stock: Stock) -> Iterator[Facts]:
        """Of each lane as much as one step looks at: where the least thinned begin, or from the end that is dropped."""
        for lane in thinning.YIELDING:
            since, order = stock.book[f"offered.{lane}"], "DESC" if self._when_full == "drop-newest" else "ASC"
            if self._when_full == "thin":
                since = self._least_thinned(stock, lane, since)
            rows = stock.execute(
                "SELECT id, level, count, length(data) FROM frame WHERE lane = ? AND first > ?"
                f" ORDER BY first {order} LIMIT ?",
                *(int(lane), since, thinning.TOGETHER),
            ).fetchall()
            yield from (Facts(key, lane, level, count, size) for key, level, count, size in rows)

    def _least_thinned(self, stock: Stock, lane: Lane, since: int) -> int:
        """Before the first of them."""
        for level in range(thinning.MAX_LEVEL):
            found = stock.execute(
                "SELECT first FROM frame WHERE lane = ? AND level = ? AND first > ? ORDER BY first LIMIT 1",
                *(int(lane), level, since),
            ).fetchone()
            if found is not None:
                return int(found[0]) - 1
        return since


def _halve(stock: Stock, keys: Sequence[int]) -> None:
    """Several frames become one of half as many entries."""
    rows = [
        stock.execute("SELECT id, lane, first, count, level, data FROM frame WHERE id = ?", key).fetchone()
        for key in keys
    ]
    seqs: list[int] = []
    whole = Load([], [])
    for key, lane, first, count, _, data in rows:
        load = stock.unpacked(key, data, Lane(lane), count)
        if load is not None:
            whole.topics.extend(load.topics)
            whole.payloads.extend(load.payloads)
            seqs.extend(parcels.numbers(load, first))
    left = thinning.halve(whole, seqs)
    lane, level = Lane(rows[0][1]), rows[0][4]
    stock.delete(keys)
    if left.seqs:
        stock.insert(lane, left, left.seqs[0], left.seqs[-1], level=level + 1, at=keys[0])
    stock.drop(thinning.THINNED, len(seqs) - len(left.topics), lane)


def _give_up(stock: Stock, keys: Sequence[int]) -> None:
    for key in keys:
        lane, count = stock.execute("SELECT lane, count FROM frame WHERE id = ?", key).fetchone()
        stock.drop(thinning.DROPPED, count, Lane(lane))
    stock.delete(keys)

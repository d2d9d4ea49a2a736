"""Reads the history while the service writes it. Blocking.

Readings come page by page, each page in a short transaction of its own: a reader that is slow or stopped never keeps
the writer's journal from being emptied, and memory holds a few chunks whatever is asked for.
"""

import json
import logging
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from appliance.events.schema import Block
from appliance.store import blocks, chunk, database, frame
from appliance.store.database import translated
from appliance.store.frame import Part
from appliance.store.seal import RotError

log = logging.getLogger(__name__)

FOREVER = (1 << 63) - 1
_PAGE = 1 << 20  # bytes of frames; a chunk weighs half a page
_SOURCES = 64


class Recorded(NamedTuple):
    """All points of one asset at one time."""

    at: int
    values: dict[str, float]


class Reader:
    """Of an open database; `reading` makes one."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path, self._db = path, connection
        self.rotten = 0  # frames and chunks that were left out

    def assets(self) -> list[str]:
        with translated(self._path):
            return [path for (path,) in self._db.execute("SELECT path FROM asset ORDER BY path")]

    def points(self, asset: str, since: int = 0, until: int = FOREVER) -> list[str]:
        """Names in the order in which they first appeared."""
        with translated(self._path), self._snapshot():
            key = self._key(asset)
            found = self._db.execute(
                "SELECT points FROM chunk WHERE asset = ? AND last >= ? AND first <= ?"
                " GROUP BY points ORDER BY MIN(id)",
                (key, since, until),
            ).fetchall()
            names = dict.fromkeys(name for (points,) in found for name in json.loads(points))
            for (number,) in self._db.execute(
                "SELECT id FROM frame WHERE last >= ? AND first <= ? ORDER BY id", (since, until)
            ).fetchall():
                names.update(dict.fromkeys(name for part in self._parts(key, number) for name in part.points))
        return list(names)

    def readings(self, asset: str, since: int = 0, until: int = FOREVER, newest_first: bool = False
    ) -> Iterator[Recorded]:  # fmt: skip
        """In order of time, `since` and `until` (UTC ns) included; what arrives meanwhile may be among them."""
        while since <= until:
            with translated(self._path), self._snapshot():
                page, low, high = self._page(self._key(asset), since, until, newest_first)
            for at in sorted(page, reverse=newest_first):
                yield Recorded(at, page[at])
            since, until = (since, low - 1) if newest_first else (high + 1, until)

    def blocks(self, asset: str, since: int = 0, until: int = FOREVER) -> Iterator[Block]:
        """Waveforms that touch the span, in order of time."""
        with translated(self._path):
            keys = self._db.execute(
                "SELECT id FROM block WHERE asset = ? AND last >= ? AND first <= ? ORDER BY first",
                (self._key(asset), since, until),
            ).fetchall()
        for (key,) in keys:
            with translated(self._path):
                row = self._db.execute("SELECT first, rate, points, data FROM block WHERE id = ?", (key,)).fetchone()
            try:
                if row is not None:  # it may have made room meanwhile
                    yield blocks.decode(*row)
            except RotError as error:
                self._report_rot(f"block {key}", error)

    def _page(
        self, asset: int, since: int, until: int, newest_first: bool
    ) -> tuple[dict[int, dict[str, float]], int, int]:
        """Readings of a part of the span: its beginning or its end, and its limits."""
        chunks, frames, low, high = self._next_sources(asset, since, until, newest_first)
        page: dict[int, dict[str, float]] = {}
        for key in sorted(chunks):  # the order of arrival
            self._add(page, self._chunk(key), low, high)
        for key in sorted(frames):
            for part in self._parts(asset, key):
                self._add(page, chunk.of_part(part), low, high)
        return page, low, high

    def _next_sources(
        self, asset: int, since: int, until: int, newest_first: bool
    ) -> tuple[list[int], list[int], int, int]:
        """A page's worth of chunks and frames, and the part of the span in which no other one has readings."""
        order, limit = "last DESC" if newest_first else "first", _SOURCES
        while True:
            found = self._db.execute(
                "SELECT first, last, id, 0 AS size FROM chunk WHERE asset = ? AND last >= ? AND first <= ? UNION ALL"
                " SELECT first, last, id, size FROM frame WHERE last >= ? AND first <= ?"
                f" ORDER BY {order} LIMIT {limit}",
                (asset, since, until, since, until),
            ).fetchall()
            weight = 0
            for count, (first, last, _, size) in enumerate(found):
                low, high = (max(since, last + 1), until) if newest_first else (since, min(until, first - 1))
                if weight >= _PAGE and low <= high:
                    return *_keys(found[:count]), low, high
                weight += size or _PAGE // 2
            if len(found) < limit:
                return *_keys(found), since, until
            limit *= 2  # very many begin (or end) at the same time, or very little is in each

    def _chunk(self, key: int) -> chunk.Chunk | None:
        points, data = self._db.execute("SELECT points, data FROM chunk WHERE id = ?", (key,)).fetchone()
        try:
            return chunk.decode(tuple(json.loads(points)), data)
        except RotError as error:
            self._report_rot(f"chunk {key}", error)
            return None

    def _parts(self, asset: int, key: int) -> Iterator[Part]:
        """What a frame has of an asset."""
        (data,) = self._db.execute("SELECT data FROM frame WHERE id = ?", (key,)).fetchone()
        try:
            for section in frame.decode(data):
                if section.asset == asset:
                    (points,) = self._db.execute("SELECT points FROM layout WHERE id = ?", (section.layout,)).fetchone()
                    yield Part(tuple(json.loads(points)), section.times, section.values)
        except RotError as error:
            self._report_rot(f"frame {key}", error)

    def _key(self, asset: str) -> int:
        row = self._db.execute("SELECT id FROM asset WHERE path = ?", (asset,)).fetchone()
        return -1 if row is None else int(row[0])

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    @staticmethod
    def _add(page: dict[int, dict[str, float]], some: chunk.Chunk | None, low: int, high: int) -> None:
        """The first value of a point at a time stands."""
        if some is None:
            return
        for at, row in some.readings():
            if low <= at <= high:
                values = page.setdefault(at, {})
                for name, value in zip(some.points, row, strict=True):
                    if not math.isnan(value):
                        values.setdefault(name, value)

    def _report_rot(self, what: str, error: RotError) -> None:
        self.rotten += 1
        log.warning("%s: %s is damaged (%s); it is left out", self._path, what, error)


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """StoreError where there is no history of this release."""
    with closing(database.open_reading(path, "history")) as connection:
        yield Reader(path, connection)


def _keys(sources: list[tuple[int, int, int, int]]) -> tuple[list[int], list[int]]:
    """Of chunks and of frames: the latter have a size."""
    return [key for _, _, key, size in sources if not size], [key for _, _, key, size in sources if size]

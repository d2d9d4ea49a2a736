"""The time series' database, as its one writer sees it. Blocking, for one thread at a time; times are passed in.

    append   one transaction: a frame of all that came since the last commit         as it came, cheap
    tidy     frames become chunks, one an asset; eight small chunks a larger one     columns, compressed
             what is beyond the retention or the budget goes, oldest first           its space is given back

A commit is safe from a crash of the process at once, from a power cut with the next `sync`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from appliance.events.schema import Block
from appliance.store import blocks, compaction, database, frame, retention
from appliance.store.database import transaction, translated
from appliance.store.frame import Part, Section
from appliance.store.shelf import Shelf, Tally
from appliance.store.space import share

FILE = "history.sqlite"  # in the folder of states


class Commit(NamedTuple):
    """What one transaction adds, in order of arrival."""

    parts: Sequence[tuple[str, Part]]  # asset, its readings
    blocks: Sequence[tuple[str, Block]]

    @property
    def rows(self) -> int:
        """Readings and blocks."""
        return sum(len(part.times) // 8 for _, part in self.parts) + len(self.blocks)


class History:
    """`budget` in bytes for the database, its journal and what was set aside; `retention` in ns."""

    def __init__(self, path: Path, budget: int, retention: int) -> None:
        self.path, self.retention = path, retention
        self._shelf = Shelf(path, share(budget))

    def open(self) -> None:
        """StoreError; after a DamagedError `set_aside` and open again."""
        with translated(self.path):
            self._shelf.open()

    def close(self) -> None:
        self._shelf.close()

    @property
    def is_open(self) -> bool:
        return self._shelf.is_open

    def set_aside(self, now: int) -> Path:
        """Move the damaged database away: where it is now."""
        self._shelf.close()
        return database.set_aside(self.path, now)

    @property
    def tally(self) -> Tally:
        return self._shelf.tally

    @property
    def commit_bytes(self) -> int:
        """A commit should not be larger."""
        return self._shelf.space.tail // 4

    def assets(self) -> list[str]:
        with translated(self.path):
            return [path for (path,) in self._shelf.execute("SELECT path FROM asset")]

    def take_forgotten(self) -> list[str]:
        """Assets of which nothing is left since this was last asked."""
        forgotten, self._shelf.forgotten = self._shelf.forgotten, []
        return forgotten

    def bytes_on_disk(self) -> int:
        return retention.bytes_on_disk(self._shelf)

    def append(self, commit: Commit, now: int) -> None:
        """All of it or, with a StoreError, nothing."""
        shelf = self._shelf
        with translated(self.path):
            while retention.make_room(shelf):
                pass
            try:
                with transaction(shelf.connection):
                    tail = self._append_frame(commit.parts) if commit.parts else 0
                    waves = sum(self._append_block(asset, block) for asset, block in commit.blocks)
            except BaseException:
                shelf.forget_keys()
                raise
        if shelf.tail_since is None:
            shelf.tail_since = now
        shelf.tail_bytes += tail
        shelf.block_bytes += waves
        shelf.tally.commits += 1
        shelf.tally.rows += commit.rows

    def sync(self) -> None:
        database.sync_journal(self.path)

    def tidy(self, now: int) -> bool:
        """One step of keeping order; whether there may be another one to do."""
        shelf = self._shelf
        with translated(self.path):
            return (
                retention.expire(shelf, max(0, now - self.retention))
                or retention.make_room(shelf)
                or compaction.fold(shelf, now)
                or compaction.merge(shelf)
                or retention.give_back(shelf)
            )

    def _append_frame(self, parts: Sequence[tuple[str, Part]]) -> int:
        """What the frame holds, in bytes before they are compressed."""
        shelf = self._shelf
        sections = [
            Section(shelf.asset(asset), shelf.layout(part.points), part.times, part.values) for asset, part in parts
        ]
        rows = sum(len(part.times) // 8 for _, part in parts)
        size = sum(frame.size(section) for section in sections)
        first, last = _span(part.times for _, part in parts)
        shelf.execute(
            "INSERT INTO frame (id, first, last, rows, size, data) VALUES (?, ?, ?, ?, ?, ?)",
            *(shelf.take_id(), first, last, rows, size, frame.encode(sections)),
        )
        return size

    def _append_block(self, asset: str, block: Block) -> int:
        """A block's size in bytes."""
        shelf, sealed = self._shelf, blocks.encode(block)
        shelf.execute(
            "INSERT INTO block (id, asset, first, last, size, rate, points, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(shelf.take_id(), shelf.asset(asset), block.at, blocks.end(block)),
            *(len(sealed.data), block.rate, sealed.points, sealed.data),
        )
        return len(sealed.data)


def _span(times: Iterable[bytes]) -> tuple[int, int]:
    """The earliest and the latest of packed times."""
    every = [time for packed in times for time in memoryview(packed).cast("q")]
    return min(every), max(every)

"""How a budget in bytes is shared out within the history's file. Pure."""

from typing import NamedTuple

PAGE = 4096  # bytes, SQLite's default
MIN_BUDGET = 8 << 20

_MB = 1 << 20


class Space(NamedTuple):
    """All in bytes. What is kept, the journal and what passes through both never exceed the budget together."""

    budget: int
    journal: int  # the write-ahead log is brought into the database at this size
    tail: int  # frames that are not chunks yet, when they are open
    room: int  # pages in use

    @property
    def merged(self) -> int:
        """A chunk of this size is merged no further, so that a merge moves no more than a tail."""
        return self.tail // 8


def share(budget: int) -> Space:
    """While frames become chunks the file grows by at most a tail, and so does the journal."""
    budget = max(budget, MIN_BUDGET)
    journal, tail = min(4 * _MB, budget // 16), min(8 * _MB, budget // 8)
    return Space(budget, journal, tail, budget - 2 * (journal + tail))


def spare_pages(pages: int, free: int, space: Space) -> int:
    """Free pages to give back to the disk: some are kept, because new readings will want them at once."""
    return max(0, free - max(pages // 16, space.tail // PAGE))

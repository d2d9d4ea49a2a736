"""One piece of memory for the samples of all assets, so that one numpy call reaches them all.

Blocks are given out and taken back by offset; the arena grows, offsets stay. Whole pages of what was taken back go to
the system: an asset that has learned needs a third of what it needed before.
"""

import mmap

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WORD = 8  # bytes


class Arena:
    """`words` are float64, `integers` the same memory as int64, `raw` as bytes. All three are replaced on growth."""

    def __init__(self, words: int) -> None:
        """`words` are promised by the system and cost nothing before they are used; growing costs a copy of all."""
        self._free = [(0, words)]  # (start, size), in order, neighbours joined
        self._adopt(mmap.mmap(-1, words * WORD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def take(self, size: int) -> int:
        """The offset of `size` zeroed words."""
        place = self._fit(size)
        if place is None:
            self._grow(size)
            place = self._fit(size)
            assert place is not None
        start, room = self._free.pop(place)
        if room > size:
            self._free.insert(place, (start + size, room - size))
        self.words[start : start + size] = 0.0
        return start

    def give(self, start: int, size: int) -> None:
        """Take `size` words back."""
        joined: list[tuple[int, int]] = []
        for begin, room in sorted([*self._free, (start, size)]):
            if joined and joined[-1][0] + joined[-1][1] == begin:
                joined[-1] = (joined[-1][0], joined[-1][1] + room)
            else:
                joined.append((begin, room))
        self._free = joined
        first, last = -(-start * WORD // mmap.PAGESIZE), (start + size) * WORD // mmap.PAGESIZE
        if first < last:
            self._pages.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)

    def rows(self, place: Integers, width: int) -> Floats:
        """[n, m * width] of the `width` words from each `place` [n, m] on: a copy of whole rows, four times as fast as
        word by word."""
        every = np.ndarray((len(self.words) - width + 1, width), np.float64, self.words.data, 0, (WORD, WORD))
        return every[place].reshape(len(place), -1)

    def _fit(self, size: int) -> int | None:
        return next((place for place, (_, room) in enumerate(self._free) if room >= size), None)

    def _grow(self, size: int) -> None:
        old = len(self.words)
        extra = max(old // 2, size)
        before = self.words
        self._adopt(mmap.mmap(-1, (old + extra) * WORD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.words[:old] = before
        self.give(old, extra)

    def _adopt(self, pages: mmap.mmap) -> None:
        self._pages = pages
        self.words: Floats = np.frombuffer(pages, np.float64)
        self.integers: Integers = self.words.view(np.int64)
        self.raw = memoryview(self.words.data).cast("B")

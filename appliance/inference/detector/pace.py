"""Do readings still come at the pace at which an asset was learned?

    even       as they did
    thinned    at least twice as fast: of all readings within one learned interval the first counts. Not their mean,
               which is calmer than what was learned, and would be told as such
    learning   a little faster, or slower: no reading was taken in between, so nothing can be resampled. What looks the
               same at any pace (white noise) is judged on; for the rest the level branch judges coarsely and looks
               wait until the asset has been seen at its new pace for a learning period
    uneven     it never had a steady pace, or comes in bursts: row by row

Pauses that come back at once are no gaps: an asset that is heard once a minute now is not new each minute.

Pure: times are those of readings, in ns; rows are counted by the asset.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from appliance.inference.detector.arena import Integers

CHECK = 8  # rows between two checks
NEVER = 1 << 62  # ns, rows
TWICE = 2  # as fast is thinned
OTHER = 1.3  # times as fast or slow is another pace
STRIKES = 4  # checks of another pace, one after the other
EVEN_SPANS = 4  # the longest of the learning period's spans in units of the shortest, at most
ORDINARY = 0.97  # share of the spans that are no pause
PAUSES = 4  # within
PAUSE_ROWS = 256  # are habitual
PAUSE_ROOM = 4  # times the longest of them is a gap

NAMED = 8  # in `describe`

_Whole = Annotated[int, Meta(ge=0, le=NEVER)]


class Manner(StrEnum):
    EVEN = "even"
    THINNED = "thinned"
    LEARNING = "learning"
    UNEVEN = "uneven"


class Turn(StrEnum):
    """What a check asks for."""

    NOTHING = "nothing"
    ANEW = "anew"  # the windows of looks start anew: rows of two paces do not belong together
    THIN = "thin"
    LEARN = "learn"
    LEAVE = "leave"  # nothing is thinned any more


class Pace(Struct):
    """Of one asset."""

    manner: Manner = Manner.UNEVEN
    interval: int = 0  # mean time between two rows
    least: int = 0  # time of CHECK rows: the shortest that was learned
    most: int = 0  # and the longest
    row: _Whole = NEVER  # of the next check
    at: int = -1  # time of the last one; -1: there is none to compare with
    strikes: _Whole = 0
    next: int = 0  # thinned: time at which a reading counts again
    taken: _Whole = 0  # thinned: readings since the last check
    pauses: _Whole = 0  # since `paused`
    paused: _Whole = 0  # row of the first of them
    longest: int = 0  # of them

    def learn(self, times: Integers, rows: int) -> None:
        """From the `times` of the newest rows of an asset that has `rows`."""
        spans = np.sort(times[CHECK:] - times[:-CHECK])
        self.least, self.most = max(int(spans[0]), 0), max(int(spans[int(ORDINARY * (len(spans) - 1))]), 0)
        steady = 0 < self.most <= EVEN_SPANS * self.least
        self.interval = int(np.median(spans)) // CHECK
        self.manner = Manner.EVEN if steady else Manner.UNEVEN
        self.row, self.at, self.strikes = rows + CHECK if steady else NEVER, int(times[-1]), 0

    def check(self, rows: int, at: int) -> Turn:
        """Of the row that was to be checked."""
        span, known = at - self.at, self.at >= 0
        self.at, self.row = at, rows + CHECK
        if self.manner is Manner.THINNED:
            return self._check_thinned(span)
        if not known:
            return Turn.NOTHING
        if span <= 0 or (self.least <= OTHER * span and span <= OTHER * self.most):
            self.strikes = 0
            return Turn.NOTHING
        if TWICE * span <= self.least:
            return self._thin(at)
        self.strikes += 1
        if self.strikes >= STRIKES:
            return Turn.LEARN
        return Turn.ANEW if self.strikes == 1 else Turn.NOTHING

    def relearn(self) -> None:
        """Until `learn` is called."""
        self.manner, self.row, self.strikes = Manner.LEARNING, NEVER, 0

    def admits(self, at: int) -> bool:
        """Thinned: does a reading count?"""
        self.taken += 1
        if at < self.next - self.interval // 4:  # a clock is never quite in time
            return False
        self.next = (self.next if at < self.next + self.interval else at) + self.interval
        return True

    def pause(self, rows: int, length: int) -> int:
        """After a gap of `length`: what is a gap from now on; 0: what was. A clock that was set has no length."""
        if not length:
            self.pauses = 0
            self._restart(rows)
            return 0
        if rows > self.paused + PAUSE_ROWS or not self.pauses:
            self.pauses, self.paused, self.longest = 0, rows, 0
        self.pauses, self.longest = self.pauses + 1, max(self.longest, length)
        if self.manner is Manner.THINNED:
            return 0
        self._restart(rows)
        if self.pauses < PAUSES:
            return 0
        if self.manner is Manner.EVEN and rows <= self.paused + CHECK:
            self.strikes = STRIKES - 1  # it is slower, and enough has been seen of it
        self.pauses = 0
        return self.gap

    @property
    def gap(self) -> int:
        """What is one after pauses such as these, ns."""
        return min(PAUSE_ROOM * self.longest, NEVER)

    def _restart(self, rows: int) -> None:
        """The next row has nothing to do with the last."""
        self.at = -1
        self.row = rows + 1 if self.row < NEVER else NEVER

    def _thin(self, at: int) -> Turn:
        self.manner, self.strikes, self.taken = Manner.THINNED, 0, 0
        self.pauses, self.next = 0, at + self.interval
        return Turn.THIN

    def _check_thinned(self, span: int) -> Turn:
        taken, self.taken = self.taken, 0
        if taken <= OTHER * CHECK:
            self.manner = Manner.EVEN
            return Turn.LEAVE
        if self.pauses >= PAUSES - 1 and OTHER * span >= taken * self.interval:
            # As many as ever, many at once: what comes late was measured in time.
            self.manner, self.row = Manner.UNEVEN, NEVER
            return Turn.LEAVE
        return Turn.NOTHING


def describe(paces: Iterable[tuple[str, Pace]]) -> dict[str, Any]:
    """Plain values, bounded: which assets are thinned, and which learn another pace."""
    found: dict[str, list[dict[str, Any]]] = {}
    for asset, pace in paces:
        if pace.manner in (Manner.THINNED, Manner.LEARNING):
            found.setdefault(pace.manner.value, []).append({"asset": asset, "learned_s": pace.interval / 1e9})
    return (
        {"pace": {word: {"count": len(named), "assets": named[:NAMED]} for word, named in found.items()}}
        if found
        else {}
    )

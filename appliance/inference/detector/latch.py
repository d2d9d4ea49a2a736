"""When an alarm begins and ends: one asset's memory between two scores.

    quiet --score > bar--> standing --score < release--> quiet, with a raised bar for a while

What remains after a fault (a changed level, a slow way back) is measured against the alarm's own peak, not against the
threshold alone: an alarm ends at 60 % of the threshold, or at a quarter of its peak (but never above three thresholds),
and for 300 rows only half its peak (at most four thresholds) raises a new one. Without this one fault is many alarms.
"""

from msgspec import Struct

THRESHOLD = 1.6  # in units of the largest scores of the learning period (level.RANK)
RELEASE = 0.6 * THRESHOLD
PLATEAU = 0.25  # of the peak
MAX_RELEASE = 3.0 * THRESHOLD
REARM = 0.5  # of the peak
MAX_BAR = 4.0 * THRESHOLD
REARM_ROWS = 300


class Latch(Struct):
    """`standing`: the asset is held to be abnormal. Rows are counted by the asset."""

    standing: bool = False
    peak: float = 0.0
    bar: float = THRESHOLD
    raised_until: int = 0  # row at which the bar falls back to the threshold

    def level(self, row: int) -> float:
        """What a score must exceed to raise the alarm."""
        return self.bar if row < self.raised_until else THRESHOLD

    def step(self, score: float, row: int) -> bool:
        """The state after `score` of `row`. Rows must not run backwards; some may be left out."""
        if not self.standing:
            self.standing, self.peak = score > self.level(row), score
            return self.standing
        self.peak = max(self.peak, score)
        if score < max(RELEASE, min(PLATEAU * self.peak, MAX_RELEASE)):
            self.standing = False
            self.bar = max(THRESHOLD, min(REARM * self.peak, MAX_BAR))
            self.raised_until = row + REARM_ROWS
        return self.standing

    def reset(self) -> None:
        """New statistics: what stood under the old ones is judged afresh."""
        self.standing, self.raised_until = False, 0

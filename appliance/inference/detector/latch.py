"""When an alarm begins and ends: one asset's memory between two scores.

    quiet --score > bar for 10 rows, or > 1.5 bars once--> standing --score < release--> quiet, with a raised bar

What remains after a fault (a changed level, a slow way back) is measured against the alarm's own peak, not against the
threshold alone: an alarm ends at 60 % of the threshold, or at a quarter of its peak (but never above three thresholds),
and for 300 rows only half its peak (at most four thresholds) raises a new one. Without this one fault is many alarms.
"""

from msgspec import Struct

THRESHOLD = 1.6  # in units of the largest scores of the learning period (level.RANK)
CONFIRM_ROWS = 10  # a score that is only just over must stay over: noise does not
NO_BRANCH = -1
CERTAIN = 1.5  # times the bar needs no confirmation
RELEASE = 0.6 * THRESHOLD
PLATEAU = 0.25  # of the peak
MAX_RELEASE = 3.0 * THRESHOLD
REARM = 0.5  # of the peak
MAX_BAR = 4.0 * THRESHOLD
REARM_ROWS = 300


class Latch(Struct):
    """`standing`: the asset is held to be abnormal. `busy`: it must see all scores, not only those over the threshold.

    Rows are counted by the asset.
    """

    standing: bool = False
    busy: bool = False
    peak: float = 0.0
    bar: float = THRESHOLD
    raised_until: int = 0  # row at which the bar falls back to the threshold
    over_since: int = -1  # row from which the score has been over the bar; -1: it is not
    since: int = 0  # row at which the alarm that stands began
    branch: int = NO_BRANCH  # that raised it
    ended: int = NO_BRANCH  # that raised an alarm which has ended by itself; nothing was concluded from it yet
    began: int = 0  # time at which the alarm that stands began, ns
    ended_peak: float = 0.0  # of the alarm that `ended`, or is `relieved`
    ended_ns: int = 0  # for how long it stood
    relieved: int = NO_BRANCH  # the same, once it is certain: what it saw is to count for less; who does so clears this

    def level(self, row: int) -> float:
        """What a score must exceed to raise the alarm."""
        return self.bar if row < self.raised_until else THRESHOLD

    def step(self, score: float, row: int, branch: int = 0, confirm: int = CONFIRM_ROWS, at: int = 0) -> bool:
        """The state after `score` of `row`. Rows must not run backwards; some may be left out. `confirm` is for how
        many rows a score must be over; `branch` is what it comes from, `at` the row's time."""
        if self.standing:
            self._stand(score, row, at)
        else:
            self._wait(score, row, branch, confirm, at)
        self.busy = self.standing or self.over_since >= 0 or row < self.raised_until
        if self.ended != NO_BRANCH and not self.busy:
            self.ended, self.relieved = NO_BRANCH, self.ended
        return self.standing

    @property
    def uneasy(self) -> bool:
        """An alarm stands or is about to."""
        return self.standing or self.over_since >= 0

    def reset(self) -> None:
        """New statistics: what stood under the old ones is judged afresh."""
        self.standing = self.busy = False
        self.ended = self.relieved = NO_BRANCH
        self.raised_until, self.over_since = 0, -1

    def _wait(self, score: float, row: int, branch: int, confirm: int, at: int) -> None:
        bar = self.level(row)
        if score <= bar:
            self.over_since = -1
            return
        if self.over_since < 0:
            self.over_since = row
        if score > CERTAIN * bar or row - self.over_since >= confirm:
            self.standing, self.peak, self.over_since, self.since, self.branch = True, score, -1, row, branch
            self.began = at

    def _stand(self, score: float, row: int, at: int) -> None:
        self.peak = max(self.peak, score)
        if score < max(RELEASE, min(PLATEAU * self.peak, MAX_RELEASE)):
            self.standing = False
            if self.ended != NO_BRANCH:
                self.relieved = self.ended
            self.ended, self.ended_peak, self.ended_ns = self.branch, self.peak, at - self.began
            self.bar = max(THRESHOLD, min(REARM * self.peak, MAX_BAR))
            self.raised_until = row + REARM_ROWS

"""When to judge what was taken: soon, but so that what comes meanwhile shares the work where that pays. Pure.

A judgement has a price of its own, whatever is judged. So a few readings wait some milliseconds for others; and the
less time the process has left, the longer it pauses between two judgements, so that a flood is judged in ever larger
lots instead of ever more of them.
"""

import math

ENOUGH = 128  # messages that share a judgement well
TOGETHER = 4096  # messages after which nothing is waited for: a ring of samples has an end
GATHER_S = 0.012  # a few messages wait so long for others
LONGEST_PAUSE_S = 0.02
BUSIEST = 0.95  # share of a processor
WEIGHT = 0.25  # of the newest share in the typical one


class Gathering:
    """Times in seconds of any clock. After a pause the first reading is judged at once."""

    def __init__(self) -> None:
        self.waiting = 0  # messages that were taken and not judged
        self._judged_at, self._spent_s = -math.inf, 0.0
        self._busy = 0.0  # share of a processor that the process uses
        self._pause_s = 0.0

    def took(self, messages: int, now: float) -> bool:
        """Shall all that waits be judged now?"""
        self.waiting += messages
        since_s = now - self._judged_at
        enough = self.waiting >= ENOUGH or since_s >= GATHER_S
        return (enough and since_s >= self._pause_s) or self.waiting >= TOGETHER

    def begun(self) -> None:
        """All that waits is judged now; what is taken while its judgement is told waits for the next one."""
        self.waiting = 0

    def judged(self, took_s: float, spent_s: float, now: float) -> None:
        """It is judged and told. That took `took_s` of the processor, of which the process had `spent_s` so far."""
        busy = min((spent_s - self._spent_s) / max(now - self._judged_at, took_s, 1e-9), BUSIEST)
        self._busy += (busy - self._busy) * WEIGHT
        self._pause_s = min(took_s * self._busy / (1.0 - self._busy), LONGEST_PAUSE_S)
        self._judged_at, self._spent_s = now, spent_s

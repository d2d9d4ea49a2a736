"""When to judge what was taken: soon, but so that what comes meanwhile shares the work where that pays. Pure.

A judgement has a price of its own, whatever is judged. So it waits for company: until enough readings have come to
share it, or for some milliseconds; and where judging takes much of the time, for a multiple of what the last one took,
so that a flood is judged in ever larger lots and not in ever more of them.
"""

import math

ENOUGH = 128  # messages that share a judgement well
TOGETHER = 4096  # messages after which nothing is waited for: a ring of samples has an end
GATHER_S = 0.008  # a few messages wait so long for others
PAUSE = 2.0  # times what a judgement took
LONGEST_PAUSE_S = 0.02


class Gathering:
    """Times in seconds of any clock. After a pause the first reading is judged at once."""

    def __init__(self) -> None:
        self.waiting = 0  # messages that were taken and not judged
        self._judged_at = -math.inf
        self._pause_s = 0.0

    def took(self, messages: int, now: float) -> bool:
        """Shall all that waits be judged now?"""
        self.waiting += messages
        since_s = now - self._judged_at
        enough = self.waiting >= ENOUGH or since_s >= GATHER_S
        return (enough and since_s >= self._pause_s) or self.waiting >= TOGETHER

    def judged(self, took_s: float, now: float) -> None:
        """All that waited was judged; that took the processor `took_s`."""
        self.waiting, self._judged_at = 0, now
        self._pause_s = min(PAUSE * took_s, LONGEST_PAUSE_S)

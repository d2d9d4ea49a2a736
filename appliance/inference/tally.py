"""What a served model has done so far: counts and times, safe from several threads."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Tally:
    """`rows`: of the calls that were answered; times in ns; `last`: UTC ns of the newest call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answered = self.answered_ns = self.rows = 0
        self.failed = self.failed_ns = 0
        self.last = 0

    @contextmanager
    def call(self, rows: int) -> Iterator[None]:
        """Count what happens in the block as one call."""
        began, ended_well = time.perf_counter_ns(), False
        try:
            yield
            ended_well = True
        finally:
            with self._lock:
                self._count(rows, time.perf_counter_ns() - began, ended_well)

    def _count(self, rows: int, ns: int, ended_well: bool) -> None:
        self.last = time.time_ns()
        if ended_well:
            self.answered, self.answered_ns, self.rows = self.answered + 1, self.answered_ns + ns, self.rows + rows
        else:
            self.failed, self.failed_ns = self.failed + 1, self.failed_ns + ns

"""What a connector knows of time. Handed in, so that a test runs hours of readings in a moment."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Time:
    now: Callable[[], int] = time.time_ns  # UTC nanoseconds
    timer: Callable[[], float] = time.monotonic  # seconds since any moment
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep  # seconds


REAL = Time()


class Metronome:
    """Even ticks. One that was missed (a suspended laptop, a slow sensor) is left out, never made up for in a burst."""

    def __init__(self, interval_s: float, time: Time) -> None:
        self._interval_s, self._time = interval_s, time
        self._due = time.timer()

    async def tick(self) -> None:
        """Returns at once the first time, then once per interval."""
        late_s = self._time.timer() - self._due
        if late_s > self._interval_s:
            self._due += late_s
        await self._time.wait(max(0.0, -late_s))
        self._due += self._interval_s


class Leaping:
    """The fake: a time in which nothing takes any, and waiting leaps ahead. `waited` has what was waited for, in s."""

    def __init__(self, start: int = 1_700_000_000_000_000_000) -> None:
        self.start, self.waited = start, list[float]()
        self.passed_s = 0.0

    def time(self) -> Time:
        return Time(lambda: self.start + round(self.passed_s * 1e9), lambda: self.passed_s, self.wait)

    async def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.passed_s += seconds
        await asyncio.sleep(0)

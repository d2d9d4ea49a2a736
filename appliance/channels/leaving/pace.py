"""How much leaves at once, how fast a backlog is worked off, when a lost line is tried again. Pure: times come in."""

SMALLEST, LARGEST = 1, 4096  # parcels in a batch
_FIRST = 256
BATCH_S = 0.1  # a batch that takes about so long: an alarm behind it waits no longer
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 30.0
CALM = 256  # so few that wait are no backlog
_MEMORY_S = 10.0  # of the rate at which things come in


class Batches:
    """Grows while batches are quick, shrinks when they are slow or lost."""

    def __init__(self) -> None:
        self.size = _FIRST

    def delivered(self, count: int, took_s: float) -> None:
        if took_s > 2 * BATCH_S:
            self.size = max(SMALLEST, self.size // 2)
        elif took_s < BATCH_S and count >= self.size:
            self.size = min(LARGEST, 2 * self.size)

    def failed(self) -> None:
        self.size = max(SMALLEST, self.size // 2)


class Politeness:
    """After an outage: `rate` a second, beside what comes in meanwhile; 0 is no bound. Without a backlog there is none
    either. Alarms and states do not count."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens, self._at, self._received, self._coming = 0.0, 0.0, -1, 0.0

    def room(self, now: float, waiting: int, received: int) -> int:
        """How many readings and scores may leave now; `received` so far in all. Seconds, monotonic."""
        elapsed = now - self._at if self._received >= 0 else 0.0
        self._note(elapsed, received)
        self._at = now
        if not self._rate or waiting <= max(CALM, self._coming):  # a second's worth of what comes in anyway
            self._tokens = 0.0
            return LARGEST
        speed = self._rate + self._coming
        self._tokens = min(self._tokens + elapsed * speed, max(1.0, speed * BATCH_S))
        return int(self._tokens)

    def took(self, count: int) -> None:
        self._tokens = max(0.0, self._tokens - count)

    def _note(self, elapsed: float, received: int) -> None:
        if self._received >= 0 and elapsed > 0:
            share = min(1.0, elapsed / _MEMORY_S)
            self._coming += share * ((received - self._received) / elapsed - self._coming)
        self._received = received


class Patience:
    """Seconds before the next attempt: twice as long each time. `luck` in 0 to 1 spreads boxes that lost the same
    broker."""

    def __init__(self) -> None:
        self._next = FIRST_RETRY_S

    def failed(self, luck: float) -> float:
        wait_s, self._next = self._next, min(2 * self._next, LAST_RETRY_S)
        return wait_s * (0.75 + 0.5 * luck)

    def worked(self) -> None:
        self._next = FIRST_RETRY_S

"""The load of the pipeline benchmark: readings of many assets in turn, and what comes back for them.

Asset a's messages are numbers a, a + ASSETS, a + 2 ASSETS, ... of one sequence. A contestant answers every HOP-th
message of an asset with a score; `align` finds out which, so that each score meets the very message that caused it.
"""

import json
import math
import random
import select
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

from tools.benchmarks import wire

ASSETS, CHANNELS, HOP, WINDOW = 100, 16, 16, 64
PERIOD = 512  # rows after which an asset's signals repeat
TICK_S = 0.001
CHUNK = 512  # messages a write, flat out
QUIET_S = 0.1
LEAD_ROWS, LEAD_RATE = 48, 10_000
PATIENCE_S = 5.0  # without any score, while some are expected
SCORES = "mw/v1/score/#"
READINGS = "mw/v1/reading/bench/a00"


def topic(asset: int) -> str:
    return f"mw/v1/reading/bench/a{asset:02d}"


def payloads(asset: int) -> list[bytes]:
    """One period of an asset: 16 slow waves with noise, about 200 bytes of JSON each."""
    rng = random.Random(asset)
    bases = [rng.uniform(2, 60) for _ in range(CHANNELS)]
    waves = [(rng.randint(4, 16), rng.uniform(0, math.tau)) for _ in range(CHANNELS)]
    rows = []
    for row in range(PERIOD):
        values = {
            f"c{channel:02d}": round(
                base * (1 + 0.1 * math.sin(math.tau * cycles * row / PERIOD + phase) + rng.gauss(0, 0.01)), 3
            )
            for channel, (base, (cycles, phase)) in enumerate(zip(bases, waves, strict=True))
        }
        rows.append(json.dumps(values, separators=(",", ":")).encode())
    return rows


class Pool:
    """One period of all assets as packets, in the order they are sent; `packets(i, j)` are messages i to j - 1."""

    def __init__(self) -> None:
        columns = [[wire.publish(topic(asset), payload) for payload in payloads(asset)] for asset in range(ASSETS)]
        self.size = ASSETS * PERIOD
        blob, self._offsets = bytearray(), [0]
        for row in range(PERIOD):
            for column in columns:
                blob += column[row]
                self._offsets.append(len(blob))
        self._blob = memoryview(bytes(blob))

    def packets(self, first: int, end: int) -> list[memoryview]:
        parts = []
        while first < end:
            start = first % self.size
            count = min(end - first, self.size - start)
            parts.append(self._blob[self._offsets[start] : self._offsets[start + count]])
            first += count
        return parts


@dataclass
class Run:
    """`scores` of `expected` came for `sent` messages; `late_s` from the last message to the last score."""

    sent: int = 0
    expected: int = 0
    scores: int = 0
    elapsed_s: float = 0.0  # of the sending alone
    late_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def judged(self) -> int:
        """Messages that were really dealt with."""
        return self.sent if self.scores == self.expected else self.scores * HOP

    @property
    def rate(self) -> float:
        return self.sent / self.elapsed_s


class Load:
    """Sends to one broker and collects the scores of the one contestant behind it."""

    def __init__(self, broker: Path, pool: Pool) -> None:
        self._pool = pool
        self._next = 0  # number of the next message
        self._due = [0] * ASSETS  # per asset: the message that its next score answers
        self._first, self._due_first = 0, self._due  # both as the present run began
        self._marks: list[tuple[int, float]] = []  # (end, time) of each write of the present run
        self._in, self._out = wire.Wire(broker, "bench-scores"), wire.Wire(broker, "bench-load")
        self._in.subscribe(SCORES)
        self.last_score = b""

    def close(self) -> None:
        self._in.close()
        self._out.close()

    def teach(self, rows: int, rate: int) -> None:
        """`rows` of every asset and 16 to 31 more, so that the assets' windows fall due one after another. Those come
        at once: our detector is to know that readings come in bursts, else it would thin out what comes faster later.
        """
        for asset in range(ASSETS):
            (packet,) = self._pool.packets(asset, asset + 1)
            self._out.send(bytes(packet) * (HOP + asset % HOP))
        self._send_paced(self._next + rows * ASSETS, rate)
        self._wait_for_quiet(1.0)

    def lead_in(self) -> None:
        """Rows that do not count, before each run: after a pause a contestant may begin its windows anew."""
        self._send_paced(self._next + LEAD_ROWS * ASSETS, LEAD_RATE)
        self._wait_for_quiet(QUIET_S)
        step = HOP * ASSETS
        self._due = [due + -(-max(self._next - due, 0) // step) * step for due in self._due]

    def align(self) -> None:
        """Finds the messages that are answered, row by row in silence. RuntimeError where an asset is not."""
        self.lead_in()
        self._next += -self._next % ASSETS
        found: dict[int, int] = {}
        for _ in range(HOP):
            self._send(ASSETS)
            for asset in self._wait_for_quiet(QUIET_S):
                found[asset] = self._next - ASSETS + asset
        if len(found) < ASSETS:
            raise RuntimeError(f"only {len(found)} of {ASSETS} assets get a score every {HOP} messages")
        self._due = [found[asset] + HOP * ASSETS for asset in range(ASSETS)]

    def flat_out(self, count: int, ahead: int) -> Run:
        """As fast as the contestant answers: at most `ahead` messages lie between it and us, so nothing is lost."""
        run, first = self._begin(), self._next
        end = first + count
        while self._next < end:
            room = min(first + run.scores * HOP + ahead, end) - self._next
            if room > 0:
                self._send(min(room, CHUNK))
            if not self._collect(run, 0.0 if room > CHUNK else TICK_S) and self._stalled():
                break
        return self._finish(run)

    def paced(self, rate: int, seconds: float, behind: int = 1 << 30) -> Run:
        """Evenly, in ticks of a millisecond; given up when the scores are `behind` messages behind."""
        run = self._begin()
        self._send_paced(self._next + round(rate * seconds), rate, run, behind)
        return self._finish(run)

    def _begin(self) -> Run:
        self._marks = [(self._next, time.monotonic())]
        self._first, self._due_first = self._next, self._due.copy()
        return Run()

    def _finish(self, run: Run) -> Run:
        started, last_sent = self._marks[0][1], self._marks[-1][1]
        run.elapsed_s = last_sent - started
        run.sent = self._next - self._first
        run.expected = sum(len(range(due, self._next, HOP * ASSETS)) for due in self._due_first)
        last_score = last_sent
        while run.scores < run.expected and time.monotonic() - last_score < PATIENCE_S:
            if self._collect(run, 0.1):
                last_score = time.monotonic()
        run.late_s = last_score - last_sent
        if run.scores != run.expected:
            self._wait_for_quiet(1.0)
            self.align()
        return run

    def _stalled(self) -> bool:
        return time.monotonic() - self._marks[-1][1] > PATIENCE_S

    def _send(self, count: int) -> None:
        end = self._next + count
        self._marks.append((end, time.monotonic()))
        for part in self._pool.packets(self._next, end):
            self._out.send(part)
        self._next = end

    def _send_paced(self, end: int, rate: int, run: Run | None = None, behind: int = 1 << 30) -> None:
        first, start = self._next, time.monotonic()
        while self._next < end and (run is None or self._next - first - run.scores * HOP < behind):
            due = min(first + int((time.monotonic() - start) * rate) + 1, end) - self._next
            if due > 0:
                self._send(due)
            tick = start + (self._next - first) / rate
            self._collect(run, max(tick - time.monotonic(), TICK_S))

    def _wait_for_quiet(self, quiet_s: float) -> list[int]:
        """The assets that scored until nothing came for so long."""
        assets: list[int] = []
        while found := self._scores(quiet_s):
            assets += found
        return assets

    def _collect(self, run: Run | None, timeout_s: float) -> int:
        """Books the scores that arrive until the time is over; how many."""
        until, found = time.monotonic() + timeout_s, 0
        while True:
            assets = self._scores(max(0.0, until - time.monotonic()))
            found += len(assets)
            if run is not None:
                self._book(run, assets, time.monotonic())
            if time.monotonic() >= until:
                return found

    def _book(self, run: Run, assets: list[int], now: float) -> None:
        for asset in assets:
            run.latencies_ms.append(1000 * (now - self._sent_at(self._due[asset])))
            self._due[asset] += HOP * ASSETS
        run.scores += len(assets)

    def _sent_at(self, number: int) -> float:
        at = bisect_right(self._marks, number, key=lambda mark: mark[0])
        return self._marks[min(at, len(self._marks) - 1)][1]

    def _scores(self, timeout_s: float) -> list[int]:
        if not select.select([self._in], [], [], timeout_s)[0]:
            return []
        messages = self._in.receive()
        if messages:
            self.last_score = messages[-1][1]
        return [int(topic[-2:]) for topic, _ in messages]

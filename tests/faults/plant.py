"""Machines for tests: seeded signals whose faults are known, and who publishes them."""

import asyncio
import random
import time
from array import array
from collections.abc import Iterator

from appliance.bus.port import Bus, Message
from appliance.connectors._pace import REAL, Metronome
from appliance.events import codec, topics
from appliance.events.schema import Kind, Reading

CHANNELS = ("current", "pressure", "temperature")
LEARN_ROUNDS = 440  # the detector learns from 400 rows
STEP = 12.0  # what a fault adds, in standard deviations


class Machine:
    """A seeded signal that raises no false alarm, whichever of its rows are lost.

    A channel stands at +1 or -1 for 22 to 40 rows and then changes over, with noise of at most 0.5. So the mean of any
    20 rows is within 1.5, whatever is left out between them, and the detector learned from many that are beyond 1: the
    level cannot come to 1.6 times what it learned. With Gaussian noise one of some thousand windows would. The
    autoencoder has no such bound; with 50 lost stretches in 4,000 rows it came to 0.77 of its threshold.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.topic = name, topics.topic(Kind.READING, name)
        self.times = array("q")  # of all that was published
        self.rows: list[tuple[float, ...]] = []
        self.fault = ""  # the channel that has stepped
        self._noise = random.Random(f"{seed} {name}")
        self._levels = [_levels(random.Random(f"{seed} {name} {channel}")) for channel in CHANNELS]

    def next(self, at: int) -> Message:
        row = tuple(next(level) + self._noise.uniform(-0.5, 0.5) for level in self._levels)
        if self.fault:
            row = tuple(value + STEP * (name == self.fault) for name, value in zip(CHANNELS, row, strict=True))
        self.times.append(at)
        self.rows.append(row)
        return Message(self.topic, codec.encode(Reading(at, dict(zip(CHANNELS, row, strict=True)))))


def _levels(dice: random.Random) -> Iterator[float]:
    level = dice.choice((-1.0, 1.0))
    while True:
        for _ in range(dice.randint(22, 40)):
            yield level
        level = -level


class Plant:
    """Publishes rounds, a row of each machine, `rate_hz` times a second by the loop's clock, whoever listens."""

    def __init__(self, bus: Bus, machines: int, rate_hz: float, seed: int = 1) -> None:
        self.machines = [Machine(f"plant/line{number // 10}/m{number:02d}", seed) for number in range(machines)]
        self.rounds = 0
        self._bus, self._rate_hz = bus, rate_hz
        self._ticked = asyncio.Event()
        self._last = 0

    async def run(self) -> None:
        metronome = Metronome(1 / self._rate_hz, REAL)
        while True:
            await metronome.tick()
            first = max(time.time_ns(), self._last + 1)
            self._last = first + len(self.machines) - 1
            self._bus.publish_many([machine.next(first + place) for place, machine in enumerate(self.machines)])
            self.rounds += 1
            self._ticked.set()

    async def work(self, rounds: int) -> None:
        """Until so many more were published."""
        wanted = self.rounds + rounds
        while self.rounds < wanted:
            self._ticked.clear()
            await self._ticked.wait()

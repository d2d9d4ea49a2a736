"""Machines for tests, whose faults are known, and who publishes their readings."""

import asyncio
import random
import time
from array import array

from appliance.bus.port import Bus, Message
from appliance.connectors._pace import REAL, Metronome
from appliance.events import codec, topics
from appliance.events.schema import Kind, Reading

CHANNELS = ("current", "pressure", "temperature")
LEARN_ROUNDS = 440  # the detector learns from 400 rows
STEP = 12.0  # what a fault adds


class Machine:
    """A machine at its set points: its channels stand still, each at a seeded level, until a fault moves one.

    So that no row that is lost, and none that comes twice, can raise a false alarm: the detector gives a channel that
    never moved no noise of its own. With random noise one of some ten thousand windows would look like a fault.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.topic = name, topics.topic(Kind.READING, name)
        self.times = array("q")  # of all that was published
        self.rows: list[tuple[float, ...]] = []
        self.fault = ""  # the channel that has moved
        dice = random.Random(f"{seed} {name}")
        self._levels = tuple(dice.uniform(20.0, 80.0) for _ in CHANNELS)

    def next(self, at: int) -> Message:
        row = tuple(level + STEP * (name == self.fault) for name, level in zip(CHANNELS, self._levels, strict=True))
        self.times.append(at)
        self.rows.append(row)
        return Message(self.topic, codec.encode(Reading(at, dict(zip(CHANNELS, row, strict=True)))))


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

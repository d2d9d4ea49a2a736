"""What an alarm writes is small, and with the last checkpoint it is all that a power cut must not take."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.bus.port import Batch
from appliance.events import codec, topics
from appliance.events.schema import Alarm, Kind, Reading, Score
from appliance.inference import engine, models
from appliance.inference.backends import replay
from appliance.inference.detector.detector import Detector, DetectorSettings
from appliance.inference.policy import Terms
from appliance.runtime.group import Heart
from appliance.services.detect import Detect

PATIENCE_S = 30.0
SECOND = 1_000_000_000
START = 1_790_000_000 * SECOND
ASSETS, CHANNELS = 8, 40
NAMES = [f"p{number}" for number in range(CHANNELS)]


class Box:
    """A detect service on a bus of its own, for as long as it is entered; leaving it is a clean stop."""

    def __init__(self, folder: Path) -> None:
        backend = replay.create(replay.Settings(devices=("CPU",)))
        computer = engine.start(models.load(models.shipped()), backend, Terms(isolate="none"))
        self.now = START
        self._broker, self.detector = MemoryBroker(), Detector(DetectorSettings())
        self.service = Detect(MemoryBus(self._broker), self.detector, computer, folder / "state", 3600, self._clock)

    async def run(self, first: int, last: int, shift: float) -> None:
        """Rows of all assets until the last one is judged; `shift` is the first asset's, and asks for an alarm."""
        dice, heart = np.random.default_rng(first), Heart("detect")
        async with asyncio.timeout(PATIENCE_S), MemoryBus(self._broker) as bus:
            async with bus.subscribe(topics.everything(Kind.SCORE), topics.everything(Kind.ALARM)) as batches:
                serving = asyncio.create_task(self.service.run(heart))
                await heart.is_ready.wait()
                for row in range(first, last):
                    for asset in range(ASSETS):
                        values = dice.normal(size=CHANNELS) + (shift if asset == 0 else 0.0)
                        reading = Reading(START + row * SECOND, dict(zip(NAMES, values.tolist(), strict=True)))
                        bus.publish(topics.topic(Kind.READING, f"line1/m{asset}"), codec.encode(reading))
                await self._watch(batches, START + (last - 1) * SECOND, alarm=bool(shift))
            self.freeze()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def _watch(self, batches: AsyncIterator[Batch], until: int, alarm: bool) -> None:
        judged = 0
        async for batch in batches:
            for message in batch:
                event = codec.decode(topics.parse(message.topic).kind, message.payload, 0) if message.payload else None
                judged += isinstance(event, Score) and event.at == until
                alarm = alarm and not isinstance(event, Alarm)
            if judged == ASSETS and not alarm:
                return

    def freeze(self) -> None:
        """What is on the disk now."""

    def standing(self) -> list[tuple[str, Alarm]]:
        return [(asset, alarm) for (asset, _), alarm in self.service._book.standing.items()]

    def _clock(self) -> int:
        return self.now


def test_an_alarm_is_durable_and_small_beside_what_was_learned(tmp_path: Path) -> None:
    learning = Box(tmp_path / "box")
    asyncio.run(learning.run(0, 450, 0.0))
    learned = (tmp_path / "box" / "state").read_bytes()

    cut = Box(tmp_path / "box")
    cut.freeze = lambda: shutil.copytree(tmp_path / "box", tmp_path / "cut")  # type: ignore[assignment, method-assign]
    asyncio.run(cut.run(450, 500, 6.0))
    ((asset, alarm),) = cut.standing()
    assert asset == "line1/m0"
    assert (tmp_path / "cut" / "state").read_bytes() == learned
    assert (tmp_path / "cut" / "state.alarms").stat().st_size < len(learned) / 50

    after = Box(tmp_path / "cut")
    asyncio.run(after.run(500, 540, 0.0))
    assert [(name, found.id) for name, found in after.standing()] == [(asset, alarm.id)]
    assert list(after.detector.latches()) == [asset]


def test_a_damaged_file_of_alarms_leaves_what_was_learned(tmp_path: Path) -> None:
    learning = Box(tmp_path)
    asyncio.run(learning.run(0, 450, 0.0))
    (tmp_path / "state.alarms").write_bytes(b"\0" * 100)
    after = Box(tmp_path)
    asyncio.run(after.run(450, 452, 0.0))
    assert len(list(tmp_path.glob("state.alarms.damaged-*"))) == 1

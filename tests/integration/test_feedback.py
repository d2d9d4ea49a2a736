"""What a person says of alarms, over a real mosquitto: the command line asks, detect learns, record keeps the label."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.cli import instance
from appliance.config.load import load
from appliance.errors import BusError
from appliance.events import topics
from appliance.events.schema import Kind

if TYPE_CHECKING:
    from conftest import Box

PATIENCE_S = 40.0
PUMP, FAN = "line1/pump", "line1/fan"
LIMITS = '\n[[limits]]\nasset = "line1/#"\npoint = "pressure"\nmax = 20\n[connectors]\n'


class Plant:
    """A box that runs, and a machine of two channels."""

    def __init__(self, box: "Box", bus: MqttBus) -> None:
        self.box, self._bus, self._random = box, bus, random.Random(1)

    async def read(self, rows: int, temperature: float = 60.0) -> None:
        noise = self._random.gauss
        for _ in range(rows):
            await self.publish(PUMP, temperature=round(noise(temperature, 0.5), 3), pressure=round(noise(5.0, 0.1), 4))

    async def publish(self, asset: str, **values: float) -> None:
        self._bus.publish_many([Message(topics.topic(Kind.READING, asset), json.dumps(values).encode())])
        await self._bus.drain()

    async def standing(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The listed alarms, by condition, once they fit."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                _, output, errors = await self.box.run("alarms", "list", "--json")
                found = {one["condition"]: one for one in json.loads(output)["alarms"]} if not errors else {}
                if fits(found):
                    return found

    async def say(self, *words: str) -> dict[str, Any]:
        code, output, errors = await self.box.run("alarms", *words, "--json")
        assert code == 0, errors
        answer: dict[str, Any] = json.loads(output)
        return answer

    async def labels(self, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                code, output, _ = await self.box.run("alarms", "labels", "--json")
                found: list[dict[str, Any]] = json.loads(output) if not code else []
                if len(found) >= count:
                    return found


@asynccontextmanager
async def running(box: "Box") -> AsyncIterator[Plant]:
    process = await box.start("run", "broker", "record", "detect")
    try:
        config, _ = load(box.config)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    async with instance.session(config):
                        break
                except BusError:  # the broker starts
                    assert process.returncode is None
                    await asyncio.sleep(0)
        async with MqttBus(box.url) as bus:
            await bus.wait_connected(PATIENCE_S)
            yield Plant(box, bus)
    finally:
        if process.returncode is None:
            process.terminate()
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()


def test_normal_and_fault_end_confirm_and_are_kept(quiet_box: "Box") -> None:
    quiet_box.config.write_text(quiet_box.config.read_text() + LIMITS)

    async def scenario() -> None:
        async with running(quiet_box) as plant:
            await learned(plant)
            assert (await plant.say("normal", PUMP))["verdict"] == "normal"

            await plant.read(40, temperature=70.0)
            found = await plant.standing(lambda alarms: "anomaly" in alarms)
            alarm = found["anomaly"]["id"]
            answer = await plant.say("normal", alarm)
            assert answer == {"state": "normal", "asset": PUMP, "alarm": alarm, "verdict": "normal"}
            assert await plant.say("normal", alarm) == answer  # said twice
            await plant.read(200, temperature=70.0)
            await plant.publish(FAN, pressure=30.0)  # its limits hold although it has hardly been seen
            found = await plant.standing(lambda alarms: "out-of-range" in alarms)
            assert set(found) == {"out-of-range"}  # what came before it, the accepted state, raised nothing
            assert (found["out-of-range"]["severity"], found["out-of-range"]["cause"]) == ("alarm", "pressure")
            code, _, errors = await quiet_box.run("alarms", "normal", found["out-of-range"]["id"])
            assert code == 1
            assert "[[limits]]" in errors
            assert (await plant.say("fault", found["out-of-range"]["id"]))["state"] == "acknowledged"

            said = [(one["verdict"], one["condition"]) for one in await plant.labels(3)]
            assert said == [("fault", "out-of-range"), ("normal", "anomaly"), ("normal", "learning-period")]
            assert (await plant.say("relearn", PUMP))["state"] == "learning anew"
            assert (await plant.say("relearn", FAN))["state"] == "learning anew"
            await plant.standing(lambda alarms: not alarms)

    asyncio.run(scenario())


async def learned(plant: Plant) -> None:
    """Readings until the box asks whether the machine was healthy."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await plant.read(200)  # what comes before detect listens is nobody's
            _, output, _ = await plant.box.run("alarms", "list")
            if f"was it healthy then?  millwright alarms normal {PUMP}" in output:
                return

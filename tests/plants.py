"""A detector with a library of small models, on a broker of its own: services in this process, readings by the test."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np

from appliance import assembly, computing
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Message
from appliance.config.load import load
from appliance.events import codec, topics
from appliance.events.schema import Command, Kind, State
from appliance.inference.library import Library
from appliance.services import commands

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
PATIENCE_S = 60.0
SILENT = 60  # rows of an asset before anything is said
LOT = 100  # rows of all assets that are sent before they must have been taken


class Pulse:
    def ready(self) -> None:
        pass

    def beat(self) -> None:
        pass


class Plant:
    """`row` is the next one; `slow` makes the machines' waves so many times as long."""

    def __init__(self, config: Path, bus: MqttBus, assets: int = 4) -> None:
        self.config, _ = load(config)
        self.library: Library = computing.library(self.config)
        self.bus, self.assets, self.row, self.slow = bus, assets, 0, 1.0
        self.dice = np.random.default_rng(11)
        self.states: dict[str, State] = {}
        self.scores = 0
        self.versions: list[str] = []  # of the models that judged, in their order
        self.installs: dict[str, Command] = {}
        self.changed = asyncio.Condition()

    async def listen(self) -> None:
        told = topics.everything(Kind.STATE), topics.everything(Kind.SCORE), topics.commands_of("update/install")
        async with self.bus.subscribe(*told, qos=1) as batches:
            async for batch in batches:
                for message in batch:
                    self._hear(message)
                async with self.changed:
                    self.changed.notify_all()

    def _hear(self, message: Message) -> None:
        if not message.payload:
            return
        kind, path = topics.parse(message.topic)
        event = codec.decode(kind, message.payload, START)
        if kind is Kind.STATE:
            self.states[path] = event
        elif kind is Kind.COMMAND:
            if path.startswith("update/install/"):
                self.installs[path] = event
        else:
            self.scores += 1
            if event.version and self.versions[-1:] != [event.version]:
                self.versions.append(event.version)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(holds)

    @property
    def detect(self) -> State | None:
        return self.states.get("detect")

    @property
    def choice(self) -> dict[str, Any]:
        return self.detect.detail["choice"] if self.detect is not None and self.detect.online else {}

    @property
    def compared(self) -> dict[str, Any]:
        return self.choice.get("comparison", {})

    async def run(self, rows: int) -> None:
        """So many rows of every asset, a second apart by their own times."""
        for first in range(0, rows, LOT):
            expected = self.scores
            for _ in range(min(LOT, rows - first)):
                self.bus.publish_many([Message(*self._reading(asset)) for asset in range(self.assets)])
                self.row += 1
                expected += self.assets if self.row > SILENT else 0
            await self.until(lambda expected=expected: self.scores >= expected)

    def _reading(self, asset: int) -> tuple[str, bytes]:
        waves = [math.sin(self.row / ((4 + channel + 0.5 * asset) * self.slow)) for channel in range(3)]
        noise = self.dice.normal(size=3) * 0.3
        values = {f"c{n}": round(50 * n + waves[n] + noise[n], 6) for n in range(3)}
        payload = json.dumps({"at": START + self.row * SECOND, "values": values}).encode()
        return topics.topic(Kind.READING, f"line/{asset}"), payload

    async def ask(self, service: str, verb: str, **args: Any) -> Command:
        return await commands.ask(self.bus, service, verb, args, "test", PATIENCE_S)


@contextlib.asynccontextmanager
async def running(config: Path, url: str, *services: str, plant: Plant | None = None) -> AsyncIterator[Plant]:
    """The services, with somebody who listens; the same plant may go on when they start again."""
    settings, document = load(config)
    async with MqttBus(url) as bus:
        await bus.wait_connected(PATIENCE_S)
        made = plant or Plant(config, bus)
        made.bus, made.states = bus, {}
        listening = asyncio.create_task(made.listen())
        tasks = [asyncio.create_task(one.run(Pulse())) for one in assembly.build(settings, document, services)]
        try:
            await made.until(lambda: all(name in made.states and made.states[name].online for name in services))
            yield made
        finally:
            for task in (*tasks, listening):
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
            await asyncio.gather(listening, return_exceptions=True)

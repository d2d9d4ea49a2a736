"""A box that takes updates from a repository is killed: at every step, and at random moments, again and again.

What must hold: the old or the new model, whole, at every moment; each update ends by itself, and nothing is left over.

    MILLWRIGHT_KILLS=200 pytest tests/faults/test_update_kill.py
"""

import asyncio
import json
import math
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from appliance import computing
from appliance.bus.port import Message
from appliance.config.load import load
from appliance.connectors._pace import REAL, Metronome
from appliance.events import codec, topics
from appliance.events.schema import Command, CommandState, Kind
from ota import bundle
from ota.delta.making import make
from ota.manifest import Bundle
from ota.publish import goods
from tests import bundles
from tests.faults.site import MOSQUITTO, Site
from tests.updates import FLEET, Handler, Publisher, Server, serving

KILLS = int(os.environ.get("MILLWRIGHT_KILLS", "8"))
SEED = int(os.environ.get("MILLWRIGHT_SEED", "1"))
LIMIT_S = 180  # of a test
WINDOW, PIECE = 64, 128  # of the model; bytes that a server gives at a time
ASSETS, RATE_HZ, SECOND = 3, 100.0, 1_000_000_000
STEPS = ("queued", "downloading", "verifying", "reconstructing", "compiling", "shadow", "promoted")
EACH = 8  # kills of one update, then it may come to its end
PATIENCE_S = 90.0


class Feeder:
    """Machines with waves, whoever listens."""

    def __init__(self, site: Site) -> None:
        self.row, self._site = 0, site
        self._dice, self._ticked = np.random.default_rng(SEED), asyncio.Event()
        self._began = time.time_ns() - 10**15  # rows are a second apart by their own times

    async def run(self) -> None:
        metronome = Metronome(1 / RATE_HZ, REAL)
        while True:
            await metronome.tick()
            self._site.bus.publish_many([self._reading(asset) for asset in range(ASSETS)])
            self.row += 1
            self._ticked.set()

    async def work(self, rows: int) -> None:
        """Until so many more were published."""
        wanted = self.row + rows
        while self.row < wanted:
            self._ticked.clear()
            await self._ticked.wait()

    def _reading(self, asset: int) -> Message:
        waves = [math.sin(self.row / (4 + channel + 0.5 * asset)) for channel in range(2)]
        noise = self._dice.normal(size=2) * 0.3
        values = {f"c{n}": round(50 * n + waves[n] + noise[n], 6) for n in range(2)}
        payload = json.dumps({"at": self._began + self.row * SECOND, "values": values}).encode()
        return Message(topics.topic(Kind.READING, f"line/{asset}"), payload)


class Fleet:
    """A repository, a box of its fleet as processes, and what the box tells of its installations."""

    def __init__(self, folder: Path, server: Server, publisher: Publisher) -> None:
        self.folder, self.server, self.publisher = folder, server, publisher
        root = folder / "root.json"
        root.write_bytes(publisher.root)
        settings = f"""
[detect]
model = "waves"
device = "CPU"
checkpoint_s = 1
[update]
sources = ["{server.url}"]
fleet = "{FLEET}"
root = "{root}"
device = "box-1"
automatic = "newest"
poll_minutes = 0.01
shadow_minutes = 0
watch_minutes = 0
looks = 30
latency_ratio = 1000
"""
        self.site = Site(folder, settings, ("detect", "update"))
        self.feeder = Feeder(self.site)
        self.told: dict[str, Command] = {}  # of each bundle, the newest
        self._heard = asyncio.Condition()
        self.number = 1
        self.library = computing.library(load(self.site.config)[0])
        self.first = self.library.add(self.publish_now().folder)[0].digest

    def publish_now(self) -> "Made":
        """The next version, and a delta from the one before."""
        folder = self.folder / f"made-{self.number}"
        bundles.waves(folder, f"{self.number}.0.0", 8 + self.number % 2, window=WINDOW)
        self.number += 1
        added = self.publisher.add(folder)
        if self.number > 2:
            goods.add_deltas(self.publisher.workshop, FLEET, "waves", 1, make)
            self.publisher.publish()
        return Made(folder, added)

    async def publish(self) -> Bundle:
        return (await asyncio.to_thread(self.publish_now)).bundle

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.site:
            tasks = [asyncio.create_task(self.feeder.run()), asyncio.create_task(self._listen())]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                for end in await asyncio.gather(*tasks, return_exceptions=True):
                    assert isinstance(end, asyncio.CancelledError), end

    async def _listen(self) -> None:
        async with self.site.bus.subscribe(topics.commands_of("update/install"), qos=1) as batches:
            async for batch in batches:
                for message in batch:
                    if message.payload:
                        command = codec.decode(Kind.COMMAND, message.payload, 0)
                        assert isinstance(command, Command)
                        self.told[str(command.args["bundle"])] = command
                async with self._heard:
                    self._heard.notify_all()

    def step(self, wanted: Bundle) -> str:
        told = self.told.get(wanted.bundle)
        return str(told.result["step"]) if told is not None else ""

    def ended(self, wanted: Bundle) -> bool:
        told = self.told.get(wanted.bundle)
        return told is not None and told.state is not CommandState.EXECUTING

    async def until_step(self, wanted: Bundle, *steps: str) -> str:
        """Or its end."""
        async with asyncio.timeout(PATIENCE_S), self._heard:
            await self._heard.wait_for(lambda: self.ended(wanted) or self.step(wanted) in steps)
        return self.step(wanted)

    def is_whole(self, *allowed: str) -> str:
        """The model in use, one of those that may be, every bundle of the library whole; its hash."""
        library = self.library.root
        current = (library / "names" / "waves" / "current").resolve()
        assert current.name in allowed, (current.name, allowed)
        for folder in library.glob("[0-9a-f]" * 64):
            assert bundle.digest(folder) == folder.name
        return current.name

    def is_tidy(self) -> None:
        update = self.site.state / "update"
        left = [path for name in ("supply", "arriving") for path in (update / name).rglob("*") if path.is_file()]
        assert left == []


class Made:
    def __init__(self, folder: Path, added: Bundle) -> None:
        self.folder, self.bundle = folder, added


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    # Not pytest's folder: a socket's path has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="mw-"))
    publisher = Publisher(folder / "workshop", time.time())
    with serving(publisher.workshop.repository) as server:
        yield Fleet(folder, server, publisher)
    shutil.rmtree(folder)


async def confirmed(fleet: Fleet, wanted: Bundle) -> None:
    step = await fleet.until_step(wanted)
    assert step == "confirmed", fleet.told[wanted.bundle]
    assert fleet.is_whole(wanted.bundle)


@pytest.mark.timeout(LIMIT_S)
def test_killed_as_soon_as_a_step_is_told(fleet: Fleet) -> None:
    async def scenario() -> None:
        async with fleet.running():
            await fleet.feeder.work(500)
            before = fleet.is_whole(fleet.first)
            wanted = await fleet.publish()
            seen = []
            for step in STEPS:
                told = await fleet.until_step(wanted, *STEPS[STEPS.index(step) :])
                seen.append(told)
                await fleet.site.kill(["update"])
                fleet.is_whole(before, wanted.bundle)
            await confirmed(fleet, wanted)
            assert len(set(seen)) >= 3, seen
            fleet.is_tidy()

    asyncio.run(scenario())


@pytest.mark.timeout(60 + 20 * KILLS)
def test_killed_at_random_moments_of_updates_that_follow_each_other(fleet: Fleet) -> None:
    dice = random.Random(SEED)
    kills: Counter[str] = Counter()
    moments: Counter[str] = Counter()

    async def scenario() -> None:
        async with fleet.running():
            await fleet.feeder.work(500)
            before, wanted = fleet.is_whole(fleet.first), await fleet.publish()
            struck = 0  # of this update
            while kills.total() < KILLS:
                victims = dice.choice([["update"]] * 6 + [["detect"], ["update", "detect"], [MOSQUITTO]])
                await a_moment(fleet, wanted, dice)
                moments[fleet.step(wanted) or "offered"] += 1
                await fleet.site.kill(victims)
                kills[" ".join(victims)] += 1
                struck += 1
                fleet.is_whole(before, wanted.bundle)
                if fleet.ended(wanted) or struck == EACH:
                    await confirmed(fleet, wanted)
                    before, wanted, struck = wanted.bundle, await fleet.publish(), 0
            await confirmed(fleet, wanted)
            fleet.is_tidy()

    asyncio.run(scenario())
    print(f"{kills.total()} kills, seed {SEED}: {dict(kills)}; {fleet.number - 2} updates; at {dict(moments)}")


async def a_moment(fleet: Fleet, wanted: Bundle, dice: random.Random) -> None:
    """Any of an update. What is over soon, until it is compared, is aimed at more often."""
    if fleet.step(wanted) in ("shadow", "promoted"):
        await fleet.feeder.work(dice.randrange(1, 500))
    elif dice.random() < 0.5:
        await fleet.feeder.work(dice.randrange(1, 40))
    else:
        await in_a_download(fleet, dice)


async def in_a_download(fleet: Fleet, dice: random.Random) -> None:
    """As soon as a few pieces of a file have been given; or after a while, where nothing is downloaded."""
    loop, reached = asyncio.get_running_loop(), asyncio.Event()
    left = [dice.randrange(1, 12)]

    def count(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if not path.startswith("targets/"):
            return False
        handler.send_response(206 if begin else 200)
        if begin:
            handler.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - begin))
        handler.end_headers()
        for at in range(begin, len(data), PIECE):
            left[0] -= 1
            if left[0] <= 0:
                loop.call_soon_threadsafe(reached.set)
            handler.wfile.write(data[at : at + PIECE])
        return True

    fleet.server.fault = count
    waiting = [asyncio.create_task(reached.wait()), asyncio.create_task(fleet.feeder.work(150))]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    fleet.server.fault = lambda *_: False

"""A box that forwards, with the service in this process, its broker, and a broker elsewhere: both real."""

import asyncio
import json
import os
import shutil
import signal
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from appliance import forwarding
from appliance.bus.broker import configuration
from appliance.bus.mqtt import MqttBus
from appliance.bus.port import Batch, Message
from appliance.config.document import Document
from appliance.config.places import Paths
from appliance.config.schema import Broker, Config, Settable
from appliance.config.secrets import VaultName
from appliance.events import codec, topics
from appliance.events.schema import Alarm, AlarmState, Kind, Reading, Severity, State
from appliance.runtime.group import Heart
from appliance.services import commands
from appliance.services.status import will

PATIENCE_S = 40.0
NOW = 1_790_000_000_000_000_000


class Mosquitto:
    def __init__(self, folder: Path) -> None:
        self._paths = Paths(state=folder / "state", run=folder / "run")
        (self._paths.state / "broker").mkdir(parents=True)
        self._paths.run.mkdir()
        self._file = folder / "mosquitto.conf"
        self._file.write_text(configuration(self._paths, Broker(), as_root=os.geteuid() == 0))
        self.url = f"unix:{self._paths.run}/mqtt.sock"
        self._child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        (self._paths.run / "mqtt.sock").unlink(missing_ok=True)
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "mosquitto is not installed: apt install mosquitto"
        null = asyncio.subprocess.DEVNULL
        self._child = await asyncio.create_subprocess_exec(program, "-c", str(self._file), stderr=null, stdin=null)
        async with MqttBus(self.url) as bus:
            await bus.wait_connected(PATIENCE_S)

    async def kill(self) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()

    def freeze(self, frozen: bool) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)


class Site:
    """A box with its broker, a broker elsewhere, and somebody who listens to both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "near").mkdir()
        (folder / "far").mkdir()
        self.near, self.far = Mosquitto(folder / "near"), Mosquitto(folder / "far")
        self.states: list[State] = []
        self.secrets = {"http/token": b"hush", "masking/key": bytes(64)}
        self.told = asyncio.Event()
        self.plant: MqttBus

    @asynccontextmanager
    async def forwarding(self, text: str) -> AsyncIterator[None]:
        """The service runs as it is configured, and has said so."""
        document = Document("box.toml", text.replace("{far}", self.far.url))
        tables = document.tables
        points = msgspec.convert(tables.get("points", []), list[Settable])
        paths = Paths(state=self.folder / "state", run=self.folder)
        config = Config(paths=paths, forward=tables["forward"], points=points)

        async def reveal(name: VaultName) -> bytes:
            return self.secrets[name.vault]

        service = forwarding.build(
            config, document, lambda name: MqttBus(self.near.url, client_id=f"mw-{name}", will=will(name)), reveal
        )
        heart = Heart("forward")
        task = asyncio.create_task(service.run(heart))
        try:
            await asyncio.wait(
                [task, ready := asyncio.ensure_future(heart.is_ready.wait())], return_when="FIRST_COMPLETED"
            )
            ready.cancel()
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None

    @asynccontextmanager
    async def serve(self, service: str, handlers: dict[str, commands.Handler]) -> AsyncIterator[None]:
        """Somebody on the box who takes commands."""
        async with MqttBus(self.near.url) as bus:
            await bus.wait_connected(PATIENCE_S)
            task = asyncio.create_task(commands.serve(bus, service, handlers, time.time_ns))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait([task])

    async def hear(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            for message in batch:
                state = codec.decode(Kind.STATE, message.payload, time.time_ns())
                assert isinstance(state, State)
                assert state.received == state.processed + state.queued + sum(state.dropped.values())
                self.states.append(state)
            self.told.set()

    async def until(self, name: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The newest word of the service about a destination, as soon as it is so."""
        while True:
            found = self.states[-1].detail.get("destinations", {}).get(name) if self.states else None
            if found and holds(found):
                return dict(found)
            self.told.clear()
            await self.told.wait()

    def reading(self, number: int, asset: str = "line1/pump") -> Message:
        return Message(topics.topic(Kind.READING, asset), codec.encode(Reading(NOW + number, {"n": float(number)})), 1)

    def alarm(self, number: int, state: AlarmState = AlarmState.UNACKNOWLEDGED, text: str = "") -> Message:
        alarm = Alarm(f"a{number}", NOW + number, NOW, state, Severity.ALARM, "n", 2.0, 1.0, message=text)
        return Message(topics.alarm("line1/pump"), codec.encode(alarm), 1)


Scenario = Callable[[Site], Awaitable[None]]


def played(scenario: Scenario) -> None:
    """In a folder with a short name: a socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="mw-"))

    async def bounded() -> None:
        site = Site(folder)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(site.near.start(), site.far.start())
            try:
                async with MqttBus(site.near.url) as plant, plant.subscribe(topics.state("forward")) as batches:
                    await plant.wait_connected(PATIENCE_S)
                    site.plant = plant
                    hearing = asyncio.create_task(site.hear(batches))
                    try:
                        await scenario(site)
                    finally:
                        hearing.cancel()
            finally:
                await asyncio.gather(site.near.kill(), site.far.kill())

    try:
        uvloop.run(bounded())
    finally:
        shutil.rmtree(folder)


async def take(batches: AsyncIterator[Batch], count: int) -> list[Message]:
    found: list[Message] = []
    async for batch in batches:
        found += batch
        if len(found) >= count:
            break
    return found


class Server:
    """A web server that says what it is told to say."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.refuse = ""  # a body with this text gets a 422
        self.came = asyncio.Event()
        self.url, self.port = "", 0

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}/hook"
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = int(next(line for line in head.splitlines() if line.lower().startswith("content-length"))[15:])
                body = await reader.readexactly(size)
                status = self.answers.pop(0) if self.answers else 204
                status = 422 if self.refuse and self.refuse.encode() in body else status
                if status < 300:
                    self.bodies.append(json.loads(body))
                    self.heads.append(head)
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
                self.came.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def heard(self, count: int) -> list[dict[str, Any]]:
        """The bodies that were taken."""
        while len(self.bodies) < count:
            self.came.clear()
            await self.came.wait()
        return self.bodies

    async def events(self, count: int) -> list[dict[str, Any]]:
        while len(found := [event for body in self.bodies for event in body["events"]]) < count:
            self.came.clear()
            await self.came.wait()
        return found

"""Brings readings in: opens each connector and publishes what it yields.

A connector that fails is shown in `state/ingest`, waits (1 s, then twice as long each time, 60 s at most) and is opened
again; the others do not notice. One that comes to its end is marked so. While the broker is away the connectors pause.
"""

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from appliance import __version__
from appliance.bus.port import Bus, Message
from appliance.connectors.port import Arrival, Commandable, Connector, Patient
from appliance.errors import BusError, ConnectorError, EventError, MillwrightError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Block, Command, Device, Kind
from appliance.runtime.service import Clock, Pulse
from appliance.services import commands
from appliance.services.devices import Devices
from appliance.services.points import Points
from appliance.services.setting import Setting
from appliance.services.status import Status
from appliance.services.strays import Strays

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
KNOWN_TOPICS = 4096
UPKEEP_S = 2.0  # between two looks at whether facts of devices are to be written


class Standing(StrEnum):
    """How a connector is."""

    OPENING = "opening"
    RUNNING = "running"
    WAITING = "waiting"  # it failed, and is opened again at `next_attempt`
    ENDED = "ended"


class Source:
    """One connector, and what a person should know of it."""

    def __init__(self, name: str, connector: Connector) -> None:
        self.name, self.connector = name, connector
        self.standing = Standing.OPENING
        self.error = ""
        self.next_attempt = 0  # UTC ns
        self.wait_s = FIRST_WAIT_S

    def runs(self) -> None:
        if self.standing is not Standing.RUNNING:
            self.standing, self.error, self.next_attempt, self.wait_s = Standing.RUNNING, "", 0, FIRST_WAIT_S

    def failed(self, error: ConnectorError, now: int) -> float:
        """How many seconds to wait now."""
        wait_s, self.wait_s = self.wait_s, min(2 * self.wait_s, LONGEST_WAIT_S)
        self.standing, self.error, self.next_attempt = Standing.WAITING, str(error), now + round(wait_s * 1e9)
        return wait_s

    def describe(self) -> dict[str, Any]:
        ledger = self.connector.ledger
        return {
            "standing": self.standing.value,
            "received": ledger.received,
            "processed": ledger.processed,
            "dropped": dict(ledger.dropped),
            "examples": dict(ledger.examples),
            "error": self.error,
            "next_attempt": self.next_attempt,
        }


class _Inject(msgspec.Struct, forbid_unknown_fields=True):
    fault: str
    asset: str


class _Which(msgspec.Struct, forbid_unknown_fields=True):
    device: str  # its asset or its name


class _Rename(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    name: str


class _Ignore(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    ignored: bool = True


class Ingest:
    """`connectors`: name and connector; a name may stand several times. `strays` hears what nobody else does; `devices`
    remembers what sources tell of theirs; `points` are those that may be set, noted in `log_file`."""

    name = "ingest"

    def __init__(
        self,
        bus: Bus,
        connectors: Sequence[tuple[str, Connector]],
        clock: Clock,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        strays: Strays | None = None,
        devices: Devices | None = None,
        points: Points | None = None,
        log_file: Path | None = None,
    ) -> None:
        self._bus, self._clock, self._wait = bus, clock, wait
        self._sources = [
            Source(name, connector) for name, (_, connector) in zip(_unique(connectors), connectors, strict=True)
        ]
        self._strays = strays
        self._devices = Devices(None, clock) if devices is None else devices
        self._setting = Setting(points or Points([]), log_file, bus, self.order, clock)
        self._ledger, self._refused, self._commands = Ledger(), Ledger(), Ledger()
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)
        self._topics: dict[tuple[Kind, str], str] = {}
        self._connected = asyncio.Event()

    async def run(self, pulse: Pulse) -> None:
        self._bus.on_connected(self._connected.set)
        self._bus.on_connected(self._assert_devices)
        async with self._bus:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._status.run(pulse), name="ingest status")
                    group.create_task(self._serve(), name="ingest commands")
                    group.create_task(self._keep_devices(), name="ingest devices")
                    if self._strays:
                        group.create_task(self._strays.run(), name="ingest strays")
                    for source in self._sources:
                        group.create_task(self._keep(source), name=f"ingest {source.name}")
                    pulse.ready()
            finally:
                self._status.publish(online=False)

    async def _keep(self, source: Source) -> None:
        """A connector's life: opened, read, and opened again after each failure, until it ends."""
        while source.standing is not Standing.ENDED:
            try:
                await self._read(source)
                source.standing = Standing.ENDED
                log.info("%s has come to its end", source.name)
            except ConnectorError as error:
                wait_s = source.failed(error, self._clock())
                log.warning("%s: %s (opened again in %g s)", source.name, error, wait_s)
                await self._wait(wait_s)

    async def _read(self, source: Source) -> None:
        async with source.connector as connector:
            if isinstance(connector, Patient):
                source.runs()
            async for arrivals in connector:
                source.runs()
                await self._publish(arrivals)

    async def _publish(self, arrivals: list[Arrival]) -> None:
        messages, ignored = [], self._devices.ignored
        for asset, event in arrivals:
            try:
                if isinstance(event, Device):
                    messages += self._introduced(asset, event)
                elif asset in ignored:
                    self._refused.drop("ignored", asset)
                else:
                    messages.append(Message(self._topic(asset, event), codec.encode(event)))
            except EventError as error:
                self._refused.refuse(error)
        await self._online()
        self._bus.publish_many(messages)
        # Publishing never waits: without this, a recording at full speed would pile up in memory.
        await self._bus.drain()

    async def _online(self) -> None:
        """A broker is there: what is published without one is lost."""
        while not self._bus.connected:
            self._connected.clear()
            await self._connected.wait()

    def _topic(self, asset: str, event: object) -> str:
        key = (Kind.BLOCK if isinstance(event, Block) else Kind.READING, asset)
        if key not in self._topics:
            if len(self._topics) >= KNOWN_TOPICS:
                self._topics.clear()
            self._topics[key] = topics.topic(*key)
        return self._topics[key]

    def _introduced(self, asset: str, facts: Device) -> list[Message]:
        topics.check_path(asset)  # before it is remembered: it would be in the way at each connection
        shown = self._devices.take(asset, facts)
        if shown is None:
            raise EventError("too-many-devices", f"'{asset}': no more devices are remembered; forget some")
        return [_message(asset, shown)]

    def _assert_devices(self) -> None:
        """A broker may have lost what it kept."""
        for asset, device in self._devices.all():
            self._tell(asset, device)

    def _tell(self, asset: str, device: Device | None) -> None:
        message = _message(asset, device)
        try:
            self._bus.publish(message.topic, message.payload, qos=1, retain=True)
        except BusError as error:
            log.warning("%s: %s", asset, error.message)

    async def _keep_devices(self) -> None:
        try:
            while True:
                await asyncio.sleep(UPKEEP_S)
                self._devices.write_due(self._clock())
        finally:
            self._devices.write_due(self._clock() + 10**12)

    async def _serve(self) -> None:
        handlers: dict[str, commands.Handler] = {
            "inject": self._inject,
            "rename": self._rename,
            "ignore": self._ignore,
            "forget": self._forget,
            **self._setting.handlers(),
        }
        await commands.serve(self._bus, self.name, handlers, self._clock, self._commands)

    def _rename(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, _Rename)
        asset = self._devices.find(asked.device)
        self._tell(asset, device := self._devices.rename(asset, asked.name))
        return {"asset": asset, "name": device.name}

    def _ignore(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, _Ignore)
        asset = self._devices.find(asked.device)
        self._tell(asset, device := self._devices.ignore(asset, asked.ignored))
        return {"asset": asset, "name": device.name, "ignored": device.ignored}

    def _forget(self, command: Command) -> dict[str, Any]:
        asset = self._devices.find(commands.arguments(command, _Which).device)
        self._devices.forget(asset)
        self._tell(asset, None)
        for source in self._sources:
            if isinstance(source.connector, Commandable):
                source.connector.command("forget", {"asset": asset})
        return {"asset": asset}

    async def _inject(self, command: Command) -> dict[str, Any]:
        """A fault for a simulated machine."""
        asked = msgspec.to_builtins(commands.arguments(command, _Inject))
        if (result := await self.order("inject", asked)) is not None:
            return result
        raise MillwrightError(
            f"no connector simulates '{asked['asset']}'",
            "Add [connectors.simulator] with that asset, or name its asset.",
        )

    async def order(self, verb: str, args: dict[str, Any]) -> dict[str, Any] | None:
        """The result of the connector that the order is for; None where there is none. ConnectorError refuses it."""
        for source in self._sources:
            if isinstance(source.connector, Commandable):
                result = source.connector.command(verb, args)
                if inspect.isawaitable(result):
                    result = await result
                if result is not None:
                    return result
        return None

    def _detail(self) -> dict[str, Any]:
        # Status asks for the detail before it reads the books.
        self._balance()
        detail: dict[str, Any] = {"connectors": {source.name: source.describe() for source in self._sources}}
        if len(self._devices):
            detail["devices"] = len(self._devices)
        if self._commands.dropped:
            detail["commands_dropped"] = dict(self._commands.dropped)
        return detail

    def _balance(self) -> None:
        """The books over all connectors: what they yielded is processed, unless the bus's grammar refused it. Strays
        are dropped as soon as they are heard of."""
        stray = self._strays.ledger if self._strays else Ledger()
        ledgers = [*(source.connector.ledger for source in self._sources), stray]
        refused = sum(self._refused.dropped.values())
        self._ledger.received = sum(ledger.received for ledger in ledgers)
        self._ledger.processed = sum(ledger.processed for ledger in ledgers) - refused
        dropped = Counter(self._refused.dropped)
        examples = dict(self._refused.examples)
        for ledger in ledgers:
            dropped.update(ledger.dropped)
            examples |= ledger.examples
        self._ledger.dropped, self._ledger.examples = dict(dropped), examples


def _message(asset: str, device: Device | None) -> Message:
    """EventError where the asset breaks the grammar. Without a device what the broker keeps is cleared."""
    return Message(topics.topic(Kind.DEVICE, asset), codec.encode(device) if device else b"", 1, True)


def _unique(connectors: Sequence[tuple[str, Connector]]) -> list[str]:
    """`replay`, `replay-2`, ...: the names by which connectors are shown."""
    seen: Counter[str] = Counter()
    names = []
    for name, _ in connectors:
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names

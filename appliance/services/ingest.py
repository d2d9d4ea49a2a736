"""Brings readings in: opens each connector and publishes what it yields.

A connector that fails is shown in `state/ingest`, waits (1 s, then twice as long each time, 60 s at most) and is opened
again; the others do not notice. One that comes to its end is marked so. While the broker is away the connectors pause.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from appliance import __version__
from appliance.bus.port import Bus, Message
from appliance.connectors.port import Arrival, Commandable, Connector
from appliance.errors import ConnectorError, EventError, MillwrightError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Block, Command, Kind
from appliance.runtime.service import Clock, Pulse
from appliance.services import commands
from appliance.services.status import Status
from appliance.services.strays import Strays

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
KNOWN_TOPICS = 4096


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


class Ingest:
    """`connectors`: name and connector; a name may stand several times. `strays` hears what nobody else does."""

    name = "ingest"

    def __init__(
        self,
        bus: Bus,
        connectors: Sequence[tuple[str, Connector]],
        clock: Clock,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        strays: Strays | None = None,
    ) -> None:
        self._bus, self._clock, self._wait = bus, clock, wait
        self._sources = [
            Source(name, connector) for name, (_, connector) in zip(_unique(connectors), connectors, strict=True)
        ]
        self._strays = strays
        self._ledger, self._refused, self._commands = Ledger(), Ledger(), Ledger()
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)
        self._topics: dict[tuple[Kind, str], str] = {}
        self._connected = asyncio.Event()

    async def run(self, pulse: Pulse) -> None:
        self._bus.on_connected(self._connected.set)
        async with self._bus:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._status.run(pulse), name="ingest status")
                    group.create_task(self._serve(), name="ingest commands")
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
            async for arrivals in connector:
                source.runs()
                await self._publish(arrivals)

    async def _publish(self, arrivals: list[Arrival]) -> None:
        messages = []
        for asset, event in arrivals:
            try:
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

    async def _serve(self) -> None:
        await commands.serve(self._bus, self.name, {"inject": self._inject}, self._clock, self._commands)

    def _inject(self, command: Command) -> dict[str, Any]:
        """A fault for a simulated machine."""
        asked = msgspec.to_builtins(commands.arguments(command, _Inject))
        for source in self._sources:
            if isinstance(source.connector, Commandable):
                result = source.connector.command("inject", asked)
                if result is not None:
                    return result
        raise MillwrightError(
            f"no connector simulates '{asked['asset']}'",
            "Add [connectors.simulator] with that asset, or name its asset.",
        )

    def _detail(self) -> dict[str, Any]:
        # Status asks for the detail before it reads the books.
        self._balance()
        detail: dict[str, Any] = {"connectors": {source.name: source.describe() for source in self._sources}}
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
        for ledger in ledgers:
            dropped.update(ledger.dropped)
        self._ledger.dropped = dict(dropped)
        self._ledger.examples = self._refused.examples | stray.examples


def _unique(connectors: Sequence[tuple[str, Connector]]) -> list[str]:
    """`replay`, `replay-2`, ...: the names by which connectors are shown."""
    seen: Counter[str] = Counter()
    names = []
    for name, _ in connectors:
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names

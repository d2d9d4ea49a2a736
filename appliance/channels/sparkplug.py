"""Sparkplug B v3, as an edge node: the box is the node, each asset a device of it.

    [forward.sparkplug]
    url = "mqtts://scada.example:8883"
    group = "plant"
    host = "scada"

Points, scores and alarms are metrics, by alias after the birth; what waited while the line was down is marked as
historical. Where `host` names the primary host, nothing is sent while that is away. The standard demands QoS 0: what is
on its way when a broker dies is lost then; `qos = 1` is not the standard's, but brokers and hosts take it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta, field

from appliance.bus.port import Batch, Bus, Message
from appliance.channels._lines import LineSettings, dialled, drained, explained, pinged, probed
from appliance.channels.leaving.edge import EdgeNode, Saying, wants_rebirth
from appliance.channels.leaving.terms import Forwarded
from appliance.channels.port import Origin, Tools
from appliance.errors import BusError, ChannelError, ConfigError, EventError
from appliance.protocols import sparkplug
from appliance.protocols.sparkplug import Verb
from appliance.runtime.patience import within
from appliance.store.parcels import Parcel

log = logging.getLogger(__name__)

HOST_S = 10.0  # for the primary host's state to be told
_NAME = r"^[^#+/\x00-\x1f]{1,100}$"


class Settings(LineSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Sparkplug infrastructure."""

    kinds: Annotated[
        list[Forwarded], Meta(description="What becomes metrics: of these alarm, score, reading, device.")
    ] = field(default_factory=lambda: ["alarm", "score", "reading", "device"])
    group: Annotated[str, Meta(pattern=_NAME, description="The Sparkplug group.")] = "millwright"
    node: Annotated[str, Meta(pattern=_NAME, description="The edge node's name; `{box}`: this box's.")] = "{box}"
    host: Annotated[
        str, Meta(pattern=r"^[^#+/\x00-\x1f]{0,100}$", description="The primary host to wait for; empty: none.")
    ] = ""
    qos: Annotated[Literal[0, 1], Meta(description="Of births and data.")] = 0


def create(settings: Settings, tools: Tools) -> "Sparkplug":
    return Sparkplug(settings, tools)


class Sparkplug:
    conflates = False
    depth = 1
    rest_s = 0.0

    def __init__(self, settings: Settings, tools: Tools) -> None:
        self.progress = 0
        self._settings, self._tools = settings, tools
        try:
            self._node = EdgeNode(settings.group, settings.node.replace("{box}", tools.box))
        except EventError as error:
            raise ConfigError(error.message, "Choose another group or node.") from None
        self._bd_seq = self._now_ms() // 1000 % 256  # of this connection
        self._bus: Bus | None = None
        self._closing = AsyncExitStack()
        self._host_is_there, self._host_at = asyncio.Event(), 0
        self._gone: asyncio.Future[str] | None = None
        self._told = ""  # why something was left out

    async def __aenter__(self) -> Self:
        self._bd_seq = (self._bd_seq + 1) % 256
        self._host_is_there.clear()
        self._host_at = 0
        will = self._node.death(self._bd_seq, self._now_ms())
        async with AsyncExitStack() as opening:
            bus = await opening.enter_async_context(
                dialled(self._settings, self._tools, Message(will.topic, will.payload, 1))
            )
            self._gone = asyncio.get_running_loop().create_future()
            filters = [self._node.topic(Verb.NCMD)]
            filters += [sparkplug.host(self._settings.host)] if self._settings.host else []
            batches = await opening.enter_async_context(bus.subscribe(*filters, qos=1))
            hearing = asyncio.create_task(self._hear(batches), name="forward sparkplug")
            opening.callback(hearing.cancel)
            if self._settings.host and not await within(HOST_S, self._host_is_there.wait()):
                raise ChannelError(f"the primary host '{self._settings.host}' is away", "It is waited for.")
            self._bus = bus
            self._publish(self._node.birth(self._bd_seq, self._now_ms()))
            self._closing = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        bus, self._bus = self._bus, None
        if bus is not None and bus.connected:  # a clean end publishes no will
            death = self._node.death(self._bd_seq, self._now_ms())
            bus.publish(death.topic, death.payload, qos=self._settings.qos)
            await within(1.0, bus.drain())
        await self._closing.aclose()

    async def deliver(self, origin: Origin, parcels: Sequence[Parcel]) -> None:
        assert self._bus is not None
        unsent = self._bus.ledger.dropped.copy()
        for parcel in parcels:
            self._publish(self._said(parcel))
        await drained(self._bus, self.lost())
        if self._bus.ledger.dropped != unsent:
            raise ChannelError("the broker does not take what is sent", "It is tried again by itself.")
        self.progress += len(parcels)

    async def lost(self) -> str:
        """The line, or the primary host."""
        assert self._bus is not None
        assert self._gone is not None
        line: asyncio.Future[Any] = asyncio.ensure_future(self._bus.wait_lost())
        try:
            await asyncio.wait([line, self._gone], return_when=asyncio.FIRST_COMPLETED)
            return self._gone.result() if self._gone.done() else f"the line was lost: {line.result()}"
        finally:
            line.cancel()

    async def probe(self) -> str:
        return await probed(self._settings, self._tools)

    async def ping(self) -> None:
        await pinged(self._bus)

    def _said(self, parcel: Parcel) -> list[Saying]:
        kind, _, path = parcel.topic.partition("/")
        path, _, condition = path.partition("/~")
        if kind not in ("reading", "score", "alarm", "device"):
            return []
        try:
            return self._node.say(
                kind, path, condition or "anomaly", msgspec.json.decode(parcel.payload), self._now_ms()
            )
        except EventError as error:
            if error.message != self._told:
                log.warning("%s is left out: %s", path, error.message)
            self._told = error.message
            return []

    def _publish(self, said: Sequence[Saying]) -> None:
        assert self._bus is not None
        try:
            self._bus.publish_many(Message(one.topic, one.payload, self._settings.qos) for one in said)
        except BusError as error:
            raise explained(error) from error

    async def _hear(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            for message in batch:
                if message.topic.startswith(f"{sparkplug.NAMESPACE}/STATE/"):
                    self._hear_host(message.payload)
                else:
                    self._obey(message.payload)

    def _hear_host(self, payload: bytes) -> None:
        try:
            state = sparkplug.host_state(payload)
        except EventError:
            return
        if state.timestamp < self._host_at:
            return  # the last will of a session that is over already
        self._host_at = state.timestamp
        if state.online:
            self._host_is_there.set()
        elif self._gone is not None and not self._gone.done() and self._host_is_there.is_set():
            self._gone.set_result(f"the primary host '{self._settings.host}' has left")

    def _obey(self, payload: bytes) -> None:
        try:
            wanted = wants_rebirth(payload)
        except EventError:
            return
        if wanted and self._bus is not None:
            self._publish(self._node.birth(self._bd_seq, self._now_ms()))

    def _now_ms(self) -> int:
        return self._tools.clock() // 1_000_000

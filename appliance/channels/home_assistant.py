"""Home Assistant, by its MQTT discovery: every asset is a device there, with its points, score, alarms and model, and a
button to acknowledge each alarm. Points that `[[points]]` declares, and that wait for no second word, are switches and
numbers there: what is set there is checked here as if it were set by `millwright points`, and stands in the audit.

    [forward.home_assistant]
    url = "mqtt://homeassistant.local:1883"
    username = "millwright"
    password = {vault = "mqtt/home"}

Only the present state of things is told, at most every `interval_s`; alarms at once. Configurations are told again
when Home Assistant starts. An asset that was silent for `forget_days` is taken out; so is what a box of this name told
in a former life.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta, field

from appliance.bus.port import Batch, Bus, Message
from appliance.channels._lines import LineSettings, dialled, drained, explained, pinged, probed
from appliance.channels.leaving import home
from appliance.channels.leaving.terms import Forwarded
from appliance.channels.port import Origin, Request, Tools
from appliance.errors import BusError
from appliance.runtime.patience import within
from appliance.store.parcels import Parcel

DAY = 86_400_000_000_000  # ns
SETTLE_S = 1.0  # for what the broker has kept to come
MAX_ASSETS = 5000
MAX_KEPT = 20_000  # of what the broker kept of a former life
MAX_ASKED = 100
BY = "home assistant"


class Settings(LineSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Home Assistant's MQTT broker."""

    kinds: Annotated[list[Forwarded], Meta(description="What is told.")] = field(
        default_factory=lambda: ["alarm", "state", "score", "reading", "device"]
    )
    discovery: Annotated[
        str, Meta(pattern=r"^[^#+/\x00-\x1f]{1,64}$", description="Home Assistant's own prefix for discovery.")
    ] = "homeassistant"
    prefix: Annotated[
        str,
        Meta(
            pattern=r"^[^#+\x00-\x1f/][^#+\x00-\x1f]{0,199}$", description="The topic before states; `{box}`: this box."
        ),
    ] = "millwright/{box}"
    interval_s: Annotated[float, Meta(ge=0, le=3600, description="Between two states of the same thing, at least.")] = (
        1.0
    )
    settable: Annotated[
        bool, Meta(description="Whether declared points may be set there; those that want a confirmation never are.")
    ] = False
    forget_days: Annotated[
        float, Meta(ge=0.01, le=3650, description="An asset that is silent for so long is taken out.")
    ] = 30.0


def create(settings: Settings, tools: Tools) -> "HomeAssistant":
    return HomeAssistant(settings, tools)


class HomeAssistant:
    conflates = True
    depth = 1

    def __init__(self, settings: Settings, tools: Tools) -> None:
        self.progress = 0
        self.rest_s = settings.interval_s
        self._settings, self._tools = settings, tools
        self._prefix = settings.prefix.replace("{box}", tools.box)
        self._bus: Bus | None = None
        self._closing = AsyncExitStack()
        self._assets: dict[str, home.Asset] = {}
        declared = tools.settable if settings.settable else ()
        self._settable = {(one.asset, one.point): one for one in declared if one.confirmation == "none"}
        self._services: dict[str, None] = {}
        self._alarmed: set[str] = set()  # topics of alarms that the broker keeps a state of
        self._standing: dict[tuple[str, str], str] = {}  # asset and condition -> the alarm's id
        self._seen: dict[str, int] = {}  # identity -> when it was last heard of, UTC ns
        self._told_seen = 0
        self._asked: asyncio.Queue[Request] = asyncio.Queue(MAX_ASKED)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            availability = f"{self._prefix}/availability"
            bus = await opening.enter_async_context(
                dialled(self._settings, self._tools, Message(availability, b"offline", 1, True))
            )
            self._bus = bus
            kept, heard = _Kept(), f"{self._prefix}/known"
            batches = await opening.enter_async_context(
                bus.subscribe(home.topic(self._settings.discovery, "+"), heard, f"{self._prefix}/alarm/#", qos=1)
            )
            await within(SETTLE_S, kept.hear(batches))
            self._take_out(kept)
            self._alarmed |= kept.alarms.keys()
            self._standing |= {_alarm_of(topic, self._prefix): alarm for topic, alarm in kept.alarms.items()}
            asking = await opening.enter_async_context(
                bus.subscribe(f"{self._settings.discovery}/status", f"{self._prefix}/ask/#", qos=1)
            )
            hearing = asyncio.create_task(self._hear(asking), name="forward home assistant")
            opening.callback(hearing.cancel)
            bus.publish(availability, b"online", qos=1, retain=True)
            self._tell_all()
            self._closing = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bus is not None and self._bus.connected:
            self._bus.publish(f"{self._prefix}/availability", b"offline", qos=1, retain=True)
        await self._closing.aclose()
        self._bus = None

    async def deliver(self, origin: Origin, parcels: Sequence[Parcel]) -> None:
        assert self._bus is not None
        try:
            for parcel in parcels:
                if parcel.newest:
                    self._tell(parcel)
            self._remember()
        except BusError as error:
            raise explained(error) from error
        await drained(self._bus, self.lost())
        self.progress += len(parcels)

    async def lost(self) -> str:
        assert self._bus is not None
        return await self._bus.wait_lost()

    async def probe(self) -> str:
        return await probed(self._settings, self._tools)

    async def ping(self) -> None:
        await pinged(self._bus)

    async def requests(self) -> AsyncIterator[Request]:
        while True:
            yield await self._asked.get()

    # Telling

    def _tell(self, parcel: Parcel) -> None:
        assert self._bus is not None
        kind, _, path = parcel.topic.partition("/")
        path, _, condition = path.partition("/~")
        fields = msgspec.json.decode(parcel.payload)
        if kind == "state":
            if path not in self._services:
                self._services[path] = None
                self._configure_box()
        elif not self._meet(kind, path, condition or "anomaly", fields):
            return
        topic = f"{self._prefix}/{parcel.topic}"
        self._bus.publish(topic, parcel.payload, qos=1, retain=True)
        if kind == "alarm":
            self._alarmed.add(topic)

    def _meet(self, kind: str, path: str, condition: str, fields: dict[str, Any]) -> bool:
        """Whether there is room for it."""
        asset = self._assets.get(path)
        if asset is None:
            if len(self._assets) >= MAX_ASSETS:
                return False
            asset = self._assets[path] = home.Asset(path, [one for one in self._settable.values() if one.asset == path])
        self._seen[home.identity(self._tools.box, path)] = self._tools.clock()
        if kind == "alarm":
            self._standing[(path, condition)] = fields["id"]
        if asset.meet(kind, condition, fields):
            self._configure(asset)
            self._told_seen = 0
        return True

    def _configure(self, asset: home.Asset) -> None:
        document = home.configuration(self._tools.box, asset, self._prefix, self._tools.version)
        self._announce(home.identity(self._tools.box, asset.path), document)
        alarm = f"{self._prefix}/alarm/{asset.path}"
        if alarm not in self._alarmed:  # there was none: it is off, not unknown
            assert self._bus is not None
            self._alarmed.add(alarm)
            self._bus.publish(alarm, b'{"state":"normal"}', qos=1, retain=True)

    def _configure_box(self) -> None:
        services = sorted(self._services)
        document = home.box_configuration(self._tools.box, services, self._prefix, self._tools.version)
        self._announce(home.identity(self._tools.box), document)

    def _announce(self, which: str, document: dict[str, Any]) -> None:
        assert self._bus is not None
        topic = home.topic(self._settings.discovery, which)
        self._bus.publish(topic, msgspec.json.encode(document), qos=1, retain=True)

    def _tell_all(self) -> None:
        for asset in self._assets.values():
            self._configure(asset)
        if self._services:
            self._configure_box()

    def _remember(self) -> None:
        """When each asset was last heard of: kept by the broker, for the next life of this box."""
        assert self._bus is not None
        now = self._tools.clock()
        if not 0 <= now - self._told_seen < DAY // 24:
            self._told_seen = now
            self._bus.publish(f"{self._prefix}/known", msgspec.json.encode(self._seen), qos=1, retain=True)

    def _take_out(self, kept: "_Kept") -> None:
        """Ghosts: what a box of this name announced, and what nobody has heard of for long."""
        assert self._bus is not None
        own, now = home.identity(self._tools.box), self._tools.clock()
        oldest = now - round(self._settings.forget_days * DAY)
        self._seen = {which: at for which, at in (kept.seen | self._seen).items() if at >= oldest}
        for which in kept.announced:
            if which.startswith(f"{own}-") and which not in self._seen:
                self._bus.publish(home.topic(self._settings.discovery, which), b"", qos=1, retain=True)
        for path in [path for path in self._assets if home.identity(self._tools.box, path) not in self._seen]:
            del self._assets[path]

    # Hearing

    async def _hear(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            for message in batch:
                if message.topic == f"{self._settings.discovery}/status":
                    if message.payload == b"online" and not message.retain:
                        self._tell_all()
                elif not message.retain:  # a button that was pressed while we were away is no order
                    self._ask(message)

    def _ask(self, message: Message) -> None:
        try:
            asked = msgspec.json.decode(message.payload, type=_Asked)
        except msgspec.DecodeError:
            return
        request: Request | None = None
        alarm = self._standing.get((asked.asset, asked.condition))
        if message.topic == f"{self._prefix}/ask/ack" and alarm:
            request = Request("detect", "ack", {"alarm": alarm}, BY)
        elif message.topic == f"{self._prefix}/ask/set" and (asked.asset, asked.point) in self._settable:
            told = {"asset": asked.asset, "point": asked.point, "value": asked.value}
            request = Request("ingest", "set", told, BY)
        if request and not self._asked.full():
            self._asked.put_nowait(request)


class _Asked(msgspec.Struct):
    asset: str
    condition: str = "anomaly"
    point: str = ""
    value: bool | float = 0.0


class _Alarm(msgspec.Struct):
    id: str = ""


def _alarm_of(topic: str, prefix: str) -> tuple[str, str]:
    path, _, condition = topic.removeprefix(f"{prefix}/alarm/").partition("/~")
    return path, condition or "anomaly"


class _Kept:
    """What the broker has kept of a former life."""

    def __init__(self) -> None:
        self.announced: set[str] = set()
        self.seen: dict[str, int] = {}
        self.alarms: dict[str, str] = {}  # topic -> id

    async def hear(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            for message in batch:
                if message.topic.endswith("/known"):
                    self._learn(message.payload)
                elif message.payload and "/alarm/" in message.topic:
                    self._note(message)
                elif message.payload and len(self.announced) < MAX_KEPT:
                    self.announced.add(message.topic.split("/")[-2])

    def _note(self, message: Message) -> None:
        if len(self.alarms) >= MAX_KEPT:
            return
        try:
            self.alarms[message.topic] = msgspec.json.decode(message.payload, type=_Alarm).id
        except msgspec.DecodeError:
            return

    def _learn(self, payload: bytes) -> None:
        try:
            self.seen = msgspec.json.decode(payload, type=dict[str, int]) if payload else {}
        except msgspec.DecodeError:
            self.seen = {}

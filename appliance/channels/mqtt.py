"""Any MQTT broker: a cloud's, a plant's, another Millwright's.

    [forward.mqtt]
    url = "mqtts://broker.example:8883"
    username = "box7"
    password = {vault = "mqtt/cloud"}
    prefix = "plant/box7"

Each event is one JSON message of QoS 1 at `<prefix>/<kind>/<asset>`, in its envelope (`leaving/envelope.py`). Alarms
that stand and states are retained. A message counts as delivered when the broker has acknowledged it; with
`confirm = "receiver"` when a receiver has (`tools/receive` is one): what a broker forgets is then sent again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from appliance.bus.port import Batch, Bus, Message
from appliance.channels._lines import CONNECT_S, LineSettings, dialled, explained, pinged, probed
from appliance.channels.leaving import envelope
from appliance.channels.port import Origin, Tools
from appliance.errors import BusError, ChannelError
from appliance.runtime.patience import within
from appliance.store.parcels import NAMES, SINGLE, Lane, Parcel

PACK_BYTES, HEAD_BYTES = 256 << 10, 120  # of a pack; of an envelope, at most
MAX_SENDERS = 1000  # whose marks are heard at one prefix
LOOK_S = 0.02  # how often acknowledgements are counted while a batch is under way


class Settings(LineSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A broker elsewhere, which gets every event as a JSON message."""

    prefix: Annotated[
        str,
        Meta(
            pattern=r"^[^#+\x00-\x1f/][^#+\x00-\x1f]{0,199}$",
            description="The topic before `/<kind>/<asset>`; `{box}` stands for this box's name.",
        ),
    ] = "millwright/{box}"
    pack: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="So many readings and scores in one message at most, a JSON list at `<prefix>/pack`: half the "
            "price, for receivers that take it apart, as `tools/receive` does.",
        ),
    ] = 1
    confirm: Annotated[
        Literal["broker", "receiver"],
        Meta(
            description="Who says that an event has arrived. `receiver`: one that publishes its marks at "
            "`<prefix>/confirmed/<from>`; nothing is lost then though the broker is."
        ),
    ] = "broker"


def create(settings: Settings, tools: Tools) -> "Mqtt":
    return Mqtt(settings, tools)


class Mqtt:
    conflates = False
    depth = 2  # while one is confirmed, the next is on its way
    rest_s = 0.0

    def __init__(self, settings: Settings, tools: Tools) -> None:
        self.progress = 0
        self._settings, self._tools = settings, tools
        self._prefix = settings.prefix.replace("{box}", tools.box)
        self._bus: Bus | None = None
        self._closing = AsyncExitStack()
        self._receiver = _Receiver(self._prefix) if settings.confirm == "receiver" else None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            bus = await opening.enter_async_context(dialled(self._settings, self._tools))
            if self._receiver:
                self._receiver.begin()
                filters = (f"{self._prefix}/receiver", f"{self._prefix}/confirmed/+")
                batches = await opening.enter_async_context(bus.subscribe(*filters, qos=1))
                hearing = asyncio.create_task(self._receiver.hear(batches), name="forward confirmations")
                opening.callback(hearing.cancel)
                if not await within(CONNECT_S, self._receiver.presence()):
                    raise ChannelError(
                        f"the broker answers, but no receiver is at '{self._prefix}/receiver'",
                        'Start it, or set confirm = "broker".',
                    )
            self._bus, self._closing = bus, opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()
        self._bus = None

    async def deliver(self, origin: Origin, parcels: Sequence[Parcel]) -> None:
        assert self._bus is not None
        try:
            self._bus.publish_many(self._all_messages(origin, parcels))
        except BusError as error:
            raise explained(error) from error
        lost: asyncio.Future[Any] = asyncio.ensure_future(self._bus.wait_lost())
        try:
            await self._taken(origin, parcels, lost)
        finally:
            lost.cancel()

    async def lost(self) -> str:
        assert self._bus is not None
        return await self._bus.wait_lost()

    async def probe(self) -> str:
        return await probed(self._settings, self._tools)

    async def ping(self) -> None:
        await pinged(self._bus)

    def _all_messages(self, origin: Origin, parcels: Sequence[Parcel]) -> Iterator[Message]:
        single = next((place for place, parcel in enumerate(parcels) if parcel.lane not in SINGLE), len(parcels))
        for parcel in parcels[:single]:
            yield from self._standing(origin, parcel)
        if self._settings.pack == 1:
            for parcel in parcels[single:]:
                yield Message(f"{self._prefix}/{parcel.topic}", envelope.seal(origin.outbox, parcel), 1)
            return
        place = single
        while place < len(parcels):
            some = _fitting(parcels[place : place + self._settings.pack])
            place += len(some)
            yield Message(f"{self._prefix}/pack", envelope.pack(origin.outbox, some), 1)

    def _standing(self, origin: Origin, parcel: Parcel) -> list[Message]:
        """Of an alarm or a state: the broker keeps what stands."""
        topic = f"{self._prefix}/{parcel.topic}"
        stands = parcel.newest and bool(parcel.key)
        over = parcel.lane is Lane.ALARM and b'"state":"normal"' in parcel.payload
        message = Message(topic, envelope.seal(origin.outbox, parcel), 1, stands and not over)
        return [message, Message(topic, b"", 1, True)] if stands and over else [message]

    async def _taken(self, origin: Origin, parcels: Sequence[Parcel], lost: "asyncio.Future[Any]") -> None:
        """ChannelError where the line is lost first."""
        assert self._bus is not None
        if self._receiver:
            await self._confirmed(origin, parcels, lost)
        else:
            await self._acknowledged(lost)
        if lost.done():
            raise ChannelError(f"the line was lost: {lost.result()}", "It is opened again by itself.")

    async def _acknowledged(self, lost: "asyncio.Future[Any]") -> None:
        assert self._bus is not None
        draining: asyncio.Future[Any] = asyncio.ensure_future(self._bus.drain())
        try:
            left = self._bus.unacknowledged
            while not (draining.done() or lost.done()):
                await asyncio.wait([lost, draining], timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                self.progress += left - self._bus.unacknowledged
                left = self._bus.unacknowledged
        finally:
            draining.cancel()

    async def _confirmed(self, origin: Origin, parcels: Sequence[Parcel], lost: "asyncio.Future[Any]") -> None:
        assert self._receiver is not None
        wanted = {NAMES[parcel.lane]: parcel.seq for parcel in parcels}
        waiting: asyncio.Future[Any] = asyncio.ensure_future(self._receiver.has(origin.outbox, wanted, self._note))
        try:
            await asyncio.wait([waiting, lost], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
        finally:
            waiting.cancel()

    def _note(self) -> None:
        self.progress += 1


def _fitting(parcels: Sequence[Parcel]) -> Sequence[Parcel]:
    """The first of them that fit into one message."""
    size = 0
    for place, parcel in enumerate(parcels):
        size += len(parcel.payload) + len(parcel.topic) + HEAD_BYTES
        if size > PACK_BYTES and place:
            return parcels[:place]
    return parcels


class _Receiver:
    """What the receiver has said."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._changed = asyncio.Event()
        self.begin()

    def begin(self) -> None:
        """A new line: what was said on the last one may be over."""
        self._word = envelope.Word(False)
        self._run = ""
        self._marks: dict[str, envelope.Marks] = {}

    async def hear(self, batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            for message in batch:
                self._take(message)
            self._changed.set()

    async def presence(self) -> None:
        while not self._word.online:
            await self._change()
        self._run = self._word.run

    async def has(self, outbox: str, wanted: dict[str, int], note: Callable[[], None]) -> None:
        """Until it has confirmed these. ChannelError where it left, or asks for all of it again."""
        while True:
            if not self._word.online:
                raise ChannelError("the receiver has left", "It is waited for.")
            if self._word.run != self._run:
                raise ChannelError("the receiver misses something", "It is sent again.")
            known = self._marks.get(outbox)
            if known and all(known.marks.get(lane, 0) >= seq for lane, seq in wanted.items()):
                return
            await self._change()
            note()

    def _take(self, message: Message) -> None:
        try:
            if message.topic == f"{self._prefix}/receiver":
                self._word = envelope.word(message.payload) if message.payload else envelope.Word(False)
            else:
                if len(self._marks) >= MAX_SENDERS:
                    self._marks.clear()  # its word comes again; those of other boxes are not ours
                self._marks[message.topic.rpartition("/")[2]] = envelope.marks(message.payload)
        except msgspec.DecodeError:
            return  # whoever may write there but knows no better has confirmed nothing

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

"""Hosts dialects: listens to a broker in their place, and yields what devices say.

Each dialect has a session of its own, because its filters may overlap with those of others; filters that it asks for
later are subscribed in the same session.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from appliance.connectors._pace import REAL, Time
from appliance.connectors._streams import Streams
from appliance.connectors.dialects._devices import Devices, Limits
from appliance.connectors.dialects.port import Dialect, Listen, Mortal, Outcome, Request
from appliance.connectors.port import Arrival
from appliance.errors import BusError, EventError
from appliance.events.ledger import Ledger
from appliance.events.schema import Device

log = logging.getLogger(__name__)

MAX_FILTERS = 20_000  # of a dialect
MAX_REQUESTS = 1000  # published after one batch
MAX_TOPIC = 400  # characters; devices are remembered by what stands in their topics


class Heard(Protocol):
    """A message, as the bus hands it over."""

    @property
    def topic(self) -> str: ...

    @property
    def payload(self) -> bytes: ...


class Line(Protocol):
    """What is needed of a session with a broker."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def subscribe(self, *filters: str) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Heard]]]: ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None: ...

    def on_connected(self, callback: Callable[[], None]) -> None: ...


Open = Callable[[Request | None], Line]  # with what the broker says when the session is lost
Known = Callable[[str], Device | None]


class _Voice:
    """A dialect, its devices and its session."""

    def __init__(self, dialect: Dialect, devices: Devices, line: Line, will: Request | None) -> None:
        self.dialect, self.devices, self.line, self.will = dialect, devices, line, will
        self.filters: set[str] = set()


class Listening:
    """A connector that may be silent for long. `open_line` makes a session, one for each dialect."""

    is_patient = True

    def __init__(
        self,
        dialects: Sequence[Dialect],
        open_line: Open,
        limits: Limits | None = None,
        known: Known = lambda _: None,
        time: Time = REAL,
    ) -> None:
        self.ledger = Ledger()
        self._dialects, self._open, self._time = dialects, open_line, time
        self._limits, self._known = limits or Limits(), known
        self._voices: list[_Voice] = []
        self._streams = Streams(self.ledger)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._stack, self._streams = AsyncExitStack(), Streams(self.ledger)
        try:
            for dialect in self._dialects:
                will = dialect.will(self._time.now()) if isinstance(dialect, Mortal) else None
                line = self._open(will)
                await self._stack.enter_async_context(line)
                devices = Devices(dialect.name, self.ledger, self._limits, self._known)
                self._voices.append(voice := _Voice(dialect, devices, line, will))
                if dialect.filters:
                    self._listen(voice, dialect.filters)
                line.on_connected(partial(self._greet, voice))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        return self._streams.read()

    def command(self, verb: str, args: dict[str, Any]) -> dict[str, Any] | None:
        """`write` with asset, point and value; `forget` with asset."""
        asset = str(args.get("asset", ""))
        for voice in self._voices:
            key = voice.devices.key(asset)
            if key is None:
                continue
            if verb == "forget":
                voice.devices.forget(asset)
                return {"asset": asset}
            if verb == "write":
                self._publish(voice, voice.dialect.write(key, str(args.get("point")), float(args.get("value", 0.0))))
                return {"asset": asset, "point": args.get("point"), "value": args.get("value")}
        return None

    def _listen(self, voice: _Voice, filters: Iterable[str]) -> None:
        new = tuple(one for one in dict.fromkeys(filters) if one not in voice.filters)
        if not new or len(voice.filters) + len(new) > MAX_FILTERS:
            return
        voice.filters.update(new)
        self._streams.start(self._hear(voice, new), f"listening {voice.dialect.name}")

    async def _hear(self, voice: _Voice, filters: tuple[str, ...]) -> None:
        try:
            async with voice.line.subscribe(*filters) as batches:
                async for batch in batches:
                    await self._take(voice, batch)
        except BusError as error:
            if len(filters) > 1:  # one that cannot be had must not cost the others
                voice.filters.difference_update(filters)
                for one in filters:
                    self._listen(voice, (one,))
                return
            log.warning("%s is not heard at %s: %s", voice.dialect.name, ", ".join(filters)[:200], error.message)

    def _greet(self, voice: _Voice) -> None:
        self._publish(voice, voice.dialect.greet())

    async def _take(self, voice: _Voice, batch: Sequence[Heard]) -> None:
        arrivals: list[Arrival] = []
        wanted: list[str] = []
        requests: list[Request] = []
        now = self._time.now()
        for message in batch:
            outcomes = self._understood(voice, message, now)
            if not outcomes:
                continue
            wanted += [one for outcome in outcomes if isinstance(outcome, Listen) for one in outcome.filters]
            requests += [outcome for outcome in outcomes if isinstance(outcome, Request)]
            said = [outcome for outcome in outcomes if not isinstance(outcome, Listen | Request)]
            arrivals += voice.devices.take(said, now)
        self._listen(voice, wanted)
        self._publish(voice, requests[:MAX_REQUESTS])
        await self._streams.put(arrivals)

    def _understood(self, voice: _Voice, message: Heard, now: int) -> Sequence[Outcome]:
        try:
            if len(message.topic) > MAX_TOPIC:
                raise EventError("topic", f"{message.topic[:80]}...: a topic of {len(message.topic)} characters")
            return voice.dialect.take(message.topic, message.payload, now)
        except EventError as error:
            self.ledger.received += 1
            self.ledger.refuse(error, message.topic)
            return ()

    def _publish(self, voice: _Voice, requests: Iterable[Request]) -> None:
        for request in requests:
            try:
                stands = request.stands
                voice.line.publish(request.topic, request.payload, qos=int(stands), retain=stands)
            except BusError as error:
                log.warning("%s: %s", voice.dialect.name, error.message)

    async def _close(self) -> None:
        await self._streams.close()
        for voice in self._voices:
            if voice.will is not None:  # which a session that ends as planned does not leave
                self._publish(voice, [voice.will])
        self._voices.clear()
        await self._stack.aclose()

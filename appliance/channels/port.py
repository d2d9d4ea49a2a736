"""A channel: one destination of what leaves the box, and the line to it.

One file a channel; the file's name is its name in the configuration (`[forward.NAME]`). The file has one `Settings`
struct (over `Terms`) and one `create(settings, tools) -> Channel`; its docstring shows the configuration that uses it.

`async with channel` opens the line, for as long as it holds: ChannelError where it cannot be opened. The forward
service then delivers one batch after the other. What was not delivered is delivered again on the next line, so a
channel keeps nothing; each parcel has a number (`from`, lane, `seq`), by which a receiver drops what it has already.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from appliance.bus.port import Bus, Credentials, Message, Papers
from appliance.config.schema import Settable
from appliance.config.secrets import Reveal
from appliance.store.parcels import Parcel


class Dial(Protocol):
    """Makes a session with a broker elsewhere, forgotten there when it ends. BusError for what cannot be used."""

    def __call__(
        self,
        url: str,
        *,
        will: Message | None = None,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        credentials: Credentials | None = None,
        papers: Papers | None = None,
    ) -> Bus: ...


class Tools(NamedTuple):
    """What a channel is given beside its settings."""

    dial: Dial
    reveal: Reveal  # ChannelError where the vault does not answer
    box: str  # the name of this box, fit for a topic's level
    clock: Callable[[], int]  # UTC ns
    version: str
    settable: Sequence[Settable] = ()  # points of devices that people may set


class Origin(NamedTuple):
    """By what receivers know the numbers: an outbox that was begun anew has another name."""

    outbox: str


class Channel(Protocol):
    conflates: bool  # only the present state of everything is wanted: what was before it need not arrive
    depth: int  # batches under way at once; more than one only where it refuses no parcel
    rest_s: float  # between two batches without an alarm
    progress: int  # rises as the destination answers

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def deliver(self, origin: Origin, parcels: Sequence[Parcel]) -> None:
        """Returns when the destination has all of them for good. ChannelError where it has not, or not all;
        RefusedParcelError where it says that it will never take one of them. The caller may give up waiting."""

    async def lost(self) -> str:
        """Until the line is lost: why."""

    async def probe(self) -> str:
        """Try the destination without disturbing what runs, on a line of its own: what was seen. ChannelError."""


class Request(NamedTuple):
    """What somebody at the destination asks of a service on this box."""

    service: str
    verb: str
    args: dict[str, Any]
    by: str


@runtime_checkable
class Asking(Protocol):
    """What a channel may offer besides: people at the destination ask for something."""

    def requests(self) -> AsyncIterator[Request]:
        """For as long as the line holds."""


@runtime_checkable
class Pingable(Protocol):
    """What a channel may offer besides, whose open line can be asked whether it holds."""

    async def ping(self) -> None:
        """Until the other side has answered. ChannelError where the line is lost."""

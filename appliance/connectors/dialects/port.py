"""A dialect: what the devices of a maker say over MQTT, and how to answer. Pure: topics, bytes and times come in.

One file a dialect, named as in the configuration (`[dialects.NAME]`), with one `Settings` and one `create(settings)`.
`take` is given every message of `filters` and of the filters it asked for with `Listen`; it returns what it understood.
A message that it cannot read is an EventError; one whose device is known is `Refused` with that device's key, so that a
person sees who sends it. Units are the device's own words: whoever hosts the dialect turns them into UCUM.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

from msgspec import Meta, Struct, field

MAX_PAYLOAD = 256 << 10  # bytes of a device's message; announcements of a whole network may take more
MAX_ANNOUNCEMENT = 1 << 20

Value = float | int | bool | str | None


class Facts(Struct, frozen=True):
    """What a device says of itself. `key` is by what its dialect knows it, for ever: an address, not a name."""

    key: str
    name: str = ""
    maker: str = ""
    model: str = ""
    version: str = ""
    units: dict[str, str] = field(default_factory=dict)  # point -> unit as the device writes it; may be in part
    settable: tuple[str, ...] = ()  # points that `write` can set
    proof: str = ""  # what no two devices share (a MAC): another one under the same key is another device


class Sample(NamedTuple):
    """Points of a device, sampled together. Words such as ON and OFF count as 1 and 0, other text as nothing."""

    key: str
    values: dict[str, Value]
    at: int | None = None  # UTC ns by the device's clock; none: now


class Standing(NamedTuple):
    key: str
    available: bool


class Refused(NamedTuple):
    """A message of this device that cannot be used, counted under a reason."""

    key: str
    reason: str
    message: str


class Request(NamedTuple):
    """Something to publish, so that devices tell more."""

    topic: str
    payload: bytes
    stands: bool = False  # the broker keeps it for those who come later


class Listen(NamedTuple):
    """Filters to subscribe besides. They must not overlap with others of the dialect."""

    filters: tuple[str, ...]


Outcome = Facts | Sample | Standing | Refused | Request | Listen


class Dialect(Protocol):
    name: str
    filters: tuple[str, ...]

    def greet(self) -> Sequence[Request]:
        """After each connection: what makes devices introduce themselves."""

    def take(self, topic: str, payload: bytes, at: int) -> Sequence[Outcome]:
        """What a message says; `at` is its arrival in UTC ns. EventError where it cannot be read."""

    def write(self, key: str, point: str, value: float) -> Sequence[Request]:
        """What sets a point of a device. ConnectorError where this dialect cannot."""


@runtime_checkable
class Mortal(Protocol):
    """What a dialect may offer whose devices want to know whether this side is there."""

    def will(self, at: int) -> Request | None:
        """Before each session, at this time: what the broker says when this side is gone; None where nothing is."""


Words = Annotated[list[str], Meta(max_length=64)]

"""The bus: publish, publish_many, and subscriptions that yield batches.

Guarantees that every implementation gives (tests/contract/test_bus.py):
- `publish` never blocks. QoS 1 is kept, in order, until the broker has acknowledged it, through any number of
  reconnects; QoS 0 published while there is no connection is dropped and counted in `ledger` ("offline"), as is QoS 0
  that a stalled broker does not take ("stalled"): received and dropped, so that the books balance.
- A batch counts as dealt with when the next one is asked for: only then are its QoS 1 messages acknowledged. A consumer
  that dies inside the loop's body is given them again: within the session when it subscribes again, or, in a session
  with a name (`client_id`), by the broker when a new process opens that session.
- A session with a name is kept by the broker while nobody has it open: its QoS 1 messages wait.
- After each (re)connection the will and all subscriptions stand, then the `on_connected` callbacks run.
- A consumer that is too slow loses QoS 0 messages beyond its capacity, counted in `ledger` under "overrun"; QoS 1
  never: the broker keeps them. A payload over MAX_PAYLOAD is counted under "too-large".
- Messages of one publisher and one QoS arrive in the order they were published.
- Leaving `async with bus` as planned (also when cancelled) sends what is left, shortly, and no will. Leaving it by an
  error is an abrupt loss: the broker publishes the will.

What nobody can promise:
- QoS 1 is at least once: after a reconnection a message may come a second time.
- A broker that is killed forgets what it acknowledged since its last save (`broker.save_interval_s`), unless it had
  handed it on. Whatever must stand is asserted again in an `on_connected` callback.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, Self

from msgspec import Struct

from appliance.events.ledger import Ledger


class Message(Struct, frozen=True, gc=False):
    """A struct, because that takes 50 ns to make, a named tuple 150; outside the garbage collector's books."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False  # received: it was kept by the broker before the subscription was made


Batch = list[Message]

Credentials = Callable[[], Awaitable[tuple[str, bytes]]]
"""User name and password, asked for at each connection and kept no longer. BusError where they cannot be had."""

Papers = Callable[[], Awaitable[bytes]]
"""Key and certificates, PEM, that this side shows; asked for at each connection, as above. BusError."""

CAPACITY = 100_000  # messages a subscription holds for its consumer
CAPACITY_BYTES = 64 << 20  # and bytes
MAX_PAYLOAD = 1 << 20  # bytes; a larger message is discarded while it arrives, counted under "too-large"
MAX_UNACKNOWLEDGED = 100_000  # QoS 1 messages a session keeps for a broker that is away


class Bus(Protocol):
    """One session with the broker, entered with `async with`; entering does not wait for the broker."""

    ledger: Ledger

    @property
    def connected(self) -> bool: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def wait_connected(self, within_s: float | None = None) -> None:
        """Until the broker is there and all subscriptions stand. BusError, with the cause, after `within_s` seconds."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Hand a message over. An empty payload with `retain` clears what the broker keeps of the topic.

        BusError when more QoS 1 messages wait than the session holds, for a topic with wildcards, for a payload over
        MAX_PAYLOAD.
        """

    def publish_many(self, messages: Iterable[Message]) -> None:
        """As `publish` for each of them, but joined: a tenth of the price."""

    async def drain(self) -> None:
        """Wait until everything published has left, QoS 1 acknowledged."""

    async def ping(self) -> None:
        """Until the broker has answered. BusError where there is no connection, or it is lost meanwhile. A line that
        died without a word answers nothing: the caller bounds its patience."""

    @property
    def unacknowledged(self) -> int:
        """Messages of QoS 1 that the broker has not taken over yet."""

    async def wait_lost(self) -> str:
        """Until the connection that there is ends, or at once where there is none: why."""

    def subscribe(
        self, *filters: str, qos: int = 0, capacity: int = CAPACITY
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """`async with bus.subscribe("mw/v1/reading/#") as batches: async for batch in batches: ...`

        Entered while connected, the subscription stands with the broker. BusError where filters of one session overlap,
        or where the broker refuses.
        """

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back after each (re)connection: the moment to assert retained state again. At once if connected."""

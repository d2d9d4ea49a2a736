"""The bus: publish, publish_many, and subscriptions that yield batches.

Guarantees that every implementation gives (tests/contract/test_bus.py):
- `publish` never blocks. QoS 1 is kept, in order, until the broker has acknowledged it, through any number of
  reconnects; QoS 0 published while there is no connection is dropped and counted in `ledger`.
- A batch counts as dealt with when the next one is asked for: only then are its QoS 1 messages acknowledged. A consumer
  that dies inside the loop's body is given them again.
- After each (re)connection the will and all subscriptions stand, then the `on_connected` callbacks run.
- A consumer that is too slow loses QoS 0 messages beyond its capacity, counted in `ledger` under `overrun`; QoS 1
  never: the broker keeps them.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from appliance.events.ledger import Ledger


class Message(NamedTuple):
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


Batch = list[Message]

CAPACITY = 100_000  # messages a subscription holds for its consumer
MAX_PAYLOAD = 1 << 20  # bytes; a larger message is discarded while it arrives, counted under "too-large"


class Bus(Protocol):
    """One session with the broker, entered with `async with`."""

    ledger: Ledger

    @property
    def connected(self) -> bool: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Hand a message over. BusError when more QoS 1 messages wait than the session holds."""

    def publish_many(self, messages: Iterable[Message]) -> None: ...

    async def drain(self) -> None:
        """Wait until everything published has left, QoS 1 acknowledged."""

    def subscribe(
        self, *filters: str, qos: int = 0, capacity: int = CAPACITY
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """`async with bus.subscribe("mw/v1/reading/#") as batches: async for batch in batches: ...`"""

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back after each (re)connection: the moment to assert retained state again."""

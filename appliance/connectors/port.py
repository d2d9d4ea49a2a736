"""A connector: a source of readings that is opened with `async with` and read with `async for`.

One file a connector; the file's name is its name in the configuration (`[connectors.NAME]`). The file has one
`Settings` struct and one `create(settings) -> Connector`; its docstring shows the configuration that uses it.
A source that fails raises ConnectorError (the ingest service shows it, waits and opens it again); a single bad sample
is yielded nowhere and counted through `ledger`.
"""

from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from appliance.events.ledger import Ledger
from appliance.events.schema import Block, Device, Reading


class Arrival(NamedTuple):
    """An event and the asset it belongs to. A Device tells what its source knows of it, whenever that changes."""

    asset: str
    event: Reading | Block | Device


class Connector(Protocol):
    ledger: Ledger  # received = samples seen at the source, processed = samples yielded

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        """Batches of arrivals, in order of time; ends where the source ends."""


@runtime_checkable
class Commandable(Protocol):
    """What a connector may offer besides: commands of a person, through the ingest service."""

    def command(self, verb: str, args: dict[str, Any]) -> dict[str, Any] | Awaitable[dict[str, Any]] | None:
        """The result, or what gives it; None where the command is not for this connector. ConnectorError refuses it.

        `write` {asset, point, value} sets a point of a device; `forget` {asset} drops what is remembered of it.
        """


@runtime_checkable
class Foreseeable(Protocol):
    """What a connector may offer whose source lies ready before it is opened."""

    def assets(self) -> list[str]:
        """Those it will bring readings of. ConnectorError where its source is not there."""


@runtime_checkable
class Patient(Protocol):
    """What a connector may say of itself: it runs as soon as it is open, though nothing may come for long."""

    is_patient: bool


@runtime_checkable
class Diagnosable(Protocol):
    """What a connector may offer to `millwright connector test`."""

    def diagnose(self) -> AsyncIterator[str]:
        """Lines that say what is on the wire: opens what it needs by itself. ConnectorError where nothing is."""

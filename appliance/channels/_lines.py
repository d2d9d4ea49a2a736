"""Lines to MQTT brokers elsewhere, for the channels that speak through one."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any

from msgspec import Meta

from appliance.bus.port import Bus, Credentials, Message, Papers
from appliance.channels.leaving.remedies import remedy
from appliance.channels.leaving.terms import Terms
from appliance.channels.port import Tools
from appliance.config.secrets import VaultName
from appliance.errors import BusError, ChannelError

CONNECT_S = 5.0


class LineSettings(Terms, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A broker, and who this box is to it."""

    url: Annotated[str, Meta(min_length=1, description="`mqtt://host:port`, `mqtts://host:port` or `unix:/path`.")]
    username: Annotated[str, Meta(description="Who this box is to the broker; empty: it does not say.")] = ""
    password: Annotated[VaultName | None, Meta(description="The secret that goes with `username`.")] = None
    identity: Annotated[
        VaultName | None, Meta(description="A secret with key and certificate in PEM, such as `identity/device`.")
    ] = None
    ca_file: Annotated[str, Meta(description="Certificates that sign the broker's; empty: the system's.")] = ""
    cert_file: Annotated[str, Meta(description="This box's certificate, in place of `identity`.")] = ""
    key_file: Annotated[str, Meta(description="The key of `cert_file`.")] = ""


@asynccontextmanager
async def dialled(settings: LineSettings, tools: Tools, will: Message | None = None) -> AsyncIterator[Bus]:
    """A session, connected. ChannelError where there is none within five seconds."""
    try:
        bus = tools.dial(
            settings.url,
            will=will,
            ca_file=settings.ca_file,
            cert_file=settings.cert_file,
            key_file=settings.key_file,
            credentials=_credentials(settings, tools),
            papers=_papers(settings, tools),
        )
        async with bus:
            await bus.wait_connected(CONNECT_S)
            yield bus
    except BusError as error:
        raise explained(error) from error


async def probed(settings: LineSettings, tools: Tools) -> str:
    """A session of its own, opened and closed: what was seen."""
    began = time.monotonic()
    async with dialled(settings, tools):
        return f"{settings.url} answers within {1000 * (time.monotonic() - began):.0f} ms"


async def pinged(bus: Bus | None) -> None:
    """Until the broker has answered. ChannelError."""
    assert bus is not None
    try:
        await bus.ping()
    except BusError as error:
        raise explained(error) from error


async def drained(bus: Bus, lost: Coroutine[Any, Any, str]) -> None:
    """Until the broker has taken over all that was published. ChannelError where the line is lost first."""
    draining, losing = asyncio.ensure_future(bus.drain()), asyncio.ensure_future(lost)
    try:
        await asyncio.wait([draining, losing], return_when=asyncio.FIRST_COMPLETED)
        if losing.done():
            raise ChannelError(losing.result(), "It is opened again by itself.")
    finally:
        draining.cancel()
        losing.cancel()


def explained(error: BusError) -> ChannelError:
    return ChannelError(error.message, remedy(error.message))


def _credentials(settings: LineSettings, tools: Tools) -> Credentials | None:
    username, password = settings.username, settings.password

    async def told() -> tuple[str, bytes]:
        return username, await _revealed(tools, password) if password else b""

    return told if username else None


def _papers(settings: LineSettings, tools: Tools) -> Papers | None:
    name = settings.identity

    async def told() -> bytes:
        assert name is not None
        return await _revealed(tools, name)

    return told if name else None


async def _revealed(tools: Tools, name: VaultName) -> bytes:
    try:
        return await tools.reveal(name)
    except ChannelError as error:
        raise BusError(error.message, error.remedy) from None

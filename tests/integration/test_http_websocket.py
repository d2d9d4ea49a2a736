"""Readings through a WebSocket: aiohttp's client and raw frames, against the connector."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import cbor2
import pytest

from appliance.config.secrets import VaultName
from appliance.connectors import _websocket
from appliance.connectors import http as ingress
from appliance.connectors.port import Arrival
from appliance.events.schema import Reading

TOKEN = "0123456789abcdef0123"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE_S = 20.0
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class Site:
    def __init__(self, connector: ingress.Http) -> None:
        self.connector = connector
        self.read: list[Arrival] = []

    def url(self, path: str = "/readings/hall1/pump") -> str:
        return f"ws://127.0.0.1:{self.connector.port}{path}"

    def values(self) -> list[dict[str, float]]:
        return [event.values for _, event in self.read if isinstance(event, Reading)]


@asynccontextmanager
async def site(**settings: Any) -> AsyncIterator[Site]:
    async def reveal(_: VaultName) -> bytes:
        return TOKEN.encode()

    told: dict[str, Any] = {"port": 0, "token": VaultName("http/hall1"), "assets": ["hall1"]} | settings
    found = Site(ingress.create(ingress.Settings(**told), reveal))

    async def listen() -> None:
        async for batch in found.connector:
            found.read.extend(batch)

    async with found.connector, asyncio.timeout(PATIENCE_S):
        listening = asyncio.create_task(listen())
        yield found
        while found.connector.ledger.queued:  # noqa: ASYNC110 - what is waited for is a turn away
            await asyncio.sleep(0)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def play(talk: Callable[[Site], Awaitable[object]], **settings: Any) -> Site:
    async def main() -> Site:
        async with site(**settings) as found:
            await talk(found)
        return found

    return asyncio.run(main())


def test_messages_are_bodies_and_each_is_answered() -> None:
    async def talk(found: Site) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(found.url(), headers=BEARER) as socket:
            await socket.send_str('{"temperature": 61.2}')
            assert await socket.receive_json() == {"taken": 1}
            await socket.send_bytes(cbor2.dumps({"temperature": 62.5}))
            assert await socket.receive_json() == {"taken": 1}
            await socket.send_str('{"t": 1}\n{"t": 2}\n')
            assert await socket.receive_json() == {"taken": 2}
            await socket.send_str('{"t": 1}\n{"t": }\n')
            assert "line 2" in (await socket.receive_json())["error"]
            await socket.send_str('{"t": 3}')
            assert await socket.receive_json() == {"taken": 1}

    found = play(talk)
    assert found.values() == [{"temperature": 61.2}, {"temperature": 62.5}, {"t": 1}, {"t": 2}, {"t": 3}]
    assert {asset for asset, _ in found.read} == {"hall1/pump"}
    assert sum(found.connector.ledger.dropped.values()) == 1


def test_a_browser_shows_its_token_as_a_subprotocol() -> None:
    async def talk(found: Site) -> None:
        offered = (_websocket.PROTOCOL, TOKEN)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(found.url(), protocols=offered) as socket,
        ):
            assert socket.protocol == _websocket.PROTOCOL
            await socket.send_str('{"t": 1}')
            assert await socket.receive_json() == {"taken": 1}

    assert play(talk).values() == [{"t": 1}]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/readings/hall1", {}, 401),
        ("/readings/hall1", {"Authorization": f"Bearer {TOKEN}x"}, 401),
        ("/readings/hall1", {"Sec-WebSocket-Protocol": f"other, {TOKEN}"}, 401),
        ("/readings/hall1", {"Sec-WebSocket-Protocol": "millwright"}, 401),
        ("/readings/hall2", BEARER, 403),
        ("/elsewhere", BEARER, 404),
        ("/readings/Hall1%20", BEARER, 422),
    ],
)
def test_who_is_not_let_in_hears_why(path: str, headers: dict[str, str], status: int) -> None:
    async def talk(found: Site) -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await session.ws_connect(found.url(path), headers=headers)
        assert error.value.status == status

    found = play(talk)
    assert found.read == []
    assert sum(found.connector.ledger.dropped.values()) == 1


def test_a_flood_is_answered_and_not_taken() -> None:
    told: list[dict[str, Any]] = []

    async def talk(found: Site) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(found.url(), headers=BEARER) as socket:
            for _ in range(30):
                await socket.send_str('{"t": 1}')
                told.append(await socket.receive_json())

    found = play(talk, rate_hz=1)
    taken = sum(one.get("taken", 0) for one in told)
    assert 0 < taken < 30
    assert len(found.read) == taken
    assert found.connector.ledger.dropped == {"flood": 30 - taken}


async def shaken(found: Site, version: int = 13) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Hands are shaken by hand."""
    reader, writer = await asyncio.open_connection("127.0.0.1", found.connector.port)
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    head = (
        "GET /readings/hall1 HTTP/1.1\r\nHost: box\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Authorization: Bearer {TOKEN}\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: {version}\r\n\r\n"
    )
    writer.write(head.encode())
    return reader, writer, await reader.readuntil(b"\r\n\r\n")


def frame(kind: int, payload: bytes, *, last: bool = True, masked: bool = True, size: int | None = None) -> bytes:
    mask, length = os.urandom(4), len(payload) if size is None else size
    head = bytes((kind | (0x80 if last else 0), (0x80 if masked else 0) | (length if length < 126 else 127)))
    head += struct.pack(">Q", length) if length >= 126 else b""
    return head + (mask + bytes(b ^ mask[n % 4] for n, b in enumerate(payload)) if masked else payload)


async def closed(reader: asyncio.StreamReader) -> int:
    """The code with which the other side closes, and hangs up."""
    rest = await reader.read()
    at = rest.index(bytes((0x80 | CLOSE,)))
    return int.from_bytes(rest[at + 2 : at + 4], "big")


def test_the_handshake_is_that_of_the_standard() -> None:
    async def talk(found: Site) -> None:
        _, writer, head = await shaken(found)
        assert b"101" in head.splitlines()[0]
        assert b"s3pplmbitxaq9kygzzhzrbk+xoo=" in head.lower()  # of RFC 6455, section 1.3
        writer.close()
        _, writer, head = await shaken(found, version=8)
        assert b"426" in head.splitlines()[0]
        assert b"sec-websocket-version: 13" in head.lower()
        writer.close()

    assert play(talk).read == []


def test_a_message_may_come_in_pieces_with_pings_between() -> None:
    async def talk(found: Site) -> None:
        reader, writer, _ = await shaken(found)
        pieces = frame(TEXT, b'{"t"', last=False) + frame(PING, b"here?") + frame(0, b": 1}")
        for byte in pieces:
            writer.write(bytes((byte,)))
            await writer.drain()
        assert await reader.readexactly(7) == bytes((0x80 | PONG, 5)) + b"here?"
        assert await reader.readexactly(13) == bytes((0x80 | TEXT, 11)) + b'{"taken":1}'
        writer.write(frame(CLOSE, struct.pack(">H", 1000)))
        assert await closed(reader) == 1000
        writer.close()

    assert play(talk).values() == [{"t": 1}]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b'{"t": 1}', masked=False), 1002),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(3, b""), 1002),
        (frame(0, b"no beginning"), 1002),
        (frame(TEXT | 0x40, b"packed"), 1002),  # by an extension that nobody agreed on
        (frame(TEXT, b" " * (ingress.MAX_BODY + 1), size=1 << 40), 1009),
        (frame(2, bytes(ingress.MAX_BODY), last=False) + frame(0, b"more"), 1009),
    ],
    ids=["unmasked", "no UTF-8", "of no kind", "no beginning", "packed", "too long", "too long in two parts"],
)
def test_what_is_no_message_ends_the_conversation(data: bytes, code: int) -> None:
    async def talk(found: Site) -> None:
        reader, writer, _ = await shaken(found)
        writer.write(data)
        assert await closed(reader) == code
        writer.close()

    assert play(talk).read == []


def test_who_is_silent_is_asked_and_then_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_websocket, "SILENT_S", 0.05)

    async def talk(found: Site) -> None:
        reader, writer, _ = await shaken(found)
        assert await reader.readexactly(2) == bytes((0x80 | PING, 0))
        assert await closed(reader) == 1001
        writer.close()

    assert play(talk).read == []

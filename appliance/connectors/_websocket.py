"""WebSocket (RFC 6455) on a connection whose request h11 has read: the handshake, and whole messages, bounded.

No extensions: what comes is as large as it looks. A peer that is silent is pinged, and left when it stays so.
"""

import asyncio
import base64
import hashlib
from binascii import Error
from collections.abc import AsyncIterator

import h11
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from appliance.runtime.patience import result_within

PROTOCOL = "millwright"
CHUNK = 64 << 10
SILENT_S = 30.0
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def is_asked(request: h11.Request) -> bool:
    """Does it ask for a WebSocket, in whichever way?"""
    return b"websocket" in _listed(request, b"upgrade")


def offered(request: h11.Request) -> list[str]:
    """The subprotocols that it offers, as they are spelled: where a browser, which cannot say who it is in a header of
    its own, shows its token behind PROTOCOL."""
    values = [value for name, value in request.headers if name == b"sec-websocket-protocol"]
    return [word.strip() for word in b",".join(values).decode("latin-1").split(",")]


def agreement(request: h11.Request) -> h11.InformationalResponse | None:
    """The answer that makes it one; None where the request is not as it has to be."""
    headers = dict(request.headers)
    key = headers.get(b"sec-websocket-key", b"")
    if request.method != b"GET" or headers.get(b"sec-websocket-version") != b"13" or not _is_key(key):
        return None
    accepted = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())
    told = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", accepted)]
    if PROTOCOL in offered(request):
        told.append((b"Sec-WebSocket-Protocol", PROTOCOL.encode()))
    return h11.InformationalResponse(status_code=101, headers=told)


class WebSocket:
    """`early`: what came behind the request. `most`: bytes of a message."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, early: bytes, most: int) -> None:
        self._reader, self._writer, self._most = reader, writer, most
        self._frames = Connection(ConnectionType.SERVER, trailing_data=early)

    async def tell(self, text: str) -> None:
        await self._send(TextMessage(text))

    async def messages(self) -> AsyncIterator[bytes]:
        """Until one side closes. ConnectionError where the line is lost."""
        body = bytearray()
        while True:
            for event in self._frames.events():
                if isinstance(event, TextMessage | BytesMessage):
                    body += _bytes(event)
                    if len(body) > self._most:
                        await self._close(CloseReason.MESSAGE_TOO_BIG, f"a message of more than {self._most} bytes")
                        return
                    if event.message_finished:
                        yield bytes(body)
                        body.clear()
                elif isinstance(event, Ping):
                    await self._send(event.response())
                elif isinstance(event, CloseConnection):
                    await self._send(event.response())
                    return
            if not await self._receive():
                return

    async def _receive(self) -> bool:
        for is_last in (False, True):
            try:
                data = await result_within(SILENT_S, self._reader.read(CHUNK))
            except TimeoutError:
                if not is_last:
                    await self._send(Ping())
            else:
                self._frames.receive_data(data or None)
                return True
        await self._close(CloseReason.GOING_AWAY, "silent for too long")
        return False

    async def _close(self, code: CloseReason, reason: str) -> None:
        await self._send(CloseConnection(code, reason))

    async def _send(self, event: Event) -> None:
        self._writer.write(self._frames.send(event))
        await self._writer.drain()


def _bytes(event: TextMessage | BytesMessage) -> bytes:
    return event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)


def _listed(request: h11.Request, header: bytes) -> list[bytes]:
    values = [value for name, value in request.headers if name == header]
    return [word.strip().lower() for word in b",".join(values).split(b",")]


def _is_key(text: bytes) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == 16
    except Error:
        return False

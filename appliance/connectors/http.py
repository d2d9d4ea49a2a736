"""Readings by HTTP: POST them, or send them through a WebSocket, with a token.

    [[connectors.http]]
    port = 8480
    address = "0.0.0.0"
    assets = ["hall1"]                       # a token may speak of these, and of all below them
    token = {vault = "http/hall1"}
    cert_file = "/etc/millwright/http.pem"   # TLS; without it only this machine is listened to
    key_file = "/etc/millwright/http.key"

    curl -H "Authorization: Bearer $TOKEN" -d '{"temperature": 61.2}' https://box:8480/readings/hall1/pump
    curl -H "Authorization: Bearer $TOKEN" --data-binary @lines.ndjson https://box:8480/readings/hall1/pump

A body is one reading in any form that the bus takes, JSON or CBOR (`appliance/events/codec.py`), or lines of JSON. The
answer is 202 with how many were taken; a body of which a line is wrong is refused as a whole, with the line. More than
`rate_hz` requests a second are answered 429.

A WebSocket at the same address (wss://box:8480/readings/hall1/pump) takes bodies as messages, and answers each with the
same JSON: `{"taken": 1}` or `{"error": "..."}`. A browser, which cannot set headers, shows the token as its second
subprotocol: `new WebSocket(url, ["millwright", token])`.
"""

import asyncio
import hmac
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Annotated, NamedTuple, Self
from urllib.parse import unquote

import h11
import msgspec
from msgspec import Meta, Struct

from appliance.config.secrets import Reveal, VaultName
from appliance.connectors._names import checked
from appliance.connectors._pace import REAL, Time
from appliance.connectors._streams import Streams
from appliance.connectors._websocket import PROTOCOL, WebSocket, agreement, is_asked, offered
from appliance.connectors.port import Arrival
from appliance.errors import ConfigError, ConnectorError, EventError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.runtime.patience import within

PREFIX = "/readings/"
MAX_BODY, MAX_LINES = 1 << 20, 10_000
MAX_CONNECTIONS = 64
HEAD_BYTES, CHUNK = 16 << 10, 64 << 10
IDLE_S = 30.0  # for a request to come in whole
MIN_TOKEN = 16  # characters


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Readings by HTTP, with a token."""

    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0: one that is free.")]
    token: Annotated[VaultName, Meta(description="The secret that senders show, 16 characters at least.")]
    assets: Annotated[list[str], Meta(min_length=1, max_length=1000, description="Assets, with all below them.")]
    address: Annotated[str, Meta(description="Address to listen at; others than loopback need TLS.")] = "127.0.0.1"
    cert_file: Annotated[str, Meta(description="This box's certificate, PEM.")] = ""
    key_file: Annotated[str, Meta(description="The key of `cert_file`.")] = ""
    rate_hz: Annotated[float, Meta(ge=0.1, le=100_000, description="Requests a second, of all senders.")] = 200.0


def create(settings: Settings, reveal: Reveal, time: Time = REAL) -> "Http":
    return Http(settings, reveal, time)


class Refusal(NamedTuple):
    status: int
    message: str


class Http:
    is_patient = True

    def __init__(self, settings: Settings, reveal: Reveal, time: Time) -> None:
        self.ledger = Ledger()
        self._settings, self._reveal, self._time = settings, reveal, time
        for asset in settings.assets:
            checked(asset)
        if settings.address not in ("127.0.0.1", "::1", "localhost") and not settings.cert_file:
            raise ConfigError(f"tokens would travel in clear to {settings.address}", "Set cert_file and key_file.")
        self._streams = Streams(self.ledger)
        self._token = b""
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tokens, self._filled_s = settings.rate_hz, 0.0
        self._stamped = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None, "entered first"
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def __aenter__(self) -> Self:
        self._streams = Streams(self.ledger)
        self._token = await self._reveal(self._settings.token)
        if len(self._token) < MIN_TOKEN:
            raise ConnectorError(
                f"the token '{self._settings.token.vault}' has less than {MIN_TOKEN} characters",
                f"openssl rand -hex 24 | millwright vault put {self._settings.token.vault}",
            )
        settings = self._settings
        try:
            tls = None
            if settings.cert_file:
                tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                tls.load_cert_chain(settings.cert_file, settings.key_file or None)
            self._server = await asyncio.start_server(
                self._serve, settings.address, settings.port, ssl=tls, limit=CHUNK
            )
        except OSError as error:  # ssl's errors among them
            raise ConnectorError(
                f"{settings.address}:{settings.port} cannot be opened: {error}",
                "Is the port free, are the files there?",
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        await self._streams.close()
        self._token = b""

    def __aiter__(self) -> AsyncIterator[list[Arrival]]:
        return self._streams.read()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(writer)
        try:
            with suppress(ConnectionError, h11.RemoteProtocolError, asyncio.IncompleteReadError):
                await self._converse(reader, writer)
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        while True:
            asked: list[tuple[h11.Request, bytes] | Refusal] = []
            if not await within(IDLE_S, _request(http, reader, asked)) or not asked:
                return
            found = asked[0]
            answer = found if isinstance(found, Refusal) else await self._dealt(http, *found, reader, writer)
            if answer is None:
                return
            for event in _told(answer, is_last=isinstance(found, Refusal)):
                writer.write(http.send(event) or b"")
            await writer.drain()
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _dealt(
        self,
        http: h11.Connection,
        request: h11.Request,
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> dict[str, int] | Refusal | None:
        if is_asked(request):
            return await self._listen(http, request, reader, writer)
        return await self._answer(request, body)

    async def _listen(
        self, http: h11.Connection, request: h11.Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Refusal | None:
        """A WebSocket, until it ends; what is answered where there is none."""
        asset = self._admitted(request)
        if isinstance(asset, Refusal):
            return asset
        agreed = agreement(request)
        if agreed is None:
            return self._refuse(Refusal(426, "a WebSocket is asked for by GET, in version 13"), "no-such-path")
        writer.write(http.send(agreed) or b"")
        socket = WebSocket(reader, writer, http.trailing_data[0], MAX_BODY)
        async for message in socket.messages():
            answer = await self._take(asset, message)
            told = answer if isinstance(answer, dict) else {"error": answer.message}
            await socket.tell(msgspec.json.encode(told).decode())
        return None

    async def _answer(self, request: h11.Request, body: bytes) -> dict[str, int] | Refusal:
        asset = self._admitted(request)
        if isinstance(asset, Refusal):
            return asset
        if request.method != b"POST":
            return self._refuse(Refusal(404, f"POST to {PREFIX}<asset>"), "no-such-path")
        return await self._take(asset, body)

    def _admitted(self, request: h11.Request) -> str | Refusal:
        """The asset that it may speak of."""
        if not self._is_known(request):
            return self._refuse(Refusal(401, "show the token: Authorization: Bearer ..."), "unauthorised")
        path = unquote(request.target.decode("ascii", "replace").partition("?")[0])
        if not path.startswith(PREFIX):
            return self._refuse(Refusal(404, f"POST to {PREFIX}<asset>"), "no-such-path")
        asset = path.removeprefix(PREFIX)
        try:
            topics.check_path(asset)
        except EventError as error:
            return self._refuse(Refusal(422, error.message), error.reason)
        if not any(asset == one or asset.startswith(f"{one}/") for one in self._settings.assets):
            return self._refuse(Refusal(403, f"this token does not speak of '{asset}'"), "forbidden")
        return asset

    def _is_known(self, request: h11.Request) -> bool:
        shown = dict(request.headers).get(b"authorization", b"")
        if not shown and is_asked(request) and (words := offered(request))[0] == PROTOCOL:
            shown = b"Bearer " + words[-1].encode("latin-1")
        return hmac.compare_digest(shown, b"Bearer " + self._token)

    async def _take(self, asset: str, body: bytes) -> dict[str, int] | Refusal:
        if not self._has_room():
            return self._refuse(Refusal(429, f"more than {self._settings.rate_hz:g} requests a second"), "flood")
        try:
            arrivals = self._read(asset, body)
        except EventError as error:
            return self._refuse(Refusal(422, error.message), error.reason)
        self.ledger.received += len(arrivals)
        await self._streams.put(arrivals)
        return {"taken": len(arrivals)}

    def _read(self, asset: str, body: bytes) -> list[Arrival]:
        lines = body.splitlines() if body[:1] == b"{" and b"\n" in body.strip() else [body]
        if len(lines) > MAX_LINES:
            raise EventError("too-large", f"{len(lines)} lines where {MAX_LINES} are allowed")
        arrivals = []
        for number, line in enumerate(lines, 1):
            self._stamped = max(self._time.now(), self._stamped + 1)
            if not line.strip():
                continue
            try:
                reading = codec.decode_reading(line, self._stamped)
                codec.check_points(list(reading.values))
            except EventError as error:
                raise EventError(error.reason, f"line {number}: {error.message}") from None
            arrivals.append(Arrival(asset, reading))
        if not arrivals:
            raise EventError("empty", "no reading in the body")
        return arrivals

    def _has_room(self) -> bool:
        now_s, rate = self._time.timer(), self._settings.rate_hz
        self._tokens = min(max(rate, 10.0), self._tokens + (now_s - self._filled_s) * rate)
        self._filled_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _refuse(self, refusal: Refusal, reason: str) -> Refusal:
        self.ledger.received += 1
        self.ledger.drop(reason, refusal.message)
        return refusal


def _told(answer: dict[str, int] | Refusal, *, is_last: bool) -> list[h11.Event]:
    status, told = (202, answer) if isinstance(answer, dict) else (answer.status, {"error": answer.message})
    body = msgspec.json.encode(told)
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    headers += [("Sec-WebSocket-Version", "13")] if status == 426 else []
    headers += [("Connection", "close")] if is_last else []
    return [h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()]


async def _request(
    http: h11.Connection, reader: asyncio.StreamReader, into: list[tuple[h11.Request, bytes] | Refusal]
) -> None:
    """The next request with its body; nothing where the sender has left."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(CHUNK))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                into.append(Refusal(413, f"a body of more than {MAX_BODY} bytes"))
                return
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            into.append((head, bytes(body)))
            return
        else:  # closed, or paused behind a request that was not answered
            return

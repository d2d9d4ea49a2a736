"""A small HTTP/1.1 server for programs of this machine, over h11: everything that comes from outside is bounded.

    async with listening(answer, port, Limits()) as port: ...

It listens on the loopback addresses only and refuses what a web page in a browser of this machine might send: requests
for another host's name or with an Origin. A connection is read head by head and body by body, each within a time; too
many connections, too long a body and too many bytes at once are refused with a status, and heard to their end so that
the refusal arrives.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple
from urllib.parse import unquote

import h11
import msgspec

from appliance.errors import ConfigError, RequestError
from appliance.runtime.patience import result_within, within

log = logging.getLogger(__name__)

HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
LOOPBACK = ("127.0.0.1", "::1")
HEAD_BYTES = 32 << 10
CHUNK = 256 << 10
LINGER_S, LINGER_BYTES = 5.0, 1 << 30  # what a refused client still sends is thrown away, so that it hears us


class Limits(NamedTuple):
    body_bytes: int = 64 << 20  # of one request
    held_bytes: int = 256 << 20  # of all requests at once
    connections: int = 64
    idle_s: float = 60.0  # for the next request's head to be complete
    transfer_s: float = 60.0  # for a body to come in, and for an answer to be taken


class Request(NamedTuple):
    method: str
    path: tuple[str, ...]  # its parts, decoded
    headers: Mapping[str, str]  # names in lower case
    body: bytes | bytearray


class Response(NamedTuple):
    status: int
    body: Sequence[bytes | memoryview] = ()
    headers: tuple[tuple[str, str], ...] = ()


Answer = Callable[[Request], Awaitable[Response]]


def json_response(value: object, status: int = 200) -> Response:
    return Response(status, (msgspec.json.encode(value),), (("Content-Type", "application/json"),))


def refusal(error: RequestError) -> Response:
    text = f"{error.message} ({error.remedy})" if error.remedy else error.message
    found = json_response({"error": text}, error.status)
    return found._replace(headers=(*found.headers, ("Retry-After", "1"))) if error.status == 503 else found


@asynccontextmanager
async def listening(answer: Answer, port: int, limits: Limits, setting: str = "infer.port") -> AsyncIterator[int]:
    """Serve for as long as the context lasts, on `port` or, for 0, on one that is free: which one is yielded.

    `answer` may raise RequestError. ConfigError where the port is taken; `setting` is where it was chosen.
    """
    server = _Server(answer, limits)
    sockets = _bound(port, setting)
    servers = [await asyncio.start_server(server.serve, sock=one, limit=2 * CHUNK) for one in sockets]
    try:
        yield sockets[0].getsockname()[1]
    finally:
        for one in servers:
            one.close()
        await server.end()


def _bound(port: int, setting: str) -> list[socket.socket]:
    """Sockets on IPv4's loopback address and, where this machine has it, on IPv6's, on the same port."""
    found: list[socket.socket] = []
    for family, address in zip((socket.AF_INET, socket.AF_INET6), LOOPBACK, strict=True):
        one = None
        try:
            one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, found[0].getsockname()[1] if found else port))
            found.append(one)
        except OSError as error:
            if one is not None:
                one.close()
            if not found:
                raise ConfigError(
                    f"port {port} on {address} cannot be listened on: {error.strerror}", f"Choose another {setting}."
                ) from error
    return found


class _Server:
    """What all connections share."""

    def __init__(self, answer: Answer, limits: Limits) -> None:
        self.answer, self.limits = answer, limits
        self.held = 0  # bytes of bodies
        self._open: set[asyncio.Task[object]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(self, reader, writer)
        crowded = len(self._open) >= self.limits.connections
        self._open.add(task)
        try:
            with suppress(ConnectionError, TimeoutError):
                await (connection.turn_away() if crowded else connection.converse())
        finally:
            self._open.discard(task)
            self.held -= connection.held
            writer.close()

    async def end(self) -> None:
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Connection:
    def __init__(self, server: _Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._limits = server.limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self.held = 0

    async def converse(self) -> None:
        """Request after request, until one side has had enough."""
        while await self._turn():
            self._http.start_next_cycle()
            self._server.held -= self.held
            self.held = 0

    async def turn_away(self) -> None:
        many = self._limits.connections
        await self._send(refusal(RequestError(503, f"{many} connections are open already", "Ask again later.")))
        await self._linger()

    async def _turn(self) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            request = await self._request()
            if request is None:
                return False
            response = await self._answered(request)
        except h11.RemoteProtocolError as error:
            response = refusal(RequestError(error.error_status_hint, f"this is not HTTP: {error}"))
        except RequestError as error:
            response = refusal(error)
        await self._send(response)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            return True
        await self._linger()
        return False

    async def _request(self) -> Request | None:
        """The next one, None where there is none to come."""
        head = await result_within(self._limits.idle_s, self._event())
        if not isinstance(head, h11.Request):
            return None
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
        _check_origin(headers)
        path = head.target.decode("ascii").partition("?")[0]
        parts = tuple(unquote(part) for part in path.split("/")[1:] if part)
        return Request(head.method.decode("ascii"), parts, headers, await self._body(headers))

    async def _body(self, headers: Mapping[str, str]) -> bytearray:
        body = bytearray()
        self._hold(int(headers.get("content-length", "0")), announced=True)
        if self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))
        if not await within(self._limits.transfer_s, self._fill(body)):
            raise RequestError(408, f"the body did not come within {self._limits.transfer_s:g} s")
        return body

    async def _fill(self, body: bytearray) -> None:
        while isinstance(event := await self._event(), h11.Data):
            self._hold(len(event.data))
            body += event.data
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionResetError

    def _hold(self, count: int, announced: bool = False) -> None:
        """Make room for so many bytes more. RequestError where there is none."""
        limits, server = self._limits, self._server
        if self.held + count > limits.body_bytes:
            raise RequestError(413, f"the body is larger than {limits.body_bytes:,} bytes", "Use shared memory.")
        if server.held + count > limits.held_bytes:
            raise RequestError(503, "too many large requests at once", "Ask again later, or use shared memory.")
        if not announced:
            self.held += count
            server.held += count

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            # h11 bounds a head that is not complete yet: no more than a head's bytes may come at once.
            size = HEAD_BYTES if self._http.their_state is h11.IDLE else CHUNK
            self._http.receive_data(await self._reader.read(size))
        return event

    async def _answered(self, request: Request) -> Response:
        try:
            return await self._server.answer(request)
        except RequestError:
            raise
        except Exception:  # a defect in one answer is told, and does not end the other connections
            log.exception("%s /%s", request.method, "/".join(request.path))
            return json_response({"error": "Millwright failed at this: see its log"}, 500)

    async def _send(self, response: Response) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        length = sum(len(part) for part in response.body)
        headers = [*response.headers, ("Content-Length", str(length))]
        if self._http.their_state is not h11.DONE:
            headers.append(("Connection", "close"))
        self._write(h11.Response(status_code=response.status, headers=headers))
        for part in response.body:
            # As it is: h11's own way would copy a large tensor once more.
            self._write(h11.Data(data=part))  # type: ignore[arg-type]  # anything with a length passes through
        self._write(h11.EndOfMessage())
        await result_within(self._limits.transfer_s, self._writer.drain())

    def _write(self, event: h11.Event) -> None:
        for data in self._http.send_with_data_passthrough(event) or ():
            self._writer.write(data)

    async def _linger(self) -> None:
        """Say that nothing more comes, and throw away what the other side still sends."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        await within(LINGER_S, self._hear_out())

    async def _hear_out(self) -> None:
        heard = 0
        while heard < LINGER_BYTES and (data := await self._reader.read(CHUNK)):
            heard += len(data)


def _check_origin(headers: Mapping[str, str]) -> None:
    """A page in this machine's browser reaches loopback too, under a name of its own that leads here."""
    name, _, _ = _split_port(headers.get("host", ""))
    if name.lower() not in HOSTS:
        raise RequestError(403, f"'{name[:80]}' is not served here", f"Ask for {' or '.join(sorted(HOSTS))}.")
    if "origin" in headers:
        raise RequestError(403, "requests of web pages are not answered", "Ask without an Origin.")


def _split_port(host: str) -> tuple[str, str, str]:
    head, colon, port = host.rpartition(":")
    return (head, colon, port) if colon and port.isdigit() else (host, "", "")

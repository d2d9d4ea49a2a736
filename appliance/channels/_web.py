"""Requests to a web server elsewhere, over h11: one connection, kept open, everything bounded."""

import asyncio
import ssl
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

import h11

from appliance.channels.leaving.remedies import remedy
from appliance.errors import ChannelError, ConfigError
from appliance.runtime.patience import result_within

CONNECT_S, ANSWER_S = 10.0, 30.0
CHUNK, BODY_BYTES = 64 << 10, 1 << 20


class Target(NamedTuple):
    """Of a URL."""

    host: str
    port: int
    is_tls: bool
    path: str

    @property
    def authority(self) -> str:
        usual = self.port == (443 if self.is_tls else 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if usual else f"{host}:{self.port}"


class Answer(NamedTuple):
    status: int
    body: bytes  # its first MiB


def target(url: str) -> Target:
    """ConfigError for anything but http and https."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"'{url}' is no URL: {error}", "Write https://host/path.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or " " in url:
        raise ConfigError(f"'{url}' is no URL of the web", "Write https://host/path.")
    if parts.username is not None:
        raise ConfigError("the URL carries a name or a password", "Use `bearer`: a secret of the vault.")
    is_tls = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.hostname, port or (443 if is_tls else 80), is_tls, path)


def context(ca_file: str) -> ssl.SSLContext:
    """ConfigError names a file that cannot be used."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file '{ca_file}' cannot be used: {error}", "Name a file of PEM certificates.") from None


class Web:
    """One connection at a time."""

    def __init__(self, to: Target, tls: ssl.SSLContext | None) -> None:
        self.target, self._tls = to, tls if to.is_tls else None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def connect(self) -> None:
        """ChannelError."""
        self.close()
        try:
            self._streams = await result_within(CONNECT_S, self._open())
        except TimeoutError:
            raise self._trouble(f"no answer within {CONNECT_S:g} s") from None
        except OSError as error:
            raise self._trouble(str(error)) from error
        self._http = h11.Connection(h11.CLIENT)

    async def post(self, body: bytes, headers: list[tuple[str, str]]) -> Answer:
        """ChannelError where there is no answer. Once more on a new connection where the server had closed this one."""
        is_kept = self._streams is not None
        for attempt in (0, 1):
            if self._streams is None:
                await self.connect()
            try:
                return await result_within(ANSWER_S, self._exchange(body, headers))
            except TimeoutError:
                self.close()
                raise self._trouble(f"no answer within {ANSWER_S:g} s") from None
            except (OSError, h11.ProtocolError, EOFError) as error:
                self.close()
                if attempt or not is_kept:
                    raise self._trouble(str(error) or "it hung up") from error
        raise AssertionError

    def close(self) -> None:
        if self._streams is not None:
            with suppress(OSError, RuntimeError):
                self._streams[1].close()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        name = self.target.host if self._tls else None
        return await asyncio.open_connection(self.target.host, self.target.port, ssl=self._tls, server_hostname=name)

    async def _exchange(self, body: bytes, headers: list[tuple[str, str]]) -> Answer:
        assert self._streams is not None
        reader, writer = self._streams
        head = [("Host", self.target.authority), ("Content-Length", str(len(body))), *headers]
        for event in (
            h11.Request(method="POST", target=self.target.path, headers=head),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            writer.write(self._http.send(event) or b"")
        await writer.drain()
        answer = await self._answer(reader)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()
        return answer

    async def _answer(self, reader: asyncio.StreamReader) -> Answer:
        status, body = 0, bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await reader.read(CHUNK))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > BODY_BYTES:
                    raise EOFError(f"it answers with more than {BODY_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, bytes(body))
            elif not isinstance(event, h11.InformationalResponse):
                raise EOFError("it hung up")

    def _trouble(self, problem: str) -> ChannelError:
        return ChannelError(f"{self.target.authority}: {problem}", remedy(problem))

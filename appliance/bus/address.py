"""Where a broker is, and a connection to it: `unix:/path`, `mqtt://host:port`, `mqtts://host:port`."""

import asyncio
import os
import socket
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

from appliance.bus.wire import WOULD_BLOCK
from appliance.errors import BusError

UNACKNOWLEDGED_MS = 20_000  # what the other side of a TCP line does not acknowledge for so long ends it
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_FORMS = "write bus.url as unix:/path, mqtt://host:port or mqtts://host:port"


class Address(NamedTuple):
    url: str
    scheme: str  # unix, mqtt or mqtts
    host: str  # or the path of the socket
    port: int = 0


def parse(url: str) -> Address:
    """BusError for anything but the three forms."""
    scheme, _, rest = url.partition(":")
    if scheme == "unix" and rest.startswith("/"):
        return Address(url, scheme, rest)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BusError(f"'{url}' is no address of a broker: {error}", _FORMS) from None
    if parts.username is not None or parts.password is not None:
        raise BusError("the broker's address carries a name or a password", "use a certificate: bus.cert_file")
    if scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BusError(f"'{url}' is no address of a broker", _FORMS)
    return Address(url, scheme, parts.hostname, port or _PORTS[scheme])


def tls_context(ca_file: str = "", cert_file: str = "", key_file: str = "") -> ssl.SSLContext:
    """BusError that names the file which cannot be used."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise BusError(f"bus.ca_file '{ca_file}' cannot be used: {error}", "name a file of PEM certificates") from error
    if cert_file:
        try:
            context.load_cert_chain(cert_file, key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise BusError(
                f"bus.cert_file '{cert_file}' with bus.key_file '{key_file}' cannot be used: {error}",
                "name PEM files, the key unencrypted",
            ) from error
    return context


def with_papers(context: ssl.SSLContext, papers: bytes) -> ssl.SSLContext:
    """A context that shows key and certificates, PEM, which touch no disk. BusError where they cannot be used."""
    descriptor = os.memfd_create("papers", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(papers)
        file.flush()
        try:
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        except (OSError, ssl.SSLError) as error:
            raise BusError(f"bus.identity cannot be used: {error}", _remedy(papers)) from error
    return context


def _remedy(papers: bytes) -> str:
    if b"TSS2 PRIVATE KEY" in papers:
        return "its key is in the TPM, which OpenSSL cannot use by itself: enrol anew with --key vault"
    return "put key and certificate there, both PEM, the key unencrypted"


def explain(error: OSError) -> str:
    """What a person can read: the loops word the same failure differently."""
    if isinstance(error, ssl.SSLError | socket.gaierror) or not error.errno:
        return str(error)
    return os.strerror(error.errno)


async def dial(address: Address, tls: ssl.SSLContext | None) -> socket.socket:
    """A connected, non-blocking socket. OSError where there is no broker."""
    if address.scheme == "unix":
        return await _connect(socket.AF_UNIX, address.host)
    sock = await _dial_tcp(address)
    return sock if tls is None else await _shake_hands(sock, tls, address.host)


async def _dial_tcp(address: Address) -> socket.socket:
    found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failure = OSError(f"no address for {address.host}")
    for family, *_, target in found:
        try:
            sock = await _connect(family, target)
        except OSError as error:
            failure = error
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        return sock
    raise failure


async def _connect(family: int, target: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, target)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock


async def _shake_hands(plain: socket.socket, tls: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    try:
        sock = tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        plain.close()
        raise
    try:
        while True:
            try:
                sock.do_handshake()
                return sock
            except WOULD_BLOCK as error:
                await _ready(sock, to_write=isinstance(error, ssl.SSLWantWriteError))
    except BaseException:
        sock.close()
        raise


async def _ready(sock: socket.socket, *, to_write: bool) -> None:
    loop, descriptor = asyncio.get_running_loop(), sock.fileno()
    ready = loop.create_future()
    watch, unwatch = (loop.add_writer, loop.remove_writer) if to_write else (loop.add_reader, loop.remove_reader)
    watch(descriptor, _wake, ready)
    try:
        await ready
    finally:
        unwatch(descriptor)


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)

"""The way to an outside authority, and the renewal of what it has certified.

The authority is known by its certificate alone, which was pinned by its fingerprint: no other authority of this machine
is believed, and nothing that matters is sent before its server has shown a certificate of it. An authority that does
not answer, for however long, harms nothing here: the box's own TLS does not come from it.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

import h11
import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.errors import MillwrightError, RefusedError, VaultError
from appliance.runtime.patience import result_within
from appliance.runtime.service import Clock
from appliance.vault.certificates import enrolment, identity
from appliance.vault.certificates.enrolment import MAX_BYTES, Challenge, Issued, Nonce
from appliance.vault.certificates.identity import Identities, Identity

log = logging.getLogger(__name__)

ANSWER_S = 20.0  # for one call, handshake and all
SECOND = 1_000_000_000  # ns
LOOK_NS = 3600 * SECOND  # how often the certificate is looked at
FIRST_PAUSE_NS, LAST_PAUSE_NS = 300 * SECOND, 6 * 3600 * SECOND  # between attempts that fail
TICK_S = 60.0


class Place(NamedTuple):
    url: str
    host: str
    port: int


class Refusal(msgspec.Struct, frozen=True):
    error: str
    remedy: str = ""


def place(url: str) -> Place:
    """VaultError for anything but https://host:port."""
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError as error:
        raise VaultError(f"'{url}' is no address of an authority: {error}", _FORM) from None
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query or "@" in url:
        raise VaultError(f"'{url}' is no address of an authority", _FORM)
    return Place(url, parts.hostname, port)


_FORM = "Write it as https://ca.example:8443."


class Authority:
    """One that answers over the network. VaultError where it does not, RefusedError where it says no."""

    def __init__(self, url: str, certificate: bytes, clock: Clock) -> None:
        """`certificate`: the authority's own, PEM, already trusted. `clock`: UTC ns, never below the floor."""
        self._place, self._clock = place(url), clock
        self._certificate = x509.load_pem_x509_certificate(certificate)

    async def nonce(self) -> bytes:
        return enrolment.decode(await self._post("nonce", b""), Nonce).nonce

    async def ask(self, request: enrolment.Request) -> Challenge | Issued:
        answer = enrolment.decode_answer(await self._post("request", enrolment.encode(request)))
        if isinstance(answer, Challenge | Issued):
            return answer
        raise VaultError("the authority answers as if by hand", "Is it of the same release?")

    async def conclude(self, proof: enrolment.Proof) -> Issued:
        return enrolment.decode(await self._post("proof", enrolment.encode(proof)), Issued)

    async def _post(self, what: str, body: bytes) -> bytes:
        def check(shown: bytes) -> None:
            check_server(shown, self._certificate, self._place.host, self._clock())

        return await _call(self._place, "POST", what, body, check)


async def first_contact(url: str, fingerprint: str) -> bytes:
    """The certificate, PEM, of the authority there. RefusedError where it is not the one of this fingerprint: it was
    asked for without trust, and only the fingerprint makes it trusted."""
    content = await _call(place(url), "GET", "authority", b"", lambda shown: None)
    try:
        found = x509.load_pem_x509_certificate(content)
    except ValueError:
        raise VaultError(f"what answers at {url} is no authority", "Look at the address.") from None
    if identity.fingerprint(found) != fingerprint:
        raise RefusedError(
            f"the authority at {url} has the fingerprint {identity.fingerprint(found)}, which is another one",
            "Somebody may stand in between, or the fingerprint is mistyped: 'tools/ca show' tells it.",
        )
    return content


def check_server(shown: bytes, issuer: x509.Certificate, host: str, now: int) -> None:
    """The server's certificate, DER, is the authority's own for this host. VaultError.

    Its beginning is not looked at: a box without a clock of its own is behind, and must not be shut out by that.
    """
    try:
        certificate = x509.load_der_x509_certificate(shown)
        certificate.verify_directly_issued_by(issuer)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        raise VaultError(f"'{host}' is not the authority's server", "Somebody may stand in between.") from None
    known = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    if _plain(host) not in known or ExtendedKeyUsageOID.SERVER_AUTH not in uses:
        raise VaultError(f"the authority's server is not called '{host}'", f"It is: {', '.join(sorted(known))}.")
    if certificate.not_valid_after_utc <= datetime.fromtimestamp(now // SECOND, UTC):
        raise VaultError("the certificate of the authority's server has ended", "Start tools/ca serve again.")


async def enrol(identities: Identities, clock: Clock, token: bytes = b"") -> Identity:
    """Asks the authority of the account for a certificate with a new key. VaultError and its kinds."""
    account = await asyncio.to_thread(identities.account)
    if account is None or not account.url:
        raise VaultError("no authority answers this box over the network", "millwright identity request FILE")
    there = Authority(account.url, account.authority, clock)
    request = await asyncio.to_thread(identities.ask, await there.nonce(), token)
    answer = await there.ask(request)
    if isinstance(answer, Challenge):
        answer = await there.conclude(await asyncio.to_thread(identities.prove, answer))
    return await asyncio.to_thread(identities.install, answer)


class Renewal:
    """Renews the identity after two thirds of its life. Nothing is raised, nothing is waited for; what goes wrong is in
    `trouble`, and tried again: after five minutes, then ten, at last every six hours."""

    def __init__(self, identities: Callable[[], Identities], clock: Clock) -> None:
        self._made, self._clock = identities, clock
        self._identities: Identities | None = None
        self._looked_at: int | None = None
        self._pause = LOOK_NS
        self._known: Identity | None = None
        self.trouble = ""

    async def run(self) -> None:
        while True:
            await self.tick()
            await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        now = self._clock()
        if self._looked_at is not None and 0 <= now - self._looked_at < self._pause:
            return
        self._looked_at = now
        try:
            await self._renew()
            self.trouble, self._pause = "", LOOK_NS
        except MillwrightError as error:
            self._failed(error.message)
        except Exception:
            log.exception("the renewal of this box's certificate failed: a defect")
            self._failed("a defect: see the log")

    def detail(self) -> dict[str, object]:
        """For the state of a service."""
        if self._known is None:
            return {}
        until = round(self._known.certificate.not_valid_after_utc.timestamp()) * SECOND
        return {"identity": {"name": self._known.name, "level": self._known.level, "until": until}}

    async def _renew(self) -> None:
        if self._identities is None:
            self._identities = await asyncio.to_thread(self._made)
        self._known = await asyncio.to_thread(self._identities.current)
        if self._known is None or not await asyncio.to_thread(self._identities.is_due):
            return
        self._known = await enrol(self._identities, self._clock)
        log.info("the certificate of '%s' was renewed", self._known.name)

    def _failed(self, reason: str) -> None:
        self._pause = min(2 * self._pause, LAST_PAUSE_NS) if self.trouble else FIRST_PAUSE_NS
        ends = f"; it ends {self._known.certificate.not_valid_after_utc:%Y-%m-%d}" if self._known else ""
        self.trouble = f"this box's certificate is not renewed: {reason}{ends}"
        log.warning("%s", self.trouble)


# ---- HTTPS ------------------------------------------------------------------------------------------------------


async def _call(where: Place, method: str, what: str, body: bytes, check: Callable[[bytes], None]) -> bytes:
    """`check` is given the server's certificate, DER, before anything is sent."""

    async def called() -> bytes:
        reader, writer = await asyncio.open_connection(
            where.host, where.port, ssl=_context(), server_hostname=where.host, limit=MAX_BYTES
        )
        try:
            check(writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
            return await _exchange(reader, writer, where, method, what, body)
        finally:
            writer.transport.abort()  # one call a connection; nothing is left to say

    try:
        return await result_within(ANSWER_S, called())
    except TimeoutError:
        raise VaultError(f"the authority at {where.url} does not answer", _LATER) from None
    except (OSError, h11.ProtocolError) as error:
        raise VaultError(f"the authority at {where.url} cannot be reached: {error}", _LATER) from None


_LATER = "Is it running, and is the way there open? It is tried again."


def _context() -> ssl.SSLContext:
    """The chain is checked by `check_server`: OpenSSL would judge it by this machine's clock, and by its hostname rules
    an authority that is none of the system's."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: Place, method: str, what: str, body: bytes
) -> bytes:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_BYTES)
    host = f"[{where.host}]" if ":" in where.host else where.host
    headers = [("Host", f"{host}:{where.port}"), ("Content-Length", str(len(body))), ("Connection", "close")]
    head = h11.Request(method=method, target=f"/v1/{what}", headers=headers)
    writer.write(b"".join(http.send(part) or b"" for part in (head, h11.Data(body), h11.EndOfMessage())))
    await writer.drain()
    status, content = 0, b""
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(MAX_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            content += event.data
            if len(content) > MAX_BYTES:
                raise VaultError(f"{where.url} answers with more than {MAX_BYTES} bytes", "It is no authority.")
        elif isinstance(event, h11.ConnectionClosed):
            raise VaultError(f"{where.url} hung up before it had answered", _LATER)
    return _answered(status, content, where)


def _answered(status: int, content: bytes, where: Place) -> bytes:
    if status == 200:
        return content
    try:
        said = msgspec.json.decode(content, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise VaultError(f"{where.url} answers with HTTP {status}", "It is no authority, or a broken one.") from None
    kind = RefusedError if status == 403 else VaultError
    raise kind(f"the authority says: {_told(said.error)}", _told(said.remedy))


def _told(text: str) -> str:
    """What a stranger says, for a terminal."""
    return "".join(letter for letter in text[:500] if letter.isprintable())


def _plain(host: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        return host.lower()

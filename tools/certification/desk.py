"""The authority over HTTPS, for boxes: a few small requests, each bounded.

GET  /v1/authority   its certificate, PEM      GET  /v1/revoked   the list of revoked certificates, PEM
POST /v1/nonce       -> Nonce                  POST /v1/request   Request -> Challenge or Issued
POST /v1/proof       Proof -> Issued           refusals: {"error": ..., "remedy": ...}
"""

import logging
import os
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from appliance.errors import MillwrightError, RefusedError
from appliance.vault.certificates import authority, enrolment
from appliance.vault.certificates.enrolment import MAX_BYTES, Nonce, Proof, Request
from tools.certification.office import Office

log = logging.getLogger(__name__)

PATIENCE_S = 20.0  # for one connection's next bytes
CONNECTIONS = 64


class Server(ThreadingHTTPServer):
    """`clock` gives UTC ns."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], office: Office, names: list[str], clock: Callable[[], int]) -> None:
        self.office, self.clock = office, clock
        self.turn = threading.Lock()
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._tls = _context(office, names, clock())
        super().__init__(address, Handler)

    def get_request(self) -> tuple[Any, Any]:
        """The handshake is left to the connection's own thread."""
        plain, peer = super().get_request()
        plain.settimeout(PATIENCE_S)
        return self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), peer

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection of %s failed", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = PATIENCE_S

    def do_GET(self) -> None:  # as http.server names it
        office = self.server.office
        pages = {
            "/v1/authority": lambda: authority.pem(office.authority.certificate),
            "/v1/revoked": lambda: office.revoked(self.server.clock()),
        }
        self._serve(pages.get(self.path))

    def do_POST(self) -> None:  # as http.server names it
        body, now, office = self._body(), self.server.clock(), self.server.office
        answers: dict[str, Callable[[], bytes]] = {
            "/v1/nonce": lambda: enrolment.encode(Nonce(office.nonce(now))),
            "/v1/request": lambda: enrolment.encode(office.answer(enrolment.decode(body, Request), now)),
            "/v1/proof": lambda: enrolment.encode(office.conclude(enrolment.decode(body, Proof), now)),
        }
        self._serve(answers.get(self.path))

    def _body(self) -> bytes:
        size = self.headers.get("Content-Length", "0")
        return self.rfile.read(min(int(size), MAX_BYTES + 1)) if size.isdecimal() else b""

    def _serve(self, answer: Callable[[], bytes] | None) -> None:
        if answer is None:
            self._send(404, msgspec.json.encode({"error": "there is nothing here", "remedy": ""}))
            return
        try:
            with self.server.turn:
                content = answer()
        except MillwrightError as error:
            log.warning("%s: refused %s: %s", self.client_address[0], self.path, error.message)
            told = msgspec.json.encode({"error": error.message, "remedy": error.remedy})
            self._send(403 if isinstance(error, RefusedError) else 400, told)
        else:
            self._send(200, content)

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # as inherited
        log.info("%s %s", self.client_address[0], format % args)


def _context(office: Office, names: list[str], now: int) -> ssl.SSLContext:
    """The key is in memory alone."""
    key, certificate = office.server_certificate(names, now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    descriptor = os.memfd_create("authority", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key + certificate)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context

"""A webhook: events as JSON, several in one POST.

    [forward.http]
    url = "https://plant.example/events"
    bearer = {vault = "http/plant"}
    kinds = ["alarm", "score"]

The body is `{"box": ..., "events": [{"topic": "alarm/line1/pump", "from": ..., "seq": ..., ...}, ...]}`, each event in
its envelope. Any 2xx says that all of them have arrived. 400, 413 and 422 say that one of them never will be taken:
it is found and left out; anything else is tried again. With `secret` each body is signed, so that the receiver knows
whose it is.
"""

import hashlib
import hmac
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Self

import msgspec
from msgspec import Meta, field

from appliance.channels._asked import Asked
from appliance.channels._web import Answer, Web, context, target
from appliance.channels.leaving import envelope
from appliance.channels.leaving.terms import Terms
from appliance.channels.port import Origin, Tools
from appliance.config.secrets import VaultName
from appliance.errors import ChannelError, RefusedParcelError
from appliance.store.parcels import Parcel

NEVER = (400, 413, 422)
_REMEDIES = {
    401: "See `bearer`: the server does not know this box.",
    403: "See `bearer`: the server does not let this box in.",
    404: "Is the URL right?",
    405: "Is the URL right? It takes no POST.",
    429: "It is asked too often: see `batch` and `catch_up_per_s`.",
}


class Settings(Terms, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A web server that takes events as JSON."""

    url: Annotated[str, Meta(min_length=1, description="`https://host/path`, or http.")]
    bearer: Annotated[VaultName | None, Meta(description="The secret that is sent as `Authorization: Bearer`.")] = None
    secret: Annotated[
        VaultName | None,
        Meta(description="The secret that bodies are signed with: `X-Millwright-Signature: sha256=<HMAC in hex>`."),
    ] = None
    headers: Annotated[
        dict[
            Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}$")],
            Annotated[str, Meta(pattern=r"^[\x20-\x7e]{0,1000}$")],
        ],
        Meta(description="Sent along."),
    ] = field(default_factory=dict)
    batch: Annotated[int, Meta(ge=1, le=4096, description="Events in one POST at most.")] = 500
    ca_file: Annotated[str, Meta(description="Certificates that sign the server's; empty: the system's.")] = ""


def create(settings: Settings, tools: Tools) -> "Http":
    return Http(settings, tools)


class Http(Asked):
    def __init__(self, settings: Settings, tools: Tools) -> None:
        self._settings, self._tools = settings, tools
        self._target, self._tls = target(settings.url), context(settings.ca_file)
        self._web = Web(self._target, self._tls)
        self._headers: list[tuple[str, str]] = []
        self._secret = b""

    async def __aenter__(self) -> Self:
        await self._identify()
        await self._web.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._web.close()

    async def deliver(self, origin: Origin, parcels: Sequence[Parcel]) -> None:
        for start in range(0, len(parcels), self._settings.batch):
            some = parcels[start : start + self._settings.batch]
            _check(await self._post(self._web, envelope.pack(origin.outbox, some)))
            self.progress += len(some)

    async def probe(self) -> str:
        """A POST without events."""
        await self._identify()
        web, began = Web(self._target, self._tls), time.monotonic()
        try:
            await web.connect()
            answer = await self._post(web, b"[]")
        finally:
            web.close()
        _check(answer)
        return f"{self._target.authority} answers {answer.status} within {1000 * (time.monotonic() - began):.0f} ms"

    async def _identify(self) -> None:
        settings = self._settings
        self._headers = [("Content-Type", "application/json"), ("User-Agent", f"millwright/{self._tools.version}")]
        self._headers += list(settings.headers.items())
        if settings.bearer:
            token = (await self._tools.reveal(settings.bearer)).decode("latin-1").strip()
            self._headers.append(("Authorization", f"Bearer {token}"))
        self._secret = await self._tools.reveal(settings.secret) if settings.secret else b""

    async def _post(self, web: Web, events: bytes) -> Answer:
        body = b'{"box":%s,"events":%s}' % (msgspec.json.encode(self._tools.box), events)
        headers = list(self._headers)
        if self._secret:
            headers.append(
                ("X-Millwright-Signature", f"sha256={hmac.new(self._secret, body, hashlib.sha256).hexdigest()}")
            )
        return await web.post(body, headers)


def _check(answer: Answer) -> None:
    if 200 <= answer.status < 300:
        return
    said = answer.body[:200].decode("utf-8", "replace").strip()
    problem = f"the server answers {answer.status}{f': {said}' if said.isprintable() and said else ''}"
    if answer.status in NEVER:
        raise RefusedParcelError(problem, "It is left out and counted as `rejected`, if it is refused alone.")
    raise ChannelError(problem, _REMEDIES.get(answer.status, "It is tried again by itself."))

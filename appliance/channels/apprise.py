"""Notifications of alarms to people, by Apprise: WeCom, DingTalk, Telegram, Slack, mail and a hundred others.

    [forward.apprise]
    service = {vault = "notify/telegram"}

The secret is Apprise's URL of the service, such as `tgram://TOKEN/CHAT` or `wecombot://KEY`, one in a line if there are
several: it carries a token, so it stands in the vault. Needs `millwright[notify]`. Each alarm is told in its newest
state only: what came and went while there was no network is not; several at once are one message.
"""

import asyncio
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta, field

from appliance.channels._asked import Asked
from appliance.channels.leaving.terms import Forwarded, Terms
from appliance.channels.leaving.wording import Notice, notice
from appliance.channels.port import Origin, Tools
from appliance.config.secrets import VaultName
from appliance.errors import ChannelError
from appliance.store.parcels import Lane, Parcel

MAX_SERVICES = 32


class Settings(Terms, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Services that people are reached by."""

    kinds: Annotated[list[Forwarded], Meta(description="Alarms; nothing else is told.")] = field(
        default_factory=lambda: ["alarm"]
    )
    answer_ms: Annotated[int, Meta(ge=20, le=600_000, description="As for all; these services take their time.")] = (
        10_000
    )
    give_up_s: Annotated[float, Meta(ge=0.5, le=3600, description="As for all.")] = 60.0
    service: Annotated[
        VaultName, Meta(description="The secret with Apprise's URL of the service, or several in lines.")
    ]
    states: Annotated[
        list[Literal["unacknowledged", "acknowledged", "returned", "shelved", "normal"]],
        Meta(description="Which states of an alarm are told."),
    ] = field(default_factory=lambda: ["unacknowledged", "normal"])
    severity: Annotated[Literal["warning", "alarm"], Meta(description="The least severity that is told.")] = "warning"


def create(settings: Settings, tools: Tools) -> "Notifier":
    return Notifier(settings, tools)


class Notifier(Asked):
    def __init__(self, settings: Settings, tools: Tools) -> None:
        self._settings, self._tools = settings, tools
        self._services: list[Any] = []
        self._had: dict[int, tuple[str, int]] = {}  # by service: what it was told last, so that a retry skips it

    async def __aenter__(self) -> Self:
        self._services = await self._found()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._services = []

    async def deliver(self, origin: Origin, parcels: Sequence[Parcel]) -> None:
        told = [(parcel.topic.partition("/")[2], fields) for parcel in parcels if (fields := self._wanted(parcel))]
        if told:
            await self._tell_all((origin.outbox, parcels[-1].seq), notice(self._tools.box, told))
        self.progress += len(parcels)

    async def probe(self) -> str:
        """Sends a message that says it is a test."""
        services = await self._found()
        for service in services:
            await _tell(service, Notice(f"{self._tools.box}: a test", "Millwright reaches you here.", False))
        return f"{len(services)} services took a test message"

    def _wanted(self, parcel: Parcel) -> dict[str, Any] | None:
        if parcel.lane is not Lane.ALARM or not parcel.newest:
            return None
        fields: dict[str, Any] = msgspec.json.decode(parcel.payload)
        is_grave = self._settings.severity == "warning" or fields.get("severity") == "alarm"
        return fields if is_grave and fields.get("state") in self._settings.states else None

    async def _tell_all(self, which: tuple[str, int], told: Notice) -> None:
        failure: ChannelError | None = None
        for index, service in enumerate(self._services):
            if self._had.get(index) == which:
                continue
            try:
                await _tell(service, told)
                self._had[index] = which
            except ChannelError as error:
                failure = error
        if failure is not None:
            raise failure

    async def _found(self) -> list[Any]:
        """ChannelError for a URL that Apprise does not know, without a word of what stands in it."""
        content = (await self._tools.reveal(self._settings.service)).decode("utf-8", "replace")
        urls = [line.strip() for line in content.splitlines() if line.strip()][:MAX_SERVICES]
        found = await asyncio.to_thread(_made, urls)  # it loads a hundred modules
        bad = [str(place) for place, one in enumerate(found, 1) if one is None]
        if bad or not found:
            name = self._settings.service.vault
            where = f"line {', '.join(bad)} of" if bad else "nothing in"
            raise ChannelError(
                f"{where} '{name}' is a URL that Apprise knows", "See Apprise's list of services."
            ) from None
        return found


def _made(urls: Sequence[str]) -> list[Any]:
    """None where it does not know one. ChannelError where Apprise is not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what its services import
        try:
            import apprise
        except ImportError:
            raise ChannelError("Apprise is not installed", "pip install 'millwright[notify]'") from None
        return [apprise.Apprise.instantiate(url) for url in urls]


async def _tell(service: Any, told: Notice) -> None:
    import apprise

    kind = apprise.NotifyType.FAILURE if told.is_bad else apprise.NotifyType.SUCCESS
    try:
        taken = await service.async_notify(body=told.body, title=told.title, notify_type=kind)
    except TypeError as error:  # what a service's own rules refuse
        raise ChannelError(f"{service.service_name}: {error}", "See the secret's URL.") from error
    if not taken:
        raise ChannelError(
            f"{service.service_name} did not take the message", "Is there a network, and is its token valid?"
        )

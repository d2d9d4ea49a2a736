"""Installs models: what is asked for is written down, done step by step, and told as it goes.

command/update/apply/<id>      {source, again}   a bundle's folder, or one packed into a file, on this box
command/update/plan/<id>       {source}          what that would mean; nothing is done
command/update/pause/<id>      {paused}
command/update/rollback/<id>   {}                give up what is under way, else go back from what runs
command/update/history/<id>    {}
command/update/install/<id>    told by this service: one installation and its step, retained, over restarts
"""

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from appliance import __version__
from appliance.bus.port import Bus
from appliance.config.schema import Update as Settings
from appliance.errors import BusError, ModelError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Command, CommandState
from appliance.inference import models
from appliance.inference.library import Library
from appliance.inference.models import Card
from appliance.runtime.service import Clock, Pulse
from appliance.services import commands
from appliance.services.status import Status, tell_ready
from appliance.services.trials import Trials
from ota.errors import OtaError
from ota.install import ENDS, Installation, NotNowError, Order, Step
from ota.installer import Installer
from ota.local import Local

log = logging.getLogger(__name__)

FOLDER = "update"  # in the folder of states
TICK_S = 1.0
TOLD = 4  # ended installations that stay on the bus
LISTED = 50  # of the history, at once
INSTALL = "install"

_T = TypeVar("_T")


class _Source(msgspec.Struct, forbid_unknown_fields=True):
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern="^/")]
    again: bool = False


class _Pause(msgspec.Struct, forbid_unknown_fields=True):
    paused: bool = True


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Stopping:
    """What a copy in a thread looks at, so that the end of the service does not wait for it."""

    def __init__(self) -> None:
        self.ends = False

    def __call__(self) -> None:
        if self.ends:
            raise NotNowError("the service ends", "It goes on at the next start.")


class Update:
    name = "update"

    def __init__(
        self,
        bus: Bus,
        installer: Callable[[], Installer],
        trials: Trials,
        local: Local,
        stopping: Stopping,
        library: Library,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._bus, self._begin, self._trials, self._local = bus, installer, trials, local
        self._stopping, self._library, self._settings, self._clock = stopping, library, settings, clock
        self._ledger = Ledger()
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)
        self._turn = asyncio.Lock()  # one at a time deals with the installer
        self._told: dict[str, bytes] = {}  # topic -> what stands there

    async def run(self, pulse: Pulse) -> None:
        with _in_words():
            self._installer = await asyncio.to_thread(self._begin)
        self._bus.on_connected(self._tell_again)
        async with self._bus:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._status.run(pulse), name="update status")
                    group.create_task(self._trials.listen(), name="update detector")
                    group.create_task(self._serve(), name="update commands")
                    group.create_task(self._work(), name="update installations")
                    group.create_task(tell_ready(self._bus, pulse), name="update ready")
            finally:
                self._stopping.ends = True
                self._status.publish(online=False)

    async def _work(self) -> None:
        while True:
            before = self._installer.book.active
            try:
                async with self._turn:
                    await asyncio.to_thread(self._installer.step, self._clock())
            except OtaError as error:  # the journal's disk refuses: the step is begun again
                log.error("%s", error)
            self._tell()
            after = self._installer.book.active
            if after is None or before is None or (after.order, after.step) == (before.order, before.step):
                await asyncio.sleep(TICK_S)

    async def _serve(self) -> None:
        handlers: dict[str, commands.Handler] = {
            "apply": self._apply,
            "plan": self._plan,
            "pause": self._pause,
            "rollback": self._rollback,
            "history": self._history,
        }
        await commands.serve(self._bus, self.name, handlers, self._clock, self._ledger, told=(INSTALL,))

    # ---- what is asked ---------------------------------------------------------------------------------------------

    async def _apply(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, _Source)
        bundle, card = await asyncio.to_thread(self._look, Path(asked.source))
        order = Order(secrets.token_hex(4), card.name, card.version, bundle, asked.source, command.by)
        await self._do(lambda: self._installer.ask(order, self._clock(), asked.again))
        waiting = next(one for one in self._installer.book.waiting if one.order.bundle == bundle)
        return _plain(waiting)

    async def _plan(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, _Source)
        return await asyncio.to_thread(self._planned, Path(asked.source))

    async def _pause(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, _Pause)
        await self._do(lambda: self._installer.pause(asked.paused))
        return {"paused": asked.paused}

    async def _rollback(self, command: Command) -> dict[str, Any]:
        commands.arguments(command, _Nothing)
        reason = f"{command.by or 'somebody'} did not want it"
        await self._do(lambda: self._installer.go_back(reason, self._clock()))
        book = self._installer.book
        return _plain(book.active if book.active is not None and book.active.returning else book.history[-1])

    async def _history(self, command: Command) -> dict[str, Any]:
        commands.arguments(command, _Nothing)
        return {"history": [_plain(one) for one in self._installer.book.history[-LISTED:]]}

    async def _do(self, work: Callable[[], _T]) -> _T:
        async with self._turn:
            with _in_words():
                answer = await asyncio.to_thread(work)
        self._tell()
        return answer

    def _look(self, source: Path) -> tuple[str, Card]:
        """Its hash and its card. MillwrightError where it is no bundle."""
        with _in_words():
            bundle, unpacked = self._local.identify(source)
        try:
            return bundle, models.read_card(unpacked / "bundle" if unpacked is not None else source)
        finally:
            if unpacked is not None:
                shutil.rmtree(unpacked, ignore_errors=True)

    def _planned(self, source: Path) -> dict[str, Any]:
        bundle, card = self._look(source)
        settings, book = self._settings, self._installer.book
        current = self._library.current(card.name)
        runs = models.read_card(current) if current is not None else None
        return {
            "name": card.name,
            "version": card.version,
            "bundle": bundle,
            "route": "local",
            "bytes": sum(file.bytes for file in card.files.values()),
            "free_bytes": shutil.disk_usage(self._library.root.parent).free,
            "memory_mb": settings.memory_mb,
            "compared": self._trials.compares(card.name),
            "shadow_minutes": settings.shadow_minutes,
            "watch_minutes": settings.watch_minutes,
            "looks": settings.looks,
            "way_back": f"{runs.name}@{runs.version}" if runs is not None else "",
            "in_use": current is not None and current.name == bundle,
            "refused": book.refused.get(bundle, ""),
            "waits_for": [one.title for one in book.waiting],
        }

    # ---- what is told ----------------------------------------------------------------------------------------------

    def _detail(self) -> dict[str, Any]:
        book = self._installer.book
        return {
            "paused": book.paused,
            "installations": [_plain(one) for one in book.waiting],
            "refused": len(book.refused),
        }

    def _tell_again(self) -> None:
        self._told.clear()
        self._tell()

    def _tell(self) -> None:
        """Each installation at a topic of its own; the oldest ended ones go."""
        book = self._installer.book
        told = {_topic(one): b"" for one in book.history[-2 * TOLD : -TOLD]}
        told |= {_topic(one): codec.encode(_command(one)) for one in (*book.history[-TOLD:], *book.waiting)}
        changed = {topic: payload for topic, payload in told.items() if self._told.get(topic) != payload}
        for topic, payload in changed.items():
            self._publish(topic, payload)
        self._told = {topic: payload for topic, payload in self._told.items() if topic in told}
        if changed:
            self._status.publish()

    def _publish(self, topic: str, payload: bytes) -> None:
        try:
            self._bus.publish(topic, payload, qos=1, retain=True)
        except BusError as error:
            log.warning("%s is not told: %s", topic, error.message)
            return
        self._told[topic] = payload


def _topic(one: Installation) -> str:
    return topics.command("update", INSTALL, one.order.id)


def _command(one: Installation) -> Command:
    state = CommandState.EXECUTING
    if one.step in ENDS:
        state = CommandState.SUCCESSFUL if one.step is Step.CONFIRMED else CommandState.FAILED
    order = {"name": one.order.name, "version": one.order.version, "bundle": one.order.bundle}
    return Command(one.since, state, order, one.order.by[:200], _plain(one), one.reason)


def _plain(one: Installation) -> dict[str, Any]:
    return {
        "id": one.order.id,
        "name": one.order.name,
        "version": one.order.version,
        "bundle": one.order.bundle,
        "by": one.order.by,
        "step": one.step.value,
        "reason": one.reason,
        "returning": one.returning,
        "attempts": one.attempts,
        "before": one.before,
        "trail": [[stage.step.value, stage.at] for stage in one.trail],
        "figures": one.figures,
    }


@contextmanager
def _in_words() -> Iterator[None]:
    """Errors of updates in the appliance's own."""
    try:
        yield
    except OtaError as error:
        raise ModelError(error.message, error.remedy) from error

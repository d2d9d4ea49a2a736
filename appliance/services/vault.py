"""Keeps the vault open and hands secrets out over its socket: never over the bus, where only `state/vault` tells how it
is, and `audit/vault` what was done and refused.

A vault that does not open stops nobody else: it says why to whoever asks, and is tried again when its file changes.
"""

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from appliance import __version__
from appliance.bus.port import Bus
from appliance.errors import BusError, EventError, MillwrightError, StoreError, VaultError
from appliance.events import codec, topics
from appliance.events.ledger import Ledger
from appliance.events.schema import Audit, Kind
from appliance.runtime.service import Clock, Pulse
from appliance.services.enrolling import Renewal
from appliance.services.status import Status
from appliance.vault.desk import Desk
from appliance.vault.locked import Locked
from appliance.vault.port import AuditSink, Custody
from appliance.vault.rules import Rules
from appliance.vault.server import Server, listen

log = logging.getLogger(__name__)

TOPIC = topics.topic(Kind.AUDIT, "vault")
BROKER_S = 0.5
AGAIN_S = 2.0  # how often a locked vault's file is looked at
MIRRORED = 200  # audit events of one actor a minute in the log and on the bus; the journal has them all, counted
MINUTE = 60_000_000_000  # ns


class Opening(Protocol):
    """An opened vault and its audit journal."""

    @property
    def custody(self) -> Custody: ...

    @property
    def audit(self) -> AuditSink: ...

    def close(self) -> None:
        """End the journal, forget the keys."""


class Vault:
    """`opening` opens it, which may take seconds; `stamp` changes with the vault's file."""

    name = "vault"

    def __init__(
        self,
        bus: Bus,
        opening: Callable[[], Opening],
        stamp: Callable[[], object],
        path: Path,
        rules: Rules,
        owner: int,
        clock: Clock,
        renewal: Renewal | None = None,
    ) -> None:
        self._renewal = renewal
        self._bus, self._opening, self._stamp = bus, opening, stamp
        self._path, self._rules, self._owner, self._clock = path, rules, owner, clock
        self._opened: Opening | None = None
        self._error: MillwrightError | None = None
        self._how: dict[str, Any] = {}
        self._looked_at = -1  # requests served
        self._mirror = Mirror(bus, clock)
        self._desk = Desk(Locked(VaultError("the vault is being opened", "Ask again.")), rules.current, self._mirror)
        self._server = Server(self._desk, owner, names=lambda: rules.current().by_names)
        self._ledger = Ledger()
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)

    async def run(self, pulse: Pulse) -> None:
        listener = listen(self._path)
        self._mirror.loop = asyncio.get_running_loop()
        await self._server.in_thread(self._open)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._server.serve(listener), name="vault socket")
                group.create_task(self._keep_trying(), name="vault opening")
                group.create_task(self._speak(pulse), name="vault status")
                if self._renewal is not None:
                    group.create_task(self._renewal.run(), name="vault identity")
                pulse.ready()
        finally:
            self._close(listener)

    async def _speak(self, pulse: Pulse) -> None:
        """On the bus, whose broker is started after us."""
        await asyncio.sleep(BROKER_S)
        async with self._bus:
            try:
                await self._status.run(pulse)
            finally:
                self._status.publish(online=False)

    def _open(self) -> None:
        """In the desk's thread."""
        try:
            opened = self._opening()
        except MillwrightError as error:
            self._error = error
            self._desk.custody = Locked(error)
            log.error("the vault does not open: %s", error)
            return
        self._opened, self._error = opened, None
        self._desk.custody, self._mirror.sink = opened.custody, opened.audit
        for warning in opened.custody.status().warnings:
            log.warning("the vault: %s", warning)
        self._mirror.note("vault", "vault.open", "", "done")
        self._look()

    async def _keep_trying(self) -> None:
        stamp = await asyncio.to_thread(self._stamp)
        while True:
            await asyncio.sleep(AGAIN_S)
            before, stamp = stamp, await asyncio.to_thread(self._stamp)
            # Whoever else has it open for a moment changes nothing in the file.
            if self._opened is None and (stamp != before or isinstance(self._error, StoreError)):
                await self._server.in_thread(self._open)
            await self._server.in_thread(self._look)

    def _look(self) -> None:
        if self._opened is not None and self._desk.served != self._looked_at:
            self._looked_at = self._desk.served
            self._how = described(self._opened.custody)

    def _close(self, listener: socket.socket) -> None:
        """The server has ended, and with it the desk's thread."""
        listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._mirror.sink = None
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _detail(self) -> dict[str, Any]:
        self._ledger.received = self._desk.served + self._desk.refused
        self._ledger.processed = self._desk.served
        self._ledger.dropped = {"refused": self._desk.refused} if self._desk.refused else {}
        renewal = self._renewal.trouble if self._renewal and self._opened else ""
        troubles = [self._error.message if self._error else "", self._rules.trouble, renewal]
        trouble = "; ".join(one for one in troubles if one)
        return {
            "open": self._opened is not None,
            **self._how,
            **(self._renewal.detail() if self._renewal else {}),
            "malformed": self._server.malformed,
            "turned_away": self._server.turned_away,
            **({"trouble": trouble} if trouble else {}),
        }


def described(custody: Custody) -> dict[str, Any]:
    """How it is, without a name of a secret."""
    status = custody.status()
    warned = {"fallback": "; ".join(status.warnings)} if status.warnings else {}
    return {
        "backend": status.backend,
        "suite": status.suite,
        "secrets": status.secrets,
        "damaged": len(status.damaged),
        "generation": status.generation,
        "anchored": status.anchored,
        **warned,
    }


class Mirror:
    """An AuditSink: the journal, where there is one, and the bus."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus, self._clock = bus, clock
        self.sink: AuditSink | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._since, self._told = 0, Counter[str]()

    def note(self, actor: str, action: str, subject: str, outcome: str, detail: dict[str, Any] | None = None) -> None:
        if self.sink is not None:
            self.sink.note(actor, action, subject, outcome, detail)
        event = Audit(self._clock(), actor, action, subject, outcome, detail or {})
        if not self._may_tell(actor, event.at):
            return
        if outcome != "done":
            log.warning("%s of '%s' by %s: %s", action, subject, actor, outcome)
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(self._publish, event)

    def tick(self) -> None:
        if self.sink is not None:
            self.sink.tick()

    def _may_tell(self, actor: str, now: int) -> bool:
        """Who floods hides nobody else."""
        if not 0 <= now - self._since < MINUTE:
            self._since = now
            self._told.clear()
        self._told[actor] += 1
        return self._told[actor] <= MIRRORED

    def _publish(self, event: Audit) -> None:
        with contextlib.suppress(BusError, EventError):
            self._bus.publish(TOPIC, codec.encode(event), qos=1)

"""Installs models: what is asked for, or offered, is written down, done step by step, and told as it goes.

command/update/apply/<id>      {source, again}            a bundle's folder, or one packed into a file, on this box
                               {model, place, again}      `pump` or `pump@1.3.0` of a repository; a place is optional
command/update/plan/<id>       {source} | {model, place}  what that would mean; nothing is done
command/update/look/<id>       {}                         look at the repositories now
command/update/pause/<id>      {paused}
command/update/rollback/<id>   {}                         give up what is under way, else go back from what runs
command/update/history/<id>    {}
command/update/install/<id>    told by this service: see `installations`

What a command changes waits for no download: the step that is under way stops, and goes on where it was.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from appliance import __version__
from appliance.bus.port import Bus
from appliance.config.updating import Update as Settings
from appliance.errors import MillwrightError, ModelError
from appliance.events.ledger import Ledger
from appliance.events.schema import Command
from appliance.inference.library import Library
from appliance.runtime.aside import aside
from appliance.runtime.service import Clock, Pulse
from appliance.services import commands, installations
from appliance.services.installations import INSTALL, Board, plain
from appliance.services.offers import Offers, in_words
from appliance.services.plans import Plans, Wanted, no_repository
from appliance.services.status import Status, tell_ready
from appliance.services.trials import Trials
from ota.campaign import Choice
from ota.courier import Owed, Receipt
from ota.errors import OtaError
from ota.install import HeldError, Installation, NotNowError, Order
from ota.installer import Installer
from ota.origins import source as from_repository
from ota.wanted import Wish

log = logging.getLogger(__name__)

FOLDER = "update"  # in the folder of states
TICK_S = 1.0
SHOWN_S = 0.5  # between two words about how far a step is
LOOK_S = 2.0  # between two looks at what is plugged in, and at the clock
FIRST_LOOK_S = 30.0  # at most, after the start: a site that gets its power back does not come all at once
RETRY_S = 60.0  # after a look in vain, then ever later
SPREAD = 0.2  # of the time between two looks
LISTED = 50  # of the history, at once
MINUTE_S = 60.0

_T = TypeVar("_T")


class _Pause(msgspec.Struct, forbid_unknown_fields=True):
    paused: bool = True


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Hold:
    """What a step in a thread looks at: whether somebody waits for the installer, or the service ends."""

    def __init__(self) -> None:
        self.ends = False
        self.waiting = 0

    def __call__(self) -> None:
        if self.ends:
            raise NotNowError("the service ends", "It goes on at the next start.")
        if self.waiting:
            raise HeldError("somebody has a word in between", "It goes on at once.")


class Update:
    name = "update"

    def __init__(
        self,
        bus: Bus,
        installer: Callable[[], Installer],
        trials: Trials,
        plans: Plans,
        offers: Offers,
        hold: Hold,
        library: Library,
        settings: Settings,
        owed: Owed,
        clock: Clock,
    ) -> None:
        self._bus, self._begin, self._trials, self._plans, self._offers = bus, installer, trials, plans, offers
        self._hold, self._library, self._settings, self._clock = hold, library, settings, clock
        self._owed, self._ledger = owed, Ledger()
        self._status = Status(bus, self.name, __version__, self._ledger, clock, self._detail)
        self._board = Board(bus, self._receipt)
        self._turn = asyncio.Lock()  # one at a time deals with the installer
        self._progress: tuple[int, int] | None = None  # of the step that is under way
        self._sticks: list[Path] = []
        self._receipts: dict[str, Receipt] = {}  # of what has ended since the start, and before

    async def run(self, pulse: Pulse) -> None:
        with in_words():
            self._installer = await aside(self._begin)
        self._bus.on_connected(self._tell_again)
        async with self._bus:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._status.run(pulse), name="update status")
                    group.create_task(self._trials.listen(), name="update detector")
                    group.create_task(self._serve(), name="update commands")
                    group.create_task(self._work(), name="update installations")
                    group.create_task(self._show(), name="update progress")
                    if self._offers.known:
                        group.create_task(self._watch(), name="update offers")
                    group.create_task(tell_ready(self._bus, pulse), name="update ready")
            finally:
                self._hold.ends = True
                self._installer.close()
                self._status.publish(online=False)

    # ---- what is under way -----------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            before = self._installer.book.active
            try:
                async with self._turn:
                    await aside(lambda: self._installer.step(self._clock()), "update step")
            except (OtaError, MillwrightError) as error:  # the journal's disk refuses: the step is begun again
                log.error("%s", error)
            self._tell()
            after = self._installer.book.active
            if after is None or before is None or (after.order, after.step) == (before.order, before.step):
                await self._note_ends()
                await asyncio.sleep(TICK_S)

    async def _show(self) -> None:
        """How far a step is, while it can be measured."""
        while True:
            await asyncio.sleep(SHOWN_S)
            one = self._installer.book.active
            measured = None if one is None else await aside(partial(self._measured, one))
            if measured != self._progress:
                self._progress = measured
                self._status.publish()

    def _measured(self, one: Installation) -> tuple[int, int] | None:
        try:
            return self._offers.origins.progress(one.order, one.step)
        except (OtaError, OSError):
            return None  # it is being moved, or the disk is away: the step itself will say so

    async def _note_ends(self) -> None:
        """Receipts for what has ended; they go on whatever stick is there."""
        if not self._offers.known:
            return
        book = self._installer.book
        receipts = {_end_of(one): found for one in book.history if (found := self._receipt(one)) is not None}
        if not self._owed.wants(receipts):
            return
        try:
            sticks = await aside(lambda: self._offers.origins.sticks([one.order for one in book.history]))
            left = await aside(lambda: self._owed.settle(receipts, sticks), "update receipts")
        except OtaError as error:
            log.warning("receipts wait: %s", error)
            return
        for path in left:
            log.info("a receipt was left: %s", path)

    def _receipt(self, one: Installation) -> Receipt | None:
        """Made once: what the box knew, and ran, when it had ended."""
        key = _end_of(one)
        if key not in self._receipts:
            current = self._library.current(one.order.name)
            runs = current.name if current is not None else ""
            found = installations.receipt(one, self._offers.device, self._offers.snapshot(), runs)
            if found is None:
                return None
            self._receipts[key] = found
        return self._receipts[key]

    # ---- what is offered -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at the repositories now and then, and as soon as a stick is plugged in; decide all the time."""
        await aside(self._offers.introduce)
        loop = asyncio.get_running_loop()
        poll_s = self._settings.poll_minutes * MINUTE_S if self._settings.sources else 0.0
        due = loop.time() + random.uniform(0.0, min(FIRST_LOOK_S, poll_s)) if poll_s else None
        failures = 0
        while True:
            plugged = await aside(self._offers.origins.sticks, "update sticks")
            new, self._sticks = set(plugged) - set(self._sticks), plugged
            if new or (due is not None and loop.time() >= due):
                failures = 0 if await self._look() else failures + 1
                due = loop.time() + _pause(poll_s, failures) if poll_s else None
            if new:
                await self._note_ends()
            await self._take_what_is_wanted()
            rest = LOOK_S if due is None else min(LOOK_S, max(due - loop.time(), 0.0))
            await asyncio.sleep(rest)

    async def _look(self) -> bool:
        """Whether any repository could be believed."""
        try:
            await aside(self._offers.look, "update look")
        except OtaError as error:
            log.warning("no repository could be read: %s", error)
            return False
        finally:
            self._status.publish()
        return True

    async def _take_what_is_wanted(self) -> None:
        try:
            wishes = await aside(self._offers.wishes)
        except (OtaError, MillwrightError) as error:
            log.warning("nothing is taken: %s", error)
            return
        for wish in wishes:
            if wish.decision.choice is Choice.TAKE and self._is_new(wish):
                await self._take(wish)
        for one in self._installer.book.waiting:
            if one.order.campaign and (over := self._offers.over(one.order.campaign, one.order.name)):
                await self._withdraw(one.order, over)

    async def _withdraw(self, order: Order, reason: str) -> None:
        log.info("%s@%s is given up: %s", order.name, order.version, reason)
        try:
            await self._do(lambda: self._installer.withdraw(order, reason, self._clock()))
        except ModelError as error:  # the detector is away, and has nothing to let go of; what is left is cleared later
            log.warning("%s", error)

    def _is_new(self, wish: Wish) -> bool:
        book = self._installer.book
        waiting = {one.order.bundle for one in book.waiting}
        return wish.bundle.bundle not in waiting and wish.bundle.bundle not in book.refused

    async def _take(self, wish: Wish) -> None:
        bundle = wish.bundle
        order = Order(
            secrets.token_hex(4), bundle.name, bundle.version, bundle.bundle, from_repository(), "", wish.campaign
        )
        log.info("%s@%s is taken: %s", bundle.name, bundle.version, wish.decision.reason)
        try:
            await self._do(lambda: self._installer.ask(order, self._clock()))
        except ModelError as error:
            log.info("%s", error)

    # ---- what is asked ---------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        handlers: dict[str, commands.Handler] = {
            "apply": self._apply,
            "plan": self._plan,
            "look": self._look_now,
            "pause": self._pause,
            "rollback": self._rollback,
            "history": self._history,
        }
        await commands.serve(self._bus, self.name, handlers, self._clock, self._ledger, told=(INSTALL,))

    async def _apply(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, Wanted)
        way = await aside(lambda: self._plans.way(asked))
        source = asked.source or from_repository(asked.place)
        by = command.by or "somebody"
        order = Order(secrets.token_hex(4), way["name"], way["version"], way["bundle"], source, by)
        await self._do(lambda: self._installer.ask(order, self._clock(), asked.again))
        return plain(next(one for one in self._installer.book.waiting if one.order.bundle == order.bundle))

    async def _plan(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, Wanted)
        return await aside(lambda: self._plans.plan(asked, self._installer.book))

    async def _look_now(self, command: Command) -> dict[str, Any]:
        commands.arguments(command, _Nothing)
        if not self._offers.known:
            raise no_repository()
        with in_words():
            await aside(self._offers.look, "update look")
        await self._take_what_is_wanted()
        return self._offers.describe()

    async def _pause(self, command: Command) -> dict[str, Any]:
        asked = commands.arguments(command, _Pause)
        await self._do(lambda: self._installer.pause(asked.paused))
        self._status.publish()
        return {"paused": asked.paused}

    async def _rollback(self, command: Command) -> dict[str, Any]:
        commands.arguments(command, _Nothing)
        reason = f"{command.by or 'somebody'} did not want it"
        await self._do(lambda: self._installer.go_back(reason, self._clock()))
        book = self._installer.book
        return plain(book.active if book.active is not None and book.active.returning else book.history[-1])

    async def _history(self, command: Command) -> dict[str, Any]:
        commands.arguments(command, _Nothing)
        return {"history": [plain(one) for one in self._installer.book.history[-LISTED:]]}

    async def _do(self, work: Callable[[], _T]) -> _T:
        self._hold.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._hold.waiting -= 1
        try:
            with in_words():
                answer = await aside(work)
        finally:
            self._turn.release()
        self._tell()
        return answer

    # ---- what is told ----------------------------------------------------------------------------------------------

    def _detail(self) -> dict[str, Any]:
        book = self._installer.book
        told: dict[str, Any] = {
            "paused": book.paused,
            "installations": [plain(one) for one in book.waiting],
            "refused": len(book.refused),
        }
        if self._progress is not None:
            told["progress"] = {"bytes": self._progress[0], "of": self._progress[1]}
        if self._offers.known:
            sticks = [str(stick) for stick in self._sticks]
            told["repository"] = {**self._offers.describe(), "sticks": sticks, "owed": self._owed.count}
        if book.waiting and (closed := self._offers.closed()):
            told["closed"] = closed
        return told

    def _tell_again(self) -> None:
        self._board.forget()
        self._tell()

    def _tell(self) -> None:
        if self._board.tell(self._installer.book):
            self._status.publish()


def _end_of(one: Installation) -> str:
    """What has been confirmed may be rolled back later: that is another end."""
    return f"{one.order.id} {one.step}"


def _pause(poll_s: float, failures: int) -> float:
    """Until the next look. Not all boxes at once; and after looks in vain sooner than usual, but ever later."""
    pause_s = min(poll_s, RETRY_S * 2.0 ** min(failures - 1, 10)) if failures else poll_s
    return pause_s * random.uniform(1.0 - SPREAD, 1.0 + SPREAD)

"""What an installation needs of this box: its library of models, and the detector, which tries and runs them.

Called in a thread by `ota.installer`; what the detector is asked goes through the loop. The appliance's errors become
those of updates: what a model is to blame for refuses it, what is the box's own is tried again.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.bus.port import Bus, Message
from appliance.config.updating import Update as Settings
from appliance.errors import BusError, EventError, MillwrightError, StoreError
from appliance.events import codec, topics
from appliance.events.schema import Command, CommandState, Kind, State
from appliance.inference.library import Check, Library
from appliance.runtime.service import Clock
from appliance.services import commands
from ota.errors import StorageError
from ota.install import InstallError, NotNowError, Order
from ota.installer import Ruling

MINUTE = 60_000_000_000  # ns
ANSWER_S = 30.0
OPENING_S = 1200.0  # an NPU's first compilation takes minutes
LOOK_S = 0.2  # between two looks whether somebody wants the installer
CUT_OFF = "detect stopped"  # how a command begins that it did not end
UNCOMPARED = "the detector does not follow this name: it was not compared"


class Shelf:
    """The library as an installation's store. `check` refuses what no backend loads."""

    def __init__(self, library: Library, check: Check) -> None:
        self._library, self._check = library, check

    def keep(self, order: Order, folder: Path) -> None:
        with _as_ota():
            entry, _ = self._library.add(folder, self._check)
            if entry.digest != order.bundle or entry.card.name != order.name:
                raise InstallError(f"the bundle is {entry.title}, not {order.name}@{order.version}", "Publish it anew.")

    def current(self, name: str) -> str:
        with _as_ota():
            folder = self._library.current(name)
            return folder.name if folder is not None else ""

    def use(self, order: Order, bundle: str) -> None:
        with _as_ota():
            self._library.use(self._library.find(bundle))


class Trials:
    """Compile and Trial of `ota.installer`. `follows` is the name of the detector's model; empty: it stands still."""

    def __init__(
        self,
        bus: Bus,
        library: Library,
        follows: str,
        settings: Settings,
        clock: Clock,
        goes_on: Callable[[], None] = lambda: None,
        closed: Callable[[], str] = lambda: "",
    ) -> None:
        """`goes_on` may raise to stop a wait; `closed` says why this box does not change by itself now, if so."""
        self._bus, self._library, self._settings, self._clock = bus, library, settings, clock
        self._follows, self._goes_on, self._closed = follows, goes_on, closed
        self._choice: dict[str, Any] | None = None  # what the detector tells of its models, while it runs
        self._loop: asyncio.AbstractEventLoop | None = None

    def compares(self, name: str) -> bool:
        """Whether the detector follows this name."""
        return name == self._follows

    def running(self) -> dict[str, Any]:
        """What the detector tells of the model that computes; empty while it does not run."""
        return self._choice or {}

    async def listen(self) -> None:
        """Until cancelled: what the detector says of itself."""
        self._loop = asyncio.get_running_loop()
        async with self._bus.subscribe(topics.state("detect"), qos=1) as batches:
            async for batch in batches:
                for message in batch:
                    self._hear(message)

    def _hear(self, message: Message) -> None:
        self._choice = None
        try:
            state = codec.decode(Kind.STATE, message.payload, self._clock())
        except EventError:
            return  # it has been cleared, or is nobody's state
        if isinstance(state, State) and state.online:
            choice = state.detail.get("choice")
            self._choice = choice if isinstance(choice, dict) else None

    # ---- in the thread of an installation --------------------------------------------------------------------------

    def compile(self, order: Order) -> None:
        if order.name == self._follows:
            self._ask("prepare", {"bundle": order.bundle}, OPENING_S)

    def shadow(self, order: Order, since: int, now: int) -> Ruling | None:
        if order.name != self._follows:
            return None if self._waits(order) else Ruling(True, UNCOMPARED, {"compared": False})
        compared = self._compared(order.bundle, trusted=False)
        if compared is None or now - since < self._settings.shadow_minutes * MINUTE:
            return None
        ruling = self._ruling(compared, "in shadow")
        return None if ruling is not None and ruling.passed and self._waits(order) else ruling

    def watch(self, order: Order, since: int, now: int) -> Ruling | None:
        if order.name != self._follows:
            return Ruling(True, UNCOMPARED, {"compared": False})
        choice = self._told()
        if choice.get("bundle") != order.bundle:
            trouble = str(choice.get("choice_trouble", ""))
            return Ruling(False, f"the detector cannot run it: {trouble}", {}) if trouble else None
        with _as_ota():
            before = self._library.previous(order.name).digest
        compared = self._compared(before, trusted=True)
        if compared is None:
            return None
        if compared.get("against"):
            return self._ruling(compared, "after it took over")
        enough = now - since >= self._settings.watch_minutes * MINUTE
        return self._ruling(compared, "after it took over") if enough else None

    def end(self, order: Order) -> None:
        """A detector that is away has nothing to let go of."""
        choice = self._choice
        if choice is not None and order.name == self._follows and ("comparison" in choice or "prepared" in choice):
            self._ask("drop", {}, ANSWER_S)

    def _waits(self, order: Order) -> bool:
        """It is good enough, and this is no time to change; what a person asked for is not kept waiting."""
        return not order.by and bool(self._closed())

    def _ruling(self, compared: dict[str, Any], when: str) -> Ruling | None:
        """None where too little was seen."""
        if not compared.get("findings"):
            return None
        against = str(compared.get("against", ""))
        keys = ("looks", "known", "findings")
        return Ruling(not against, f"{when}: {against}" if against else "", {key: compared.get(key) for key in keys})

    def _compared(self, beside: str, trusted: bool) -> dict[str, Any] | None:
        """What the detector tells of this comparison; it is begun where there is none."""
        compared = self._told().get("comparison")
        if isinstance(compared, dict) and (compared.get("bundle"), compared.get("trusted")) == (beside, trusted):
            return compared
        self._ask("compare", {"bundle": beside, "trusted": trusted, "criteria": self._criteria()}, OPENING_S)
        return None

    def _criteria(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "looks": settings.looks,
            "agreement": settings.agreement,
            "scores": settings.score_ratio,
            "alarms": settings.alarm_ratio,
            "residual": settings.residual_ratio,
            "latency": settings.latency_ratio,
            "memory_mb": settings.memory_mb,
        }

    def _told(self) -> dict[str, Any]:
        choice = self._choice
        if choice is None:
            raise NotNowError("the detector does not run", "millwright run detect")
        return choice

    def _ask(self, verb: str, args: dict[str, Any], timeout_s: float) -> None:
        if self._loop is None:
            raise NotNowError("the service has only begun", "")
        asked = commands.ask(self._bus, "detect", verb, args, "update", timeout_s, self._clock)
        with _as_ota():
            answer = self._answer(asyncio.run_coroutine_threadsafe(asked, self._loop))
        if answer.state is CommandState.FAILED:
            if answer.reason.startswith(CUT_OFF):
                raise NotNowError(answer.reason, "")
            message, _, remedy = answer.reason.partition("\n  -> ")
            raise InstallError(message, remedy)

    def _answer(self, asking: Future[Command]) -> Command:
        """Waited for in slices. Who is held up asks again later, and finds what the detector has done meanwhile."""
        while True:
            try:
                return asking.result(LOOK_S)
            except TimeoutError:
                if asking.done():
                    raise
                try:
                    self._goes_on()
                except BaseException:
                    asking.cancel()
                    raise
            except CancelledError as error:
                raise NotNowError("the service ends", "It goes on at the next start.") from error


@contextmanager
def _as_ota() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise StorageError(error.message, error.remedy) from error
    except BusError as error:
        raise NotNowError(error.message, error.remedy) from error
    except MillwrightError as error:
        raise InstallError(error.message, error.remedy) from error

"""How a system is installed: which step follows which, what a restart has shown, what is remembered. Pure; times: ns.

    fetching -> rebuilding -> checking -> writing -> waiting ---------> trying -> committed
        |            |            |          |      (for a restart)       |
        `------------+-- refused -+----------'            `-- rolled-back-'

Every function gives another Book; `ota.system.updater` writes each one down before it acts on it, and begins its last
step anew after any end. Until `writing` is done nothing but the slot that does not run was touched. The boot entry is
on the disk before the book says `waiting`: after a cut between the two it is tried while the book says `writing`.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from ota.errors import OtaError
from ota.system.release import order

MAX_HISTORY = 100
MAX_REFUSED = 200
MAX_REASON = 1000

_Text = Annotated[str, Meta(max_length=4096)]


class BookError(OtaError):
    """What is asked for cannot be."""


class Step(StrEnum):
    FETCHING = "fetching"
    REBUILDING = "rebuilding"
    CHECKING = "checking"
    WRITING = "writing"
    WAITING = "waiting"
    TRYING = "trying"  # it runs, and is not blessed yet
    COMMITTED = "committed"
    ROLLED_BACK = "rolled-back"
    REFUSED = "refused"


PATH = (Step.FETCHING, Step.REBUILDING, Step.CHECKING, Step.WRITING, Step.WAITING)
UNDER_WAY = PATH[:-1]  # these need what was fetched and made
TRIED = (Step.WRITING, Step.WAITING, Step.TRYING)  # a restart may have tried it
ENDS = frozenset({Step.COMMITTED, Step.ROLLED_BACK, Step.REFUSED})


class Stage(Struct, frozen=True, forbid_unknown_fields=True):
    step: Step
    at: int


class Update(Struct, frozen=True, forbid_unknown_fields=True):
    """`release`: the SHA-256 of its file, as it was signed; `before`: the version that ran, and is the way back."""

    version: _Text
    release: _Text
    before: _Text
    trail: tuple[Stage, ...]
    reason: _Text = ""

    @property
    def step(self) -> Step:
        return self.trail[-1].step


class Book(Struct, frozen=True, forbid_unknown_fields=True):
    active: Update | None = None
    history: tuple[Update, ...] = ()  # the newest last
    refused: dict[str, str] = {}  # versions that are not tried again by themselves
    committed: _Text = ""  # the newest version that ever was blessed here


class Slot(Struct, frozen=True):
    """What the slots say of the version that is being installed, and of what runs."""

    running: str
    blessed: bool  # what runs
    whole: bool  # the new version is on the disk
    given_up: bool  # no boot of it is left


def begin(book: Book, version: str, release: str, before: str, now: int) -> Book:
    """BookError where another one is under way. The same one once more goes on where it was."""
    active = book.active
    if active is not None and (active.version, active.release) == (version, release):
        return book
    if active is not None:
        raise BookError(
            f"{active.version} is being installed ({active.step})", "Give it up first: millwright update os rollback."
        )
    refused = {one: why for one, why in book.refused.items() if one != version}
    return replace(book, active=Update(version, release, before, (Stage(Step.FETCHING, now),)), refused=refused)


def proceed(book: Book, now: int) -> Book:
    """The step of the active one is done."""
    active = _active(book)
    if active.step not in UNDER_WAY:
        raise BookError(f"{active.version} is {active.step}: nothing is to be done but to restart", "")
    return replace(book, active=_moved(active, PATH[PATH.index(active.step) + 1], now))


def fail(book: Book, reason: str, now: int) -> Book:
    """It is wrong in itself: it is refused, and remembered."""
    active = _active(book)
    return _ended(book, _moved(active, Step.REFUSED, now, reason), remember=True)


def give_up(book: Book, reason: str, now: int) -> Book:
    """A person does not want it any more."""
    active = _active(book)
    end = Step.ROLLED_BACK if active.step in (Step.WAITING, Step.TRYING) else Step.REFUSED
    return _ended(book, _moved(active, end, now, reason), remember=active.step is Step.TRYING)


def note(book: Book, reason: str) -> Book:
    """Why it takes so long."""
    return replace(book, active=replace(_active(book), reason=reason[:MAX_REASON]))


def settle(book: Book, slot: Slot, now: int) -> Book:
    """What restarts have shown. The same once more changes nothing."""
    book = _witnessed(book, slot)
    active = book.active
    if active is None or active.step not in TRIED:
        return book
    if slot.running == active.version:
        if slot.blessed:
            return _ended(book, _moved(active, Step.COMMITTED, now))
        return book if active.step is Step.TRYING else replace(book, active=_moved(active, Step.TRYING, now))
    if slot.given_up:
        return _ended(book, _moved(active, Step.ROLLED_BACK, now, "no start of it came through"), remember=True)
    if active.step is Step.WRITING:
        return book
    if not slot.whole:
        return _ended(book, _moved(active, Step.ROLLED_BACK, now, "it is not on the disk any more"))
    if active.step is Step.TRYING:
        return replace(book, active=_moved(active, Step.WAITING, now, "a start of it did not come through"))
    return book


def _witnessed(book: Book, slot: Slot) -> Book:
    """A version that was blessed is never gone behind, however it came here."""
    newer = slot.blessed and slot.running and (not book.committed or order(slot.running) > order(book.committed))
    return replace(book, committed=slot.running) if newer else book


def _active(book: Book) -> Update:
    if book.active is None:
        raise BookError("no system is being installed", "millwright update os plan says what could be.")
    return book.active


def _moved(one: Update, step: Step, now: int, reason: str = "") -> Update:
    return replace(one, trail=(*one.trail, Stage(step, now))[-64:], reason=reason[:MAX_REASON])


def _ended(book: Book, one: Update, remember: bool = False) -> Book:
    refused = dict(list(book.refused.items())[1 - MAX_REFUSED :]) if remember else dict(book.refused)
    if remember:
        refused[one.version] = f"{one.step}: {one.reason}"
    committed = book.committed
    if one.step is Step.COMMITTED and (not committed or order(one.version) > order(committed)):
        committed = one.version
    return Book(None, (*book.history, one)[-MAX_HISTORY:], refused, committed)


def encode(book: Book) -> bytes:
    return msgspec.json.format(msgspec.json.encode(book), indent=1)


def decode(data: bytes) -> Book:
    """ValueError where it is none."""
    try:
        book = msgspec.json.decode(data, type=Book)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    if not all(one.trail for one in (*book.history, *([book.active] if book.active else []))):
        raise ValueError("an update that never began")
    return book

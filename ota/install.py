"""How a model is installed: which step follows which, what ends it, what is remembered. Pure; times are ns.

    queued -> downloading -> verifying -> reconstructing -> compiling -> shadow -> promoted -> confirmed
       |           |             |              |               |          |          |
       `-----------+-------------+------ refused -+-------------+----------'     rolled-back

A `Book` is all that is known: what waits (the first of it is under way), what has ended and why, and which bundles are
refused for good. Every function gives another Book; `ota.installer` writes each one down before it acts on it. So each
step may be begun more than once, and is made to bear that. Until `promoted` is written down nothing touches the model
that runs; from then on the way back is written down beside it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from ota.errors import OtaError

MAX_WAITING = 16
MAX_HISTORY = 200
MAX_REFUSED = 1000
MAX_REASON = 1000  # characters
FIRST_PAUSE, LONGEST_PAUSE = 5_000_000_000, 3_600_000_000_000  # ns between two attempts

_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
_Text = Annotated[str, Meta(max_length=4096)]


class InstallError(OtaError):
    """What is asked for cannot be: it is refused, or there is nothing to do it to."""


class NotNowError(OtaError):
    """A step cannot be done at this moment; it is tried again."""


class HeldError(NotNowError):
    """Somebody has a word to say to the installer: the step is begun anew afterwards, and goes on where it was."""


class Step(StrEnum):
    QUEUED = "queued"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    RECONSTRUCTING = "reconstructing"
    COMPILING = "compiling"
    SHADOW = "shadow"  # it judges beside the model that runs
    PROMOTED = "promoted"  # it runs, and is watched
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled-back"
    REFUSED = "refused"


PATH = (
    Step.QUEUED,
    Step.DOWNLOADING,
    Step.VERIFYING,
    Step.RECONSTRUCTING,
    Step.COMPILING,
    Step.SHADOW,
    Step.PROMOTED,
    Step.CONFIRMED,
)
ENDS = frozenset({Step.CONFIRMED, Step.ROLLED_BACK, Step.REFUSED})


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """What shall be installed: the bundle of this content hash, from `source`, whatever that is to who fetches it."""

    id: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$")]
    name: _Text
    version: _Text
    bundle: _Hash
    source: _Text = ""
    by: _Text = ""  # a person; empty: the box itself
    campaign: _Text = ""


class Stage(Struct, frozen=True, forbid_unknown_fields=True):
    step: Step
    at: int


class Installation(Struct, frozen=True, forbid_unknown_fields=True):
    order: Order
    trail: tuple[Stage, ...]  # every step it has come to; the last is its present one
    reason: _Text = ""  # why it waits, was refused or rolled back
    attempts: int = 0  # of this step, in vain
    not_before: int = 0  # the next attempt
    before: str = ""  # the bundle that it took over from, and goes back to
    switched: bool = False  # it took over
    returning: bool = False  # it is to go back
    figures: dict[str, Any] = {}

    @property
    def step(self) -> Step:
        return self.trail[-1].step

    @property
    def since(self) -> int:
        return self.trail[-1].at

    @property
    def title(self) -> str:
        return f"{self.order.name}@{self.order.version}"


class Book(Struct, frozen=True, forbid_unknown_fields=True):
    waiting: tuple[Installation, ...] = ()  # the first is under way
    history: tuple[Installation, ...] = ()  # the newest last
    refused: dict[str, str] = {}
    paused: bool = False  # nothing new is begun; what runs is watched on

    @property
    def active(self) -> Installation | None:
        return self.waiting[0] if self.waiting else None


# ---- what people ask ------------------------------------------------------------------------------------------------


def ask(book: Book, order: Order, now: int, again: bool = False) -> Book:
    """It waits for its turn; asking twice is asking once. InstallError where it was refused before and is not asked for
    `again`, or too many wait."""
    if any(one.order.bundle == order.bundle for one in book.waiting):
        return book
    if order.bundle in book.refused and not again:
        raise InstallError(
            f"{order.name}@{order.version} was refused before: {book.refused[order.bundle]}",
            "Ask for another version, or for this one once more with --again.",
        )
    if len(book.waiting) >= MAX_WAITING:
        raise InstallError(f"{MAX_WAITING} installations wait already", "Ask again when one of them has ended.")
    refused = {bundle: why for bundle, why in book.refused.items() if bundle != order.bundle}
    one = Installation(order, (Stage(Step.QUEUED, now),))
    return replace(book, waiting=(*book.waiting, one), refused=refused)


def pause(book: Book, paused: bool) -> Book:
    return replace(book, paused=paused)


def withdraw(book: Book, order_id: str, reason: str, now: int) -> Book:
    """Whoever offered it takes it back: given up unless it runs already, and not remembered as refused."""
    one = next((one for one in book.waiting if one.order.id == order_id and one.step is not Step.PROMOTED), None)
    if one is None:
        return book
    ended = _moved(one, Step.REFUSED, now, reason=reason[:MAX_REASON])
    waiting = tuple(other for other in book.waiting if other is not one)
    return replace(book, waiting=waiting, history=(*book.history, ended)[-MAX_HISTORY:])


def go_back(book: Book, reason: str, now: int, running: Mapping[str, str]) -> Book:
    """A person does not want the newest model: what is under way is given up, else what was confirmed last and still
    runs goes back. `running`: the bundle that runs, by a model's name. InstallError where there is nothing to undo."""
    if book.active is not None:
        return fail(book, reason, now)
    for one in reversed(book.history):
        if one.step is Step.CONFIRMED and one.before and running.get(one.order.name) == one.order.bundle:
            history = tuple(other for other in book.history if other is not one)
            back = _moved(one, Step.PROMOTED, now, reason=reason[:MAX_REASON], returning=True)
            return replace(book, waiting=(back, *book.waiting), history=history)
    raise InstallError("no model that was installed here runs", "millwright models use NAME --previous goes back, too.")


# ---- what happens ---------------------------------------------------------------------------------------------------


def due(book: Book, now: int) -> Installation | None:
    """What is to be done something about. An attempt that is further off than any pause was set by a clock that has
    been put back since."""
    one = book.active
    if one is None or (book.paused and one.step is not Step.PROMOTED):
        return None
    return None if 0 < one.not_before - now <= LONGEST_PAUSE else one


def proceed(book: Book, now: int, before: str = "", figures: dict[str, Any] | None = None) -> Book:
    """The step of the active one is done. `before`: the bundle that runs, on the way to `promoted`."""
    one = _active(book)
    following = PATH[PATH.index(one.step) + 1]
    changes: dict[str, Any] = {"figures": {**one.figures, one.step.value: figures}} if figures is not None else {}
    if following is Step.PROMOTED:
        changes["before"] = before
    moved = _moved(one, following, now, **changes)
    return _ended(book, moved) if following in ENDS else _with(book, moved)


def switched(book: Book) -> Book:
    """The promoted one runs."""
    return _with(book, replace(_active(book), switched=True))


def note(book: Book, reason: str) -> Book:
    """Why it takes so long."""
    return _with(book, replace(_active(book), reason=reason[:MAX_REASON]))


def delay(book: Book, reason: str, now: int) -> Book:
    """It cannot be done now: another attempt follows, ever later."""
    one = _active(book)
    pause_ns = min(FIRST_PAUSE << min(one.attempts, 20), LONGEST_PAUSE)
    changed = replace(one, reason=reason[:MAX_REASON], attempts=one.attempts + 1, not_before=now + pause_ns)
    return _with(book, changed)


def fail(book: Book, reason: str, now: int, figures: dict[str, Any] | None = None) -> Book:
    """It is not wanted any more, for good: it is refused, or on its way back where it has been promoted."""
    one = _active(book)
    changes: dict[str, Any] = {"reason": reason[:MAX_REASON], "attempts": 0, "not_before": 0}
    if figures is not None:
        changes["figures"] = {**one.figures, one.step.value: figures}
    if one.step is Step.PROMOTED:
        return _with(book, replace(one, returning=True, **changes))
    return _ended(book, _moved(one, Step.REFUSED, now, **changes), remember=one.step is not Step.QUEUED)


def returned(book: Book, now: int) -> Book:
    """What ran before runs again."""
    one = _active(book)
    return _ended(book, _moved(one, Step.ROLLED_BACK, now), remember=True)


def overruled(book: Book, now: int) -> Book:
    """Somebody chose another model while this one was watched: theirs stays."""
    one = _active(book)
    reason = one.reason if one.returning else "another model was chosen by hand while it was watched"
    return _ended(book, _moved(one, Step.ROLLED_BACK, now, reason=reason), remember=one.returning)


# ---- on disk --------------------------------------------------------------------------------------------------------


def encode(book: Book) -> bytes:
    return msgspec.json.format(msgspec.json.encode(book), indent=1)


def decode(data: bytes) -> Book:
    """ValueError where it is none."""
    try:
        book = msgspec.json.decode(data, type=Book)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    if not all(one.trail for one in (*book.waiting, *book.history)):
        raise ValueError("an installation that never began")
    return book


def _active(book: Book) -> Installation:
    if book.active is None:
        raise InstallError("no installation is under way", "")
    return book.active


def _moved(one: Installation, step: Step, now: int, **changes: Any) -> Installation:
    kept = {"attempts": 0, "not_before": 0, "reason": "", **changes}
    if step in (Step.ROLLED_BACK, Step.REFUSED):
        kept["reason"] = changes.get("reason", one.reason)
    return replace(one, trail=(*one.trail, Stage(step, now)), **kept)


def _with(book: Book, one: Installation) -> Book:
    return replace(book, waiting=(one, *book.waiting[1:]))


def _ended(book: Book, one: Installation, remember: bool = False) -> Book:
    refused = book.refused
    if remember:
        newest = list(refused.items())[1 - MAX_REFUSED :]
        refused = {**dict(newest), one.order.bundle: f"{one.step}: {one.reason}"}
    return replace(book, waiting=book.waiting[1:], history=(*book.history, one)[-MAX_HISTORY:], refused=refused)

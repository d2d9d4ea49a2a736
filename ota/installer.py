"""Carries installations out: reads the journal, does what the active one's step asks for, writes what came of it.

    downloading      fetch.bring           all that the order needs is at hand
    verifying        fetch.verify          and is what was signed
    reconstructing   reconstruct.make      the bundle's folder stands, and has the order's hash
    compiling        store.keep, compile   the box has the bundle; its devices can run it
    shadow           trial.review          it judges beside the model that runs, until there is a ruling
    promoted         store.use, trial      it runs, and is watched until there is a ruling

Every part may be called again for what it has done already: a process that is killed anywhere begins its last step
anew. What a part cannot do now it tells by a FetchError, SpaceError, StorageError or NotNowError; any other OtaError is
about the bundle, which is refused then and remembered.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ota import durable, install
from ota.errors import FetchError, OtaError, SpaceError, StorageError
from ota.install import Book, HeldError, Installation, InstallError, NotNowError, Order, Step

JOURNAL = "installations.json"
MAX_BYTES = 16 << 20
_LATER = (FetchError, SpaceError, StorageError, NotNowError)


class Ruling(NamedTuple):
    passed: bool
    reason: str  # in words
    figures: dict[str, Any]  # plain values


class Fetch(Protocol):
    def bring(self, order: Order) -> None:
        """Get what the order needs, going on where an earlier call was cut off."""

    def verify(self, order: Order) -> None:
        """What arrived is what was signed."""

    def clear(self, order: Order) -> None:
        """Nothing of it is needed any more."""


class Reconstruct(Protocol):
    def make(self, order: Order) -> Path:
        """The bundle's folder, whose content hash is the order's; what stands already is used."""


class Store(Protocol):
    def keep(self, order: Order, folder: Path) -> None:
        """Take the bundle in, for good, without using it."""

    def current(self, name: str) -> str:
        """The bundle that is used under this name; empty where there is none."""

    def use(self, order: Order, bundle: str) -> None:
        """From now on this bundle is used under the order's name."""


class Compile(Protocol):
    def compile(self, order: Order) -> None:
        """Make it ready for the devices of this box, beside what runs."""


class Trial(Protocol):
    """`since`: ns at which the step began. None: no ruling yet."""

    def shadow(self, order: Order, since: int, now: int) -> Ruling | None:
        """It judges beside the model that runs; begun where it is not."""

    def watch(self, order: Order, since: int, now: int) -> Ruling | None:
        """It runs; what ran before judges beside it."""

    def end(self, order: Order) -> None:
        """Nothing is compared any more."""


@dataclass(frozen=True)
class Parts:
    fetch: Fetch
    reconstruct: Reconstruct
    store: Store
    compile: Compile
    trial: Trial


class Journal:
    """A file with a Book: the SHA-256 of what follows, a line feed, JSON. Written whole, made durable, renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Book:
        """StorageError where it cannot be read. One that is damaged is set aside: what runs goes on running, and what
        was under way must be asked for again."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES)
        except FileNotFoundError:
            return Book()
        except OSError as error:
            raise durable.unusable(self._path, error) from error
        seal, _, text = data.partition(b"\n")
        if seal == hashlib.sha256(text).hexdigest().encode():
            try:
                return install.decode(text)
            except ValueError:
                pass
        try:
            durable.move(self._path, self._path.with_suffix(".damaged"))
        except OSError as error:
            raise durable.unusable(self._path, error) from error
        return Book()

    def write(self, book: Book) -> None:
        """StorageError."""
        text = install.encode(book)
        durable.write(self._path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


class Installer:
    """One at a time, and by one thread at a time: whoever calls `step` does so in turns with the others."""

    def __init__(self, journal: Journal, parts: Parts) -> None:
        self._journal, self._parts = journal, parts
        self.book = journal.read()
        self._closed = False
        for one in self.book.history[-1:]:
            parts.fetch.clear(one.order)  # the process may have ended before it was

    def ask(self, order: Order, now: int, again: bool = False) -> None:
        """InstallError where it cannot be asked for, or is in use already."""
        if self._parts.store.current(order.name) == order.bundle:
            raise InstallError(f"{order.name}@{order.version} is in use already", "There is nothing to do.")
        self._write(install.ask(self.book, order, now, again))

    def withdraw(self, order: Order, reason: str, now: int) -> None:
        """Whoever offered it takes it back. Nothing happens where it runs already."""
        before = self.book
        self._write(install.withdraw(self.book, order.id, reason, now))
        if self.book is not before and before.active is not None and before.active.order == order:
            self._tidy(order)

    def close(self) -> None:
        """Nothing is written any more: a step that is under way begins anew in the next process."""
        self._closed = True

    def pause(self, paused: bool) -> None:
        self._write(install.pause(self.book, paused))

    def go_back(self, reason: str, now: int) -> None:
        """InstallError where there is nothing to undo."""
        names = {one.order.name for one in self.book.history}
        running = {name: self._parts.store.current(name) for name in names}
        before = self.book.active
        self._write(install.go_back(self.book, reason, now, running))
        if before is not None and before.step is not Step.PROMOTED:
            self._tidy(before.order)

    def step(self, now: int) -> bool:
        """Do something about the active one; whether there was something to do. An error that is no OtaError passes,
        and is a defect: the next call begins the same step again."""
        one = install.due(self.book, now)
        if one is None:
            return False
        try:
            self._act(one, now)
        except HeldError:
            return True
        except _LATER as error:
            self._write(install.delay(self.book, error.message, now))
        except OtaError as error:
            self._fail(one, error.line, now, None)
        return True

    def _act(self, one: Installation, now: int) -> None:
        parts, order = self._parts, one.order
        if one.step is Step.PROMOTED:
            self._tend(one, now)
            return
        if one.step is Step.SHADOW:
            parts.fetch.clear(order)  # not before the journal says that it is not needed: it is not removed at once
            self._review(one, parts.trial.shadow(order, one.since, now), now)
            return
        if one.step is Step.DOWNLOADING:
            parts.fetch.bring(order)
        elif one.step is Step.VERIFYING:
            parts.fetch.verify(order)
        elif one.step is Step.RECONSTRUCTING:
            parts.reconstruct.make(order)
        elif one.step is Step.COMPILING:
            parts.store.keep(order, parts.reconstruct.make(order))
            parts.compile.compile(order)
        self._write(install.proceed(self.book, now))

    def _tend(self, one: Installation, now: int) -> None:
        """Of a promoted one. The way back is in the journal; `use` may be called again."""
        store, order = self._parts.store, one.order
        current = store.current(order.name)
        if one.switched and current not in (order.bundle, one.before if one.returning else order.bundle):
            self._parts.trial.end(order)
            self._write(install.overruled(self.book, now))
        elif one.returning:
            if one.before and current != one.before:
                store.use(order, one.before)
            self._parts.trial.end(order)
            self._write(install.returned(self.book, now))
        elif not one.switched:
            if current != order.bundle:
                store.use(order, order.bundle)
            self._write(install.switched(self.book))
        else:
            self._review(one, self._parts.trial.watch(order, one.since, now), now)

    def _review(self, one: Installation, ruling: Ruling | None, now: int) -> None:
        if ruling is None:
            return
        if not ruling.passed:
            self._fail(one, ruling.reason, now, ruling.figures)
            return
        if one.step is Step.PROMOTED:
            self._parts.trial.end(one.order)
        before = self._parts.store.current(one.order.name) if one.step is Step.SHADOW else ""
        self._write(install.proceed(self.book, now, before, ruling.figures))

    def _fail(self, one: Installation, reason: str, now: int, figures: dict[str, Any] | None) -> None:
        self._write(install.fail(self.book, reason, now, figures))
        if one.step is not Step.PROMOTED:
            self._tidy(one.order)

    def _tidy(self, order: Order) -> None:
        self._parts.trial.end(order)
        self._parts.fetch.clear(order)

    def _write(self, book: Book) -> None:
        if self._closed:
            raise NotNowError("the service ends", "It goes on at the next start.")
        if book != self.book:
            self._journal.write(book)
            self.book = book

"""The models of a box: bundles by their content, and names that point to them.

    <root>/
        <content hash>/            a bundle, verified before it came here and never changed afterwards
        names/<model>/current      a relative link to the bundle that is used under this name
        names/<model>/previous     to the one before it, which is the way back
        arriving/                  what is being copied or removed; nobody reads it, the next change clears it

Every step is a rename, made durable: a power cut leaves the old or the new, never half a bundle under a hash, never a
name that points to nothing. One change at a time, under a lock; readers need none.
"""

import difflib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from appliance.errors import ModelError, StoreError
from appliance.inference import models
from appliance.inference.models import Bundle, Card
from appliance.runtime import files

FOLDER = "models"  # in the folder of states
CURRENT, PREVIOUS = "current", "previous"
SHORT = 12  # characters of a hash that a person is shown; six are enough to name a bundle

_HASH = re.compile(r"[0-9a-f]{64}")
_SOME_HASH = re.compile(r"[0-9a-f]{6,64}")
_NAMES, _ARRIVING, _LOCK = "names", "arriving", "lock"
_CHUNK = 1 << 20

Check = Callable[[Bundle], object]  # ModelError where the bundle shall not come in


@dataclass(frozen=True)
class Entry:
    """One bundle of the library. Its files are not verified by being listed: `models.load` does that."""

    folder: Path
    card: Card
    shipped: bool = False  # part of the program, not of the folder
    current: bool = False
    previous: bool = False

    @property
    def digest(self) -> str:
        return self.folder.name

    @property
    def title(self) -> str:
        return f"{self.card.name}@{self.card.version}"

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.card.files.values())


class Library:
    """`shipped` is the bundle that comes with the program: it is current until another one of its name is used."""

    def __init__(self, root: Path, shipped: Path | None = None) -> None:
        self.root, self._shipped = root, shipped

    # ---- reading ----------------------------------------------------------------------------------------------------

    def survey(self) -> tuple[list[Entry], list[ModelError]]:
        """All bundles by name and version, and what is wrong with those that cannot be listed."""
        entries, problems = [], []
        for folder in self._folders():
            try:
                entries.append(self._entry(folder))
            except ModelError as error:
                problems.append(error)
        return sorted(entries, key=lambda entry: (entry.card.name, _order(entry.card.version))), problems

    def entries(self) -> list[Entry]:
        return self.survey()[0]

    def find(self, reference: str) -> Entry:
        """By `name` (its current bundle), `name@version`, or the beginning of a hash. ModelError names the nearest."""
        entries = self.entries()
        name, _, version = reference.partition("@")
        named = [entry for entry in entries if entry.card.name == name]
        if version:
            found = [entry for entry in named if entry.card.version == version]
        else:
            found = [entry for entry in named if entry.current] or named[-1:]
        if not found and _SOME_HASH.fullmatch(reference):
            found = [entry for entry in entries if entry.digest.startswith(reference)]
        if len(found) != 1:
            raise ModelError(f"there is no model '{reference}'", _nearest(reference, entries, named))
        return found[0]

    def current(self, name: str) -> Path | None:
        """The bundle's folder that a name stands for. Cheap: one link is read."""
        return self._target(name, CURRENT) or self._shipped_as(name)

    def names(self) -> list[str]:
        """Of all models."""
        return sorted({entry.card.name for entry in self.entries()})

    def stamp(self) -> tuple[int, ...]:
        """Another one after each change: a handful of stat calls, so that one may ask often."""
        pointers = self.root / _NAMES
        try:
            return tuple(path.stat().st_mtime_ns for path in (self.root, pointers, *sorted(pointers.iterdir())))
        except OSError:
            return ()  # nothing was ever added, or it changes right now

    # ---- changing ---------------------------------------------------------------------------------------------------

    def add(self, source: Path, check: Check = lambda bundle: None) -> tuple[Entry, bool]:
        """Copy a bundle in, whatever its folder is called; whether it is new. The first of its name becomes current.

        ModelError where it is refused, before anything of it can be seen.
        """
        with self._changing() as arriving:
            bundle = _verified(_copied(source, arriving))
            check(bundle)
            self._refuse_twin(bundle)
            target = self.root / bundle.digest
            new = not target.exists()
            if new:
                files.sync_folder(bundle.folder)
                bundle.folder.rename(target)
                files.sync_folder(self.root)
            if self.current(bundle.card.name) is None:
                self._point(bundle.card.name, CURRENT, target)
            return self._entry(target), new

    def use(self, entry: Entry) -> None:
        """Make it current; what was current is previous from now on."""
        with self._changing():
            name, before = entry.card.name, self.current(entry.card.name)
            if before == entry.folder:
                return
            if before is not None:
                self._point(name, PREVIOUS, before)
            self._point(name, CURRENT, entry.folder)

    def previous(self, name: str) -> Entry:
        """What was current before. ModelError where nothing was, or it was removed."""
        folder = self._target(name, PREVIOUS)
        if folder is None:
            raise ModelError(f"'{name}' has no previous model", "Name a version: `millwright models list` shows them.")
        return self._entry(folder)

    def remove(self, entry: Entry) -> None:
        """ModelError for the current one of several of its name, and for what is part of the program."""
        with self._changing() as arriving:
            entry = self._entry(entry.folder)
            others = [one for one in self.entries() if one.card.name == entry.card.name and one.folder != entry.folder]
            if entry.shipped:
                raise ModelError(f"{entry.title} is part of the program", "It takes no space of its own.")
            if entry.current and others:
                raise ModelError(
                    f"{entry.title} is in use", f"First: millwright models use {others[-1].title}, or another one."
                )
            self._forget(entry)
            # Renamed first: a removal that is cut off must not leave half a bundle under its hash.
            entry.folder.rename(arriving / entry.digest)
            files.sync_folder(self.root)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        shipped = [self._shipped] if self._shipped else []
        try:
            return shipped + [path for path in self.root.iterdir() if _HASH.fullmatch(path.name)]
        except FileNotFoundError:
            return shipped
        except OSError as error:
            raise _unusable(self.root, error) from error

    def _entry(self, folder: Path) -> Entry:
        card = models.read_card(folder)
        return Entry(
            folder,
            card,
            shipped=folder == self._shipped,
            current=self.current(card.name) == folder,
            previous=self._target(card.name, PREVIOUS) == folder,
        )

    def _shipped_as(self, name: str) -> Path | None:
        return self._shipped if name == self._shipped_name else None

    @cached_property
    def _shipped_name(self) -> str | None:
        return models.read_card(self._shipped).name if self._shipped else None

    def _target(self, name: str, pointer: str) -> Path | None:
        """Where a link points; None where there is none, or its bundle is gone."""
        try:
            digest = Path(self._link(name, pointer).readlink()).name
        except OSError:
            return None
        if self._shipped is not None and digest == self._shipped.name:
            return self._shipped
        folder = self.root / digest
        return folder if _HASH.fullmatch(digest) and folder.is_dir() else None

    def _link(self, name: str, pointer: str) -> Path:
        return self.root / _NAMES / name / pointer

    def _point(self, name: str, pointer: str, folder: Path) -> None:
        link = self._link(name, pointer)
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = link.with_name(f".{pointer}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("..") / ".." / folder.name)
        temporary.replace(link)
        for place in (link.parent, link.parent.parent, self.root):
            files.sync_folder(place)

    def _forget(self, entry: Entry) -> None:
        """Take the names away that point to it."""
        for pointer, points in ((PREVIOUS, entry.previous), (CURRENT, entry.current)):
            if points:
                self._link(entry.card.name, pointer).unlink(missing_ok=True)
        folder = self._link(entry.card.name, CURRENT).parent
        if folder.is_dir():
            files.sync_folder(folder)

    def _refuse_twin(self, bundle: Bundle) -> None:
        for entry in self.entries():
            if (entry.card.name, entry.card.version) == (bundle.card.name, bundle.card.version):
                if entry.digest != bundle.digest:
                    raise ModelError(
                        f"there is another {entry.title} ({entry.digest[:SHORT]})",
                        f"Raise the version in {models.CARD}, or remove the other one first.",
                    )
                if entry.shipped:
                    raise ModelError(f"{entry.title} is part of the program", "It is here already.")

    @contextmanager
    def _changing(self) -> Iterator[Path]:
        """One change at a time, in an empty folder for what is not ready or not needed any more."""
        arriving = self.root / _ARRIVING
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.root / _LOCK).open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                shutil.rmtree(arriving, ignore_errors=True)
                arriving.mkdir(mode=0o700)
                try:
                    yield arriving
                finally:
                    shutil.rmtree(arriving, ignore_errors=True)
        except OSError as error:
            raise _unusable(self.root, error) from error


def _copied(source: Path, arriving: Path) -> Path:
    """The bundle's files, read once and bounded, in a folder with the name that they ask for."""
    names = models.files_of(source)
    _room(sum((source / name).stat().st_size for name in names), arriving)
    draft = Path(tempfile.mkdtemp(dir=arriving))
    for name in names:
        _copy(source / name, draft / name, models.LIMITS[name])
    return draft.rename(arriving / models.hash_of(draft))


def _copy(source: Path, target: Path, limit: int) -> None:
    # O_NOFOLLOW: it was looked at before, and may have been swapped for a link since.
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as given, target.open("wb") as taken:
        copied = 0
        while chunk := given.read(_CHUNK):
            copied += len(chunk)
            if copied > limit:
                raise ModelError(f"{source}: is too large", f"At most {limit:,} bytes are read.")
            taken.write(chunk)
        taken.flush()
        os.fsync(taken.fileno())


def _verified(folder: Path) -> Bundle:
    try:
        return models.load(folder)
    except ModelError as error:
        # The person knows the folder that was named, not the copy of it.
        raise ModelError(error.message.replace(f"{folder}{os.sep}", "").replace(str(folder), "the bundle"),
                         error.remedy) from None  # fmt: skip


def _room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(f"{folder}: {needed:,} bytes are needed and {free:,} are free", "Make room on this disk.")


def _unusable(root: Path, error: OSError) -> StoreError:
    return StoreError(f"{error.filename or root}: {error.strerror}", "Make room or give the right to write.")


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _nearest(reference: str, entries: list[Entry], named: list[Entry]) -> str:
    if named:
        return f"There are: {', '.join(entry.title for entry in named)}."
    known = sorted({entry.card.name for entry in entries})
    near = difflib.get_close_matches(reference.partition("@")[0], known, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return f"{hint}There are: {', '.join(known) or 'none'}."

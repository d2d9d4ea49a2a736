"""Models by their content, and names that move: what an update puts in and points to.

    <root>/
        <content hash>/            a bundle, verified before it came here and never changed afterwards
        names/<model>/current      a relative link to the bundle that is used
        names/<model>/previous     to the one before it, which is the way back
        lock                       held while something changes

This is the layout of the appliance's library of models, and its lock: both may work on one folder. Every step is a
rename, made durable: a power cut leaves the old or the new, never half a bundle under a hash, never a name that points
to nothing.
"""

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ota import bundle, durable
from ota.errors import StorageError

CURRENT, PREVIOUS = "current", "previous"
_HASH = re.compile(r"[0-9a-f]{64}")
_NAMES, _LOCK = "names", "lock"


class Store:
    """Whoever reads needs no lock. StorageError where the folder cannot be used."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ---- reading ----------------------------------------------------------------------------------------------------

    def at_hand(self) -> set[str]:
        """The hashes of all bundles."""
        try:
            return {path.name for path in self.root.iterdir() if _HASH.fullmatch(path.name)}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise durable.unusable(self.root, error) from error

    def folder(self, digest: str) -> Path | None:
        found = self.root / digest
        return found if _HASH.fullmatch(digest) and found.is_dir() else None

    def target(self, name: str, pointer: str = CURRENT) -> str | None:
        """The hash that a name stands for; None where there is none, or its bundle is gone."""
        try:
            digest = self._link(name, pointer).readlink().name
        except OSError:
            return None
        return digest if self.folder(digest) is not None else None

    # ---- changing ---------------------------------------------------------------------------------------------------

    def add(self, arrived: Path, digest: str) -> Path:
        """Take a folder in, by renaming it; it was synced. StorageError unless its content is what `digest` says."""
        with self._changing():
            target = self.root / digest
            if target.is_dir():
                shutil.rmtree(arrived)
                return target
            if bundle.digest(arrived) != digest:
                raise StorageError(f"{arrived}: its content is not {digest[:12]}", "It is fetched again.")
            durable.move(arrived, target)
            return target

    def use(self, name: str, digest: str) -> None:
        """Make it current; what was current is previous from now on."""
        with self._changing():
            if self.folder(digest) is None:
                raise StorageError(f"there is no bundle {digest[:12]}", "Fetch it first.")
            before = self.target(name)
            if before == digest:
                return
            if before is not None:
                self._point(name, PREVIOUS, before)
            self._point(name, CURRENT, digest)

    def back(self, name: str) -> str:
        """Make the previous one current again, and what was current previous; gives its hash."""
        with self._changing():
            previous, before = self.target(name, PREVIOUS), self.target(name)
            if previous is None:
                raise StorageError(f"'{name}' has no previous model", "There is no way back; publish a newer one.")
            # In this order: a power cut in between must not lose the one to go back to.
            self._point(name, CURRENT, previous)
            if before is not None:
                self._point(name, PREVIOUS, before)
            return previous

    def remove(self, digest: str) -> None:
        """StorageError where a name points to it."""
        with self._changing():
            if digest in self._named():
                raise StorageError(f"{digest[:12]} is in use", "Use another one first.")
            if (found := self.folder(digest)) is not None:
                # Renamed first: a removal that is cut off must not leave half a bundle under its hash.
                leaving = self.root / f".leaving-{digest}"
                durable.move(found, leaving)
                shutil.rmtree(leaving)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _named(self) -> set[str]:
        return {link.readlink().name for link in self.root.glob(f"{_NAMES}/*/*") if link.is_symlink()}

    def _link(self, name: str, pointer: str) -> Path:
        return self.root / _NAMES / name / pointer

    def _point(self, name: str, pointer: str, digest: str) -> None:
        link = self._link(name, pointer)
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = link.with_name(f".{pointer}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("..") / ".." / digest)
        durable.move(temporary, link)
        for place in (link.parent.parent, self.root):
            durable.sync_folder(place)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.root / _LOCK).open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for leaving in self.root.glob(".leaving-*"):
                    shutil.rmtree(leaving)
                yield
        except OSError as error:
            raise durable.unusable(self.root, error) from error

"""Bundles that are at hand: a folder, or one packed into a file, copied in and verified.

<folder>/<hash>.pack    the packed file
<folder>/<hash>         the bundle's folder, whole as soon as it has this name
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ota import bundle, durable, fetch
from ota.errors import DamagedError, ManifestError
from ota.install import Order

LIMIT = 1 << 36  # bytes of an unpacked bundle
_CHUNK = 1 << 20


class Local:
    """Fetch and Reconstruct of `ota.installer`. `source` of an order is the path; `goes_on` may raise to stop."""

    def __init__(self, folder: Path, goes_on: Callable[[], None] = lambda: None) -> None:
        self._folder, self._goes_on = folder, goes_on

    def identify(self, source: Path) -> tuple[str, Path | None]:
        """The content hash, and of a packed bundle the folder that it was unpacked to, which the caller removes."""
        with _reading(source):
            if not source.exists():
                raise ManifestError(
                    f"{source}: No such file or folder", "Name a bundle's folder, or one that was packed."
                )
            if source.is_dir():
                return bundle.digest(source), None
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix=".look-", dir=self._folder)) / "bundle"
            try:
                bundle.unpack(source, place, LIMIT)
                return bundle.digest(place), place.parent
            except BaseException:
                shutil.rmtree(place.parent, ignore_errors=True)
                raise

    def bring(self, order: Order) -> None:
        """A copy, so that nobody changes it any more. OtaError."""
        source = Path(order.source)
        with _reading(source):
            if self._made(order).is_dir() or self._pack(order).is_file():
                return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not source.exists():
                raise ManifestError(f"{source}: there is no such file or folder", "Ask for it anew.")
            if source.is_dir():
                self._bring_folder(source, order)
            else:
                fetch.room(self._folder, source.stat().st_size)
                self._copy(source, arriving := self._arriving(order))
                durable.move(arriving, self._pack(order))

    def verify(self, order: Order) -> None:
        """A folder that was copied has the order's hash. A pack shows its own when it is opened."""
        with _reading(Path(order.source)):
            if self._made(order).is_dir() and bundle.digest(self._made(order)) != order.bundle:
                self.clear(order)
                raise ManifestError(f"{order.source}: it changed while it was copied", "Ask for it anew.")

    def make(self, order: Order) -> Path:
        """The bundle's folder."""
        made = self._made(order)
        with _reading(made):
            if made.is_dir():
                return made
            arriving = self._arriving(order)
            shutil.rmtree(arriving, ignore_errors=True)
            if not self._pack(order).is_file():
                raise DamagedError(f"{self._pack(order)}: is gone", "Ask for it anew.")
            bundle.unpack(self._pack(order), arriving, LIMIT)
            if bundle.digest(arriving) != order.bundle:
                shutil.rmtree(arriving)
                raise ManifestError(f"{order.source}: it changed while it was copied", "Ask for it anew.")
            durable.move(arriving, made)
            return made

    def clear(self, order: Order) -> None:
        """Nothing of it is needed any more."""
        with _reading(self._folder):
            self._pack(order).unlink(missing_ok=True)
            self._discard(order)
            if self._made(order).is_dir():  # renamed first: half a folder must not have the name of a whole one
                durable.move(self._made(order), self._arriving(order))
                self._discard(order)

    def _bring_folder(self, source: Path, order: Order) -> None:
        names, arriving = bundle.names(source), self._arriving(order)
        fetch.room(self._folder, bundle.size(source))
        self._discard(order)
        arriving.mkdir(mode=0o700)
        for name in names:
            self._copy(source / name, arriving / name)
        durable.sync_folder(arriving)
        durable.move(arriving, self._made(order))

    def _copy(self, source: Path, target: Path) -> None:
        # O_NOFOLLOW: it was looked at before, and may have been swapped for a link since.
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as given, target.open("wb") as taken:
            while chunk := given.read(_CHUNK):
                self._goes_on()
                taken.write(chunk)
            taken.flush()
            os.fsync(taken.fileno())

    def _discard(self, order: Order) -> None:
        arriving = self._arriving(order)
        if arriving.is_dir():
            shutil.rmtree(arriving)
        arriving.unlink(missing_ok=True)

    def _made(self, order: Order) -> Path:
        return self._folder / order.bundle

    def _pack(self, order: Order) -> Path:
        return self._folder / f"{order.bundle}.pack"

    def _arriving(self, order: Order) -> Path:
        return self._folder / f".{order.bundle}.arriving"


@contextmanager
def _reading(place: Path) -> Iterator[None]:
    """OSError becomes StorageError."""
    try:
        yield
    except OSError as error:
        raise durable.unusable(place, error) from error

"""Downloads: bounded, resumable, and either verified or not there.

    <folder>/<digest>.part        what has arrived of a file
    <folder>/<digest>.part.mark   how much of it is certainly on disk
    <folder>/<digest>             all of it, verified, synced and renamed

After a power cut a file may be as long as it was and hold zeros at its end; so a download goes on from the mark. A
server that gives other bytes than the signed ones costs one whole download, never a wrong file.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ota import durable
from ota.errors import DamagedError, FetchError, MissingError, SpaceError
from ota.sources import Source

MARK_BYTES = 4 << 20  # what is lost at most when the power is cut or the process killed
_RESERVE = 16 << 20  # bytes that stay free on the disk
_IDLE = 3  # connections in a row that gave nothing
_EXTRA = 8  # connections besides one a megabyte
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """A file by what signed data says of it."""

    digest: str
    length: int
    algorithm: str = "sha256"  # or sha512


@dataclass(frozen=True)
class Course:
    """`progress(arrived, length)` may raise to stop; `rest(seconds)` is called between two connections."""

    progress: Callable[[int, int], None] = lambda arrived, length: None
    rest: Callable[[float], None] = time.sleep


def read(source: Source, name: str, limit: int, attempts: int = _IDLE) -> bytes:
    """A small file, into memory. FetchError where it is longer than `limit` bytes, or the source fails every time."""
    for attempt in range(attempts):
        try:
            return _read(source, name, limit)
        except (MissingError, _TooLongError):
            raise
        except FetchError:
            if attempt == attempts - 1:
                raise
    raise AssertionError("no attempts")


def _read(source: Source, name: str, limit: int) -> bytes:
    found = bytearray()
    with source.open(name) as answer:
        for chunk in answer.chunks:
            found += chunk
            if len(found) > limit:
                raise _TooLongError(f"{source}/{name}: more than {limit:,} bytes", "Ask whoever runs the server.")
    return bytes(found)


def download(source: Source, name: str, wanted: Wanted, folder: Path, course: Course = Course()) -> Path:
    """The verified file, in `folder`. What had arrived before is used.

    FetchError: not now; what arrived is kept. DamagedError: twice other bytes than the signed ones. SpaceError: before
    anything is asked for.
    """
    ready = folder / wanted.digest
    if ready.is_file():
        return ready
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _Part(folder, wanted) as part:
            room(folder, wanted.length - part.size)
            for last in (False, True):
                _fill(source, name, part, course)
                if part.is_right():
                    return part.finish()
                part.restart()
                if last:
                    raise DamagedError(f"{source}/{name}: its bytes are not the signed ones", "It was thrown away.")
    except OSError as error:
        raise durable.unusable(folder, error) from error
    raise AssertionError("unreachable")


def arrived(folder: Path, wanted: Wanted) -> int:
    """Bytes of it that need not be fetched any more."""
    if (folder / wanted.digest).is_file():
        return wanted.length
    return min(_marked(_part(folder, wanted)), wanted.length)


def arriving(folder: Path, wanted: Wanted) -> int:
    """Bytes of it that have been written, on disk or on their way there: to be shown."""
    if (folder / wanted.digest).is_file():
        return wanted.length
    try:
        return _part(folder, wanted).stat().st_size
    except OSError:
        return 0


def room(folder: Path, needed: int) -> None:
    """SpaceError unless `needed` bytes and a reserve are free."""
    free = shutil.disk_usage(folder).free - _RESERVE
    if needed > free:
        raise SpaceError(
            f"{folder}: {needed:,} bytes are needed and {max(free, 0):,} may be used", "Make room on this disk."
        )


def _fill(source: Source, name: str, part: "_Part", course: Course) -> None:
    """Connect again and again until all is there. The number of times is bounded, also for a server that gives one byte
    each time."""
    idle, left = 0, _EXTRA + (part.wanted.length >> 20)
    while part.size < part.wanted.length:
        before = part.size
        try:
            _connect(source, name, part, course)
            problem = FetchError(f"{source}/{name}: cut off at byte {part.size:,}", "It is tried again later.")
        except MissingError:
            raise
        except FetchError as error:
            problem = error
        left, idle = left - 1, 0 if part.size > before else idle + 1
        if part.size >= part.wanted.length:
            break
        if idle == _IDLE or not left:
            raise problem
        course.rest(min(2.0**idle, 30.0))


def _connect(source: Source, name: str, part: "_Part", course: Course) -> None:
    with source.open(name, part.size) as answer:
        if answer.begin != part.size:
            part.restart()
        for chunk in answer.chunks:
            part.append(chunk)  # no more than wanted: what comes after it is never asked for
            course.progress(part.size, part.wanted.length)
            if part.size == part.wanted.length:
                return


class _TooLongError(FetchError):
    pass


class _Part:
    """A file that grows, and its hash along with it."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.wanted, self._folder = wanted, folder
        self._path = _part(folder, wanted)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "r+b")
        self._begin(min(_marked(self._path), wanted.length))

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            if self.size > self._synced:
                self._mark()  # whoever stops in good order loses nothing
            self._file.close()

    def _begin(self, size: int) -> None:
        self._file.seek(0)
        self._hash, self.size = hashlib.new(self.wanted.algorithm), 0
        while self.size < size and (chunk := self._file.read(min(_CHUNK, size - self.size))):
            self._hash.update(chunk)
            self.size += len(chunk)
        self._file.seek(self.size)
        self._file.truncate()
        self._synced = self.size

    def append(self, chunk: bytes) -> None:
        chunk = chunk[: self.wanted.length - self.size]
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)
        if self.size - self._synced >= MARK_BYTES:
            self._mark()

    def restart(self) -> None:
        _mark(self._path).unlink(missing_ok=True)
        self._begin(0)

    def is_right(self) -> bool:
        return self.size == self.wanted.length and self._hash.hexdigest() == self.wanted.digest

    def finish(self) -> Path:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        ready = self._folder / self.wanted.digest
        durable.move(self._path, ready)
        _mark(self._path).unlink(missing_ok=True)
        return ready

    def _mark(self) -> None:
        self._file.flush()
        os.fdatasync(self._file.fileno())
        durable.write(_mark(self._path), str(self.size).encode())
        self._synced = self.size


def _part(folder: Path, wanted: Wanted) -> Path:
    return folder / f"{wanted.digest}.part"


def _mark(part: Path) -> Path:
    return part.with_name(f"{part.name}.mark")


def _marked(part: Path) -> int:
    try:
        text = _mark(part).read_bytes()[:20]
        return min(int(text), part.stat().st_size) if text.isdigit() else 0
    except OSError:
        return 0

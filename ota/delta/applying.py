"""Applies a patch: the old version and a patch become the new version, in bounded memory, whatever happens meanwhile.

The old version is checked first and never written. The new one grows under a hidden name beside its place, `.NAME.part`
with `.NAME.journal`; every frame is checked before it is written, every file before the new version gets its name. A
process that was killed, or a machine that lost power, goes on where the journal says when the same call comes again.
A patch that is refused leaves nothing.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ota.delta import container
from ota.delta.codec import MAX_SEGMENT, MAX_TABLES, Decoder, Segment
from ota.delta.container import Change, Content, Frame, Manifest, Way
from ota.delta.errors import DeltaError, MismatchError, PatchError
from ota.delta.files import File, sync_folder
from ota.delta.generic import DICTIONARY_BYTES, FRAME, Covers, from_dictionary
from ota.delta.journal import Journal, Position
from ota.delta.tensors import Source

SYNC_BYTES = 12 << 20  # bytes between two records of the journal
COPY_BYTES = 64 << 20  # at a time
SPARE_BYTES = 4 << 20  # that are left free

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Outcome:
    """`resumed_at` bytes of the new version were there already."""

    size: int
    resumed_at: int = 0
    was_there: bool = False


def apply(old: Path, patch: Path, new: Path, progress: Progress | None = None) -> Outcome:
    """Makes `new`, a file or a folder as the patch says.

    DeltaError: PatchError for a patch that is damaged or hostile, MismatchError for an old version it was not made for,
    DeltaError itself for what is in the way or fails on this machine; then the same call goes on once that is mended.
    """
    work = _Work(old, new)
    work.keep_apart(patch)
    with File(patch) as source:
        manifest = container.read(source, source.size)
        if work.is_done(manifest):
            work.clear()
            return Outcome(manifest.size, was_there=True)
        work.check(manifest)
        try:
            return work.run(manifest, source, progress or (lambda done, total: None))
        except (PatchError, MismatchError):
            work.clear()
            raise
        except OSError as error:
            raise DeltaError(f"{error.filename or new}: {error.strerror}", "then try again: it goes on here") from error


class _Work:
    """One patch on its way from `old` to `new`."""

    def __init__(self, old: Path, new: Path) -> None:
        self.old, self.new = old, new.absolute()
        if self.new.name in ("", ".."):
            raise DeltaError(f"{new} is no name for a new version", "name a file or folder that is not there yet")
        self.stage = self.new.with_name(f".{self.new.name}.part")
        self.journal = self.new.with_name(f".{self.new.name}.journal")

    # Before anything is written

    def keep_apart(self, patch: Path) -> None:
        """Neither the old version nor the patch is where something will be written."""
        places = [place.resolve() for place in (self.new, self.stage, self.journal)]
        for given in (self.old.resolve(), patch.resolve()):
            if any(given.is_relative_to(place) for place in places):
                raise DeltaError(f"{given} is where {self.new} is to be made", "name another place for the new version")
        if any(place.is_relative_to(self.old.resolve()) for place in places):
            raise DeltaError(f"{self.new} is within the old version, which is never touched", "name another place")

    def is_done(self, manifest: Manifest) -> bool:
        """Whether the new version is there already; DeltaError where something else is in its place."""
        if not os.path.lexists(self.new):
            return False
        if self.new.is_dir() == manifest.folder and self._is(manifest):
            return True
        raise DeltaError(f"{self.new} is there already and is not what the patch gives", "name another place")

    def _is(self, manifest: Manifest) -> bool:
        if manifest.folder:
            present = {path.relative_to(self.new).as_posix() for path in self.new.rglob("*") if not path.is_dir()}
            if present != {change.path for change in manifest.changes}:
                return False
        return all(_holds(self._in(self.new, change.path, manifest), change.new) for change in manifest.changes)

    def check(self, manifest: Manifest) -> None:
        if not self.new.parent.is_dir():
            raise DeltaError(f"{self.new.parent} is no folder", "make it first")
        self._check_old(manifest)
        self._check_space(manifest)

    def _check_old(self, manifest: Manifest) -> None:
        if self.old.is_dir() != manifest.folder:
            raise MismatchError(
                f"the patch is for a {'folder' if manifest.folder else 'file'}, and {self.old} is not one",
                "name the version that the patch was made from",
            )
        for path, content in self._wanted(manifest).items():
            if not path.is_file() or not _holds(path, content):
                raise MismatchError(f"{path} is not what the patch was made for", "fetch the whole model instead")

    def _wanted(self, manifest: Manifest) -> dict[Path, Content]:
        """The old files that are needed, each once."""
        root = self.old.resolve()
        found: dict[Path, Content] = {}
        for change in manifest.changes:
            if change.source is not None and change.old is not None:
                path = self._in(self.old, change.source, manifest)
                if manifest.folder and not path.resolve().is_relative_to(root):
                    raise MismatchError(f"{path} leads out of {self.old}", "use a folder without links")
                if found.setdefault(path, change.old) != change.old:
                    raise PatchError(f"{change.source} is to be two files at once")
        return found

    def _check_space(self, manifest: Manifest) -> None:
        there = sum(file.stat().st_blocks * 512 for file in _files(self.stage))
        disk = os.statvfs(self.new.parent)
        wanted = manifest.size + SPARE_BYTES
        if wanted > disk.f_bavail * disk.f_frsize + there:
            free = disk.f_bavail * disk.f_frsize
            raise DeltaError(f"{self.new.parent}: {wanted} bytes are needed, {free} are free", "make space")

    # Writing

    def run(self, manifest: Manifest, patch: File, progress: Progress) -> Outcome:
        with Journal(self.journal, manifest.identity) as journal:
            if journal.is_new:
                _remove(self.stage)
            begun = _before(manifest, journal.position)
            try:
                self._give(manifest, patch, journal, progress)
            except (PatchError, MismatchError):
                if not begun:
                    raise
                begun = 0  # what was there may have rotted: once more, from the start
                _remove(self.stage)
                journal.restart()
                self._give(manifest, patch, journal, progress)
            self._commit(manifest)
        return Outcome(manifest.size, begun)

    def _give(self, manifest: Manifest, patch: File, journal: Journal, progress: Progress) -> None:
        done = 0
        for number, (change, frames) in enumerate(manifest.frames()):
            if number >= journal.position.file:
                self._give_file(number, change, frames, manifest, patch, journal, _from(progress, done, manifest.size))
            done += change.new.size
        progress(done, manifest.size)

    def _give_file(
        self,
        number: int,
        change: Change,
        frames: tuple[Frame, ...],
        manifest: Manifest,
        patch: File,
        journal: Journal,
        progress: Callable[[int], None],
    ) -> None:
        place = self._in(self.stage, change.path, manifest)
        place.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            target = stack.enter_context(File(place, writable=True))
            target.resize(change.new.size)
            old: File | None = None
            if change.source is not None:
                old = stack.enter_context(File(self._in(self.old, change.source, manifest)))
            way = _WAYS[change.way](change, frames, patch, old, target)
            begin = journal.position if journal.position.file == number else Position(number)
            synced = begin.written
            for position in way.run(begin):
                if position.written - synced >= SYNC_BYTES:
                    target.sync()
                    journal.record(replace(position, state=way.state()))
                    synced = position.written
                progress(position.written)
            target.sync()
            if target.digest() != change.new.sha256:
                raise MismatchError(f"{change.path} did not become what it should", "fetch the whole model instead")
        journal.record(Position(number + 1))

    def _commit(self, manifest: Manifest) -> None:
        if manifest.folder:
            for folder in (self.stage, *(path for path in self.stage.rglob("*") if path.is_dir())):
                sync_folder(folder)
        self.stage.rename(self.new)
        sync_folder(self.new.parent)
        self.clear()

    def clear(self) -> None:
        """Nothing but the new version, if that, is left."""
        _remove(self.stage)
        _remove(self.journal)
        if self.new.parent.is_dir():
            sync_folder(self.new.parent)

    def _in(self, root: Path, path: str, manifest: Manifest) -> Path:
        return root / path if manifest.folder else root


def _holds(path: Path, content: Content) -> bool:
    try:
        with File(path) as file:
            return file.size == content.size and file.digest() == content.sha256
    except (DeltaError, OSError):
        return False


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from (file for file in path.rglob("*") if file.is_file())
    elif path.is_file():
        yield path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _before(manifest: Manifest, position: Position) -> int:
    return sum(change.new.size for change in manifest.changes[: position.file]) + position.written


def _from(progress: Progress, done: int, total: int) -> Callable[[int], None]:
    return lambda written: progress(done + written, total)


# The ways by which a file comes about


class _Way:
    """Gives a file, step by step: after each, a position from which it could go on."""

    def __init__(self, change: Change, frames: tuple[Frame, ...], patch: Source, old: File | None, new: File) -> None:
        self.change, self.frames, self.patch, self.new = change, frames, patch, new
        self._old = old

    @property
    def old(self) -> File:
        if self._old is None:
            raise PatchError(f"{self.change.path}: nothing to make it from")
        return self._old

    def run(self, begin: Position) -> Iterator[Position]:
        raise NotImplementedError

    def state(self) -> bytes:
        """What the next step needs besides the position."""
        return b""

    def frame(self, number: int) -> bytes:
        frame = self.frames[number]
        return self.patch.read(frame.offset, frame.size)

    def check(self, number: int, frame: bytes, given: bytes = b"") -> None:
        if container.frame_digest(frame, given) != self.frames[number].digest:
            raise PatchError(f"{self.change.path}: frame {number} is damaged, or does not give what it should")


class _Copy(_Way):
    def run(self, begin: Position) -> Iterator[Position]:
        size = self.change.new.size
        for offset in range(begin.written, size, COPY_BYTES):
            length = min(COPY_BYTES, size - offset)
            self.new.copy(self.old, offset, offset, length)
            yield replace(begin, written=offset + length)


class _Dictionary(_Way):
    def run(self, begin: Position) -> Iterator[Position]:
        if len(self.frames) != 1 or self.old.size > DICTIONARY_BYTES:
            raise PatchError(f"{self.change.path}: more than one frame, or too large a dictionary")
        frame = self.frame(0)
        given = from_dictionary(self.old.read(0, self.old.size), frame, self.change.new.size)
        self.check(0, frame, given)
        self.new.write(0, given)
        yield replace(begin, frame=1, written=len(given))


class _Covers(_Way):
    def run(self, begin: Position) -> Iterator[Position]:
        size = self.change.new.size
        if len(self.frames) != -(-size // FRAME):
            raise PatchError(f"{self.change.path}: {len(self.frames)} frames for {size} bytes")
        decoder = Covers(self._old, self._old.size if self._old else 0, size)
        for number in range(len(self.frames)):
            frame = self.frame(number)
            given = decoder.decode(frame, number >= begin.frame)
            if number >= begin.frame:
                self.check(number, frame, given)
                self.new.write(number * FRAME, given)
                yield replace(begin, frame=number + 1, written=number * FRAME + len(given))


class _Tensors(_Way):
    """The first frame holds the tables, each other one a segment."""

    def run(self, begin: Position) -> Iterator[Position]:
        if not self.frames or self.frames[0].size > MAX_TABLES:
            raise PatchError(f"{self.change.path}: no tables, or too many")
        tables = self.frame(0)
        self.check(0, tables)
        self._decoder = Decoder(self.old, self.new, tables)
        if begin.frame:
            self._decoder.resume(begin.state)
        position, size = replace(begin, frame=max(1, begin.frame), state=b""), self.change.new.size
        for number in range(position.frame, len(self.frames)):
            frame = self.frame(number)
            segment = container.unframed(frame, position.end, size)
            written = position.written + segment.size
            if written > size:
                raise PatchError(f"{self.change.path}: frames give more than {size} bytes")
            self._give(number, frame, segment)
            end = segment.parts[-1].offset + segment.parts[-1].size if segment.parts else position.end
            position = replace(position, frame=number + 1, written=written, end=end)
            yield position
        self._decoder.finish()

    def _give(self, number: int, frame: bytes, segment: Segment) -> None:
        if segment.is_copy:
            self.check(number, frame)
            self._copy(segment)
            return
        if segment.size > MAX_SEGMENT:
            raise PatchError(f"{self.change.path}: a segment of {segment.size} bytes")
        given = self._decoder.decode(segment)
        if len(given) != segment.size:
            raise PatchError(f"{self.change.path}: a segment gives {len(given)} bytes instead of {segment.size}")
        self.check(number, frame, given)
        start = 0
        for part in segment.parts:
            self.new.write(part.offset, given[start : start + part.size])
            start += part.size

    def _copy(self, segment: Segment) -> None:
        for part in segment.parts:
            offset = part.offset + (part.params[0] if part.params else 0)
            if not 0 <= offset <= self.old.size - part.size:
                raise PatchError(f"{self.change.path}: old bytes {offset} to {offset + part.size}")
            self.new.copy(self.old, offset, part.offset, part.size)

    def state(self) -> bytes:
        return self._decoder.state()


_WAYS: dict[Way, type[_Way]] = {
    Way.COPY: _Copy,
    Way.DICTIONARY: _Dictionary,
    Way.COVERS: _Covers,
    Way.TENSORS: _Tensors,
}

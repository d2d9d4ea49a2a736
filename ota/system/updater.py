"""Carries the installation of a system out, step by step, and begins its last step anew after any end.

    <folder>/book.json       what is known of updates (`book`), sealed
    <folder>/release.json    the release that is being installed, as it was signed
    <folder>/files/          what is fetched (`ota.fetch`)
    <folder>/staged/         the parts, complete under the names by which systemd-sysupdate takes them

    fetching     the packed files
    rebuilding   the root and the kernel, whole or of those that run; dm-verity's tree, whose root hash was signed
    checking     everything once more from the disk, and that the kernel is the one that the plan spoke of
    writing      the vault is told what will be measured; then the slot that does not run is written, its entry last

What cannot be done now is told by FetchError, SpaceError, StorageError or NotNowError, and tried again; any other
OtaError is about the release, which is refused then and remembered.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Protocol

import zstandard

from ota import durable, fetch
from ota.errors import DamagedError, FetchError, ManifestError, OtaError, SpaceError, StorageError
from ota.fetch import Course, Wanted
from ota.osdelta import applying, verity
from ota.osdelta.form import DifferenceError
from ota.osdelta.reading import digest
from ota.sources import Source
from ota.system import book as books
from ota.system import kernel as kernels
from ota.system import release as releases
from ota.system.book import Book, Slot, Step
from ota.system.plan import Facts, Plan, plan
from ota.system.release import Packed, Part, Release

BOOK, RELEASE = "book.json", "release.json"
MAX_BOOK = 4 << 20
_CHUNK = 1 << 20
_HOLE = bytes(_CHUNK)
_UNWATCHED = Course()


class NotNowError(OtaError):
    """A step cannot be done at this moment; it is tried again."""


_LATER = (FetchError, SpaceError, StorageError, NotNowError)


class Slots(Protocol):
    """Troubles are NotNowError."""

    def slot(self, version: str) -> Slot: ...

    def install(self, version: str, folder: Path) -> None: ...

    def withdraw(self, version: str) -> None: ...


class Vault(Protocol):
    """Told before a restart what the new system will measure, and after it proved sound that the old one is over.
    NotNowError where it cannot take it."""

    def allow(self, pcr11: Mapping[str, str]) -> None: ...

    def commit(self) -> None: ...


@dataclass(frozen=True)
class Parts:
    """`old_root`, `old_kernel`: of the system that runs; `verify` may raise an OtaError over the new kernel's file."""

    files: Source
    slots: Slots
    vault: Vault
    old_root: Path
    old_kernel: Path
    verify: Callable[[Path], None] = lambda path: None
    course: Course = _UNWATCHED


class Updater:
    """One at a time: whoever calls has the folder's lock."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self._folder, self._parts = folder, parts
        self.book = self._read()

    # ---- what people ask --------------------------------------------------------------------------------------------

    def plan(self, release: Release, facts: Facts) -> Plan:
        return plan(release, facts)

    def begin(self, signed: bytes, before: str, now: int) -> Release:
        """From now on this release is being installed. BookError where another one is."""
        release = releases.decode(signed)
        begun = books.begin(self.book, release.version, hashlib.sha256(signed).hexdigest(), before, now)
        durable.write(self._folder / RELEASE, signed)
        self._write(begun)
        return release

    def give_up(self, reason: str, now: int) -> str:
        """The version that is not wanted any more; it is taken out of its slot. Where it runs, the other one is to be
        started. What restarts have shown is settled before. BookError where there is nothing to give up."""
        ended = books.give_up(self.book, reason, now)
        version = ended.history[-1].version
        if self.book.active is not None and self.book.active.step in (Step.WRITING, Step.WAITING):
            self._parts.slots.withdraw(version)
        self._write(ended)
        self._clear()
        return version

    # ---- what happens -----------------------------------------------------------------------------------------------

    def settle(self, now: int) -> Book:
        """What restarts have shown."""
        active = self.book.active
        settled = books.settle(self.book, self._parts.slots.slot(active.version if active else ""), now)
        ended = settled.active is None and active is not None
        if ended and settled.history[-1].step is Step.COMMITTED:
            self._parts.vault.commit()
        self._write(settled)
        if settled.active is None or settled.active.step not in books.UNDER_WAY:
            self._clear()  # or what a cut has left of it
        return settled

    def carry_on(self, facts: Facts, clock: Callable[[], int], tell: Callable[[str], None] = lambda text: None) -> Book:
        """Every step that is left before the restart. What cannot be done now is raised, and noted."""
        steps: dict[Step, Callable[[Release, Plan], None]] = {
            Step.FETCHING: self._fetch,
            Step.REBUILDING: self._rebuild,
            Step.CHECKING: self._check,
            Step.WRITING: self._install,
        }
        while (active := self.book.active) is not None and active.step in steps:
            tell(active.step.value)
            try:
                release = self._release(active.release)
                steps[active.step](release, plan(release, facts))
            except _LATER as error:
                self._write(books.note(self.book, error.message))
                raise
            except OtaError as error:
                self._write(books.fail(self.book, error.message, clock()))
                self._clear()
                raise
            self._write(books.proceed(self.book, clock()))
        self._clear()  # not before the book says that the slot is written
        return self.book

    def _release(self, sha256: str) -> Release:
        try:
            signed = (self._folder / RELEASE).read_bytes()[: releases.MAX_BYTES]
        except OSError as error:
            raise durable.unusable(self._folder / RELEASE, error) from error
        if hashlib.sha256(signed).hexdigest() != sha256:
            raise ManifestError("the release on the disk is not the one that was begun", "Ask for it once more.")
        return releases.decode(signed)

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _fetch(self, release: Release, planned: Plan) -> None:
        for way in _ways(planned):
            self._brought(way)

    def _brought(self, way: Packed) -> Path:
        """What is here already is not fetched again."""
        wanted = Wanted(way.sha256, way.length)
        return fetch.download(self._parts.files, way.place, wanted, self._files, self._parts.course)

    def _rebuild(self, release: Release, planned: Plan) -> None:
        self._staged.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part, old in ((release.root, self._parts.old_root), (release.kernel, self._parts.old_kernel)):
            if not (self._staged / part.file).is_file():
                self._make(part, _way_of(part, planned), old)
        self._make_tree(release)

    def _make(self, part: Part, way: Packed, old: Path) -> None:
        """A difference that does not work is gone around where there is another way."""
        draft = self._staged / f".{part.file}"
        try:
            if way.form != "difference":
                _unpack(self._brought(way), draft, part, way.form)
            elif not self._applied(part, old, way, draft):
                whole = min((one for one in part.ways if one.base is None), key=lambda one: one.length)
                _unpack(self._brought(whole), draft, part, whole.form)
            durable.move(draft, self._staged / part.file)
        except OSError as error:
            raise durable.unusable(draft, error) from error

    def _applied(self, part: Part, old: Path, way: Packed, draft: Path) -> bool:
        """Whether the difference made the part. What is wrong with it is raised where there is no other way."""
        packed = self._brought(way)
        try:
            if applying.head_of(packed).new.sha256 != part.sha256:
                raise DifferenceError("the difference makes something else than was signed", "Publish it anew.")
            applying.apply(old, packed, draft)
        except (DifferenceError, DamagedError):
            draft.unlink(missing_ok=True)
            applying.mark_of(draft).unlink(missing_ok=True)
            if all(one.base is not None for one in part.ways):
                raise
            return False
        return True

    def _make_tree(self, release: Release) -> None:
        tree, draft = release.tree, self._staged / f".{release.tree.file}"
        try:
            roothash = verity.build(self._staged / release.root.file, tree.tree, draft, tree.length)
            durable.sync_file(draft)
            durable.move(draft, self._staged / tree.file)
        except OSError as error:
            raise durable.unusable(draft, error) from error
        if roothash != tree.roothash:
            raise ManifestError("the root's hash is not the one that was signed", "Publish it anew.")

    def _check(self, release: Release, planned: Plan) -> None:
        self._rebuild(release, planned)  # what was found damaged before is missing
        for part in (release.root, release.kernel, release.tree):
            path = self._staged / part.file
            with path.open("rb") as file:
                right = path.stat().st_size == part.length and digest(file, part.length) == part.sha256
            if not right:
                self._clear_staged()
                raise DamagedError(f"{part.file} is not what was signed", "It is made again when it is asked for.")
        path = self._staged / release.kernel.file
        with path.open("rb") as file:
            check_kernel(mmap(file.fileno(), 0, access=ACCESS_READ), release)
        self._parts.verify(path)

    def _install(self, release: Release, planned: Plan) -> None:
        self._parts.vault.allow(release.boot.pcr11)
        self._parts.slots.install(release.version, self._staged)

    # ---- on disk ----------------------------------------------------------------------------------------------------

    @property
    def _files(self) -> Path:
        return self._folder / "files"

    @property
    def _staged(self) -> Path:
        return self._folder / "staged"

    def _clear(self) -> None:
        shutil.rmtree(self._files, ignore_errors=True)
        self._clear_staged()

    def _clear_staged(self) -> None:
        for path in self._staged.iterdir() if self._staged.is_dir() else ():
            path.unlink()

    def _read(self) -> Book:
        """One that is damaged is set aside: what runs goes on running, and what was under way is asked for again."""
        path = self._folder / BOOK
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BOOK)
        except FileNotFoundError:
            return Book()
        except OSError as error:
            raise durable.unusable(path, error) from error
        seal, _, text = data.partition(b"\n")
        try:
            if seal == hashlib.sha256(text).hexdigest().encode():
                return books.decode(text)
        except ValueError:
            pass
        durable.move(path, path.with_suffix(".damaged"))
        return Book()

    def _write(self, book: Book) -> None:
        text = books.encode(book)
        path = self._folder / BOOK
        if book != self.book or not path.exists():
            durable.write(path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        self.book = book


def check_kernel(data: bytes | mmap, release: Release) -> None:
    """It mounts the root that was signed, and a TPM will measure what the plan said. KernelError, ManifestError."""
    found = kernels.parse(data)
    measured = {str(phases): kernels.predicted(found, phases).hex() for phases in kernels.signed_phases(found)}
    key = hashlib.sha256(found.release_key).hexdigest() if found.release_key else ""
    wrong = {
        "another root": found.roothash != release.tree.roothash,
        "another version": found.version != release.version,
        "other values of PCR 11": measured != release.boot.pcr11,
        "another key of PCR 11": key != release.boot.release_key,
        "other signers": found.signers != set(release.boot.signers),
        "a signature of something else": bool(found.signers) and not found.spoken_of,
    }
    for what, is_so in wrong.items():
        if is_so:
            raise ManifestError(f"the kernel has {what} than the release says", "Publish it anew.")


def _ways(planned: Plan) -> list[Packed]:
    ways = [way for way in (planned.root, planned.kernel) if way is not None]
    if len(ways) != 2:
        raise ManifestError("no way leads there from what this box has", "Publish it whole.")
    return ways


def _way_of(part: Part, planned: Plan) -> Packed:
    return next(way for way in _ways(planned) if way in part.ways)


def _unpack(packed: Path, draft: Path, part: Part, form: str) -> None:
    """Into a file with holes where it is empty, never longer than it says."""
    with packed.open("rb") as source, draft.open("wb") as out:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(source) if form == "zstd" else source
        written = 0
        try:
            while chunk := reader.read(_CHUNK):
                written += len(chunk)
                if written > part.length:
                    raise ManifestError(f"{part.file} is longer than it says", "Publish it anew.")
                if chunk == _HOLE[: len(chunk)]:
                    out.seek(len(chunk), os.SEEK_CUR)
                else:
                    out.write(chunk)
        except zstandard.ZstdError as error:
            raise ManifestError(f"{part.file}: packed bytes that are none: {error}", "Publish it anew.") from error
        out.truncate(part.length)
        out.flush()
        os.fsync(out.fileno())
    with draft.open("rb") as made:
        if digest(made, part.length) != part.sha256:
            raise ManifestError(f"{part.file}: what was packed is not what was signed", "Publish it anew.")

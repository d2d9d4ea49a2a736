"""Makes a patch from two versions, of a file or of a folder: for every file the smallest of what can be sent.

Every way is tried that could win: the codec where the tensors of a file can be told, the old file as a dictionary where
both are small, and covers, ours and those of other tools that are installed. No patch gets its name before it was
applied: one that does not give the new version back is made without the codec, then of new bytes alone. Host only.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ota.delta import applying, codec, container, covers, formats, generic, matching, packing
from ota.delta.container import Change, Content, Way
from ota.delta.errors import DeltaError, MismatchError, PatchError
from ota.delta.files import CHUNK, File, sync_folder
from ota.delta.matching import Factors

COVERED_BYTES = 512 << 20  # of a file of tensors for which covers are tried as well; they are held in memory

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """`factors` are low rank changes by the name of the tensor, from the trainer; `tools`: others are asked as well."""

    tools: bool = True
    factors: Factors | None = None


@dataclass
class _Candidate:
    """What would be sent for a file in one way."""

    way: Way
    frames: BinaryIO
    index: bytearray
    size: int = 0

    def add(self, frame: bytes, given: bytes = b"") -> None:
        self.frames.write(frame)
        self.index += container.entry(len(frame), container.frame_digest(frame, given))
        self.size += len(frame) + container.ENTRY

    @property
    def count(self) -> int:
        return len(self.index) // container.ENTRY


@dataclass(frozen=True)
class _File:
    """One file of the new version; `offers` are what could be sent for it, none where the old file stays as it is."""

    name: str
    old: "_Old | None"
    new: Path
    content: Content
    offers: list[_Candidate]

    def change(self, offer: _Candidate | None) -> Change:
        source = (self.old.name, self.old.content) if self.old is not None else (None, None)
        if offer is None:
            return Change(self.name, self.content, Way.COPY, 0, *source)
        return Change(self.name, self.content, offer.way, offer.count, *source)


def make(old: Path, new: Path, patch: Path, settings: Settings = Settings(), say: Say = lambda line: None) -> int:
    """Writes `patch`, which is applied before it gets its name, and gives its size; `say` is told what is done."""
    folder = new.is_dir()
    if old.is_dir() != folder:
        raise DeltaError(f"{old} and {new} are a file and a folder", "name two files or two folders")
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=".mw-delta-", dir=patch.absolute().parent))
        )
        making = _Making(scratch, stack, settings, say)
        files = [making.file(*named) for named in _files(old, new, folder)]
        draft = first_that_applies(old, _drafts(files, folder, scratch / "patch", making), scratch / "new", say)
        size = draft.stat().st_size
        draft.replace(patch)
        sync_folder(patch.absolute().parent)
    return size


def first_that_applies(old: Path, drafts: Iterable[Path], new: Path, say: Say) -> Path:
    """The first draft that gives the new version back, in `new`; DeltaError where none does."""
    for draft in drafts:
        say("checking: applying the patch")
        try:
            applying.apply(old, draft, new)
        except (PatchError, MismatchError) as error:
            say(f"it cannot be applied, which is a fault of this program: {error.message}; making it in another way")
            continue
        return draft
    raise DeltaError(f"no patch from {old} can be applied", "check memory and disk, and send the new version whole")


def _drafts(files: Sequence[_File], folder: bool, draft: Path, making: "_Making") -> Iterator[Path]:
    """The smallest patch; one without the codec; one of new bytes alone."""
    best = [min(file.offers, key=lambda offer: offer.size, default=None) for file in files]
    yield _written(files, best, folder, draft)
    careful: list[_Candidate | None] = []
    for file in files:
        generic = [offer for offer in file.offers if offer.way is not Way.TENSORS]
        careful.append(min(generic, key=lambda offer: offer.size) if generic else making.afresh(file))
    yield _written(files, careful, folder, draft)
    yield _written(files, [making.afresh(file) for file in files], folder, draft)


def _written(files: Sequence[_File], offers: Sequence[_Candidate | None], folder: bool, draft: Path) -> Path:
    given = [offer for offer in offers if offer is not None]
    index = b"".join(bytes(offer.index) for offer in given)
    changes = [file.change(offer) for file, offer in zip(files, offers, strict=True)]
    _joined(draft, container.written(changes, folder, index), [offer.frames for offer in given])
    return draft


def _joined(draft: Path, head: bytes, bodies: Iterable[BinaryIO]) -> None:
    with draft.open("wb") as file:
        file.write(head)
        for body in bodies:
            body.seek(0)
            shutil.copyfileobj(body, file, CHUNK)
    with File(draft) as written:
        written.sync()


# Which files


@dataclass(frozen=True)
class _Old:
    """A file of the old version."""

    name: str
    path: Path
    content: Content


def _files(old: Path, new: Path, folder: bool) -> Iterator[tuple[str, _Old | None, Path]]:
    """The path in the patch, the old file and the new one."""
    if not folder:
        yield container.ONE_FILE, _Old(container.ONE_FILE, old, _content(old)), new
        return
    there = {name: _Old(name, path, _content(path)) for name, path in _listed(old)}
    here = sorted(_listed(new), key=lambda pair: pair[0].split("/"))
    if not here:
        raise DeltaError(f"{new} holds no files", "name the folder of the new version")
    left = {name: file for name, file in there.items() if name not in dict(here)}
    for name, path in here:
        yield name, there.get(name) or _renamed(name, path, there, left), path


def _listed(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise DeltaError(f"{path} is neither a file nor a folder", "take it out: a model needs no links")
        if path.is_file():
            if not container.safe(name):
                raise DeltaError(f"{path}: the name is not allowed in a patch", "rename it, without special characters")
            yield name, path


def _renamed(name: str, path: Path, there: dict[str, _Old], left: dict[str, _Old]) -> _Old | None:
    """The old file with the same content, or the only one of this ending that no new file is named after."""
    content = _content(path)
    for file in there.values():
        if file.content == content:
            return file
    suffix = Path(name).suffix
    alike = [file for file in left.values() if Path(file.name).suffix == suffix]
    return alike[0] if len(alike) == 1 else None


def _content(path: Path) -> Content:
    with File(path) as file:
        return Content(file.digest(), file.size)


# One file


class _Making:
    """One patch on its way; what is tried stands in files that go with `stack`."""

    def __init__(self, scratch: Path, stack: ExitStack, settings: Settings, say: Say) -> None:
        self._scratch, self._stack, self._settings, self._say = scratch, stack, settings, say

    def file(self, name: str, old: _Old | None, new: Path) -> _File:
        content = _content(new)
        if old is not None and old.content == content:
            self._say(f"{name}: as it was")
            return _File(name, old, new, content, [])
        return _File(name, old, new, content, self._offers(name, old, new, content))

    def afresh(self, file: _File) -> _Candidate | None:
        """New bytes alone, where it is not as it was."""
        if not file.offers:
            return None
        return self._by_covers(_mapped(None), _mapped(file.new), [], None)

    def _offers(self, name: str, old: _Old | None, new: Path, content: Content) -> list[_Candidate]:
        tried: list[_Candidate] = []

        def add(candidate: _Candidate | None) -> bool:
            if candidate is not None:
                self._say(f"{name}: {candidate.size} bytes by {candidate.way}")
                tried.append(candidate)
            return candidate is not None

        if old is not None:
            if max(old.content.size, content.size) <= generic.DICTIONARY_BYTES:
                add(self._by_dictionary(old.path, new))
            add(self._by_tensors(name, old.path, new))
        if tried and content.size > COVERED_BYTES:
            return tried
        mapped = _mapped(old.path if old is not None else None), _mapped(new)
        least = min((candidate.size for candidate in tried), default=None)
        # Where our covers are far from the best, those of others would not make up for it.
        if add(self._by_covers(*mapped, covers.find(*mapped), least)) and old is not None and self._settings.tools:
            for found in covers.of_tools(old.path, new):
                add(self._by_covers(*mapped, found, least))
        return tried

    def _candidate(self, way: Way) -> _Candidate:
        return _Candidate(way, self._stack.enter_context(tempfile.TemporaryFile(dir=self._scratch)), bytearray())

    def _by_dictionary(self, old: Path, new: Path) -> _Candidate:
        candidate, data = self._candidate(Way.DICTIONARY), new.read_bytes()
        candidate.add(packing.by_dictionary(old.read_bytes(), data), data)
        return candidate

    def _by_covers(
        self, old: covers.Bytes, new: covers.Bytes, found: list[covers.Cover], most: int | None
    ) -> _Candidate | None:
        frames = packing.by_covers(old, new, found, most)
        if frames is None:
            return None
        candidate = self._candidate(Way.COVERS)
        for number, frame in enumerate(frames):
            candidate.add(frame, new[number * generic.FRAME : (number + 1) * generic.FRAME].tobytes())
        return candidate

    def _by_tensors(self, name: str, old: Path, new: Path) -> _Candidate | None:
        """None where the tensors of a file cannot be told, or the codec fails on them."""
        before, after = formats.read(old), formats.read(new)
        if not after.layout.tensors:
            return None
        try:
            with File(old) as source, File(new) as target:
                return self._encoded(before, source, after, target)
        except (PatchError, ArithmeticError, np.linalg.LinAlgError) as error:
            self._say(f"{name}: the codec fails, which is a fault of this program: {error}")
            return None

    def _encoded(self, before: formats.Model, source: File, after: formats.Model, target: File) -> _Candidate:
        candidate = self._candidate(Way.TENSORS)
        pairs = matching.match(before, source, after, target, self._settings.factors)
        encoded = codec.encode(source, target, pairs)
        try:
            candidate.add(encoded.tables)
            end = 0
            for segment in encoded.segments():
                frame = container.framed(segment, end)
                end = segment.parts[-1].offset + segment.parts[-1].size
                candidate.add(frame, b"" if segment.is_copy else _given(target, segment))
        finally:
            encoded.close()
        return candidate


def _given(new: File, segment: codec.Segment) -> bytes:
    return b"".join(new.read(part.offset, part.size) for part in segment.parts)


def _mapped(path: Path | None) -> covers.Bytes:
    if path is None or not path.stat().st_size:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "r")

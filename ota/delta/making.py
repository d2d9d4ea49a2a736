"""Makes a patch from two versions, of a file or of a folder: for every file the smallest of what can be sent.

Every way is tried that could win: the codec where the tensors of a file can be told, the old file as a dictionary where
both are small, and covers, ours and those of other tools that are installed. Host only.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ota.delta import applying, codec, container, covers, formats, generic, matching, packing
from ota.delta.container import Change, Content, Way
from ota.delta.errors import DeltaError
from ota.delta.files import CHUNK, File, sync_folder
from ota.delta.matching import Factors

COVERED_BYTES = 512 << 20  # of a file of tensors for which covers are tried as well; they are held in memory

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """`factors` are low rank changes by the name of the tensor, from the trainer; `check` applies the patch once."""

    check: bool = True
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


def make(old: Path, new: Path, patch: Path, settings: Settings = Settings(), say: Say = lambda line: None) -> int:
    """Writes `patch` and gives its size in bytes; `say` is told what is being done."""
    folder = new.is_dir()
    if old.is_dir() != folder:
        raise DeltaError(f"{old} and {new} are a file and a folder", "name two files or two folders")
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=".mw-delta-", dir=patch.absolute().parent))
        )
        making = _Making(scratch, stack, settings, say)
        made = [making.file(*named) for named in _files(old, new, folder)]
        changes = [change for change, _ in made]
        index = b"".join(bytes(candidate.index) for _, candidate in made if candidate is not None)
        head = container.written(changes, folder, index)
        bodies = [candidate.frames for _, candidate in made if candidate is not None]
        draft = scratch / "patch"
        size = _joined(draft, head, bodies)
        if settings.check:
            say("checking: applying the patch")
            applying.apply(old, draft, scratch / "new")
        draft.replace(patch)
        sync_folder(patch.absolute().parent)
    return size


def _joined(draft: Path, head: bytes, bodies: Iterable[BinaryIO]) -> int:
    with draft.open("wb") as file:
        file.write(head)
        for body in bodies:
            body.seek(0)
            shutil.copyfileobj(body, file, CHUNK)
        size = file.tell()
    with File(draft) as written:
        written.sync()
    return size


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

    def file(self, name: str, old: _Old | None, new: Path) -> tuple[Change, _Candidate | None]:
        content = _content(new)
        if old is not None and old.content == content:
            self._say(f"{name}: as it was")
            return Change(name, content, Way.COPY, 0, old.name, old.content), None
        best = self._best(name, old, new, content)
        source = (old.name, old.content) if old is not None else (None, None)
        return Change(name, content, best.way, best.count, *source), best

    def _best(self, name: str, old: _Old | None, new: Path, content: Content) -> _Candidate:
        tried: list[_Candidate] = []

        def add(candidate: _Candidate | None) -> bool:
            if candidate is not None:
                self._say(f"{name}: {candidate.size} bytes by {candidate.way}")
                tried.append(candidate)
            return candidate is not None

        if old is not None:
            if max(old.content.size, content.size) <= generic.DICTIONARY_BYTES:
                add(self._by_dictionary(old.path, new))
            add(self._by_tensors(old.path, new))
        if tried and content.size > COVERED_BYTES:
            return min(tried, key=lambda candidate: candidate.size)
        mapped = _mapped(old.path if old is not None else None), _mapped(new)
        least = min((candidate.size for candidate in tried), default=None)
        # Where our covers are far from the best, those of others would not make up for it.
        if add(self._by_covers(*mapped, covers.find(*mapped), least)) and old is not None and self._settings.tools:
            for found in covers.of_tools(old.path, new):
                add(self._by_covers(*mapped, found, least))
        return min(tried, key=lambda candidate: candidate.size)

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

    def _by_tensors(self, old: Path, new: Path) -> _Candidate | None:
        """None where the tensors of a file cannot be told."""
        before, after = formats.read(old), formats.read(new)
        if not after.layout.tensors:
            return None
        candidate = self._candidate(Way.TENSORS)
        with File(old) as source, File(new) as target:
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

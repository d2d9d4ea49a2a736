"""Makes a new image of the old one and a difference: frame by frame, in bounded memory, and on from where it was cut.

    <new>          grows; blocks that are zero stay holes
    <new>.mark     which frame comes next, and that everything before it is on the disk

The old image is read through before anything is written, the new one when it is whole: what has another digest than the
difference says is never left behind under its name.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import zstandard
from msgspec import Struct

from ota import durable
from ota.errors import DamagedError, StorageError
from ota.osdelta import form
from ota.osdelta.form import BLOCK, COPY, NEW, DifferenceError, Frame, Head
from ota.osdelta.reading import dictionary, digest

MARK_FRAMES = 8  # 32 MiB: what is done again at most
_FIRST = len(form.MAGIC) + 4 + form.MAX_HEAD

Progress = Callable[[int, int], None]


class WrongBaseError(DifferenceError):
    """The old image is not the one that the difference starts from; nothing was written."""


class Mark(Struct, frozen=True):
    """`offset` in the difference's file, `written` bytes of the new image, the old block after the last copy."""

    new: str
    offset: int
    written: int
    copied_to: int


def head_of(delta: Path) -> Head:
    with delta.open("rb") as file:
        return form.decode_head(file.read(_FIRST))[0]


def apply(old: Path, delta: Path, new: Path, progress: Progress = lambda done, length: None) -> Head:
    """`old` may be a partition that is longer than the image on it. WrongBaseError, DifferenceError, DamagedError (what
    was made was thrown away), StorageError."""
    try:
        with old.open("rb") as before, delta.open("rb") as file:
            head, start = form.decode_head(file.read(_FIRST))
            if digest(before, head.old.length) != head.old.sha256:
                raise WrongBaseError(f"{old} is not what this difference starts from", "Take the whole image.")
            _make(head, start, before, file, new, progress)
            _verified(head, new)
    except OSError as error:
        raise StorageError(
            f"{error.filename or new}: {error.strerror}", "Make room or give the right to write."
        ) from error
    mark_of(new).unlink(missing_ok=True)
    return head


def mark_of(new: Path) -> Path:
    return new.with_name(f"{new.name}.mark")


def _make(head: Head, start: int, old: BinaryIO, delta: BinaryIO, new: Path, progress: Progress) -> None:
    mark = _marked(head, start, new)
    with os.fdopen(os.open(new, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b") as out:
        out.truncate(mark.written)  # what came after it may never have reached the disk
        out.seek(mark.written)
        for number, after in enumerate(_frames(mark, head, old, delta, out), 1):
            if number % MARK_FRAMES == 0:
                out.truncate(after.written)  # it may end in a hole
                _synced(out)
                durable.write(mark_of(new), msgspec.json.encode(after))
            progress(after.written, head.new.length)
        if delta.read(1):
            raise DifferenceError("more comes after the last frame", "Fetch it again.")
        out.truncate(head.new.length)
        _synced(out)


def _marked(head: Head, start: int, new: Path) -> Mark:
    fresh = Mark(head.new.sha256, start, 0, 0)
    try:
        mark = msgspec.json.decode(mark_of(new).read_bytes()[:1024], type=Mark)
        fits = mark.new == head.new.sha256 and mark.offset >= start and 0 <= mark.written <= new.stat().st_size
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return fresh
    return mark if fits and mark.written % BLOCK == 0 else fresh


def _frames(mark: Mark, head: Head, old: BinaryIO, delta: BinaryIO, out: BinaryIO) -> Iterator[Mark]:
    """Writes each, and gives where it stands after it."""
    old_blocks, length = form.whole_blocks(head.old), form.padded(head.new)
    delta.seek(mark.offset)
    while mark.written < length:
        sizes = form.frame_sizes(delta.read(form.FRAME_HEAD))
        body = delta.read(sizes[0] + sizes[1] + sizes[3])
        frame = form.decode_frame(body, sizes, mark.copied_to, old_blocks)
        if mark.written + frame.blocks * BLOCK > length:
            raise DifferenceError("more than the new image", "Fetch it again.")
        _write(frame, old, out)
        copies = [first + count for kind, count, first in frame.steps if kind == COPY]
        copied_to = copies[-1] if copies else mark.copied_to
        mark = Mark(mark.new, mark.offset + form.FRAME_HEAD + len(body), mark.written + frame.blocks * BLOCK, copied_to)
        yield mark


def _write(frame: Frame, old: BinaryIO, out: BinaryIO) -> None:
    new, used = _unpacked(frame, old), 0
    for kind, count, first in frame.steps:
        size = count * BLOCK
        if kind == COPY:
            old.seek(first * BLOCK)
            out.write(old.read(size))
        elif kind == NEW:
            out.write(new[used : used + size])
            used += size
        else:
            out.seek(size, os.SEEK_CUR)


def _unpacked(frame: Frame, old: BinaryIO) -> bytes:
    if not frame.raw:
        return b""
    known = dictionary(old, frame.ranges)
    shared = zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if known else None
    try:
        if zstandard.frame_content_size(frame.packed) != frame.raw:
            raise DifferenceError("packed bytes of another size than it says", "Fetch it again.")
        unpacker = zstandard.ZstdDecompressor(dict_data=shared, max_window_size=1 << 24)
        return unpacker.decompress(frame.packed, max_output_size=frame.raw)
    except zstandard.ZstdError as error:
        raise DifferenceError(f"packed bytes that are none: {error}", "Fetch it again.") from error


def _synced(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())


def _verified(head: Head, new: Path) -> None:
    with new.open("rb") as file:
        if digest(file, head.new.length) == head.new.sha256 and not file.read(1):
            return
    with suppress(FileNotFoundError):
        mark_of(new).unlink()
    new.unlink()
    raise DamagedError(f"{new.name}: what was made is not what was published", "It was thrown away.")

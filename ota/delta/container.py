"""The patch file: what it changes, in which order, and a digest of everything.

    MWDELTA1 | u32 length of the manifest | SHA-256 of manifest and index | manifest | index | frames

Numbers are little-endian. The manifest is deterministic CBOR (RFC 8949, 4.2): a map

    format   2
    folder   whether it gives a folder of files, or one file
    files    one map a file, rising by path:
                 path    in the new folder; `model` where it is one file
                 from    in the old folder, absent where nothing old is used
                 old     [SHA-256, size], with `from`
                 new     [SHA-256, size]
                 way     how it is made from its frames: a `Way`
                 frames  their number

The index has 22 bytes a frame, in the order of the files: u48 length, and the first 16 bytes of SHA-256(frame, the
bytes of the new file that it gives; nothing where it only copies).

A frame of the way `tensors` is a head and a payload: u32 = (length of the head << 1) | whether zstd packed it; the head
is a CBOR list of integers, for every part its operation, the gap to the end of the part before, size, number of
parameters, parameters. The first frame of such a file holds the context tables instead. What the frames of the other
ways hold is in `generic`.

A patch may come from anybody: every length, count and path is bounded before it is used, and a manifest that is
encoded in any other way than its own is refused.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import cbor2
import zstandard

from ota.delta.codec import MAX_PARTS, MAX_PAYLOAD, Operation, Part, Segment
from ota.delta.errors import DeltaError, PatchError
from ota.delta.tensors import MAX_BYTES, Source

MAGIC = b"MWDELTA1"
FORMAT = 2  # of what frames mean: 1 had other contexts
HEAD = len(MAGIC) + 4 + 32
MAX_MANIFEST = 512 << 10  # bytes
MAX_FILES = 1024
MAX_FRAMES = 1 << 20
MAX_PATH, MAX_DEPTH, MAX_NAME = 1024, 16, 255  # bytes, folders, bytes
MAX_HEAD = 256 << 10  # bytes of the head of a frame
MAX_FRAME = MAX_PAYLOAD + MAX_HEAD + 4
DIGEST = 16  # bytes of a frame's digest
ENTRY = 6 + DIGEST
ONE_FILE = "model"
_OPERATIONS = tuple(Operation)
_INTEGERS = range(-(1 << 63), 1 << 63)


class Way(StrEnum):
    """How a file comes about."""

    COPY = "copy"  # it is the old file
    TENSORS = "tensors"  # segments of the codec
    COVERS = "covers"  # ranges of the old file, differences, and what is new
    DICTIONARY = "dictionary"  # one zstd frame, the old file its dictionary


@dataclass(frozen=True)
class Content:
    sha256: bytes
    size: int


@dataclass(frozen=True)
class Change:
    """One file of the new version."""

    path: str
    new: Content
    way: Way
    frames: int = 0
    source: str | None = None
    old: Content | None = None


@dataclass(frozen=True)
class Frame:
    """Where it is in the patch, and the start of its digest."""

    offset: int
    size: int
    digest: bytes


@dataclass(frozen=True)
class Manifest:
    changes: tuple[Change, ...]
    folder: bool
    index: bytes
    identity: bytes  # SHA-256 of manifest and index, which hold the digests of everything else
    begin: int  # where the frames begin

    @property
    def size(self) -> int:
        """Bytes of the new version."""
        return sum(change.new.size for change in self.changes)

    def lengths(self) -> Iterator[int]:
        for place in range(0, len(self.index), ENTRY):
            yield int.from_bytes(self.index[place : place + 6], "little")

    def frames(self) -> Iterator[tuple[Change, tuple[Frame, ...]]]:
        """The files with their frames; no more than one file's are in memory."""
        offset, place = self.begin, 0
        for change in self.changes:
            found = []
            for entry in range(place, place + change.frames * ENTRY, ENTRY):
                size = int.from_bytes(self.index[entry : entry + 6], "little")
                found.append(Frame(offset, size, self.index[entry + 6 : entry + ENTRY]))
                offset += size
            place += change.frames * ENTRY
            yield change, tuple(found)


def frame_digest(frame: bytes, given: bytes = b"") -> bytes:
    found = hashlib.sha256(frame)
    found.update(given)
    return found.digest()[:DIGEST]


# Writing


def written(changes: Sequence[Change], folder: bool, index: bytes) -> bytes:
    """Everything ahead of the frames."""
    files = [_plain(change) for change in changes]
    manifest = cbor2.dumps({"format": FORMAT, "folder": folder, "files": files}, canonical=True)
    if len(manifest) > MAX_MANIFEST:
        raise DeltaError(f"the manifest takes {len(manifest)} bytes, more than {MAX_MANIFEST}", "split the folder")
    body = manifest + index
    return MAGIC + len(manifest).to_bytes(4, "little") + hashlib.sha256(body).digest() + body


def entry(size: int, digest: bytes) -> bytes:
    """A frame's place in the index."""
    return size.to_bytes(6, "little") + digest


def _plain(change: Change) -> dict[str, Any]:
    plain: dict[str, Any] = {"path": change.path, "new": [change.new.sha256, change.new.size]}
    plain |= {"way": change.way.value, "frames": change.frames}
    if change.source is not None and change.old is not None:
        plain |= {"from": change.source, "old": [change.old.sha256, change.old.size]}
    return plain


def framed(segment: Segment, end: int) -> bytes:
    """A segment as it stands in a patch, after parts that ended at byte `end` of the new file."""
    numbers: list[int] = []
    for part in segment.parts:
        numbers += [_OPERATIONS.index(part.operation), part.offset - end, part.size, len(part.params), *part.params]
        end = part.offset + part.size
    head = cbor2.dumps(numbers, canonical=True)
    packed = zstandard.ZstdCompressor(19, write_content_size=True, write_checksum=False).compress(head)
    packs = len(packed) < len(head)
    head = packed if packs else head
    if len(head) > MAX_HEAD:
        raise DeltaError(f"a segment of {len(segment.parts)} parts has a head of {len(head)} bytes")
    return ((len(head) << 1) | packs).to_bytes(4, "little") + head + segment.payload


# Reading


def read(patch: Source, size: int) -> Manifest:
    """What is ahead of the frames of a patch of `size` bytes; PatchError for whatever is not as it should be."""
    if size < HEAD:
        raise PatchError(f"a patch of {size} bytes is cut off")
    head = patch.read(0, HEAD)
    if head[: len(MAGIC)] != MAGIC:
        raise PatchError("this is no patch, or one of a later format", "make it with this version of ota.delta")
    length = int.from_bytes(head[len(MAGIC) : len(MAGIC) + 4], "little")
    if length > min(MAX_MANIFEST, size - HEAD):
        raise PatchError(f"a manifest of {length} bytes in a patch of {size}")
    encoded = patch.read(HEAD, length)
    plain = _decoded(encoded)
    changes = _changes(plain)
    frames = sum(change.frames for change in changes)
    if frames > MAX_FRAMES or HEAD + length + frames * ENTRY > size:
        raise PatchError(f"a patch of {size} bytes with {frames} frames")
    index = patch.read(HEAD + length, frames * ENTRY)
    if hashlib.sha256(encoded + index).digest() != head[-32:]:
        raise PatchError("the manifest or the index is damaged")
    manifest = Manifest(changes, plain["folder"], index, head[-32:], HEAD + length + len(index))
    _bound_frames(manifest, size)
    return manifest


def _decoded(encoded: bytes) -> dict[str, Any]:
    plain = _loads(encoded)
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise PatchError("the manifest is of another format", "update this machine's software first")
    if set(plain) != {"format", "folder", "files"} or cbor2.dumps(plain, canonical=True) != encoded:
        raise PatchError("the manifest is not in its own form")
    if not (isinstance(plain["folder"], bool) and isinstance(plain["files"], list)):
        raise PatchError("the manifest lacks its files")
    return plain


def _loads(encoded: bytes) -> Any:
    try:
        return cbor2.loads(encoded)
    except (cbor2.CBORError, RecursionError, MemoryError, ValueError, OverflowError, TypeError) as error:
        raise PatchError(f"CBOR that cannot be read: {error}") from error


def _changes(plain: dict[str, Any]) -> tuple[Change, ...]:
    files = plain["files"]
    if not 1 <= len(files) <= MAX_FILES:
        raise PatchError(f"a patch of {len(files)} files; 1 to {MAX_FILES} are allowed")
    changes = tuple(_change(file) for file in files)
    paths = [change.path.split("/") for change in changes]
    if not plain["folder"] and [change.path for change in changes] != [ONE_FILE]:
        raise PatchError("a patch of one file that names others")
    for first, second in pairwise(paths):
        if first >= second:
            raise PatchError("the files are not in order, or one comes twice")
        if second[: len(first)] == first:
            raise PatchError(f"{'/'.join(first)} is a file and a folder")
    return changes


def _change(plain: Any) -> Change:
    if not isinstance(plain, dict) or set(plain) - {"from", "old"} != {"path", "new", "way", "frames"}:
        raise PatchError("a file that is not described as it should be")
    path, way, frames, source = plain["path"], plain["way"], plain["frames"], plain.get("from")
    if ("from" in plain) != ("old" in plain) or way not in tuple(Way) or not _within(frames, MAX_FRAMES):
        raise PatchError("a file that is not described as it should be")
    for name in (path, *([source] if "from" in plain else [])):
        if not safe(name):
            raise PatchError(f"a path that is not allowed: {str(name)[:80]!r}")
    old = _content(plain["old"]) if "old" in plain else None
    change = Change(path, _content(plain["new"]), Way(way), frames, source, old)
    if (change.way is not Way.COVERS and old is None) or (change.way is Way.COPY and (old != change.new or frames)):
        raise PatchError(f"{path}: nothing to make it from")
    return change


def _content(plain: Any) -> Content:
    if isinstance(plain, list) and len(plain) == 2:
        sha256, size = plain
        if isinstance(sha256, bytes) and len(sha256) == 32 and _within(size, MAX_BYTES):
            return Content(sha256, size)
    raise PatchError("a file without its digest and size")


def _within(number: Any, most: int) -> bool:
    return type(number) is int and 0 <= number <= most


def safe(path: Any) -> bool:
    """Whether a path stays in its folder on any system, and can be shown."""
    if not isinstance(path, str) or not 0 < len(path.encode("utf-8", "replace")) <= MAX_PATH:
        return False
    names = path.split("/")
    return len(names) <= MAX_DEPTH and all(_safe_name(name) for name in names)


def _safe_name(name: str) -> bool:
    if name in ("", ".", "..") or len(name.encode("utf-8", "replace")) > MAX_NAME:
        return False
    return name.isprintable() and not set(name) & set('\\:*?"<>|')


def _bound_frames(manifest: Manifest, size: int) -> None:
    total = 0
    for length in manifest.lengths():
        if length > MAX_FRAME:
            raise PatchError(f"a frame of {length} bytes")
        total += length
    if manifest.begin + total != size:
        raise PatchError(f"the patch has {size} bytes, its manifest says {manifest.begin + total}")


def unframed(frame: bytes, end: int, size: int) -> Segment:
    """The segment in a frame, for a new file of `size` bytes, after parts that ended at byte `end`."""
    length = int.from_bytes(frame[:4], "little")
    packs, length = length & 1, length >> 1
    if len(frame) < 4 or length > min(MAX_HEAD, len(frame) - 4):
        raise PatchError("a frame with a head longer than itself")
    head = frame[4 : 4 + length]
    numbers = _loads(_unpacked(head) if packs else head)
    if not isinstance(numbers, list) or any(type(number) is not int or number not in _INTEGERS for number in numbers):
        raise PatchError("a frame whose parts cannot be told")
    parts = tuple(_parts(numbers, end, size))
    segment = Segment(parts, frame[4 + length :])
    if len(segment.payload) > MAX_PAYLOAD:
        raise PatchError(f"a payload of {len(segment.payload)} bytes")
    return segment


def _parts(numbers: list[int], end: int, size: int) -> Iterator[Part]:
    place = count = 0
    while place < len(numbers):
        fields = numbers[place : place + 4]
        if len(fields) < 4 or not 0 <= fields[0] < len(_OPERATIONS) or not 0 <= fields[3] <= len(numbers) - place - 4:
            raise PatchError("a part that is cut off")
        offset = end + fields[1]
        end = offset + fields[2]
        if count >= MAX_PARTS or not 0 <= offset <= end <= size:
            raise PatchError(f"a part from byte {offset} to {end} of a file of {size}")
        place, count = place + 4 + fields[3], count + 1
        yield Part(_OPERATIONS[fields[0]], offset, end - offset, tuple(numbers[place - fields[3] : place]))


def _unpacked(data: bytes) -> bytes:
    try:
        if not 0 <= zstandard.frame_content_size(data) <= MAX_HEAD:
            raise PatchError("the head of a frame is too long")
        return zstandard.ZstdDecompressor(max_window_size=MAX_HEAD).decompress(data, max_output_size=MAX_HEAD)
    except zstandard.ZstdError as error:
        raise PatchError(f"the head of a frame is damaged: {error}") from error

"""Block maps as bmaptool writes them (2.0): which blocks of an image hold anything, and their checksums.

Read by a parser for this form alone: no entities, no declarations, nothing nested beyond what a map has.
"""

import hashlib
import re
import xml.parsers.expat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 32 << 20
MAX_RANGES = 1_000_000
MAX_IMAGE = 1 << 44
_NUMBER = re.compile(r"[0-9]{1,15}")
_RANGE = re.compile(r"([0-9]{1,15})(?:\s*-\s*([0-9]{1,15}))?")
_HEX = re.compile(r"[0-9a-f]{64}")
_LEVELS = 3


class BmapError(Exception):
    """What is wrong with a block map."""


@dataclass(frozen=True)
class Range:
    """Bytes from `start` to `end`, which is not in it; `sha256` of them, empty where the map does not say."""

    start: int
    end: int
    sha256: str = ""


@dataclass(frozen=True)
class Map:
    image_bytes: int
    ranges: tuple[Range, ...] = field(repr=False)

    @property
    def mapped_bytes(self) -> int:
        return sum(one.end - one.start for one in self.ranges)


def read(path: Path) -> Map:
    """BmapError, OSError."""
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    return parse(raw)


def whole(image_bytes: int) -> Map:
    """For an image without a map."""
    return Map(image_bytes, (Range(0, image_bytes),) if image_bytes else ())


def parse(raw: bytes) -> Map:
    if len(raw) > MAX_BYTES:
        raise BmapError(f"a block map of more than {MAX_BYTES} bytes")
    reader = _Reader()
    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.UnparsedEntityDeclHandler = _refused
    parser.ProcessingInstructionHandler = _refused
    parser.buffer_text = True
    try:
        parser.Parse(raw, True)
    except xml.parsers.expat.ExpatError as error:
        raise BmapError(f"no block map: {error}") from error
    found = reader.found()
    _check_own_sum(raw, reader.values.get("BmapFileChecksum", ""))
    return found


def _refused(*_: object) -> None:
    raise BmapError("a block map with declarations in it")


def _check_own_sum(raw: bytes, told: str) -> None:
    """The map's checksum of itself: with its own digits as zeros. One that has none is taken as it is."""
    if not told:
        return
    if not _HEX.fullmatch(told) or raw.count(told.encode()) != 1:
        raise BmapError("the block map's own checksum is none")
    if hashlib.sha256(raw.replace(told.encode(), b"0" * len(told))).hexdigest() != told:
        raise BmapError("the block map was altered or damaged")


class _Reader:
    """Gathers what the parser finds: values by name, and ranges."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.spans: list[tuple[str, str]] = []  # text, checksum
        self._open: list[str] = []
        self._checksum, self._text = "", ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        if len(self._open) > _LEVELS or self._open[0] != "bmap":
            raise BmapError("no block map: it is nested in another way")
        if name == "bmap" and attributes.get("version", "").partition(".")[0] not in ("1", "2"):
            raise BmapError(f"a block map of version {attributes.get('version', '?')}; 1 and 2 are understood")
        self._checksum, self._text = attributes.get("chksum", attributes.get("sha1", "")), ""

    def text(self, text: str) -> None:
        self._text += text
        if len(self._text) > 4096 and self._text.strip():
            raise BmapError("no block map: a text that is too long")

    def end(self, name: str) -> None:
        self._open.pop()
        if name == "Range":
            self.spans.append((self._text.strip(), self._checksum))
            if len(self.spans) > MAX_RANGES:
                raise BmapError(f"more than {MAX_RANGES} ranges")
        else:
            self.values[name] = self._text.strip()
        self._text = ""

    def found(self) -> Map:
        size, block, blocks = (self._number(name) for name in ("ImageSize", "BlockSize", "BlocksCount"))
        if (
            not 0 < size <= MAX_IMAGE
            or not 512 <= block <= 1 << 20
            or block & (block - 1)
            or blocks != -(-size // block)
        ):
            raise BmapError("sizes that do not fit together")
        checked = self.values.get("ChecksumType", "").strip() == "sha256"
        ranges = tuple(self._ranges(size, block, blocks, checked))
        if sum(-(-(one.end - one.start) // block) for one in ranges) != self._number("MappedBlocksCount"):
            raise BmapError("ranges that are not what it counts")
        return Map(size, ranges)

    def _ranges(self, size: int, block: int, blocks: int, checked: bool) -> Iterator[Range]:
        last = -1
        for text, checksum in self.spans:
            found = _RANGE.fullmatch(text)
            if found is None:
                raise BmapError(f"'{text[:40]}' is no range")
            first = int(found[1])
            end = int(found[2]) if found[2] else first
            if not last < first <= end < blocks:
                raise BmapError(f"the range '{text[:40]}' is out of order or beyond the end")
            if checked and not _HEX.fullmatch(checksum):
                raise BmapError(f"the range '{text[:40]}' has no checksum")
            last = end
            yield Range(first * block, min((end + 1) * block, size), checksum if checked else "")

    def _number(self, name: str) -> int:
        text = self.values.get(name, "")
        if not _NUMBER.fullmatch(text):
            raise BmapError(f"no block map: {name} is '{text[:40]}'")
        return int(text)

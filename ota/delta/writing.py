"""Pieces, by the operation that was found for each, become segments: the second half of `encoding`. Host only.

Tokens and contexts wait in a temporary file until the context tables are built from their statistics. Then the streams
are written, from the last symbol of a stretch to its first.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ota.delta import payload, rans, tables, tokens
from ota.delta.segments import MAX_PARTS, MAX_SEGMENT, Part, Segment
from ota.delta.streams import Noted

RESTART = 64 << 20  # bytes of output after which the streams start again
_PER_LANE = 1500  # bytes of payload that are worth a lane: it costs about three
_FEW_LANES, _PER_EARLY = 256, 500  # up to there fewer bytes will do: numpy is slow with few


@dataclass
class Piece:
    """A part, with the numbers of the noted blocks it is made of, or its blob."""

    part: Part
    blocks: list[int] = field(default_factory=list)
    blob: bytes = b""


class Spool:
    """Noted blocks in a temporary file."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  kept until `close`
        self._places: list[int] = []
        self.counts = np.zeros(tokens.FAMILIES * tokens.CONTEXTS * rans.SYMBOLS, np.int64)
        self.raw_bits = 0

    def add(self, noted: Noted) -> int:
        contexts = np.concatenate([contexts for contexts, _ in noted.calls])
        symbols = np.concatenate([symbols for _, symbols in noted.calls])
        for some, what in noted.calls:
            first = int(some.min()) << 8 if len(some) else 0
            found = np.bincount((some.astype(np.int64) << 8 | what) - first)
            self.counts[first : first + len(found)] += found
        numbers = np.concatenate([numbers for numbers, _ in noted.raw])
        widths = np.concatenate([widths for _, widths in noted.raw])
        self.raw_bits += int(widths.sum(dtype=np.int64))
        self._places.append(self._file.seek(0, 2))
        lengths = np.array([len(contexts) for contexts, _ in noted.calls], np.int64)
        for array in (lengths, contexts, symbols, numbers, widths):
            np.save(self._file, array)
        return len(self._places) - 1

    def get(self, number: int) -> Noted:
        self._file.seek(self._places[number])
        lengths, contexts, symbols, numbers, widths = (np.load(self._file) for _ in range(5))
        noted = Noted()
        cuts = np.cumsum(lengths)[:-1]
        noted.calls = list(zip(np.split(contexts, cuts), np.split(symbols, cuts), strict=True))
        noted.raw = [(numbers, widths)]
        return noted

    def close(self) -> None:
        self._file.close()


class Encoded:
    """What `encode` found; to be closed."""

    def __init__(self, copies: list[Part], pieces: list[Piece], spool: Spool) -> None:
        self._copies, self._pieces, self._spool = copies, pieces, spool
        book, self._book = tables.build(spool.counts.reshape(-1, rans.SYMBOLS))
        self._lanes = _lanes(self._bits() / 8)
        self.tables = payload.write_tables(self._lanes, book)

    def _bits(self) -> float:
        counts = self._spool.counts.reshape(-1, rans.SYMBOLS)
        used = np.flatnonzero(counts.any(axis=1))
        if not len(used):
            return 0.0
        shares = self._book.tables.frequencies[self._book.chosen.reshape(-1)[used]] / rans.TOTAL
        return float(-(counts[used] * np.log2(np.maximum(shares, 1 / rans.TOTAL))).sum())

    def entropy(self) -> float:
        """Bytes of the residuals and of what zstd packed, if all that tells how to read them cost nothing."""
        counts = self._spool.counts.reshape(tokens.FAMILIES, tokens.CONTEXTS, rans.SYMBOLS)
        bits = _entropy(counts[tokens.META + 1 :]) + self._spool.raw_bits - _raw_bits(counts[tokens.META])
        return bits / 8 + sum(len(piece.blob) for piece in self._pieces)

    def told(self) -> float:
        """Bytes, counted alike, of what the predictors are told: classes, factors of rows, low ranks."""
        counts = self._spool.counts.reshape(tokens.FAMILIES, tokens.CONTEXTS, rans.SYMBOLS)[tokens.META]
        return (_entropy(counts) + _raw_bits(counts)) / 8

    def segments(self) -> Iterator[Segment]:
        """In the order in which they are to be decoded: copies first, for scales may be among them."""
        for start in range(0, len(self._copies), MAX_PARTS):
            yield Segment(tuple(self._copies[start : start + MAX_PARTS]))
        for stretch in _stretches(list(_packed(self._pieces))):
            yield from self._stretch(stretch)

    def _stretch(self, segments: list[list[Piece]]) -> Iterator[Segment]:
        """Segments of which the first starts the streams. Written backwards, given forwards."""
        states = rans.start(self._lanes)
        words: list[rans.Words] = []
        for pieces in reversed(segments):
            found = [np.zeros(0, np.uint16)]
            for number in reversed([number for piece in pieces for number in piece.blocks]):
                for contexts, symbols in reversed(self._spool.get(number).calls):
                    chosen = self._book.chosen.reshape(-1)[contexts]
                    found.append(rans.encode_call(self._book.tables, states, chosen, symbols))
            words.append(np.concatenate(found[::-1]))
        coded = any(piece.blocks for pieces in segments for piece in pieces)
        for number, (pieces, its) in enumerate(zip(segments, reversed(words), strict=True)):
            yield self._segment(pieces, its, states if coded and number == 0 else None)

    def _segment(self, pieces: list[Piece], words: rans.Words, states: rans.States | None) -> Segment:
        raw = [raw for piece in pieces for number in piece.blocks for raw in self._spool.get(number).raw]
        numbers = np.concatenate([numbers for numbers, _ in raw] or [np.zeros(0, np.uint32)])
        widths = np.concatenate([widths for _, widths in raw] or [np.zeros(0, np.uint8)])
        blobs = b"".join(piece.blob for piece in pieces)
        content = payload.Payload(words, tokens.pack(numbers, widths), blobs, states)
        return Segment(tuple(piece.part for piece in pieces), payload.write(content))

    def close(self) -> None:
        """Lets go of the temporary file."""
        self._spool.close()


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bits of symbols under the statistics of their own contexts, [..., symbols]."""
    known = counts.astype(np.float64)
    total = known.sum(axis=-1)
    return float((total * np.log2(np.maximum(total, 1))).sum() - (known * np.log2(np.maximum(known, 1))).sum())


def _raw_bits(counts: NDArray[np.int64]) -> float:
    return float(counts.reshape(-1, rans.SYMBOLS).sum(axis=0) @ tokens.WIDTHS.astype(np.int64))


def _lanes(size: float) -> int:
    """A power of two that costs little of `size` bytes."""
    lanes = rans.MIN_LANES
    while lanes < rans.MAX_LANES and size > 2 * lanes * (_PER_EARLY if lanes < _FEW_LANES else _PER_LANE):
        lanes *= 2
    return lanes


def _packed(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Pieces by the segment, those of one tensor joined where they meet in one."""
    found: list[Piece] = []
    size = 0
    for piece in pieces:
        if found and (size + piece.part.size > MAX_SEGMENT or len(found) == MAX_PARTS):
            yield found
            found, size = [], 0
        size += piece.part.size
        if found and piece.blocks and not piece.part.params:
            last = found[-1]
            found[-1] = Piece(replace(last.part, size=last.part.size + piece.part.size), last.blocks + piece.blocks)
        else:
            found.append(piece)
    if found:
        yield found


def _stretches(segments: list[list[Piece]]) -> Iterator[list[list[Piece]]]:
    found: list[list[Piece]] = []
    size = 0
    for pieces in segments:
        if found and size >= RESTART:
            yield found
            found, size = [], 0
        found.append(pieces)
        size += sum(piece.part.size for piece in pieces)
    if found:
        yield found

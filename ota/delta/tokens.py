"""Residuals as tokens and raw bits, and the contexts in which tokens are expected.

A token is the sign, the exponent and the two leading mantissa bits of an integer; the bits below follow raw. A context
is what is expected of a token: the family of its kind, the residual's expected size in half octaves of cells (class),
and where in its cell the prediction landed (level), which tells much while residuals are about a cell wide.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ota.delta.errors import PatchError
from ota.delta.integers import FRACTIONS
from ota.delta.tensors import Kind

Array = NDArray[Any]
TOKENS = 247
CLASSES = 64  # half octaves from LOWEST on
LOWEST = -12  # half octaves: a sixty-fourth of a cell
LEVELS = 16
MAX_LEAN = 9
CONTEXTS = CLASSES * LEVELS  # a family

META = 0  # the codec's own numbers: classes, factors, low rank
FRESH = 6  # floats without an old tensor
FAMILIES = 7
_FAMILY = {Kind.F16: 1, Kind.BF16: 2, Kind.F32: 3, Kind.I32: 3, Kind.I8: 4, Kind.U8: 4, Kind.I4: 5, Kind.U4: 5}


def family(kind: Kind) -> int:
    return _FAMILY[kind]


def _layout() -> tuple[Array, Array, Array]:
    magnitudes, widths = [1, 2, 3], [0, 0, 0]
    for exponent in range(2, 32):
        magnitudes += [mantissa << (exponent - 2) for mantissa in range(4, 8)]
        widths += [exponent - 2] * 4
    tokens = np.arange(TOKENS)
    place = np.maximum(tokens - 1, 0) // 2
    base = np.where(tokens > 0, np.array(magnitudes, np.int64)[place], 0).astype(np.uint32).view(np.int32)
    sign = np.where(tokens % 2 == 0, np.int32(-1), np.int32(1))
    return base, sign, np.where(tokens > 0, np.array(widths)[place], 0).astype(np.uint8)


BASE, SIGN, WIDTHS = (np.concatenate([part, np.zeros(256 - TOKENS, part.dtype)]) for part in _layout())
_BARE = (BASE * SIGN).astype(np.int32)  # what a token is where no raw bits follow


def split(residuals: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Tokens and the raw bits below them."""
    magnitude = np.abs(residuals.astype(np.int64))
    exponent = (magnitude.astype(np.float64).view(np.int64) >> 52) - 1023
    width = np.maximum(exponent - 2, 0)
    place = np.where(exponent < 2, magnitude - 1, 3 + 4 * (exponent - 2) + (magnitude >> width) - 4)
    tokens = np.where(magnitude == 0, 0, 1 + 2 * place + (residuals < 0))
    return tokens.astype(np.uint8), (magnitude & ((np.int64(1) << width) - 1)).astype(np.uint32)


def join(tokens: NDArray[np.uint8], raw: "Bits") -> NDArray[np.int32]:
    """Residuals from tokens, taking from `raw` what belongs below them."""
    residuals: NDArray[np.int32] = _BARE.take(tokens)
    wide = np.flatnonzero(tokens > _LAST_BARE)
    if len(wide):
        tail = tokens[wide]
        below = raw.take(WIDTHS.take(tail)).view(np.int32)
        residuals[wide] = (BASE.take(tail) + below) * SIGN.take(tail)
    return residuals


_LAST_BARE = int(np.flatnonzero(WIDTHS)[0]) - 1


class Bits:
    """Raw bits of a segment, taken in order, each number's lowest bit first."""

    def __init__(self, data: bytes) -> None:
        self.data = np.frombuffer(data + bytes(16 - len(data) % 4), np.uint8)
        self.limit = 8 * len(data)
        self.position = 0

    def take(self, widths: NDArray[np.uint8]) -> NDArray[np.uint32]:
        """One number for each width of 0 to 32 bits."""
        ends = np.cumsum(widths, dtype=np.int64) + self.position
        if len(ends) == 0:
            return np.zeros(0, np.uint32)
        if int(ends[-1]) > self.limit:
            raise PatchError("a segment's raw bits end too early")
        starts = ends - widths
        words = self.data.view("<u4")
        word, shift = starts >> 5, (starts & 31).astype(np.uint64)
        found = (words[word] | words[word + 1].astype(np.uint64) << np.uint64(32)) >> shift
        self.position = int(ends[-1])
        masks = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
        return np.asarray(found & masks, np.uint32)


def pack(numbers: NDArray[np.uint32], widths: NDArray[np.uint8]) -> bytes:
    """The inverse of `Bits.take` over one sequence."""
    ends = np.cumsum(widths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    words = np.zeros(total // 32 + 2, np.uint64)
    starts = ends - widths
    moved = numbers.astype(np.uint64) << (starts & 31).astype(np.uint64)
    np.bitwise_or.at(words, starts >> 5, moved & np.uint64(0xFFFFFFFF))
    np.bitwise_or.at(words, (starts >> 5) + 1, moved >> np.uint64(32))
    return words.astype("<u4").tobytes()[: (total + 7) // 8]


def _levels() -> NDArray[np.uint8]:
    """For every class and fraction the level: 13 while residuals are within two cells, 4 up to eight, then one."""
    fine = np.searchsorted([1, 2, 4, 8, 16, 24, 36, 48, 64, 80, 96, 112], np.arange(FRACTIONS + 1), side="right")
    coarse = np.minimum(np.arange(FRACTIONS + 1) // 32, 3)
    classes = np.arange(CLASSES) + LOWEST
    levels = np.zeros((CLASSES, 256), np.uint8)
    levels[classes < 6, : FRACTIONS + 1] = coarse
    levels[classes < 2, : FRACTIONS + 1] = fine
    return levels


LEVEL = _levels()


def classify(expected: Array) -> NDArray[np.uint8]:
    """Half octaves of the expected residual, in cells, as the index of a class."""
    return (np.clip(expected, LOWEST, LOWEST + CLASSES - 1) - LOWEST).astype(np.uint8)


def contexts(classes: NDArray[np.uint8], fraction: NDArray[np.uint8] | None) -> NDArray[np.uint16]:
    """Numbers of contexts within a family."""
    first = classes.astype(np.uint16) * np.uint16(LEVELS)
    return first if fraction is None else first + LEVEL[classes, fraction]


def leaning(classes: NDArray[np.uint8], lean: NDArray[np.int32]) -> NDArray[np.uint16]:
    """Numbers of contexts where neighbours are known: their sum, without its sign, in the place of the level."""
    return contexts(classes, None) + np.minimum(np.abs(lean), MAX_LEAN).astype(np.uint16)


def beside(deviations: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The level of a factor by its row's or column's class, less the usual one: where little changes it is nothing."""
    return ((np.clip(deviations, -24, 7) >> 1) + 12).astype(np.uint8)


def turned(numbers: NDArray[np.int32], lean: NDArray[np.int32]) -> NDArray[np.int32]:
    """The other way round where neighbours are negative; its own inverse."""
    return np.where(lean < 0, -numbers, numbers)

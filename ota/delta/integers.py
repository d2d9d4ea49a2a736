"""Tensors as numbers to predict with and as ordered integers to subtract.

A float's bits become an integer that rises with the number (-0 just below +0, NaN beyond the infinities), so a residual
counts representable numbers. Everything here is exact or one IEEE operation: any machine gives the same bits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ota.delta.tensors import Kind

Array = NDArray[Any]
Ordered = NDArray[np.int32]
with np.errstate(invalid="ignore"):  # some machines tell of NaN
    HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
FRACTIONS = 128  # steps of half a cell in which the distance to its middle is told


@dataclass(frozen=True)
class Form:
    """How a kind is worked with: `store` its elements in memory, `work` the floats it is predicted in."""

    width: int  # bits of an element
    store: str
    work: str
    mantissa: int = 0  # floats: explicit bits
    emin: int = 0  # floats: exponent of the smallest normal
    low: int = 0  # integers: the least and the greatest
    high: int = 0

    @property
    def top(self) -> int:
        """Floats: the largest finite exponent."""
        return (1 << (self.width - 2 - self.mantissa)) - 1 if self.mantissa else 0


FORMS = {
    Kind.F16: Form(16, "<u2", "f4", mantissa=10, emin=-14),
    Kind.BF16: Form(16, "<u2", "f8", mantissa=7, emin=-126),
    Kind.F32: Form(32, "<u4", "f8", mantissa=23, emin=-126),
    Kind.I32: Form(32, "<i4", "f8", low=-(1 << 31), high=(1 << 31) - 1),
    Kind.I8: Form(8, "i1", "f4", low=-128, high=127),
    Kind.U8: Form(8, "u1", "f4", low=0, high=255),
    Kind.I4: Form(4, "u1", "f4", low=-8, high=7),
    Kind.U4: Form(4, "u1", "f4", low=0, high=15),
}


def load(kind: Kind, data: bytes) -> Array:
    """The elements as stored; four-bit ones spread over a byte each, 0 to 15."""
    stored = np.frombuffer(data, FORMS[kind].store)
    if FORMS[kind].width != 4:
        return stored
    spread = np.empty(2 * len(stored), np.uint8)
    spread[0::2] = stored & np.uint8(15)
    spread[1::2] = stored >> np.uint8(4)
    return spread


def ordered(kind: Kind, elements: Array) -> Ordered:
    form = FORMS[kind]
    if form.mantissa:
        signed = elements.view(f"<i{form.width // 8}").astype(np.int32)
        return np.where(signed < 0, ~(signed & np.int32((1 << (form.width - 1)) - 1)), signed)
    if kind is Kind.I4:
        return (elements.astype(np.int32) ^ np.int32(8)) - np.int32(8)
    return elements.astype(np.int32)


def store(kind: Kind, numbers: Ordered) -> bytes:
    """The bytes of ordered integers, which may have wrapped around the kind's width."""
    form = FORMS[kind]
    if form.mantissa:
        top = np.int32(-(1 << 31)) if form.width == 32 else np.int32(1 << 15)
        narrow = numbers if form.width == 32 else numbers << np.int32(16) >> np.int32(16)
        numbers = np.where(narrow < 0, ~narrow | top, narrow)
    if form.width == 4:
        nibbles = numbers.astype(np.uint8) & np.uint8(15)
        return (nibbles[0::2] | nibbles[1::2] << np.uint8(4)).tobytes()
    return numbers.astype(form.store.replace("i", "u")).tobytes()


def values(kind: Kind, elements: Array) -> Array:
    """The numbers in the floats the kind is worked with; exact."""
    if kind is Kind.F16:
        return HALVES.take(elements)
    if kind is Kind.BF16:
        return (elements.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if kind is Kind.F32:
        return elements.view("<f4").astype(np.float64)
    if kind is Kind.I4:
        return ordered(kind, elements).astype(np.float32)
    return elements.astype(FORMS[kind].work)


def wrap(kind: Kind, residuals: Ordered) -> Ordered:
    """Differences of ordered integers modulo the kind's width, as signed numbers of that width."""
    spare = np.int32(32 - FORMS[kind].width)
    return residuals << spare >> spare


@dataclass(frozen=True)
class Cells:
    """Predictions rounded to the kind: where they landed and where within the cell.

    `ordered` the integer; `octave` the exponent of the cell's width; `toward` +1 or -1, the neighbour that is nearer;
    `fraction` the distance from the cell's middle, 0 to FRACTIONS.
    """

    ordered: Ordered
    octave: NDArray[np.int32] | None
    toward: NDArray[np.int8]
    fraction: NDArray[np.uint8]


def cells(kind: Kind, predicted: Array) -> Cells:
    """Rounds predictions, to even where they lie between two; what is no number is taken as zero."""
    form = FORMS[kind]
    predicted = np.where(np.abs(predicted) < _LARGEST[form.work], predicted, predicted.dtype.type(0))
    return _float_cells(form, predicted) if form.mantissa else _integer_cells(form, predicted)


_LARGEST = {"f4": np.float32(3e38), "f8": np.float64(1e300)}
_BITS: dict[str, tuple[Any, int, int]] = {"f4": (np.int32, 23, 127), "f8": (np.int64, 52, 1023)}


def _integer_cells(form: Form, predicted: Array) -> Cells:
    one = predicted.dtype.type
    clipped = np.clip(predicted, one(form.low), one(form.high))
    rounded = np.rint(clipped)
    rest = clipped - rounded
    return Cells(rounded.astype(np.int32), None, _toward(rest), _fraction(rest))


def _float_cells(form: Form, predicted: Array) -> Cells:
    integer, mantissa, bias = _BITS[form.work]
    bits = predicted.view(integer)
    magnitude = np.abs(predicted)
    exponent = (magnitude.view(integer) >> integer(mantissa)) - integer(bias)
    np.clip(exponent, integer(form.emin), integer(form.top), out=exponent)
    scale = ((integer(bias + form.mantissa) - exponent) << integer(mantissa)).view(predicted.dtype)
    scaled = np.minimum(magnitude * scale, predicted.dtype.type(2 << form.mantissa))
    rounded = np.rint(scaled)
    rest = scaled - rounded
    number = ((exponent - integer(form.emin)) << integer(form.mantissa)) + rounded.astype(integer)
    negative = -(bits < 0).astype(integer)
    number ^= negative
    toward = _toward(rest)
    toward[negative < 0] *= np.int8(-1)
    return Cells(number.astype(np.int32), exponent.astype(np.int32) - np.int32(form.mantissa), toward, _fraction(rest))


def _toward(rest: Array) -> NDArray[np.int8]:
    return np.where(rest < 0, np.int8(-1), np.int8(1))


def _fraction(rest: Array) -> NDArray[np.uint8]:
    steps: NDArray[np.uint8] = (np.abs(rest) * rest.dtype.type(2 * FRACTIONS)).astype(np.uint8)
    return steps

"""What a tensor is predicted from: the old one as it is, rescaled, fitted row by row, and a change of low rank.

A plan is the few numbers that say so; the rest (classes, factors) travels in the coded stream. One routine, `chunk`,
runs in the encoder and in the decoder alike: they differ in the coder they hand to it.
"""

from dataclasses import astuple, dataclass, fields
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ota.delta import lowrank, tokens
from ota.delta.errors import PatchError
from ota.delta.integers import FORMS, Cells, cells, load, values
from ota.delta.tensors import MAX_BYTES, Kind, Source

Array = NDArray[Any]
Ints = NDArray[np.int32]
CHUNK = 1 << 16  # elements
MAX_COLUMNS = 1 << 20  # that may have classes of their own, and times rank
KINDS = tuple(FORMS)
SCALES = (Kind.F16, Kind.F32, Kind.BF16)
ZEROS = (Kind.I8, Kind.U8, Kind.I4, Kind.U4, Kind.F16, Kind.F32, Kind.BF16)
_SMALL_CLASS = 6 - tokens.LOWEST  # the class of numbers of about eight


class Mode(IntEnum):
    NONE = 0  # no old tensor: integers against zero, floats by their own exponents
    COPY = 1
    SCALE = 2  # by the ratio of the scales
    FIT = 3  # by a factor for each row


@dataclass(frozen=True)
class Plan:
    """Offsets are told less the offset of the tensor itself. Classes are in half octaves.

    `center` of the residual; `row_spread` and `column_spread` the classes of the deviations from it, -1 where there are
    none; factors are 1 + k / 2^fit_shift with k of class `fit_spread`; `groups` scales a row (0: one for the tensor).
    """

    kind: int
    mode: int
    rows: int
    columns: int
    old: int = 0
    center: int = 0
    row_spread: int = -1
    column_spread: int = -1
    rank: int = 0
    exponent: int = 0
    fit_shift: int = 0
    fit_spread: int = 0
    groups: int = 0
    scale_kind: int = 0
    old_scale: int = 0
    new_scale: int = 0
    zero_kind: int = -1
    old_zero: int = 0
    new_zero: int = 0

    def params(self) -> tuple[int, ...]:
        """Trailing defaults are left away."""
        found = list(astuple(self))
        while len(found) > 4 and found[-1] == fields(self)[len(found) - 1].default:
            found.pop()
        return tuple(found)

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def form(self) -> Kind:
        return KINDS[self.kind]

    @property
    def size(self) -> int:
        return self.count * FORMS[self.form].width // 8

    @property
    def is_fresh(self) -> bool:
        return self.mode == Mode.NONE and FORMS[self.form].mantissa > 0


def parse(params: tuple[int, ...]) -> Plan:
    """PatchError for a plan that is out of bounds."""
    if not 4 <= len(params) <= len(fields(Plan)):
        raise PatchError("a plan of a wrong length")
    plan = Plan(*params)
    bounds: list[tuple[int, int, int]] = [
        (plan.kind, 0, len(KINDS) - 1),
        (plan.mode, 0, 3),
        (plan.rows, 1, MAX_BYTES),
        (plan.columns, 1, MAX_BYTES),
        (plan.old, -MAX_BYTES, MAX_BYTES),
        (plan.center, -4096, 4096),
        (plan.row_spread, -1, tokens.CLASSES - 1),
        (plan.column_spread, -1, tokens.CLASSES - 1),
        (plan.rank, 0, lowrank.MAX_RANK),
        (plan.exponent, -300, 300),
        (plan.fit_shift, 0, 30),
        (plan.fit_spread, 0, tokens.CLASSES - 1),
        (plan.groups, 0, plan.columns),
        (plan.scale_kind, 0, len(SCALES) - 1),
        (plan.zero_kind, -1, len(ZEROS) - 1),
    ]
    bounds += [(offset, -MAX_BYTES, MAX_BYTES) for offset in (plan.old_scale, plan.new_scale)]
    bounds += [(offset, -MAX_BYTES, MAX_BYTES) for offset in (plan.old_zero, plan.new_zero)]
    if any(not low <= number <= high for number, low, high in bounds) or plan.count > MAX_BYTES:
        raise PatchError("a plan out of bounds")
    _check_shape(plan)
    return plan


def _check_shape(plan: Plan) -> None:
    wide = plan.column_spread >= 0 or plan.rank > 0
    if wide and plan.columns * max(plan.rank, 1) > MAX_COLUMNS:
        raise PatchError("a plan with too many columns")
    if FORMS[plan.form].width == 4 and (plan.columns % 2 or (plan.columns > CHUNK and CHUNK % 2)):
        raise PatchError("a plan that splits a byte")
    if plan.groups and plan.columns % plan.groups:
        raise PatchError("a plan whose groups do not fit")
    if plan.mode == Mode.SCALE and (FORMS[plan.form].mantissa or (plan.groups > 1 and plan.columns > CHUNK)):
        raise PatchError("scales where there can be none")
    if plan.is_fresh and plan.rank:
        raise PatchError("low rank without an old tensor")


@dataclass(frozen=True)
class Block:
    """Rows and columns that are coded at once."""

    row: int
    rows: int
    column: int
    columns: int

    @property
    def count(self) -> int:
        return self.rows * self.columns


def blocks(plan: Plan) -> "list[Block] | Blocks":
    return Blocks(plan)


class Blocks:
    """The blocks of a tensor, in the order of its bytes: whole rows, or pieces of one where rows are long."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._pieces = -(-plan.columns // CHUNK)
        self._height = max(1, CHUNK // plan.columns)

    def __len__(self) -> int:
        return self._pieces * self._plan.rows if self._pieces > 1 else -(-self._plan.rows // self._height)

    def __getitem__(self, number: int) -> Block:
        plan = self._plan
        if not 0 <= number < len(self):
            raise IndexError(number)
        if self._pieces > 1:
            row, piece = divmod(number, self._pieces)
            return Block(row, 1, piece * CHUNK, min(CHUNK, plan.columns - piece * CHUNK))
        row = number * self._height
        return Block(row, min(self._height, plan.rows - row), 0, plan.columns)

    def start(self, number: int) -> int:
        """Bytes of the tensor before block `number`."""
        block = self[number]
        return (block.row * self._plan.columns + block.column) * FORMS[self._plan.form].width // 8

    def size(self, number: int) -> int:
        return self[number].count * FORMS[self._plan.form].width // 8


class Coder(Protocol):
    """Takes numbers into a stream, or gives those that are in it: the encoder hands them over, the decoder None."""

    def numbers(self, classes: NDArray[np.uint8], given: Ints | None) -> Ints: ...

    def residuals(self, family: int, classes: NDArray[np.uint8], found: Cells | None, given: Ints | None) -> Ints: ...

    def fresh(self, kind: Kind, classes: NDArray[np.uint8], given: Array | None) -> Ints: ...


@dataclass
class Columns:
    """What a tensor's blocks share: classes of columns, the right side of the low rank, sizes of the left."""

    classes: Ints | None = None
    right: NDArray[np.float64] | None = None
    left_classes: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Known:
    """What the encoder knows of a tensor beyond its plan."""

    elements: Array  # of the new tensor, [rows, columns], as stored
    numbers: Ints  # of the new tensor, ordered
    rows: Ints | None = None  # deviations of the rows' classes
    columns: Ints | None = None
    fits: Ints | None = None
    factors: lowrank.Factors | None = None


def columns(plan: Plan, coder: Coder, known: Known | None) -> Columns:
    """Codes what comes before a tensor's first block."""
    found = Columns()
    if plan.column_spread >= 0:
        spread = np.full(plan.columns, plan.column_spread, np.uint8)
        found.classes = _bounded(coder.numbers(spread, known.columns if known else None), 4096)
    if plan.rank:
        factors = known.factors if known else None
        sizes = _sizes(plan, coder, factors)
        classes = np.repeat(tokens.classify(sizes[1]), plan.columns)
        right = coder.numbers(classes, factors.right.reshape(-1) if factors else None).reshape(plan.rank, -1)
        found.right = lowrank.shifted(_bounded(right, lowrank.MAX_FACTOR), sizes[2])
        found.left_classes = tokens.classify(sizes[0])
    return found


def _sizes(plan: Plan, coder: Coder, factors: lowrank.Factors | None) -> Ints:
    """Of every component the class of the left and the right side, and the shift: [3, rank]."""
    given = None
    if factors:
        given = np.concatenate([typical(factors.left, 0), typical(factors.right, 1), factors.shifts]).astype(np.int32)
    sizes = coder.numbers(np.full(3 * plan.rank, _SMALL_CLASS, np.uint8), given).reshape(3, plan.rank)
    if sizes[2].min() < 0 or sizes[2].max() > lowrank.MAX_SHIFT:
        raise PatchError("low rank moved out of bounds")
    return sizes


def typical(numbers: Array, axis: int | None = None) -> Any:
    """The class, unclipped, of numbers of this size."""
    mean = (np.asarray(numbers, np.float64) ** 2).mean(axis=axis)
    return np.clip(np.rint(np.log2(np.maximum(mean, 2.0**-40))), tokens.LOWEST, 60).astype(np.int32)


def _bounded(numbers: Ints, limit: int) -> Ints:
    if len(numbers) and (numbers.min() < -limit or numbers.max() > limit):
        raise PatchError("a number of the predictor out of bounds")
    return numbers


@dataclass(frozen=True)
class Inputs:
    """Where a predictor reads: both files, and the tensor's own offset in the new one."""

    old: Source
    new: Source
    offset: int


def block(plan: Plan, at: Block, shared: Columns, inputs: Inputs, coder: Coder, known: Known | None) -> Ints:
    """Codes one block and gives its ordered integers."""
    lines = slice(at.row, at.row + at.rows)
    across = slice(at.column, at.column + at.columns)
    row_classes = _row_classes(plan, at, coder, known.rows[lines] if known and known.rows is not None else None)
    expected = row_classes[:, None] if shared.classes is None else row_classes[:, None] + shared.classes[None, across]
    if plan.is_fresh:
        given = known.elements[lines, across].reshape(-1) if known else None
        return coder.fresh(plan.form, _spread(tokens.classify(expected), at), given)
    predicted = _predict(plan, at, row_classes, shared, inputs, coder, known)
    found = cells(plan.form, predicted)
    if found.octave is not None:
        expected = expected - 2 * found.octave.reshape(at.rows, at.columns)
    classes = _spread(tokens.classify(expected), at)
    given = None
    if known:
        given = tokens_given(plan.form, known.numbers[lines, across].reshape(-1), found)
    residuals = coder.residuals(tokens.family(plan.form), classes, found, given)
    return found.ordered + residuals * found.toward


def tokens_given(kind: Kind, numbers: Ints, found: Cells) -> Ints:
    """Residuals toward the nearer neighbour, modulo the kind's width."""
    spare = np.int32(32 - FORMS[kind].width)
    return ((numbers - found.ordered) * found.toward) << spare >> spare


def _spread(classes: NDArray[np.uint8], at: Block) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.broadcast_to(classes, (at.rows, at.columns))).reshape(-1)


def _row_classes(plan: Plan, at: Block, coder: Coder, given: Ints | None) -> Ints:
    if plan.row_spread < 0:
        return np.full(at.rows, plan.center, np.int32)
    spread = np.full(at.rows, plan.row_spread, np.uint8)
    return _bounded(coder.numbers(spread, given), 4096) + np.int32(plan.center)


def _predict(
    plan: Plan, at: Block, row_classes: Ints, shared: Columns, inputs: Inputs, coder: Coder, known: Known | None
) -> Array:
    """The numbers expected, flat, in the floats the kind is worked with."""
    work = np.dtype(FORMS[plan.form].work)
    predicted = np.zeros((at.rows, at.columns), work)
    lift = None
    if plan.mode != Mode.NONE:
        predicted = _old(plan, at, inputs)
    if plan.mode == Mode.FIT:
        predicted *= _fits(plan, at, coder, known).astype(work)
    if plan.mode == Mode.SCALE:
        predicted, lift = _rescale(plan, at, predicted, inputs)
    if plan.rank and shared.right is not None and shared.left_classes is not None:
        predicted += _change(plan, at, row_classes, shared, coder, known, lift).astype(work)
    if plan.mode == Mode.SCALE and plan.zero_kind >= 0:
        predicted = _regroup(plan, at, predicted) + _points(plan, at, inputs.new, inputs.offset + plan.new_zero)
    return predicted.reshape(-1)


def _old(plan: Plan, at: Block, inputs: Inputs) -> Array:
    width = FORMS[plan.form].width
    start = (at.row * plan.columns + at.column) * width // 8
    data = inputs.old.read(inputs.offset + plan.old + start, at.count * width // 8)
    return values(plan.form, load(plan.form, data)).reshape(at.rows, at.columns)


def _fits(plan: Plan, at: Block, coder: Coder, known: Known | None) -> Array:
    given = known.fits[at.row : at.row + at.rows] if known and known.fits is not None else None
    found = coder.numbers(np.full(at.rows, plan.fit_spread, np.uint8), given)
    return (1.0 + np.ldexp(found.astype(np.float64), -plan.fit_shift))[:, None]


def _change(
    plan: Plan, at: Block, row_classes: Ints, shared: Columns, coder: Coder, known: Known | None, lift: Array | None
) -> Array:
    """The low rank part: in units of the rows' classes, or of the scales where there are any."""
    assert shared.right is not None
    assert shared.left_classes is not None
    given = None
    if known and known.factors:
        given = known.factors.left[at.row : at.row + at.rows].reshape(-1)
    left = coder.numbers(np.tile(shared.left_classes, at.rows), given).reshape(at.rows, plan.rank)
    change = lowrank.product(_bounded(left, lowrank.MAX_FACTOR), shared.right[:, at.column : at.column + at.columns])
    if lift is not None:
        grouped = change.reshape(lift.shape[0], lift.shape[1], -1) * (2.0**plan.exponent)
        return (grouped * lift).reshape(at.rows, at.columns)
    change *= np.ldexp(1.0, (row_classes - np.int32(plan.center)) // 2 + plan.exponent)[:, None]
    return change


def _rescale(plan: Plan, at: Block, old: Array, inputs: Inputs) -> tuple[Array, Array]:
    """Old integers in units of the new scale, and one over the new scale [rows, groups, 1]."""
    was = _scales(plan, at, inputs.old, inputs.offset + plan.old_scale)
    now = _scales(plan, at, inputs.new, inputs.offset + plan.new_scale)
    ratio = was / now
    grouped = _regroup(plan, at, old)
    if plan.zero_kind >= 0:
        grouped = grouped - _points(plan, at, inputs.old, inputs.offset + plan.old_zero)
    return (grouped * ratio.astype(old.dtype)).reshape(at.rows, at.columns), 1.0 / now


def _regroup(plan: Plan, at: Block, numbers: Array) -> Array:
    return numbers.reshape(*_grid(plan, at), -1)


def _grid(plan: Plan, at: Block) -> tuple[int, int]:
    return (at.rows, plan.groups) if plan.groups else (1, 1)


def _scales(plan: Plan, at: Block, source: Source, offset: int) -> Array:
    return _points_of(plan, at, SCALES[plan.scale_kind], source, offset).astype(np.float64)


def _points(plan: Plan, at: Block, source: Source, offset: int) -> Array:
    return _points_of(plan, at, ZEROS[plan.zero_kind], source, offset).astype(FORMS[plan.form].work)


def _points_of(plan: Plan, at: Block, kind: Kind, source: Source, offset: int) -> Array:
    """One number a group of the rows of a block, [rows, groups, 1]; four-bit ones from the byte they begin in."""
    width = FORMS[kind].width
    first, count = (at.row * plan.groups, at.rows * plan.groups) if plan.groups else (0, 1)
    begin, end = first * width // 8, -(-(first + count) * width // 8)
    skipped = first - begin * 8 // width
    found = values(kind, load(kind, source.read(offset + begin, end - begin)))[skipped : skipped + count]
    return found.reshape(*_grid(plan, at), 1)

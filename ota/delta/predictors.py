"""What a tensor is predicted from: the old one as it is, rescaled, fitted row by row, and a change of low rank.

A plan is the few numbers that say so; the rest (classes, factors) travels in the coded stream. One routine, `block`,
runs in the encoder and in the decoder alike: they differ in the coder they hand to it.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ota.delta import lowrank, tokens
from ota.delta.errors import PatchError
from ota.delta.integers import FORMS, load, values
from ota.delta.plans import CHUNK, SCALES, ZEROS, Block, Mode, Plan
from ota.delta.tensors import Kind, Source
from ota.delta.terms import Terms

Array = NDArray[Any]
Ints = NDArray[np.int32]
Levels = NDArray[np.uint8] | None
_FRESH = 32  # half octaves added to the class of floats that nothing predicts: most are well below one
_SMALL_CLASS = 6 - tokens.LOWEST  # the class of numbers of about eight


class Coder(Protocol):
    """Takes numbers into a stream, or gives those that are in it: the encoder hands them over, the decoder None."""

    def numbers(self, classes: NDArray[np.uint8], given: Ints | None, levels: Levels = None) -> Ints:
        """`levels`: what else is known of each."""
        ...

    def leaning(self, classes: NDArray[np.uint8], given: Ints | None, lean: Ints) -> Ints:
        """`lean`: numbers near by, added up; those to come are likely to be of their sign."""
        ...

    def predicted(self, terms: Terms, given: Ints | None) -> bytes:
        """Ordered integers `given` against their prediction; the bytes they are."""
        ...

    def fresh(self, kind: Kind, classes: NDArray[np.uint8], given: Array | None) -> bytes:
        """Floats as stored, without a prediction; the same bytes."""
        ...


@dataclass
class Columns:
    """What a tensor's blocks share: classes of columns, the right side of the low rank, sizes of the left.

    `left` [rows so far, rank] where it is kept for the weights that follow, or was.
    """

    classes: Ints | None = None
    right: NDArray[np.float64] | None = None
    left_classes: NDArray[np.uint8] | None = None
    left: Ints | None = None


@dataclass(frozen=True)
class Known:
    """What the encoder knows of a tensor beyond its plan."""

    elements: Array  # of the new tensor, [rows, columns], as stored
    numbers: Ints  # of the new tensor, ordered
    rows: Ints | None = None  # deviations of the rows' classes
    columns: Ints | None = None
    fits: Ints | None = None
    factors: lowrank.Factors | None = None


def columns(plan: Plan, coder: Coder, known: Known | None, before: Columns | None = None) -> Columns:
    """Codes what comes before a tensor's first block; `before` is what the last scales keep."""
    found = _kept(plan, _told(known) or before) if plan.kept else Columns()
    if plan.column_spread >= 0:
        spread = np.full(plan.columns, plan.column_spread, np.uint8)
        found.classes = _bounded(coder.numbers(spread, known.columns if known else None), 4096)
    if plan.rank and not plan.kept:
        factors = known.factors if known else None
        sizes = _sizes(plan, coder, factors)
        beside = None if plan.is_peak else found.classes
        right = _right(plan, tokens.classify(sizes[1]), beside, coder, factors.right if factors else None)
        found.right = lowrank.shifted(right, sizes[2])
        found.left_classes = tokens.classify(sizes[0])
        found.left = np.zeros((0, plan.rank), np.int32) if plan.is_peak else None
    return found


def _told(known: Known | None) -> Columns | None:
    if known is None or known.factors is None:
        return None
    return Columns(right=lowrank.shifted(known.factors.right, known.factors.shifts), left=known.factors.left)


def _kept(plan: Plan, before: Columns | None) -> Columns:
    if before is None or before.right is None or before.left is None:
        raise PatchError("a low rank that nothing before has told")
    if before.right.shape != (plan.rank, plan.columns) or before.left.shape != (plan.rows, plan.rank):
        raise PatchError("a low rank of another shape than the weights")
    return Columns(right=before.right, left=before.left)


def _right(plan: Plan, sizes: NDArray[np.uint8], beside: Ints | None, coder: Coder, given: Ints | None) -> Ints:
    """The right side; where there are taps one after the other, each leaning on those to its left and above it."""
    if plan.high == plan.wide == 1:
        levels = None if beside is None else np.tile(tokens.beside(beside), plan.rank)
        numbers = coder.numbers(np.repeat(sizes, plan.across), None if given is None else given.reshape(-1), levels)
        return _bounded(numbers, lowrank.MAX_FACTOR).reshape(plan.rank, plan.across)
    inputs = plan.across // (plan.high * plan.wide)
    classes = np.repeat(sizes, inputs)
    shape = (plan.rank, inputs, plan.high, plan.wide)
    taps = None if given is None else given.reshape(shape)
    found = np.zeros((plan.rank, inputs, plan.high + 1, plan.wide + 1), np.int32)  # nothing ahead of the first
    for high in range(plan.high):
        for wide in range(plan.wide):
            tap = None if taps is None else taps[:, :, high, wide].reshape(-1)
            lean = found[:, :, high + 1, wide] + found[:, :, high, wide + 1]
            numbers = _bounded(coder.leaning(classes, tap, lean.reshape(-1)), lowrank.MAX_FACTOR)
            found[:, :, high + 1, wide + 1] = numbers.reshape(plan.rank, inputs)
    return found[:, :, 1:, 1:].reshape(plan.rank, plan.across)


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


def block(plan: Plan, at: Block, shared: Columns, inputs: Inputs, coder: Coder, known: Known | None) -> bytes:
    """Codes one block and gives its bytes."""
    lines = slice(at.row, at.row + at.rows)
    across = slice(at.column, at.column + at.columns)
    row_classes = _row_classes(plan, at, coder, known.rows[lines] if known and known.rows is not None else None)
    column_classes = None if shared.classes is None else shared.classes[across]
    if plan.is_fresh:
        expected = np.broadcast_to(row_classes[:, None], (at.rows, at.columns))
        expected = expected if column_classes is None else expected + column_classes
        given = known.elements[lines, across].reshape(-1) if known else None
        return coder.fresh(plan.form, tokens.classify(expected + np.int32(_FRESH)).reshape(-1), given)
    terms = _terms(plan, at, row_classes, shared, inputs, coder, known)
    return coder.predicted(terms, known.numbers[lines, across].reshape(-1) if known else None)


def _row_classes(plan: Plan, at: Block, coder: Coder, given: Ints | None) -> Ints:
    if plan.row_spread < 0:
        return np.full(at.rows, plan.center, np.int32)
    spread = np.full(at.rows, plan.row_spread, np.uint8)
    return _bounded(coder.numbers(spread, given), 4096) + np.int32(plan.center)


def _terms(
    plan: Plan, at: Block, row_classes: Ints, shared: Columns, inputs: Inputs, coder: Coder, known: Known | None
) -> Terms:
    factor, lift, old_zero, new_zero = None, None, None, None
    if plan.is_peak:
        factor = _peaks(plan, at, shared, inputs, coder, known)
    if plan.is_fitted:
        factor = _fits(plan, at, coder, known)
    if plan.is_scaled:
        now = _scales(plan, at, inputs.new, inputs.offset + plan.new_scale)
        was = _scales(plan, at, inputs.old, inputs.offset + plan.old_scale)
        ratio = now / was if plan.is_float else was / now
        factor = ratio if factor is None else ratio * factor
        lift = 2.0**plan.exponent * (1.0 / now)
        if plan.zero_kind >= 0:
            old_zero = _points(plan, at, ZEROS[plan.zero_kind], inputs.old, inputs.offset + plan.old_zero)
            new_zero = _points(plan, at, ZEROS[plan.zero_kind], inputs.new, inputs.offset + plan.new_zero)
    change = None
    if plan.rank and not plan.is_peak:
        beside = None if plan.row_spread < 0 else tokens.beside(row_classes - np.int32(plan.center))
        change = _change(plan, at, beside, shared, coder, known)
        if lift is None:
            lift = np.ldexp(1.0, (row_classes - np.int32(plan.center)) // 2 + plan.exponent)[:, None, None]
    return Terms(
        kind=plan.form,
        rows=at.rows,
        columns=at.columns,
        old=None if plan.mode == Mode.NONE else _old(plan, at, inputs),
        row_classes=row_classes,
        column_classes=None if shared.classes is None else shared.classes[at.column : at.column + at.columns],
        factor=factor,
        change=change,
        lift=lift,
        old_zero=old_zero,
        new_zero=new_zero,
    )


def _old(plan: Plan, at: Block, inputs: Inputs) -> bytes:
    width = FORMS[plan.form].width
    start = (at.row * plan.columns + at.column) * width // 8
    return inputs.old.read(inputs.offset + plan.old + start, at.count * width // 8)


def _fits(plan: Plan, at: Block, coder: Coder, known: Known | None) -> Array:
    given = known.fits[at.row : at.row + at.rows] if known and known.fits is not None else None
    found = coder.numbers(np.full(at.rows, plan.fit_spread, np.uint8), given)
    return (1.0 + np.ldexp(found.astype(np.float64), -plan.fit_shift))[:, None, None]


def _change(plan: Plan, at: Block, beside: Levels, shared: Columns, coder: Coder, known: Known | None) -> Array:
    """The low rank part, as integers."""
    assert shared.right is not None
    if plan.kept:
        assert shared.left is not None
        left = shared.left[at.row : at.row + at.rows]
    else:
        left = _left(plan, at, beside, shared, coder, known)
    return lowrank.product(left, shared.right[:, at.column : at.column + at.columns])


def _left(plan: Plan, at: Block, beside: Levels, shared: Columns, coder: Coder, known: Known | None) -> Ints:
    assert shared.left_classes is not None
    given = None
    if known and known.factors:
        given = known.factors.left[at.row : at.row + at.rows].reshape(-1)
    levels = None if beside is None else np.repeat(beside, plan.rank)
    left = coder.numbers(np.tile(shared.left_classes, at.rows), given, levels).reshape(at.rows, plan.rank)
    return _bounded(left, lowrank.MAX_FACTOR)


def _peaks(plan: Plan, at: Block, shared: Columns, inputs: Inputs, coder: Coder, known: Known | None) -> Array:
    """By what each scale changes, [rows, columns, 1]; the left side is kept for the weights."""
    assert shared.left is not None
    left = _left(plan, at, None, shared, coder, known)
    if at.column == 0:
        shared.left = np.concatenate([shared.left, left])
    found = np.empty((at.rows, at.columns, 1))
    height = max(1, CHUNK // (at.columns * plan.groups))
    for row in range(0, at.rows, height):
        some = Block(at.row + row, min(height, at.rows - row), at.column, at.columns)
        found[row : row + height] = peaks(plan, some, left[row : row + height], shared, inputs)
    return found


def peaks(plan: Plan, at: Block, left: Ints, shared: Columns, inputs: Inputs) -> Array:
    """The largest weight of each group, with the change, over that of the old ones; 1 where that is no number."""
    assert shared.right is not None
    kind, start = ZEROS[plan.zero_kind], (at.row * plan.columns + at.column) * plan.groups
    width = FORMS[kind].width
    count = at.count * plan.groups
    stored = load(kind, inputs.old.read(inputs.offset + plan.old_zero + start * width // 8, count * width // 8))
    weights = values(kind, stored).astype(np.float64).reshape(at.count, plan.groups)
    scales = values(plan.form, load(plan.form, _old(plan, at, inputs))).astype(np.float64)
    across = slice(at.column * plan.groups, (at.column + at.columns) * plan.groups)
    change = lowrank.product(left, shared.right[:, across]).reshape(weights.shape) * 2.0**plan.exponent
    moved = weights + change / scales[:, None]
    moved = np.where(np.isfinite(moved), moved, 0.0)
    ratio = _largest(moved) / _largest(weights)
    return np.where(np.isfinite(ratio), ratio, 1.0).reshape(at.rows, at.columns, 1)


def _largest(groups: Array) -> Array:
    """Of each row of numbers the one that is farthest from nothing, with its sign."""
    return np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], 1)[:, 0]


def _scales(plan: Plan, at: Block, source: Source, offset: int) -> Array:
    return _points(plan, at, SCALES[plan.scale_kind], source, offset)


def _points(plan: Plan, at: Block, kind: Kind, source: Source, offset: int) -> Array:
    """One number a group of the rows of a block, [rows, groups, 1]; four-bit ones from the byte they begin in."""
    width = FORMS[kind].width
    first, count = (at.row * plan.groups, at.rows * plan.groups) if plan.groups else (0, 1)
    begin, end = first * width // 8, -(-(first + count) * width // 8)
    skipped = first - begin * 8 // width
    found = values(kind, load(kind, source.read(offset + begin, end - begin)))[skipped : skipped + count]
    return found.astype(np.float64).reshape((at.rows, plan.groups, 1) if plan.groups else (1, 1, 1))

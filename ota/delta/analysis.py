"""The encoder's choice: which plan predicts a tensor best, measured by what its tokens would cost."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ota.delta import lowrank, predictors, tokens
from ota.delta.integers import FORMS, load, ordered, values
from ota.delta.predictors import KINDS, Inputs, Known, Mode, Plan, typical
from ota.delta.streams import Noted
from ota.delta.tensors import Tensor

Array = NDArray[Any]
_MIN_MATRIX = 512  # elements below which rows and ranks are not worth looking at
_MIN_RANKED = 16  # rows and columns
_RANKS = 48


@dataclass(frozen=True)
class Candidate:
    plan: Plan
    known: Known
    bits: float


@dataclass(frozen=True)
class Hinted:
    """Scales and zero points of a pair as the plan tells them, and as numbers [rows, groups or 1, 1]."""

    fields: dict[str, int]
    old_scale: Array
    new_scale: Array
    old_zero: Array | float
    new_zero: Array | float


def shape_of(tensor: Tensor) -> tuple[int, int] | None:
    """Rows and columns to work in, None where the codec has nothing to say about such a tensor."""
    if tensor.kind not in FORMS or tensor.count == 0:
        return None
    count = tensor.size * 8 // FORMS[tensor.kind].width
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    while rows == 1 and len(tensor.shape) > 1 and tensor.shape[0] == 1:
        rows = next((length for length in tensor.shape if length > 1), 1)
        break
    if count != tensor.count or count // rows < 4 or (count // rows * FORMS[tensor.kind].width) % 8:
        rows = 1
    return rows, count // rows


def measure(noted: Noted) -> float:
    """Bits of what was noted, under its own statistics, with a fee for every pair of context and symbol."""
    total = 0.0
    for widths in noted.raw:
        total += float(widths[1].sum(dtype=np.int64))
    if not noted.calls:
        return total
    keys = np.concatenate([contexts.astype(np.int32) << 8 | symbols for contexts, symbols in noted.calls])
    counts = np.bincount(keys, minlength=0)
    counts = np.concatenate([counts, np.zeros(-len(counts) % 256, counts.dtype)]).reshape(-1, 256)
    counts = counts[counts.any(axis=1)].astype(np.float64)
    rows = counts.sum(axis=1)
    return (
        total
        + float((rows * np.log2(rows)).sum() - (counts * np.log2(np.maximum(counts, 1))).sum())
        + float((counts > 0).sum())
    )


def run(plan: Plan, known: Known, inputs: Inputs) -> Iterator[Noted]:
    """What is to be coded, block by block; the first holds what comes before, too."""
    noted = Noted()
    shared = predictors.columns(plan, noted, known)
    walk = predictors.Blocks(plan)
    for number in range(len(walk)):
        predictors.block(plan, walk[number], shared, inputs, noted, known)
        yield noted
        noted = Noted()


class Analysis:
    """One tensor pair; `inputs.offset` is the new tensor's."""

    def __init__(self, inputs: Inputs, new: Tensor, old: Tensor | None, hinted: Hinted | None = None) -> None:
        self.inputs, self.hinted, self.kind = inputs, hinted, new.kind
        shape = shape_of(new)
        assert shape is not None
        self.rows, self.columns = shape
        stored = load(new.kind, inputs.new.read(new.offset, new.size))
        self.elements = stored.reshape(shape)
        self.numbers = ordered(new.kind, stored).reshape(shape)
        self.values = self._real(values(new.kind, stored))
        self.old: Array | None = None
        self.base = Plan(KINDS.index(new.kind), Mode.NONE, *shape)
        if old is not None:
            self.old = self._real(values(old.kind, load(old.kind, inputs.old.read(old.offset, old.size))))
            self.base = replace(self.base, old=old.offset - new.offset)

    def _real(self, numbers: Array) -> Array:
        """Infinities and NaN count for nothing in what is estimated."""
        finite = np.where(np.isfinite(numbers), numbers, 0).astype(np.float64)
        return finite.reshape(self.rows, self.columns)

    def best(self) -> Candidate:
        """The cheapest plan."""
        found = [self._without_old()] if self.old is None or self.values.size >= _MIN_MATRIX else []
        if self.old is not None:
            found += list(self._with_old())
        return min(found, key=lambda candidate: candidate.bits)

    def _without_old(self) -> Candidate:
        plan = replace(self.base, mode=Mode.NONE, old=0)
        return self._classed(plan, self.values, np.zeros(1), 2 if FORMS[self.kind].mantissa else 0)

    def _with_old(self) -> Iterator[Candidate]:
        assert self.old is not None
        old = self.old
        yield from self._ranked(replace(self.base, mode=Mode.COPY), old, None)
        if self.values.size < _MIN_MATRIX:
            return
        if self.hinted is not None:
            scaled = replace(self.base, mode=Mode.SCALE, **self.hinted.fields)
            yield from self._ranked(scaled, self._rescaled(old), None)
        plan, predicted, fits = self._fitted(old)
        yield from self._ranked(plan, predicted, fits)

    def _rescaled(self, old: Array) -> Array:
        hinted = self.hinted
        assert hinted is not None
        rows, groups, _ = hinted.new_scale.shape
        grid = old.reshape(rows, groups, -1) - hinted.old_zero
        with np.errstate(all="ignore"):
            found = grid * (hinted.old_scale / hinted.new_scale) + hinted.new_zero
        return np.where(np.isfinite(found), found, 0.0).reshape(old.shape)

    def _fitted(self, old: Array) -> tuple[Plan, Array, Array]:
        """A factor for each row by least squares, as finely as the residuals ask for."""
        power = np.maximum((old * old).sum(axis=1), 1e-60)
        factor = (old * self.values).sum(axis=1) / power
        residual = self.values - factor[:, None] * old
        noise = np.sqrt((residual * residual).mean(axis=1) + 1e-60)
        step = np.median(3.46 * noise / np.sqrt(power))
        shift = int(np.clip(np.ceil(-np.log2(max(step, 2.0**-30))), 0, 30))
        limit = float(1 << 30)
        fits = np.rint(np.clip(np.ldexp(factor - 1.0, shift), -limit, limit)).astype(np.int32)
        spread = int(tokens.classify(typical(fits)))
        plan = replace(self.base, mode=Mode.FIT, fit_shift=shift, fit_spread=spread)
        return plan, old * (1.0 + np.ldexp(fits.astype(np.float64), -shift))[:, None], fits

    def _ranked(self, plan: Plan, predicted: Array, fits: Array | None) -> Iterator[Candidate]:
        """The plan as it is and, where the tensor is large enough, with a change of low rank."""
        plain = self._classed(plan, predicted, predicted, 1, fits)
        yield plain
        most = min(_RANKS, self.rows // 4, self.columns // 4, predictors.MAX_COLUMNS // self.columns)
        if min(self.rows, self.columns) < _MIN_RANKED or most < 1 or plain.bits < 0.02 * self.values.size:
            return
        unit = self._unit(plain)
        change = (self.values - predicted) / unit
        noise = float(np.sqrt(np.median((change * change).mean(axis=1))))
        factors = lowrank.find(change, noise, most)
        full = factors.left.shape[1]
        for rank in sorted({full, full // 2, full // 4} - {0}, reverse=True):
            part = factors.head(rank)
            moved = lowrank.product(part.left, lowrank.shifted(part.right, part.shifts)) * 2.0**part.exponent
            with_rank = replace(plain.plan, rank=rank, exponent=part.exponent)
            yield self._reclassed(with_rank, plain.known, part, predicted + moved * unit)

    def _unit(self, plain: Candidate) -> Array:
        """What a change of one means: the row's class as a power of two, or one over the new scale."""
        if plain.plan.mode == Mode.SCALE:
            assert self.hinted is not None
            scale = np.broadcast_to(self.hinted.new_scale, (*self.hinted.new_scale.shape[:2], 1))
            rows, groups, _ = scale.shape
            wide = np.broadcast_to(scale, (rows, groups, self.values.size // (rows * groups)))
            return 1.0 / np.where(wide == 0, 1.0, wide).reshape(self.values.shape)
        deviations = plain.known.rows if plain.known.rows is not None else np.zeros(self.rows, np.int32)
        return np.ldexp(1.0, (deviations + plain.plan.center) // 2)[:, None]

    def _classed(self, plan: Plan, predicted: Array, noise: Array, noisy: int, fits: Array | None = None) -> Candidate:
        """The plan with the best classes of rows and columns."""
        known = Known(self.elements, self.numbers, fits=fits)
        return self._spread(plan, known, self._squares(predicted, noisy))

    def _reclassed(self, plan: Plan, known: Known, factors: lowrank.Factors, predicted: Array) -> Candidate:
        """As `_classed`; the rows' classes stay, for the low rank is told in them."""
        known = replace(known, factors=factors)
        squares = self._squares(predicted, 1)
        if plan.mode == Mode.SCALE:
            plan = replace(plan, row_spread=-1, column_spread=-1)
            return self._spread(plan, replace(known, rows=None, columns=None), squares)
        kept = self._candidate(replace(plan, column_spread=-1), replace(known, columns=None))
        row = np.full(self.rows, plan.center) + (known.rows if known.rows is not None else 0)
        return min(kept, self._by_columns(kept.plan, kept.known, squares, row), key=lambda one: one.bits)

    def _squares(self, predicted: Array, noisy: int) -> tuple[Array, Array]:
        """Squares of residuals and what rounding alone contributes to them."""
        form = FORMS[self.kind]
        residual = self.values - predicted
        if noisy == 2:
            return self.values * self.values, np.zeros((1, 1))
        if not form.mantissa:
            return residual * residual, np.full((1, 1), 1 / 12 if noisy == 0 else 1 / 6)
        width = np.exp2(np.maximum(np.frexp(self.values)[1] - 1, form.emin) - form.mantissa)
        return residual * residual, width * width / 6

    def _spread(self, plan: Plan, known: Known, squares: tuple[Array, Array]) -> Candidate:
        rows = _classes(squares, 1)
        center = int(_classes((squares[0].reshape(1, -1), squares[1].reshape(1, -1)), 1)[0])
        found = [self._candidate(replace(plan, center=center), known)]
        if self.rows > 1 and self.columns >= 8:
            middle = int(np.median(rows))
            deviations = np.clip(rows - middle, -60, 60).astype(np.int32)
            spread = int(tokens.classify(typical(deviations)))
            by_rows = replace(plan, center=middle, row_spread=spread)
            found.append(self._candidate(by_rows, replace(known, rows=deviations)))
            found.append(self._by_columns(by_rows, found[-1].known, squares, middle + deviations))
        return min(found, key=lambda one: one.bits)

    def _by_columns(self, plan: Plan, known: Known, squares: tuple[Array, Array], row: Array) -> Candidate:
        if self.columns > predictors.MAX_COLUMNS or self.rows < 8:
            return Candidate(plan, known, np.inf)
        unit = np.exp2(-row.astype(np.float64))[:, None]
        scaled = (squares[0] * unit, np.broadcast_to(squares[1], squares[0].shape) * unit)
        deviations = np.clip(_classes(scaled, 0), -30, 30).astype(np.int32)
        spread = int(tokens.classify(typical(deviations)))
        return self._candidate(replace(plan, column_spread=spread), replace(known, columns=deviations))

    def _candidate(self, plan: Plan, known: Known) -> Candidate:
        whole = Noted()
        for noted in run(plan, known, self.inputs):
            whole.calls += noted.calls
            whole.raw += noted.raw
        return Candidate(plan, known, measure(whole) + 12 * len(plan.params()))


def _classes(squares: tuple[Array, Array], axis: int) -> NDArray[np.int32]:
    """Half octaves of the size of residuals along an axis, rounding taken out; noisy elements count less."""
    found, noise = np.broadcast_arrays(*squares)
    size = np.maximum(found.mean(axis=axis, keepdims=True), 1e-60)
    for _ in range(2):
        weight = 1.0 / (size + noise) ** 2
        weight /= weight.max(axis=axis, keepdims=True)
        size = ((found - noise) * weight).sum(axis=axis, keepdims=True) / weight.sum(axis=axis, keepdims=True)
        floor = np.maximum((noise * weight).sum(axis=axis, keepdims=True) / weight.sum(axis=axis, keepdims=True), 0)
        size = np.maximum(size, np.maximum(floor * 2.0**-12, 1e-60))
    return np.rint(np.log2(size)).reshape(-1).astype(np.int32)

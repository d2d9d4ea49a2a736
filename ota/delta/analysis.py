"""The encoder's choice: which plan predicts a tensor best, measured by what its tokens would cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ota.delta import lowrank, predictors, tokens
from ota.delta.integers import FORMS, load, ordered, values
from ota.delta.plans import CHUNK, KINDS, MAX_COLUMNS, MAX_TAPS, ZEROS, Block, Blocks, Mode, Plan
from ota.delta.predictors import Columns, Inputs, Known, typical
from ota.delta.streams import Noted
from ota.delta.tensors import Tensor

Array = NDArray[Any]
Ints = NDArray[np.int32]
Merged = tuple[NDArray[np.float32], NDArray[np.float32]]  # U [rows, rank] and V [rank, columns], of the trainer
_MIN_MATRIX = 512  # elements below which rows and ranks are not worth looking at
_MIN_RANKED = 16  # rows and columns
_RANKS = 64
_SHARES = (0.03, 0.06, 0.09, 0.13, 0.19, 0.26, 0.38, 0.5, 0.7, 1.0)  # of the rank found, that are tried
_REFITS = 2  # of rows' factors and low rank, in turns
_ALIKE = 0.1  # of the squares of a right side, what neighbouring taps have in common
_FINER = (0.5,)  # shares of what the low rank leaves, that are tried as its noise, too
_GRIDS = (15, 13, 11)  # bits of factors handed over, that are tried
_SAMPLE = 8  # blocks that a candidate is measured by


@dataclass(frozen=True)
class Candidate:
    plan: Plan
    known: Known
    bits: float


@dataclass(frozen=True)
class Start:
    """A plan without classes, what it predicts, and the factors of its rows."""

    plan: Plan
    predicted: Array
    fits: Ints | None = None


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


def _taps(tensor: Tensor, rows: int) -> tuple[int, int]:
    """Rows and columns of a convolution's kernel; 1 and 1 of anything else."""
    if len(tensor.shape) != 4 or rows != tensor.shape[0] or max(tensor.shape[2:]) > MAX_TAPS:
        return 1, 1
    return tensor.shape[2], tensor.shape[3]


def measure(noted: Noted) -> float:
    """Bits of what was noted, under its own statistics, with a fee for every pair of context and symbol."""
    total = float(sum(widths.sum(dtype=np.int64) for _, widths in noted.raw))
    for own in (True, False):
        calls = [call for call in noted.calls if len(call[0]) and (call[0][0] < tokens.CONTEXTS) == own]
        if calls:
            keys = [contexts.astype(np.int32) << 8 | symbols for contexts, symbols in calls]
            total += _under_own(np.concatenate(keys))
    return total


def _under_own(keys: NDArray[np.int32]) -> float:
    """Bits of symbols, the low bytes of `keys`, under the statistics of their contexts, which are the rest of them."""
    counts = np.bincount(keys - (keys.min() & ~0xFF))
    counts = np.concatenate([counts, np.zeros(-len(counts) % 256, counts.dtype)]).reshape(-1, 256)
    counts = counts[counts.any(axis=1)].astype(np.float64)
    rows = counts.sum(axis=1)
    bits = (rows * np.log2(rows)).sum() - (counts * np.log2(np.maximum(counts, 1))).sum()
    return float(bits + (counts > 0).sum())


def run(plan: Plan, known: Known, inputs: Inputs, chosen: Sequence[int] | None = None) -> Iterator[Noted]:
    """What is to be coded: what comes before the blocks with the first of them, and all blocks or the chosen ones."""
    noted = Noted()
    shared = predictors.columns(plan, noted, known)
    walk = Blocks(plan)
    for number in range(len(walk)) if chosen is None else chosen:
        predictors.block(plan, walk[number], shared, inputs, noted, known)
        yield noted
        noted = Noted()


class Analysis:
    """One tensor pair; `inputs.offset` is the new tensor's."""

    def __init__(
        self,
        inputs: Inputs,
        new: Tensor,
        old: Tensor | None,
        hinted: Hinted | None = None,
        merged: Merged | None = None,
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.inputs, self.hinted, self.kind, self.merged = inputs, hinted, new.kind, merged
        shape = shape or shape_of(new)
        assert shape is not None
        self.rows, self.columns = shape
        stored = load(new.kind, inputs.new.read(new.offset, new.size))
        self.elements = stored.reshape(shape)
        self.numbers = ordered(new.kind, stored).reshape(shape)
        self.values = self._real(values(new.kind, stored))
        self.old: Array | None = None
        self.taps = _taps(new, self.rows)
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
            starts = list(self._starts(self.old))
            plain = [self._classed(start.plan, self.values - start.predicted, start.fits) for start in starts]
            first = min(range(len(plain)), key=lambda number: plain[number].bits)
            found += [plain[first], *self._ranked(starts[first], plain[first])]
        return min(found, key=lambda candidate: candidate.bits)

    def peaked(self, weights: Tensor, new: Candidate) -> Candidate:
        """As scales of old `weights`, of which the new ones have a low rank; it is told here, ahead of them."""
        assert self.old is not None
        factors = new.known.factors
        assert factors is not None
        plan = replace(
            self.base,
            mode=Mode.PEAK,
            rank=new.plan.rank,
            exponent=new.plan.exponent,
            groups=new.plan.columns // self.columns,
            zero_kind=ZEROS.index(weights.kind),
            old_zero=weights.offset - self.inputs.offset,
        )
        shared = Columns(right=lowrank.shifted(factors.right, factors.shifts))
        height = max(1, CHUNK // new.plan.columns)
        some = [Block(row, min(height, self.rows - row), 0, self.columns) for row in range(0, self.rows, height)]
        ratio = [
            predictors.peaks(plan, at, factors.left[at.row : at.row + at.rows], shared, self.inputs) for at in some
        ]
        residual = self.values - self.old * np.concatenate(ratio)[..., 0]
        return self._spread(plan, self._known(None, factors), self._squares(residual))

    def keeping(self, told: Candidate) -> Candidate:
        """The same, where the low rank was told ahead."""
        return self._candidate(replace(told.plan, kept=1, high=1, wide=1), told.known)

    def _without_old(self) -> Candidate:
        return self._classed(replace(self.base, mode=Mode.NONE, old=0), self.values, None)

    def _starts(self, old: Array) -> Iterator[Start]:
        """Every way to predict from the old tensor, without classes and low rank yet."""
        yield Start(replace(self.base, mode=Mode.COPY), old)
        if self.values.size >= _MIN_MATRIX or self.hinted is not None:
            if self.hinted is not None:
                plan, rescaled = replace(self.base, mode=Mode.SCALE, **self.hinted.fields), self._rescaled(old)
                yield Start(plan, rescaled)
                if "zero_kind" not in self.hinted.fields:
                    yield self._fitted(replace(plan, mode=Mode.BOTH), rescaled, self.values)
            yield self._fitted(replace(self.base, mode=Mode.FIT), old, self.values)

    def _rescaled(self, old: Array) -> Array:
        hinted = self.hinted
        assert hinted is not None
        rows, groups, _ = hinted.new_scale.shape
        grid = old.reshape(rows, groups, -1) - hinted.old_zero
        with np.errstate(all="ignore"):
            ratio = hinted.old_scale / hinted.new_scale
            found = grid * (1 / ratio if self.base.is_float else ratio) + hinted.new_zero
        return np.where(np.isfinite(found), found, 0.0).reshape(old.shape)

    def _fitted(self, plan: Plan, old: Array, target: Array) -> Start:
        """A factor for each row by least squares, as finely as the residuals ask for."""
        power = np.maximum((old * old).sum(axis=1), 1e-60)
        factor = (old * target).sum(axis=1) / power
        residual = target - factor[:, None] * old
        noise = np.sqrt((residual * residual).mean(axis=1) + 1e-60)
        step = np.median(3.46 * noise / np.sqrt(power))
        shift = int(np.clip(np.ceil(-np.log2(max(step, 2.0**-30))), 0, 30))
        limit = float(1 << 30)
        fits = np.rint(np.clip(np.ldexp(factor - 1.0, shift), -limit, limit)).astype(np.int32)
        spread = int(tokens.classify(typical(fits)))
        plan = replace(plan, fit_shift=shift, fit_spread=spread)
        return Start(plan, old * (1.0 + np.ldexp(fits.astype(np.float64), -shift))[:, None], fits)

    def _ranked(self, start: Start, plain: Candidate) -> Iterator[Candidate]:
        """With a change of low rank, where the tensor is large enough."""
        most = min(_RANKS, self.rows // 4, self.columns // 4, MAX_COLUMNS // self.columns)
        if (
            min(self.rows, self.columns) < _MIN_RANKED
            or most < 1
            or plain.bits < 0.02 * self.values.size
            or (start.plan.is_scaled and self.base.is_float)
        ):
            return
        unit = self._unit(start.plan, plain.known.rows)
        if self.merged is not None:
            yield from self._handed(start, self.merged, unit)
        for _ in range(_REFITS):
            found = lowrank.find((self.values - start.predicted) / unit, most)
            if not found.rank:
                return
            if start.plan.is_fitted and self.old is not None:
                before = self._rescaled(self.old) if start.plan.is_scaled else self.old
                start = self._fitted(start.plan, before, self.values - found.product() * unit)
        found = lowrank.find((self.values - start.predicted) / unit, most)
        if found.rank:
            yield self._climb(start, found, unit)

    def _climb(self, start: Start, found: lowrank.Components, unit: Array) -> Candidate:
        """The best of some ranks, going from a quarter of what was found to where it gets no better."""
        steps = sorted({max(1, round(found.rank * share)) for share in _SHARES})
        tried: dict[int, Candidate] = {}

        def bits(place: int) -> float:
            if place not in tried:
                tried[place] = self._with_rank(start, found.head(steps[place]), unit)
            return tried[place].bits

        place = len(steps) // 2
        for way in (1, -1):
            while 0 <= place + way < len(steps) and bits(place + way) < bits(place):
                place += way
        bits(place)
        finer = [self._with_rank(start, found.head(steps[place]), unit, share) for share in _FINER]
        return min(tried[place], *finer, key=lambda candidate: candidate.bits)

    def _handed(self, start: Start, merged: Merged, unit: Array) -> Iterator[Candidate]:
        """With the factors that the trainer merged: as coarse as they may be, and nearly as they are."""
        left, right = (np.asarray(part, np.float64) for part in merged)
        if left.shape != (self.rows, right.shape[0]) or right.shape[1] != self.columns:
            return
        if not (np.isfinite(left).all() and np.isfinite(right).all() and left.any() and right.any()):
            return
        if len(right) > min(_RANKS, MAX_COLUMNS // self.columns):
            return
        change = left @ right if start.plan.is_scaled else left @ right / unit
        yield self._climb(start, lowrank.find(change, len(right), certain=True), unit)
        plan = replace(start.plan, row_spread=-1)
        squares = self._squares(self.values - start.predicted - left @ right * (unit if plan.is_scaled else 1.0))
        for bits in _GRIDS:
            factors = lowrank.on_grid(left, right, bits)
            yield self._spread(self._ranking(plan, factors), self._known(start.fits, factors), squares, rows=False)

    def _with_rank(self, start: Start, found: lowrank.Components, unit: Array, share: float = 1.0) -> Candidate:
        """Classes anew, from what the low rank leaves; the low rank as coarse as that allows."""
        residual = self.values - start.predicted - found.product() * unit
        squares = self._squares(residual)
        if start.plan.is_scaled:
            rest = np.sqrt(np.mean((residual / unit) ** 2))
            factors = lowrank.quantise(found.left, found.right, float(share * rest))
            factors = lowrank.settle(factors, (self.values - start.predicted) / unit)
            plan = self._ranking(start.plan, factors)
            return self._spread(plan, self._known(start.fits, factors), squares)
        plan, deviations = self._by_rows(start.plan, squares)
        now = self._unit(plan, deviations)
        rest = np.sqrt(np.median(((residual / now) ** 2).mean(axis=1)))
        factors = lowrank.quantise(found.left * unit / now, found.right, float(share * rest))
        factors = lowrank.settle(factors, (self.values - start.predicted) / now)
        plan = self._ranking(plan, factors)
        known = replace(self._known(start.fits, factors), rows=deviations)
        kept = self._candidate(plan, known)
        return min(kept, self._by_columns(plan, known, squares), key=lambda one: one.bits)

    def _ranking(self, plan: Plan, factors: lowrank.Factors) -> Plan:
        """With the low rank, whose right side is told tap by tap where neighbouring taps resemble each other."""
        high, wide = self.taps
        taps = factors.right.reshape(-1, high, wide).astype(np.float64)
        alike = (taps[:, 1:] * taps[:, :-1]).sum() + (taps[..., 1:] * taps[..., :-1]).sum()
        if alike < _ALIKE * (taps * taps).sum():
            high, wide = 1, 1
        return replace(plan, rank=factors.left.shape[1], exponent=factors.exponent, high=high, wide=wide)

    def _known(self, fits: Ints | None, factors: lowrank.Factors | None = None) -> Known:
        return Known(self.elements, self.numbers, fits=fits, factors=factors)

    def _unit(self, plan: Plan, deviations: Ints | None) -> Array:
        """What a change of one means: the row's class as a power of two, or one over the new scale."""
        if plan.is_scaled:
            assert self.hinted is not None
            scale = self.hinted.new_scale
            rows, groups, _ = scale.shape
            wide = np.broadcast_to(scale, (rows, groups, self.values.size // (rows * groups)))
            return 1.0 / np.where(wide == 0, 1.0, wide).reshape(self.values.shape)
        return np.ldexp(1.0, (np.zeros(self.rows, np.int32) if deviations is None else deviations) // 2)[:, None]

    def _classed(self, plan: Plan, residual: Array, fits: Ints | None) -> Candidate:
        return self._spread(plan, self._known(fits), self._squares(residual, plan.mode == Mode.NONE))

    def _squares(self, residual: Array, fresh: bool = False) -> tuple[Array, Array]:
        """Squares of residuals and what rounding alone contributes to them."""
        form = FORMS[self.kind]
        if fresh:
            return residual * residual, np.zeros((1, 1))
        if not form.mantissa:
            return residual * residual, np.zeros((1, 1))
        width = np.exp2(np.maximum(np.frexp(self.values)[1] - 1, form.emin) - form.mantissa)
        return residual * residual, width * width / 6

    def _spread(self, plan: Plan, known: Known, squares: tuple[Array, Array], rows: bool = True) -> Candidate:
        """The plan with the best classes: one for all, and where there are to be `rows` one a row, one a column too."""
        center = int(_classes((squares[0].reshape(1, -1), squares[1].reshape(1, -1)), 1)[0])
        found = [self._candidate(replace(plan, center=center), known)]
        if rows and self.rows > 1 and self.columns >= 8:
            by_rows, deviations = self._by_rows(plan, squares)
            known = replace(known, rows=deviations)
            found.append(self._candidate(by_rows, known))
            found.append(self._by_columns(by_rows, known, squares))
        return min(found, key=lambda one: one.bits)

    def _by_rows(self, plan: Plan, squares: tuple[Array, Array]) -> tuple[Plan, Ints]:
        rows = _classes(squares, 1)
        center = int(np.median(rows))
        deviations = np.clip(rows - center, -60, 60).astype(np.int32)
        spread = int(tokens.classify(typical(deviations)))
        return replace(plan, center=center, row_spread=spread), deviations

    def _by_columns(self, plan: Plan, known: Known, squares: tuple[Array, Array]) -> Candidate:
        if self.columns > MAX_COLUMNS or self.rows < 8 or known.rows is None:
            return Candidate(plan, known, np.inf)
        unit = np.exp2(-(known.rows + plan.center).astype(np.float64))[:, None]
        scaled = (squares[0] * unit, np.broadcast_to(squares[1], squares[0].shape) * unit)
        deviations = np.clip(_classes(scaled, 0), -30, 30).astype(np.int32)
        spread = int(tokens.classify(typical(deviations)))
        return self._candidate(replace(plan, column_spread=spread), replace(known, columns=deviations))

    def _candidate(self, plan: Plan, known: Known) -> Candidate:
        """Measured on some of the blocks, the first among them."""
        count = len(Blocks(plan))
        chosen = sorted(set(np.linspace(0, count - 1, _SAMPLE, dtype=int).tolist()))
        whole = Noted()
        for noted in run(plan, known, self.inputs, chosen):
            whole.calls += noted.calls
            whole.raw += noted.raw
        before = Noted()
        predictors.columns(plan, before, known)
        shared = measure(before)
        bits = (measure(whole) - shared) * count / len(chosen) + shared
        return Candidate(plan, known, bits + 12 * len(plan.params()))


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
    return np.asarray(np.rint(np.log2(size)).reshape(-1), np.int32)
